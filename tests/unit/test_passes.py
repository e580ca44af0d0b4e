from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from eigendet.errors import UserError
from eigendet.observe import store
from eigendet.observe.keys import Point
from eigendet.observe.passes import covariances

POINTS: tuple[Point, ...] = ("conv", "norm", "act", "block")


class Counting(list[torch.Tensor]):
    """Batches that count how often they are gone through."""

    passes = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        self.passes += 1
        return super().__iter__()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return resnet18(weights=None).train()


def test_a_memory_limit_makes_several_passes_with_the_same_result(model: nn.Module, tmp_path: Path) -> None:
    batches = Counting(torch.randn(2, 3, 40, 40) for _ in range(3))
    whole = {tap.key: tap for tap in covariances(model, batches, POINTS)}
    assert batches.passes == 1
    batches.passes = 0
    limited = list(covariances(model, batches, POINTS, memory=3 * 8 * 512**2))
    assert batches.passes > 3
    assert model.training
    store.write_covariances(tmp_path / "c.h5", [(0, limited)], {})
    assert [record.key for record in store.read(tmp_path / "c.h5")] == list(whole)
    for tap in limited:
        assert torch.equal(tap.covariance.scatter, whole[tap.key].covariance.scatter), tap.key
        assert tap.covariance.count == whole[tap.key].covariance.count


def test_what_cannot_be_done_in_passes_is_refused(model: nn.Module) -> None:
    batches = [torch.randn(2, 3, 40, 40) for _ in range(2)]
    with pytest.raises(
        UserError, match=r"memory: 0.000977 GiB, but layer4.0.conv1#0:conv alone has 512 channels and takes"
    ):
        list(covariances(model, batches, POINTS, memory=2**20))
    with pytest.raises(UserError, match="takes 12 passes over the data, but `batches` is an iterator"):
        list(covariances(model, iter(batches), POINTS, memory=8 * 512**2))


def test_every_image_has_its_own_mean_also_where_moments_follow_from_others(model: nn.Module, tmp_path: Path) -> None:
    images = [torch.randn(1, 3, 40, 40) + shift for shift in (0.0, 1.0, 2.0)]
    together = {tap.key: tap for tap in covariances(model, images, POINTS, image_means=True)}
    for number, image in enumerate(images):
        for alone in covariances(model, [image], POINTS):
            means = together[alone.key].image_means
            assert means is not None and len(means) == 3
            torch.testing.assert_close(means[number], alone.covariance.mean, rtol=1e-5, atol=1e-6)
    limited = covariances(model, images, POINTS, image_means=True, memory=3 * 8 * 512**2)
    for tap in limited:
        torch.testing.assert_close(tap.image_means, together[tap.key].image_means, rtol=1e-5, atol=1e-6)
    assert all(tap.image_means is None for tap in covariances(model, images, POINTS))


def test_gradients_are_off_for_the_passes_alone_and_no_tap_outlives_the_passes_of_its_group() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    alive: list[weakref.ref[object]] = []

    def run(batch: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert all(covariance() is None for covariance in alive)
        output: Tensor = model(batch)
        return output

    taken = 0
    for observed in covariances(model, [torch.randn(5, 4)], "act", memory=8 * 16, call=run):
        assert torch.is_grad_enabled()
        alive.append(weakref.ref(observed.covariance))
        taken += 1
        del observed
    assert taken == 2
