"""Moments of gradients against brute force in float64, and everything that a backward pass may do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eigendet.errors import UserError
from eigendet.observe import merging, store
from eigendet.observe.gradients import tap_gradients
from eigendet.observe.passes import gradients
from eigendet.observe.taps import tap
from tests.tapping import ALL, error


class Small(nn.Module):
    """A stem, a block that is called twice, a map that is read by three, tokens; in-place or not."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.tokens = nn.Linear(6, 5)
        self.score = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        first = self.act(self.norm(self.stem(images)))
        second = self.act(self.shared(first))
        third = self.act(self.shared(second) + first)
        tokens = self.act(self.tokens((third * second.mean()).flatten(2).mT))
        scores: Tensor = self.score(tokens)
        return scores


@pytest.fixture
def model() -> nn.Module:
    model = Small()
    with torch.no_grad():
        model(torch.randn(8, 3, 21, 17))
    return model.eval()


def brute(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """Return the gradients of all maps, by module and call, in float64, of a copy that writes nothing in place."""
    twin = copy.deepcopy(model).double()
    maps: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            calls[path] = calls.get(path, -1) + 1
            output.retain_grad()
            maps[f"{path}#{calls[path]}"] = output

        return hook

    for path, module in twin.named_modules():
        if hasattr(module, "inplace"):
            module.inplace = False
        if path:
            module.register_forward_hook(keep(path))
    run(twin).backward()
    return {name: output.grad for name, output in maps.items() if output.grad is not None}


def second_moment(gradient: Tensor, channel_dim: int = 1) -> Tensor:
    rows = gradient.double().movedim(channel_dim, 0).flatten(1)
    return rows @ rows.mT / rows.shape[1]


def test_moments_are_those_of_brute_force_at_every_map_in_place_shared_or_read_several_times(model: nn.Module) -> None:
    images = torch.randn(2, 3, 21, 17)
    expected = brute(model, lambda twin: twin(images.double()).square().sum())
    with tap(model, ALL) as taps, tap_gradients(model, ALL) as observed:
        model(images).square().sum().backward()
    assert list(observed) == list(taps)
    assert {key.rpartition(":")[0] for key in observed} == expected.keys()
    for key in observed:
        gradient = expected[key.rpartition(":")[0]]
        dim = -1 if gradient.dim() == 3 else 1
        assert error(observed[key].covariance(centered=False), second_moment(gradient, dim)) <= 1e-6, key
        torch.testing.assert_close(
            observed[key].mean, gradient.movedim(dim, 0).flatten(1).mean(1), rtol=1e-4, atol=1e-6
        )
        assert observed[key].count == taps[key].count == gradient.numel() // gradient.shape[dim]
        assert observed.of(key).passes == 1


def test_in_double_precision_they_are_exact(model: nn.Module) -> None:
    images = torch.randn(2, 3, 21, 17).double()
    expected = brute(model, lambda twin: twin(images).square().sum())
    with tap_gradients(model.double(), ALL) as observed:
        model(images).square().sum().backward()
    for key in observed:
        gradient = expected[key.rpartition(":")[0]]
        exact = second_moment(gradient, -1 if gradient.dim() == 3 else 1)
        assert error(observed[key].covariance(centered=False), exact) <= 1e-12, key


@pytest.mark.parametrize("scale", [1e-3, 1e-8, 1e-12, 1e-16, 1e-20, 1e-25])
@pytest.mark.parametrize("single", [False, True])
def test_gradients_however_small_keep_their_digits_in_memory_and_in_files(
    model: nn.Module, tmp_path: Path, scale: float, single: bool
) -> None:
    images = torch.randn(2, 3, 21, 17)
    with tap(model, "conv") as taps, tap_gradients(model, "conv") as plain:
        model(images).square().sum().backward()
    with tap_gradients(model, "conv") as observed:
        (model(images).square().sum() * scale).backward()
    taps.save(tmp_path / "c.h5", single=single, gradients=observed)
    for record in store.with_gradients(tmp_path / "c.h5"):
        expected = plain[record.key].covariance(centered=False) * scale**2
        assert error(observed[record.key].covariance(centered=False), expected) <= 1e-6
        assert record.gradient is not None
        assert error(torch.from_numpy(record.gradient.second_moment), expected) <= 1e-6


def test_padding_is_left_out_as_of_the_map(model: nn.Module) -> None:
    whole = torch.randn(2, 3, 32, 32)
    sizes, canvas = [(32, 20), (16, 32)], (32, 32)
    features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    with tap(features, ("conv", "output")) as taps, tap_gradients(features, ("conv", "output")) as observed:
        for each in (taps, observed):
            each.image_sizes(sizes, canvas)
        output = features(whole)
        output.square().sum().backward()
    assert [observed[key].count for key in observed] == [taps[key].count for key in taps]
    rows = torch.cat([(2 * output[0, :, :16, :10]).flatten(1), (2 * output[1, :, :8, :16]).flatten(1)], 1).detach()
    assert error(observed["2#0:output"].covariance(centered=False), second_moment(rows, 0)) <= 1e-6


def test_outputs_and_gradients_of_parameters_are_the_same_bits_and_nothing_remains(model: nn.Module) -> None:
    images = torch.randn(2, 3, 21, 17)
    plain = copy.deepcopy(model)
    plain(images).square().sum().backward()
    with tap_gradients(model, ALL) as observed:
        model(images).square().sum().backward()
        pickle.dumps(copy.deepcopy(model))
        late = model(images).square().sum()
    counts = {key: observed[key].count for key in observed}
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None and torch.equal(parameter.grad, other.grad)
    late.backward()
    assert {key: observed[key].count for key in observed} == counts


def test_a_batch_of_one_at_a_time_and_the_sum_over_a_batch_are_the_same(model: nn.Module) -> None:
    images = torch.randn(4, 3, 21, 17)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3))
    with tap_gradients(layers, "act") as alone:
        for image in images:
            layers(image[None]).square().sum().backward()
    with tap_gradients(layers, "act") as together:
        layers(images).square().sum().backward()
    with tap_gradients(layers, "act") as later:  # all passes first, then one backward pass of all
        torch.stack([layers(image[None]).square().sum() for image in images]).sum().backward()
    assert (alone.of("1").passes, together.of("1").passes, later.of("1").passes) == (4, 1, 4)
    for other in (together, later):
        assert other["1"].count == alone["1"].count
        assert error(other["1"].covariance(centered=False), alone["1"].covariance(centered=False)) <= 1e-6


def test_passes_without_a_backward_pass_are_not_counted(model: nn.Module) -> None:
    images = torch.randn(2, 3, 21, 17)
    with tap_gradients(model, "conv") as observed:
        model(images)
        model(images).square().sum().backward()
        with torch.no_grad():
            model(images)
    assert observed.of("stem").passes == 1
    assert observed["stem"].count == 2 * 10 * 8


def test_a_map_that_the_loss_does_not_depend_on_has_the_gradient_zero() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.other = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(4, 5)

        def forward(self, samples: Tensor, which: int) -> Tensor:
            stem = self.stem(samples)
            result: Tensor = (self.one(stem), self.other(stem))[which]
            return result

    branches = Branches()
    with tap_gradients(branches, "linear") as observed:
        for which, sample in enumerate((torch.rand(2, 3), torch.rand(4, 3))):
            branches(sample, which).sum().backward()
    assert (observed["one"].count, observed["other"].count, observed["stem"].count) == (6, 6, 6)
    torch.testing.assert_close(observed["one"].mean, torch.full((5,), 2 / 6).double())
    torch.testing.assert_close(observed["other"].covariance(centered=False), torch.full((5, 5), 4 / 6).double())


def test_a_second_backward_pass_is_refused_by_name(model: nn.Module) -> None:
    images = torch.randn(2, 3, 21, 17)
    refused = pytest.raises(UserError, match=r"score#0:linear: a second backward pass came to forward pass 1 ")
    with refused, tap_gradients(model, "linear"):
        model(images).sum().backward()
        scores = model(images)
        scores.sum().backward(retain_graph=True)
        scores.square().sum().backward()


def test_what_needs_no_gradient_is_named_and_no_gradient_at_all_is_refused(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    images = torch.randn(2, 3, 21, 17)
    model.get_submodule("stem").requires_grad_(False)
    model.get_submodule("norm").requires_grad_(False)
    with tap_gradients(model, ("conv", "norm")) as observed:
        model(images).square().sum().backward()
    assert "stem#0:conv, norm#0:norm: no gradient, since frozen layers" in caplog.text
    assert (observed["stem"].count, observed["shared#0"].count) == (0, 160)
    assert not observed.of("stem").second_moment.any()
    for run in (lambda: model(images), lambda: torch.no_grad()(model)(images)):
        refused = pytest.raises(UserError, match=r"no gradient came to the model's \(Small\) feature maps; call")
        with refused, tap_gradients(model, "conv"):
            run()
    with pytest.raises(UserError, match="did not run while it was tapped"), tap_gradients(model, "conv"):
        pass


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_gradient_checkpointing_gradients_are_the_same_or_named_as_lacking(
    model: nn.Module, reentrant: bool, caplog: pytest.LogCaptureFixture
) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)), nn.ReLU())
    images = torch.randn(2, 3, 12, 12)
    with tap_gradients(layers, ("conv", "act")) as plain:
        layers(images).square().sum().backward()
    inside = layers[1].forward
    layers[1].forward = lambda maps: checkpoint(inside, maps, use_reentrant=reentrant)
    with tap_gradients(layers, ("conv", "act")) as observed:
        layers(images).square().sum().backward()
    assert list(observed) == list(plain)
    lacking = ["1.0#0:act", "1.1#0:conv"] if reentrant else []
    assert [key for key in observed if not observed[key].count] == lacking
    for key in observed:
        if key not in lacking:
            assert torch.equal(observed[key].scatter, plain[key].scatter)
    assert ("1.0#0:act, 1.1#0:conv: no gradient" in caplog.text) == reentrant


def test_a_scaled_loss_is_refused_and_a_scaler_that_is_off_is_not(model: nn.Module) -> None:
    images = torch.randn(2, 3, 21, 17)
    scale = torch.amp.GradScaler.scale
    refused = pytest.raises(UserError, match="a GradScaler scales the loss whose gradients are observed")
    with refused, tap_gradients(model, "conv"):
        torch.amp.GradScaler("cpu").scale(model(images).sum()).backward()
    with tap_gradients(model, "conv") as observed:
        torch.amp.GradScaler("cpu", enabled=False).scale(model(images).sum()).backward()
    assert observed["stem"].count
    assert torch.amp.GradScaler.scale is scale


def test_scaling_is_the_processs_again_once_the_last_context_has_ended_in_any_order(model: nn.Module) -> None:
    scale, images = torch.amp.GradScaler.scale, torch.randn(2, 3, 21, 17)
    first, second = tap_gradients(model, "conv"), tap_gradients(model, "norm")
    first.__enter__(), second.__enter__()
    model(images).sum().backward()
    first.__exit__(None, None, None)
    with pytest.raises(UserError, match="a GradScaler scales the loss"):
        torch.amp.GradScaler("cpu").scale(images.sum())
    second.__exit__(None, None, None)
    assert torch.amp.GradScaler.scale is scale


def test_under_bfloat16_they_are_those_that_the_maps_had(model: nn.Module) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 3, 3))
    gradients: list[Tensor] = []
    layers[1].register_forward_hook(lambda module, inputs, output: output.register_hook(gradients.append) and None)
    with tap_gradients(layers, "act") as observed, torch.autocast("cpu", torch.bfloat16):
        layers(torch.randn(2, 3, 12, 12)).float().square().sum().backward()
    assert gradients[0].dtype == torch.bfloat16
    assert error(observed["1"].covariance(centered=False), second_moment(gradients[0])) <= 1e-6


def test_what_is_not_finite_is_named(model: nn.Module) -> None:
    refused = pytest.raises(UserError, match=r"the gradient at score#0:linear: NaN, infinity, .* in forward pass 1 ")
    with refused, tap_gradients(model, ("linear", "conv")):
        model(torch.randn(2, 3, 21, 17)).sum().backward()
        (model(torch.randn(2, 3, 21, 17)) * float("inf")).sum().backward()


def test_a_memory_limit_makes_several_passes_with_the_same_result(model: nn.Module) -> None:
    batches = list(torch.randn(3, 1, 3, 21, 17))
    model.zero_grad()

    def loss(images: Tensor) -> Tensor:
        result: Tensor = model(images).square().sum()
        return result

    whole = dict(gradients(model, batches, loss, ALL))
    limited = dict(gradients(model, batches, loss, ALL, memory=2 * 8 * 6**2))
    assert list(limited) == list(whole)
    for key, gradient in whole.items():
        assert torch.equal(limited[key].moments.scatter, gradient.moments.scatter)
        assert (limited[key].passes, limited[key].positions) == (3, gradient.moments.count / 3)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(UserError, match="but stem#0:conv alone has 6 channels"):
        list(gradients(model, batches, loss, ALL, memory=8))


def test_files_hold_them_merge_them_and_are_read_without(model: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(4, 1, 3, 21, 17)

    def save(path: Path, numbers: list[int], with_gradients: bool = True) -> None:
        with tap(model, ("conv", "linear"), shortcuts=False) as taps, tap_gradients(model, ("conv", "linear")) as own:
            for number in numbers:
                model(images[number]).square().sum().backward()
        taps.save(path, numbers, gradients=own if with_gradients else None)

    save(tmp_path / "whole.h5", [0, 1, 2, 3])
    for name, numbers in (("one.h5", [2, 0]), ("two.h5", [3, 1])):
        save(tmp_path / name, numbers)
    save(tmp_path / "without.h5", [3, 1], with_gradients=False)
    merging.merge(tmp_path / "merged.h5", [tmp_path / "one.h5", tmp_path / "two.h5"])
    pairs = zip(store.with_gradients(tmp_path / "whole.h5"), store.with_gradients(tmp_path / "merged.h5"), strict=True)
    for whole, merged in pairs:
        assert whole.gradient is not None and merged.gradient is not None
        assert (whole.gradient.passes, whole.gradient.positions) == (4, whole.count / 4)
        assert (merged.gradient.passes, merged.gradient.moments.count) == (4, whole.count)
        expected = whole.gradient.second_moment
        assert np.linalg.norm(merged.gradient.second_moment - expected) <= 1e-12 * np.linalg.norm(expected)
    assert all(record.gradient is None for record in store.read(tmp_path / "whole.h5"))
    header, row, *_ = list(store.describe(tmp_path / "whole.h5"))[-6:]
    first = next(store.with_gradients(tmp_path / "whole.h5"))
    assert header.split()[-1] == "gradient" and row.split()[0] == first.key and first.gradient is not None
    assert float(row.split()[-1]) == pytest.approx(np.trace(first.gradient.second_moment), rel=1e-2)
    with pytest.raises(UserError, match=r"without.h5: holds no gradient at stem#0:conv; set covariance.gradients to"):
        list(store.with_gradients(tmp_path / "without.h5"))
    with pytest.raises(UserError, match="gradient is 'missing', not 'there'"):
        merging.merge(tmp_path / "m.h5", [tmp_path / "one.h5", tmp_path / "without.h5"])


def test_what_cannot_be_saved_is_refused(model: nn.Module, tmp_path: Path) -> None:
    with tap(model, ("conv", "act")) as taps, tap_gradients(model, "conv") as observed:
        model(torch.randn(2, 3, 21, 17)).sum().backward()
    with pytest.raises(UserError, match=r"gradients: have no act#0:act, act#1:act, .*; observe those of the same maps"):
        taps.save(tmp_path / "c.h5", gradients=observed)
    with pytest.raises(UserError, match=r"gradients are stored with their taps; call `taps.save\("):
        observed.save(tmp_path / "c.h5")
    assert not (tmp_path / "c.h5").exists()
