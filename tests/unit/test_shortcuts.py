"""Moments that follow from those of other maps are computed, and equal what accumulating them gives."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

from eigendet.errors import UserError
from eigendet.moments.covariance import Covariance
from eigendet.observe.keys import Point
from eigendet.observe.shortcuts import Affine, affine_of, amplification, is_exact, state_of, strided
from eigendet.observe.taps import tap
from tests.tapping import ALL, block_with_statistics, error, exact


@pytest.mark.parametrize("points", [ALL, ("conv",), ("norm", "act"), ("conv", "block"), ("block",)])
def test_shortcuts_change_nothing_but_the_work(points: tuple[Point, ...]) -> None:
    model = nn.Sequential(block_with_statistics(), nn.Conv2d(16, 24, 1, stride=2), nn.ReLU(), norm_and_conv(24)).eval()
    batches = [torch.randn(2, 16, 9, 9) + 1 for _ in range(3)]
    with torch.no_grad(), tap(model, points) as taps, tap(model, points, shortcuts=False) as direct:
        for batch in batches:
            model(batch)
    assert list(taps) == list(direct)
    less = sum(channels**2 for channels, _ in taps.roots().values())
    assert less < sum(channels**2 for channels, _ in direct.roots().values()) or points in [("norm", "act"), ("block",)]
    for key in taps:
        assert taps[key].count == direct[key].count
        assert error(taps[key].covariance(), direct[key].covariance()) < 1e-6, key
        torch.testing.assert_close(taps[key].mean, direct[key].mean, rtol=1e-5, atol=1e-6)


def norm_and_conv(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * channels, 1, stride=2), nn.Sigmoid())


def test_resnet50_needs_accumulators_for_less_than_half_of_its_taps() -> None:
    model = resnet50(weights=None).eval()
    with torch.no_grad(), tap(model, ("conv", "norm", "act", "block"), measure=True) as taps:
        model(torch.randn(1, 3, 64, 64))
    assert len(taps) == 53 + 53 + 49 + 16
    assert len(taps.roots()) == 70
    accumulated = sum(channels**2 for channels, _ in taps.roots().values())
    assert accumulated < 0.3 * sum(covariance.channels**2 for covariance in taps.values())


def test_a_map_that_nearly_cancels_its_input_is_accumulated_itself() -> None:
    torch.manual_seed(0)
    direction = torch.linalg.qr(torch.randn(16, 16))[0][:, :1]
    plain, canceling = nn.Conv2d(16, 24, 1), nn.Conv2d(16, 24, 1)
    with torch.no_grad():
        across = torch.eye(16) - (1 - 1e-3) * direction @ direction.T  # passes a thousandth of that direction
        canceling.weight.copy_((plain.weight.flatten(1) @ across)[:, :, None, None])
    images = torch.randn(2, 16, 20, 20) + 300 * direction.view(1, 16, 1, 1) * torch.randn(2, 1, 20, 20)
    for layer, roots in ((plain, ["#0:input"]), (canceling, ["#0:conv"])):
        with torch.no_grad(), tap(layer, "conv") as taps:
            output = layer(images)
        assert list(map(str, taps.roots())) == roots
        assert error(taps["#0:conv"].covariance(), exact(output)) < 1e-6


def test_weights_that_change_between_passes_turn_shortcuts_into_accumulators() -> None:
    block = block_with_statistics().train()
    optimizer = torch.optim.SGD(block.parameters(), 0.5)
    batches = [torch.randn(2, 16, 9, 9) for _ in range(4)]
    with tap(block, ALL) as taps, tap(block, ALL, shortcuts=False) as direct:
        for batch in batches:
            optimizer.zero_grad()
            block(batch).square().mean().backward()
            optimizer.step()
    for key in taps:
        assert error(taps[key].covariance(), direct[key].covariance()) < 1e-6, key


def test_links_that_lead_to_no_observed_tensor_are_dropped_with_their_weights() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    with torch.no_grad(), tap(model, ("act", "linear"), modules=["0", "2", "3"]) as taps:
        for _ in range(3):
            model(torch.randn(50, 8))
    observer = taps._observer
    assert [str(key) for key in taps] == ["0#0:act", "2#0:linear", "3#0:act"]
    assert {str(key) for key in observer._links} == {"1#0:linear", "2#0:linear"}  # the second follows from the first
    assert set(observer._affine) == {model[1], model[2]}
    assert {str(key) for key in observer._ignored} == {"4#0:linear", "#0:output"}


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("matmul_precision")
def test_products_of_the_network_that_are_not_float32s_are_not_computed_from_its_inputs() -> None:
    """With bfloat16 units `medium` is 3e-3 away from the layer's map; cuDNN's TF32, its default, 3e-4."""
    model = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24)).eval()
    batches = [torch.randn(50, 16) for _ in range(3)]
    torch.set_float32_matmul_precision("medium")
    with torch.no_grad():
        outputs = [model[0](batch) for batch in batches]
        with tap(model, ("linear", "norm")) as taps:
            for batch in batches:
                model(batch)
    assert [str(root) for root in taps.roots()] == ["0#0:linear"]  # the norm is elementwise
    assert error(taps["0#0:linear"].covariance(), exact(torch.cat(outputs))) < 1e-6
    torch.set_float32_matmul_precision("highest")
    with torch.no_grad(), tap(model, ("linear", "norm")) as taps:
        model(batches[0])
        torch.set_float32_matmul_precision("medium")
        model(batches[1])
    assert [str(root) for root in taps.roots()] == ["0#0:linear", "1#0:norm"]


@pytest.mark.parametrize(("allowed", "exact"), [(True, False), (False, True)])
def test_on_a_gpu_convolutions_are_in_tf32_unless_told_otherwise(
    allowed: bool, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is only named: what is asked for is the process's setting."""
    before = torch.backends.cudnn.allow_tf32
    convolution, linear = nn.Conv2d(3, 4, 1), nn.Linear(3, 4)
    weight = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    for layer in (convolution, linear):
        monkeypatch.setitem(layer.__dict__, "weight", weight)
        monkeypatch.setattr(layer, "_parameters", {})
    try:
        torch.backends.cudnn.allow_tf32 = allowed
        assert is_exact(convolution) == exact and is_exact(linear)
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_weights_changed_behind_autograds_back_are_noticed_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is not asked for its weights in every pass, so there it is seen at the end."""
    layer, batches = nn.Conv2d(4, 8, 1), [torch.randn(1, 4, 3, 3) for _ in range(2)]

    def run() -> list[Tensor]:
        outputs = [layer(batches[0])]
        layer.weight.data.mul_(2)
        return [*outputs, layer(batches[1])]

    with torch.no_grad(), tap(layer, "conv") as taps:
        outputs = run()
    assert error(taps["#0:conv"].covariance(), exact(torch.cat(outputs))) < 1e-6
    monkeypatch.setattr("eigendet.observe.observer.is_still", lambda affine, module: True)
    with pytest.raises(UserError, match=r"#0:conv: does not follow in forward pass 1"), tap(layer, "conv"):
        run()
    monkeypatch.setattr("eigendet.observe.observer.is_near", lambda tensor: False)
    changed = r"#0:conv: the weights of its layer were changed through `.data`"
    with pytest.raises(UserError, match=changed), torch.no_grad(), tap(layer, "conv"):
        run()


def test_layers_that_are_not_what_they_seem_are_accumulated() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.conv2d(images, self.weight / self.weight.std(), self.bias)

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.conv = nn.ReLU(), nn.Conv2d(4, 8, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(self.act(images).mul_(3))

    hooked = nn.Conv2d(4, 8, 1)
    hooked.register_forward_pre_hook(lambda module, inputs: inputs[0].relu())
    for model in (Standardized(4, 8, 1), parametrizations.weight_norm(nn.Conv2d(4, 8, 1)), hooked, InPlace()):
        images = torch.randn(2, 4, 6, 6)
        with torch.no_grad(), tap(model, ("act", "conv")) as taps:
            output = model(images)
        assert error(list(taps.values())[-1].covariance(), exact(output)) < 1e-6


def test_a_model_that_takes_another_path_is_refused_with_the_way_out() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.conv, self.skip = nn.ReLU(), nn.Conv2d(4, 8, 1), False

        def forward(self, images: Tensor) -> Tensor:
            return self.act(images) if self.skip else self.conv(self.act(images))

    model, images = Skipping(), torch.randn(1, 4, 3, 3)
    with (
        pytest.raises(UserError, match=r"conv#0:conv: .* a layer was left out .* Give shortcuts=False"),
        tap(model, ALL),
    ):
        model(images)
        model.skip = True
        model(images)
    model.skip = False
    with tap(model, ALL, shortcuts=False) as taps:
        model(images)
        model.skip = True
        model(images)
    assert [covariance.count for covariance in taps.values()] == [18, 9]


def test_inference_mode_is_as_good_only_without_shortcuts() -> None:
    block = block_with_statistics()
    images = torch.randn(2, 16, 5, 5)
    with torch.inference_mode(), tap(block, ALL) as taps:
        output = block(images)
    assert error(taps["#0:block"].covariance(), exact(output.clone())) < 1e-6
    assert len(taps.roots()) == len(taps)


def filled(layer: nn.Module) -> nn.Module:
    """With weights and statistics that are all different, the variances positive."""
    generator = torch.Generator().manual_seed(0)
    for tensor in [*layer.parameters(), *layer.buffers()]:
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return layer.eval()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 1), (2, 4, 7)),
        (nn.Conv2d(4, 6, 1), (2, 4, 7, 5)),
        (nn.Conv2d(4, 6, (1, 1), bias=False), (2, 4, 7, 5)),
        (nn.Conv2d(4, 6, 1, stride=(2, 3)), (2, 4, 7, 5)),
        (nn.Conv2d(4, 6, 1, stride=(1, 2)), (2, 4, 7, 5)),
        (nn.Conv2d(4, 6, 1, padding="same"), (2, 4, 7, 5)),
        (nn.Conv2d(4, 6, 1, padding="valid"), (2, 4, 7, 5)),
        (nn.Conv3d(4, 6, 1, stride=2), (2, 4, 3, 4, 5)),
        (nn.BatchNorm1d(4), (2, 4, 7)),
        (nn.BatchNorm2d(4), (2, 4, 7, 5)),
        (nn.BatchNorm2d(4, eps=0.5, affine=False), (2, 4, 7, 5)),
        (nn.BatchNorm3d(4), (2, 4, 3, 4, 5)),
        (FrozenBatchNorm2d(4), (2, 4, 7, 5)),
    ],
)
def test_a_layer_is_the_map_of_every_position_that_it_computes(layer: nn.Module, shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    affine = affine_of(filled(layer))
    assert affine is not None
    with torch.no_grad():
        output = layer(images)
    computed = affine.apply(strided(images, affine.stride).movedim(1, -1))
    assert computed.dtype == torch.float64
    torch.testing.assert_close(computed, output.movedim(1, -1).double(), rtol=1e-5, atol=1e-5)


def test_a_linear_layer_is_the_map_of_its_last_dimension() -> None:
    layer = filled(nn.Linear(4, 3))
    affine = affine_of(layer)
    assert affine is not None and affine.stride == ()
    samples = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(affine.apply(samples), layer(samples).double(), rtol=1e-5, atol=1e-5)


def test_the_map_of_a_layer_is_a_copy_that_does_not_change_with_it() -> None:
    for layer in (nn.Conv2d(4, 6, 1), nn.Linear(4, 6), nn.BatchNorm2d(4)):
        filled(layer)
        before, again = affine_of(layer), affine_of(layer)
        assert before is not None and before.equals(again)
        assert not before.weight.requires_grad
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(1)
        assert before.equals(again) and not before.equals(affine_of(layer))


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(4, 4)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: output)
    return layer


def hooked_before(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, inputs: None)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, (1, 3)),
        nn.Conv2d(4, 6, 1, groups=2),
        nn.Conv2d(4, 6, 1, padding=1),
        nn.Conv2d(4, 6, 1, padding=(0, 1)),
        nn.BatchNorm2d(4, track_running_stats=False).eval(),
        nn.BatchNorm2d(4).train(),
        nn.ConvTranspose2d(4, 6, 1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 6, 1)),
        hooked(nn.Conv2d(4, 6, 1)),
        hooked_before(nn.Conv2d(4, 6, 1)),
        parametrizations.weight_norm(nn.Conv2d(4, 6, 1)),
        in_inference_mode(),
    ],
)
def test_other_functions_are_not_maps_of_every_position(layer: nn.Module) -> None:
    assert affine_of(layer) is None


def test_maps_are_equal_if_all_that_they_are_made_of_is() -> None:
    weight, bias = torch.rand(3, 2), torch.rand(3)
    assert Affine(weight, bias, (2, 2)).equals(Affine(weight.clone(), bias.clone(), (2, 2)))
    assert Affine(weight, None).equals(Affine(weight.clone(), None))
    one = Affine(weight, bias)
    others: list[Affine | None] = [None, Affine(weight, None), Affine(weight, bias + 1), Affine(weight + 1, bias)]
    for other in [*others, Affine(weight, bias, (2, 2))]:
        assert not one.equals(other)
    assert not Affine(weight, None).equals(one)


def test_the_state_of_a_layer_changes_with_its_weights_its_statistics_and_its_mode() -> None:
    def replaced(norm: Any) -> None:
        norm.weight = nn.Parameter(norm.weight.detach().clone())

    def written(norm: Any) -> None:
        norm.running_mean.add_(1)

    norm = nn.BatchNorm2d(4)
    seen = {state_of(norm)}
    for change in (replaced, written, nn.Module.eval):
        assert state_of(norm) in seen
        change(norm)
        assert state_of(norm) not in seen
        seen.add(state_of(norm))


@pytest.mark.parametrize(("stride", "expected"), [((2, 3), (3, 2)), ((2,), (5, 3)), ((), (5, 6)), ((1, 4), (5, 2))])
def test_strides_are_of_the_last_dimensions(stride: tuple[int, ...], expected: tuple[int, int]) -> None:
    images = torch.arange(60.0).view(1, 2, 5, 6)
    steps = (1,) * (2 - len(stride)) + stride
    assert strided(images, stride).shape[2:] == expected
    assert torch.equal(strided(images, stride), images[:, :, :: steps[0], :: steps[1]])


def test_errors_are_amplified_where_a_map_suppresses_what_varies_most() -> None:
    """By definition, with the scatter of samples that vary by 100 in the first channel and by 1 in the others."""
    scatter = torch.diag(torch.tensor([1e4, 1.0, 1, 1], dtype=torch.float64))
    source = Covariance.from_moments(50, torch.zeros(4), scatter)
    for weight in (torch.eye(4), torch.rand(3, 4), torch.rand(9, 4), torch.rand(4, 4)):
        passed, gain = weight.double() @ scatter @ weight.double().T, weight.double().square().sum() / 4
        own = (gain * scatter.trace() / passed.trace()).sqrt()  # rounding of the layer's, which has no bias here
        exact = float(torch.maximum(gain * scatter.norm() / passed.norm(), own))
        for unit in (1.0, 1e-12):
            same = Covariance.from_moments(50, torch.zeros(4), unit * scatter)
            assert amplification(same, Affine(weight, None)) == pytest.approx(exact, rel=1e-6)
    assert amplification(source, Affine(torch.tensor([[1e-3, 1, 0, 0]]), None)) > 1000
    assert amplification(source, Affine(torch.zeros(3, 4), None)) == 1
    assert amplification(Covariance(4), Affine(torch.eye(4), None)) == float("inf")  # nothing is known
    still = Covariance.from_moments(50, torch.zeros(4), torch.diag(torch.tensor([1.0, 0, 0, 0])))
    assert amplification(still, Affine(torch.tensor([[0.0, 1, 0, 0]]), None)) == float("inf")
