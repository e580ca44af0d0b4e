from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import convnext_tiny
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FeaturePyramidNetwork

import eigendet
from eigendet.errors import UserError
from eigendet.observe import store
from eigendet.observe.keys import TapKey
from eigendet.observe.taps import Taps, tap
from tests.tapping import ALL, block_with_statistics, error, exact


class SharedHead(nn.Module):
    """One convolution over several levels, as in an RPN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [self.conv(level) for level in levels]


# Behaviors that a peer gets wrong.


def test_five_batches_count_five_batches() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    batches = [torch.randn(2, 3, 6, 6) for _ in range(5)]
    with tap(model, ("conv", "act")) as taps:
        for batch in batches:
            model(batch)
    assert {covariance.count for covariance in taps.values()} == {5 * 2 * 4 * 4}
    assert error(taps["1#0:act"].covariance(), exact(torch.cat([model(batch) for batch in batches]))) < 1e-6


def test_a_head_shared_over_levels_counts_every_position_of_each_apart_and_is_pooled_on_request() -> None:
    head = SharedHead()
    levels = [torch.randn(2, 4, size, size + 1) for size in (8, 4, 2, 1)]
    with tap(head, "conv") as taps:
        for _ in range(5):
            head(levels)
    counts = {str(key): covariance.count for key, covariance in taps.items()}
    assert counts == {"conv#0:conv": 720, "conv#1:conv": 200, "conv#2:conv": 60, "conv#3:conv": 20}
    pooled = taps.pooled("conv")
    assert pooled.count == 1000
    rows = torch.cat([output.movedim(1, 0).flatten(1) for output in head(levels)], dim=1)
    assert error(pooled.covariance(), exact(rows.T)) < 1e-6
    with pytest.raises(KeyError, match=r"unknown module among the taps 'convv'. Did you mean 'conv'"):
        taps.pooled("convv")


def test_the_model_is_untouched_so_that_it_can_be_pickled_and_copied_inside_the_context() -> None:
    block = block_with_statistics()
    images = torch.randn(1, 16, 5, 5)
    with tap(block, ALL):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())
        restored = pickle.loads(pickle.dumps(block))
        torch.save(block, io.BytesIO())
        assert torch.equal(restored(images), block(images))
        assert torch.equal(copy.deepcopy(block)(images), block(images))


def test_taps_are_gone_after_the_context_and_after_an_exception() -> None:
    block = block_with_statistics()
    with pytest.raises(RuntimeError, match="channels"), tap(block, "conv") as taps:
        block(torch.randn(1, 16, 5, 5))
        block(torch.randn(1, 3, 5, 5))
    counts = [covariance.count for covariance in taps.values()]
    block(torch.randn(1, 16, 5, 5))
    assert [covariance.count for covariance in taps.values()] == counts == [25, 25, 25]
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_pass_that_failed_does_not_shift_the_call_indices_of_the_next() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with tap(model, "act") as taps:
        for channels in (3, 2, 3):
            try:
                model(torch.randn(1, channels, 4, 4))
            except RuntimeError:
                continue
    assert [(str(key), covariance.count) for key, covariance in taps.items()] == [("1#0:act", 32)]


@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_bit_identical_with_taps(training: bool) -> None:
    images = torch.randn(2, 16, 5, 5)
    plain, tapped = block_with_statistics().train(training), block_with_statistics().train(training)
    plain(images).square().sum().backward()
    with tap(tapped, ALL):
        output = tapped(images)
        output.square().sum().backward()
    assert torch.equal(plain(images), tapped(images))
    for one, other in zip(plain.parameters(), tapped.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


# What is tapped.


def test_a_relu_used_three_times_gives_three_taps_and_the_block_is_the_last() -> None:
    block = block_with_statistics()
    images = torch.randn(2, 16, 5, 5)
    with tap(block, ["act", "block"]) as taps:
        output = block(images)
    assert list(map(str, taps)) == ["relu#0:act", "relu#1:act", "relu#2:act", "#0:block"]
    assert [covariance.channels for covariance in taps.values()] == [4, 4, 16, 16]
    assert error(taps[TapKey("", 0, "block")].covariance(), exact(output)) < 1e-6
    assert torch.equal(taps["#0:block"].scatter, taps["relu#2:act"].scatter)


def test_every_level_of_a_pyramid_is_a_tap() -> None:
    model = nn.Sequential(OrderedDict(fpn=FeaturePyramidNetwork([4, 8], 5)))
    with tap(model, "fpn") as taps:
        model({"fine": torch.randn(1, 4, 8, 8), "coarse": torch.randn(1, 8, 4, 4)})
    assert {str(key): taps[key].count for key in taps} == {"fpn[fine]#0:fpn": 64, "fpn[coarse]#0:fpn": 16}


def test_modules_are_chosen_by_pattern_and_by_number_of_channels() -> None:
    model = nn.Sequential(OrderedDict(a=Bottleneck(16, 4), b=Bottleneck(16, 4))).eval()
    with tap(model, "conv", modules=["b.*", "a.conv1"]) as taps:
        model(torch.randn(1, 16, 5, 5))
    assert [key.module for key in taps] == ["a.conv1", "b.conv1", "b.conv2", "b.conv3"]
    with tap(model, ALL, channels=range(5, 17)) as taps:
        model(torch.randn(1, 16, 5, 5))
    assert {covariance.channels for covariance in taps.values()} == {16}


def test_channels_are_found_in_token_layouts_and_channels_last_networks() -> None:
    """ConvNeXt permutes its maps between NCHW and NHWC inside a block, and normalizes either."""
    torch.manual_seed(0)
    model = convnext_tiny(weights=None).eval()
    seen: dict[str, Tensor] = {}
    names = {"features.1.0.block.2": -1, "features.1.0.block.3": -1, "features.1.0.block.4": -1, "features.2.0": 1}
    for name in names:
        hook: Callable[..., None] = lambda module, inputs, output, name=name: seen.update({name: output})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad(), tap(model, ("conv", "linear", "norm", "act", "block")) as taps:
        model(torch.randn(1, 3, 48, 48))
    by_module = {key.module: covariance for key, covariance in taps.items()}
    for name, channel_dim in names.items():
        assert error(by_module[name].covariance(), exact(seen[name], channel_dim)) < 1e-6
    tokens = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    with tap(tokens, ("linear", "norm", "output"), modules=["linear1", "norm2", "dropout"]) as taps:
        tokens(torch.randn(2, 5, 8))
    assert {key.module: covariance.channels for key, covariance in taps.items()}["linear1"] == 12


# torch.compile, scripting, copies.


def test_compiling_inside_the_context_loses_no_tap() -> None:
    model = block_with_statistics()
    images = torch.randn(2, 16, 5, 5)
    with torch.no_grad(), tap(model, ALL) as taps, tap(model, ALL, shortcuts=False):
        compiled = torch.compile(model, backend="eager")
        compiled(images)
        compiled(images)
    assert {covariance.count for covariance in taps.values()} == {100}


def test_compiled_and_scripted_models_are_refused_by_name() -> None:
    model = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())))
    compiled = nn.Sequential()
    compiled.add_module("inner", torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"inner \(OptimizedModule\) is compiled by torch.compile"), tap(compiled):
        pass
    model.get_submodule("body").compile(backend="eager")
    with pytest.raises(UserError, match=r"body \(Sequential\) is compiled by torch.compile"), tap(model):
        pass
    scripted = torch.jit.script(nn.Sequential(nn.ReLU()))
    with pytest.raises(UserError, match=r"the model \(RecursiveScriptModule\) is a TorchScript module"), tap(scripted):
        pass
    with pytest.raises(UserError, match=r"\(DataParallel\) is run in copies"), tap(nn.DataParallel(nn.ReLU())):
        pass


def test_a_function_compiled_before_is_noticed() -> None:
    model = nn.Sequential(nn.ReLU())
    run = torch.compile(lambda images: model(images) + 1, backend="eager")
    run(torch.randn(1, 2, 3, 3))
    with pytest.raises(UserError, match=r"did not run while it was tapped. If it ran as a compiled"), tap(model):
        run(torch.randn(1, 2, 3, 3))


# Padding.


class Padded(nn.Module):
    """Pads images to one canvas and says so, as torchvision's detectors do."""

    def __init__(self, says: bool = True) -> None:
        super().__init__()
        self.transform, self.body = PadToCanvas(says), nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU())

    def forward(self, images: list[Tensor]) -> Tensor:
        batch = self.transform(images)
        feature_map: Tensor = self.body(batch.tensors if self.transform.says else batch)
        return feature_map


class PadToCanvas(nn.Module):
    def __init__(self, says: bool) -> None:
        super().__init__()
        self.says = says

    def forward(self, images: list[Tensor]) -> Tensor | SimpleNamespace:
        canvas = torch.zeros(len(images), 3, 16, 24)
        for row, image in zip(canvas, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return SimpleNamespace(tensors=canvas, image_sizes=sizes) if self.says else canvas


def test_padding_is_left_out_where_the_model_says_which_positions_it_is() -> None:
    images = [torch.randn(3, 16, 9), torch.randn(3, 7, 24)]
    for says in (True, False):
        model = Padded(says).eval()
        with torch.no_grad(), tap(model, ("conv", "act")) as taps:
            output = model(images)
        real = [output[0][:, :8, :5].flatten(1), output[1][:, :4, :12].flatten(1)]
        rows = torch.cat(real, dim=1).T if says else output.movedim(1, -1).flatten(0, 2)
        assert taps["body.1#0:act"].count == len(rows) == (8 * 5 + 4 * 12 if says else 2 * 8 * 12)
        assert error(taps["body.1#0:act"].covariance(), exact(rows)) < 1e-6
        assert {observed.padding for observed in taps.taps()} == {"excluded" if says else "unknown"}
    with torch.no_grad(), tap(model, "act") as taps:
        taps.image_sizes([(16, 9), (7, 24)], (16, 24))
        model(images)
        model(images)
    assert taps["body.1#0:act"].count == 8 * 5 + 4 * 12 + 2 * 8 * 12


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": "relu"}, "points: unknown point 'relu'"),
        ({"points": "fpn"}, r"points: none of the modules is fpn; there are conv \(3\), norm \(3\), act \(1\)"),
        ({"modules": "conv9"}, "no module matches 'conv9'. Near names: .*conv1"),
        ({"modules": ["*", "layer7.*"]}, "no module matches 'layer7"),
        ({"channels": range(5)}, r"channels: no feature map .* in range\(0, 5\); there are 16"),
    ],
)
def test_a_choice_that_matches_nothing_lists_what_there_is(arguments: dict[str, object], message: str) -> None:
    block = Bottleneck(16, 16).eval()
    block.conv2, block.bn2 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
    block.conv3, block.bn3 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
    with pytest.raises(UserError, match=message), tap(block, **({"points": "act"} | arguments)):  # type: ignore[arg-type]
        block(torch.randn(1, 16, 5, 5))


def test_a_tapped_module_that_never_ran_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"used": nn.ReLU(), "unused": nn.ReLU()})
    with tap(model, "act") as taps:
        model["used"](torch.randn(1, 2, 3, 3))
    assert "never ran while the model was tapped: unused" in caplog.text
    message = r"modules: 'unus.*' chose unused, which never ran"
    with pytest.raises(UserError, match=message), tap(model, "act", modules=["used", "unus*"]) as taps:
        model["used"](torch.randn(1, 2, 3, 3))
    assert taps["used#0:act"].count == 9


def test_lists_of_modules_are_not_expected_to_run(caplog: pytest.LogCaptureFixture) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Dropout(), nn.Dropout()])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for part in self.parts:
                images = part(images)
            return images

    model = Net().eval()
    with tap(model, "output") as taps:
        model(torch.randn(1, 2, 3, 3))
    assert "parts.1#0" in taps
    assert not caplog.text
    with pytest.raises(UserError, match="there are none that can be called"), tap(model, "output", modules="parts"):
        pass


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_what_is_not_finite_is_named_with_its_pass_and_what_came_before_is_kept(bad: float) -> None:
    model = nn.Sequential(nn.Hardtanh(-torch.inf, torch.inf), nn.ReLU())
    good, spoilt = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4) * bad
    message = r"0#0:act: NaN, infinity, .* in forward pass 2 \(the first is 0\); the taps keep"
    with pytest.raises(UserError, match=message), tap(model, "act", shortcuts=False) as taps:
        for batch in (good, good, spoilt):
            model(batch)
    assert taps["0#0:act"].count == 64
    assert error(taps["0#0:act"].covariance(), exact(good)) < 1e-6


def test_an_unknown_key_lists_the_known_ones() -> None:
    model = nn.Sequential(nn.ReLU())
    with tap(model) as taps:
        model(torch.randn(1, 2, 3, 3))
    with pytest.raises(KeyError, match=r"unknown tap '0#1:act'. Did you mean '0#0:act'"):
        taps["0#1:act"]


def test_a_key_is_its_text_and_a_name_is_enough_where_it_says_which() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(2, 3, 1), act, nn.Conv2d(3, 4, 1), act).eval()
    with torch.no_grad(), tap(model, ("conv", "act"), shortcuts=False) as taps:
        model(torch.randn(2, 2, 3, 3))
    assert list(taps) == ["0#0:conv", "1#0:act", "2#0:conv", "1#1:act"]
    assert set(taps) == {"0#0:conv", "1#0:act", "2#0:conv", "1#1:act"}
    assert taps["2"] is taps["2#0"] is taps["2#0:conv"] is taps[TapKey("2", 0, "conv")]
    assert taps["1#1"].channels == 4
    assert "2" in taps and "1#1" in taps
    assert "1" not in taps and "3" not in taps
    with pytest.raises(KeyError, match=r"'1' has several taps: 1#0:act, 1#1:act. Name one, or take `pooled`."):
        taps["1"]
    with pytest.raises(KeyError, match=r"unknown tap '3'"):
        taps["3"]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda key: pickle.loads(pickle.dumps(key))])
def test_a_key_stays_one_when_it_is_copied(again: Callable[[TapKey], TapKey]) -> None:
    key = again(TapKey("layer1:a#0", 2, "act"))
    assert key == "layer1:a#0#2:act"
    assert (key.module, key.call, key.point) == ("layer1:a#0", 2, "act")


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    model, loader = block_with_statistics(), [torch.randn(2, 16, 5, 5) for _ in range(3)]
    with eigendet.tap(model, points=("act", "block")) as taps:
        for images in loader:
            model(images)
    assert isinstance(taps, Taps)
    taps.save(tmp_path / "covariance.h5", images=range(6))
    records = list(store.read(tmp_path / "covariance.h5"))
    assert [record.key for record in records] == list(taps)
    assert [record.count for record in records] == [150] * 4
    assert store.images(tmp_path / "covariance.h5") == list("012345")
