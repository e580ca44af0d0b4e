"""Models and uses that would make moments wrong in silence: right to 1e-6 of float64, or refused by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from eigendet.errors import UserError
from eigendet.observe.taps import Taps, tap
from tests.tapping import ALL, error, exact

EVERY = (*ALL, "output")


class ByHand:
    """Every output of every module, by path and call, from hooks of the process."""

    def __init__(self, model: nn.Module) -> None:
        self.paths, self.calls = {module: path for path, module in model.named_modules()}, dict[str, int]()
        self.outputs: dict[tuple[str, int], list[Tensor]] = {}
        self.root = model

    def __enter__(self) -> ByHand:
        register = nn.modules.module
        self.handles = [register.register_module_forward_hook(self.note)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        path = self.paths.get(module)
        if path is None:
            return
        call = self.calls.get(path, 0)
        self.calls[path] = call + 1
        parts = enumerate(output) if isinstance(output, tuple) else [("", output)]
        for index, part in parts:
            if isinstance(part, Tensor):
                name = f"{path}[{index}]" if isinstance(output, tuple) else path
                self.outputs.setdefault((name, call), []).append(part.detach().clone())
        if module is self.root:
            self.calls.clear()

    def worst(self, taps: Taps, channel_dim: Callable[[Tensor], int] = lambda output: 1) -> float:
        errors = [0.0]
        for key in taps:
            outputs = self.outputs[key.module, key.call]
            rows = [output.movedim(channel_dim(output), 0).flatten(1) for output in outputs]
            expected = exact(torch.cat(rows, 1), 0)
            assert taps[key].count == sum(row.shape[1] for row in rows), key
            errors.append(error(taps[key].covariance(), expected))
        return max(errors)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(nn.Conv2d(4, 8, 3), norm, nn.Conv2d(8, 16, 1), nn.ReLU()).eval()


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 4, 9, 9, generator=generator) + 1 for _ in range(count)]


def test_a_forward_that_an_instance_has_of_its_own() -> None:
    model = small()
    layer: Any = model[2]
    plain = layer.forward
    layer.forward = lambda images: plain(images).sin()
    with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
        for batch in batches():
            model(batch)
    assert by_hand.worst(taps) < 1e-6


def test_a_forward_that_a_class_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = small(), nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda layer, images: plain(layer, images).sin())
    with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
        for batch in batches():
            model(batch)
    assert by_hand.worst(taps) < 1e-6


def test_a_weight_that_is_rewritten_between_two_calls_of_one_pass() -> None:
    class Rewriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            once: Tensor = self.b(self.a(images))
            with torch.no_grad():
                self.b.weight.mul_(-0.3).add_(0.2)
            twice: Tensor = self.b(once)
            return twice

    for passes in (1, 3):
        model = Rewriting().eval()
        with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
            for batch in batches(passes):
                model(batch)
        assert by_hand.worst(taps) < 1e-6


@pytest.mark.parametrize("part", [0, 1, 2])
def test_data_that_is_replaced_and_restored(part: int) -> None:
    model = small()
    parameter: Any = model[part].weight
    for replace in (lambda: setattr(parameter, "data", parameter.data * -2), lambda: parameter.data.mul_(-2)):
        before = parameter.data.clone()
        with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
            first, second, third = batches()
            model(first)
            replace()
            model(second)
            parameter.data.copy_(before)
            model(third)
        assert by_hand.worst(taps) < 1e-6


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizers_of_all_kinds_between_passes(kind: Any, fused: bool) -> None:
    model = small()
    optimizer = kind(model.parameters(), lr=0.1, fused=fused)
    with ByHand(model) as by_hand, tap(model, EVERY) as taps:
        for batch in batches():
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    assert by_hand.worst(taps) < 1e-6


def test_an_optimizer_of_another_model_costs_no_shortcut() -> None:
    model, other = small(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, fused=True)
    with torch.no_grad(), tap(model, EVERY) as taps:
        for batch in batches():
            model(batch)
            other.weight.grad = torch.ones(3, 3)
            optimizer.step()
    assert len(taps.roots()) < len(taps) - 1


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(
            nn.Conv1d(3, 6, 3), nn.MaxPool1d(2), nn.ReLU(), nn.Conv1d(6, 4, 1), nn.AvgPool1d(2), nn.Dropout()
        ),
        nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.Sequential(nn.AvgPool1d(3), nn.GELU()), nn.Identity()),
    ],
)
def test_what_has_no_weights_has_its_channels_where_what_it_reads_has(model: nn.Module) -> None:
    with torch.no_grad(), ByHand(model.eval()) as by_hand, tap(model, EVERY) as taps:
        model(torch.randn(2, 3, 40))
    assert by_hand.worst(taps) < 1e-6


@pytest.mark.parametrize("padded", [False, True])
def test_modules_inside_a_transformer_are_seen_in_evaluation(padded: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    mask = torch.tensor([[False] * 7, [False] * 4 + [True] * 3]) if padded else None
    with torch.no_grad(), ByHand(model) as by_hand, tap(model, ("linear", "norm", "output")) as taps:
        model(torch.randn(2, 7, 16), src_key_padding_mask=mask)
    assert by_hand.worst(taps, lambda output: -1) < 1e-6
    assert {"layers.0.linear1#0:linear", "layers.1.norm2#0:norm"} <= set(map(str, taps))
    assert torch.backends.mha.get_fastpath_enabled()


def test_taps_that_close_in_another_order_leave_attention_as_it_was() -> None:
    models = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 4, 1))
    first, second = tap(models[0], "conv"), tap(models[1], "conv")
    first.__enter__()
    second.__enter__()
    for model in models:
        model(torch.rand(1, 3, 8, 8))
    assert not torch.backends.mha.get_fastpath_enabled()
    first.__exit__(None, None, None)
    assert not torch.backends.mha.get_fastpath_enabled()
    second.__exit__(None, None, None)
    assert torch.backends.mha.get_fastpath_enabled()


class Shared(nn.Module):
    """One activation, called twice; a method that goes by itself; one that loops over batches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)

    def stem(self, images: Tensor) -> Tensor:
        stem: Tensor = self.act(self.a(images))
        return stem

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.act(self.b(self.stem(images)) * 5)
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)

    def fit(self, images: list[Tensor]) -> None:
        for image in images:
            self.forward_features(image)


def test_a_method_called_from_outside_is_a_pass() -> None:
    torch.manual_seed(0)
    model, images = Shared().eval(), batches()
    with torch.no_grad(), tap(model, ("conv", "act")) as whole:
        for image in images:
            model(image)
    ways: dict[str, Callable[[], object]] = {
        "method": lambda: [model.forward_features(image) for image in images],
        "loop": lambda: model.fit(images),
    }
    for name, run in ways.items():
        with torch.no_grad(), tap(model, ("conv", "act")) as taps:
            run()
        assert set(taps) == set(whole), name
        assert taps.passes == whole.passes == 3, name
        for key in whole:
            assert taps[key].count == whole[key].count, name
            assert error(taps[key].covariance(), whole[key].covariance()) < 1e-6, name


def test_a_part_called_from_outside_is_a_pass_each_time() -> None:
    model = small()
    with torch.no_grad(), tap(model, "conv") as taps:
        for batch in batches():
            model[0](batch)
    assert (taps.passes, taps["0#0:conv"].count) == (3, 3 * 2 * 49)


def test_threads_that_run_one_model_at_once_are_refused_by_name_and_taking_turns_is_fine() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Waiting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            entered.set()
            leave.wait(20)
            return images

    model = nn.Sequential(nn.ReLU(), Waiting())
    failures: list[BaseException] = []

    def run() -> None:
        try:
            model(torch.rand(2, 3, 4, 4))
        except UserError as error:
            failures.append(error)

    with tap(model, "act") as taps:
        first = threading.Thread(target=run)
        first.start()
        assert entered.wait(20)
        run()
        leave.set()
        first.join()
        run()
    assert len(failures) == 1 and "two threads run the model at the same time" in str(failures[0])
    assert taps["0#0:act"].count == 2 * 32


@pytest.mark.parametrize("boxes", [1, 2, 3])
def test_regions_cut_out_by_a_function_are_not_images_with_padding(boxes: int) -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(3, 8, 3, padding=1)
            self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Dropout())

        def forward(self, images: Tensor, regions: list[Tensor]) -> Tensor:
            pooled: Tensor = self.head(roi_align(self.backbone(images), regions, 7))
            return pooled

    model = Regions().eval()
    with torch.no_grad(), tap(model, ("conv", "act", "output")) as taps:
        taps.image_sizes([(100, 150)], (128, 160))
        model(torch.randn(1, 3, 128, 160), [torch.tensor([[5.0, 5.0, 60.0, 60.0]] * boxes)])
    assert taps["backbone#0:conv"].count == 100 * 150
    for key in ("head.0#0:conv", "head.1#0:act", "head.2#0:output"):
        assert taps[key].count == 49 * boxes


@pytest.mark.parametrize("passes_an_image", [1, 2])
@pytest.mark.parametrize("change", [1, 2, 3])
def test_means_of_images_after_weights_have_changed(change: int, passes_an_image: int) -> None:
    """Changed between two images, or between two passes of one."""
    model, images = small(), batches(4)
    outputs: list[Tensor] = []
    with torch.no_grad(), tap(model, EVERY) as taps:
        for number, image in enumerate(images):
            seen = []
            for turn in range(passes_an_image):
                if number == change and turn == passes_an_image - 1:
                    model[2].weight.mul_(-0.5)  # type: ignore[operator]
                seen.append(_until(model, image, 3))
                model(image)
            taps.end_image()
            outputs.append(torch.cat([part.movedim(1, 0).flatten(1) for part in seen], 1).double().mean(1))
    means = {str(observed.key): observed.image_means for observed in taps.taps()}["2#0:conv"]
    assert means is not None
    torch.testing.assert_close(means, torch.stack(outputs), rtol=1e-5, atol=1e-6)


def _until(model: nn.Sequential, images: Tensor, end: int) -> Tensor:
    """What the first layers give, computed without their hooks."""
    for layer in list(model)[:end]:
        images = layer.forward(images)
    return images
