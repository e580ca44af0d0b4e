"""The gradient of a detector's loss at its maps, from a run to a file: against brute force, in shards, interrupted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eigendet import config
from eigendet.config.sections import BackboneChoice, PluginChoice
from eigendet.data.batches import as_float, learned_objects, stream_seed
from eigendet.data.datasets import open_split
from eigendet.data.samples import Rectangles
from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.networks.snapshots import read_snapshot
from eigendet.observe import merging, store
from eigendet.observe.records import TapRecord
from eigendet.runs import covariances, gradients, network_check, stages, training
from eigendet.runs.images import Decoded
from tests.tapping import maps_of_the_loss

CPU = torch.device("cpu")


@pytest.fixture
def run(values: dict[str, Any], tmp_path: Path) -> tuple[config.Experiment, Path]:
    return trained(values, tmp_path)


def trained(values: dict[str, Any], folder: Path, **settings: Any) -> tuple[config.Experiment, Path]:
    """Return an experiment that asks for gradients, and the folder of a run of it."""
    values["covariance"] = {"images": 5, "jackknife": 3, "points": ["act", "fpn"], "gradients": True} | settings
    experiment = config.parse(values)
    stages.train(experiment, "scratch", "tiny", "rcnn", 0, folder / "run")
    return experiment, folder / "run"


def added(path: str, zeros: dict[str, list[Tensor]]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a hook that adds 0 to a map, whose gradient is the map's."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        zeros.setdefault(path, []).append(torch.zeros_like(output, requires_grad=True))
        return output + zeros[path][-1]

    return hook


def brute(experiment: config.Experiment, snapshot: Path, masks: bool) -> dict[str, Tensor]:
    """Return Σ g gᵀ at every activation, by module and call, of torchvision's detector in plain training mode.

    It has neither dropout nor statistics of a batch.
    """
    _, model, _ = read_snapshot(snapshot)
    model.train()
    model.get_submodule("transform").eval()  # resizes as in evaluation
    data = open_split(experiment, "detection", "train")
    sums: dict[str, Tensor] = {}
    zeros: dict[str, list[Tensor]] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(added(path.removeprefix("backbone.body."), zeros))
    for number in covariances.probe_indices(len(data), experiment.covariance.images, "data"):
        zeros.clear()
        image, target = data[number]
        training.seed_everything(stream_seed(0, "gradient", number))
        torch.stack(list(model([as_float(image)], [learned_objects(target, masks)]).values())).sum().backward()
        for path, calls in zeros.items():
            for call, zero in enumerate(calls):
                assert zero.grad is not None
                rows = zero.grad.double().movedim(1, 0).flatten(1)
                name = f"{path}#{call}"
                sums[name] = sums[name] + rows @ rows.mT if name in sums else rows @ rows.mT
    return sums


def records(path: Path) -> dict[str, TapRecord]:
    return {str(record.key): record for record in store.with_gradients(path)}


def second_moment(record: TapRecord) -> np.ndarray:
    assert record.gradient is not None
    return record.gradient.second_moment


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.parametrize("masks", [False, True])
def test_they_are_those_of_brute_force_over_faster_and_mask_rcnn(
    values: dict[str, Any], tmp_path: Path, masks: bool
) -> None:
    if masks:
        values["detectors"]["rcnn"] |= {"plugin": "mask_rcnn", "mask_channels": 16}
    experiment, folder = trained(values, tmp_path, heads=True, images=4)
    covariances.compute_covariance(experiment, folder, tmp_path / "c.h5")
    expected = brute(experiment, folder / "checkpoints/step_0000004.pt", masks)
    of_activations = {key.rpartition(":")[0]: own for key, own in records(tmp_path / "c.h5").items() if "act" in key}
    assert of_activations.keys() == expected.keys()
    assert any("mask_head" in name for name in expected) == masks
    for name, record in of_activations.items():
        assert record.gradient is not None and record.gradient.passes == 4
        assert apart(record.gradient.moments.count * second_moment(record), expected[name].numpy()) <= 1e-6, name
        if not name.startswith("roi_heads"):
            assert record.gradient.moments.count == record.count


def test_the_option_changes_no_bit_of_covariances(run: tuple[config.Experiment, Path], tmp_path: Path) -> None:
    experiment, folder = run
    covariances.compute_covariance(experiment, folder, tmp_path / "with.h5")
    values = experiment.model_dump()
    values["covariance"]["gradients"] = False
    covariances.compute_covariance(config.parse(values), folder, tmp_path / "without.h5")
    for one, other in zip(store.read(tmp_path / "with.h5"), store.read(tmp_path / "without.h5"), strict=True):
        assert (one.step, one.key, one.count) == (other.step, other.key, other.count)
        assert np.array_equal(one.scatter, other.scatter) and np.array_equal(one.mean, other.mean)
    with pytest.raises(UserError, match="holds no gradient at relu#0:act"):
        list(store.with_gradients(tmp_path / "without.h5"))


def test_shards_and_passes_merge_to_the_whole(run: tuple[config.Experiment, Path], tmp_path: Path) -> None:
    experiment, folder = run
    covariances.compute_covariance(experiment, folder, tmp_path / "whole.h5")
    shards = [tmp_path / f"{number}.h5" for number in (1, 2, 3)]
    for number, shard in enumerate(shards, start=1):
        covariances.compute_covariance(experiment, folder, shard, (number, 3))
    merging.merge(tmp_path / "merged.h5", shards)
    values = experiment.model_dump()
    values["covariance"]["memory"] = 8 * 128**2 / 2**30  # of one accumulator of the widest map
    covariances.compute_covariance(config.parse(values), folder, tmp_path / "limited.h5")
    assert (tmp_path / "limited.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    whole, merged = records(tmp_path / "whole.h5"), records(tmp_path / "merged.h5")
    assert list(whole) == list(merged)
    first = {str(record.key): record for record in store.with_gradients(tmp_path / "whole.h5", step=0)}
    assert list(first) == list(whole) and {record.step for record in first.values()} == {0}
    assert all(apart(second_moment(first[key]), second_moment(whole[key])) > 1e-3 for key in whole)
    with pytest.raises(UserError, match=r"whole.h5: holds no step 3; expected one of 0, 1, 4\."):
        next(store.with_gradients(tmp_path / "whole.h5", step=3))
    for key, record in whole.items():
        assert record.gradient is not None and (other := merged[key].gradient) is not None
        assert (record.gradient.passes, record.gradient.moments.count) == (other.passes, other.moments.count)
        assert apart(other.second_moment, record.gradient.second_moment) <= 1e-12


def test_one_that_was_stopped_goes_on_to_the_same_bytes(
    run: tuple[config.Experiment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    covariances.compute_covariance(*run, tmp_path / "whole.h5")
    computed: list[str] = []

    def failing(*arguments: Any) -> Any:
        computed.append("piece")
        if len(computed) == 4:  # in the middle of the last snapshot, whose three parts are files
            raise KeyboardInterrupt
        return original(*arguments)

    original = gradients.loss_gradients
    monkeypatch.setattr(gradients, "loss_gradients", failing)
    with pytest.raises(KeyboardInterrupt):
        covariances.compute_covariance(*run, tmp_path / "stopped.h5")
    covariances.compute_covariance(*run, tmp_path / "stopped.h5")
    assert len(computed) == 4 + 2
    assert (tmp_path / "stopped.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_images_without_objects_have_no_loss_and_are_left_out(
    run: tuple[config.Experiment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_split(run[0], "detection", "train")
    left_out = covariances.probe_indices(len(data), 5, "data")[1:3]
    objects = type(data).objects
    monkeypatch.setattr(type(data), "objects", lambda self, i: 0 if i in left_out else objects(self, i))
    covariances.compute_covariance(*run, tmp_path / "c.h5")
    for record in records(tmp_path / "c.h5").values():
        assert record.gradient is not None
        assert (record.gradient.passes, record.gradient.moments.count) == (3, record.count * 3 // 5)
        assert record.gradient.positions == record.count / 5


def test_data_without_objects_are_refused_before_any_training(
    values: dict[str, Any], coco: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    file, images = coco()
    train = {"plugin": "coco", "annotations": str(file), "images": str(images)}
    crowds = tmp_path / "crowds.json"
    crowds.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))
    values["data"]["detection"] = {"train": train, "val": train | {"annotations": str(crowds)}}
    values["covariance"] = {"images": 2, "split": "val", "jackknife": None, "gradients": True}
    said = r"covariance.gradients is true, but none of the 2 probe images of data.detection.val has an object to learn"
    with pytest.raises(UserError, match=said):
        network_check.check_network(config.parse(values), "tiny", "rcnn")
    stages.train(config.parse(values), "scratch", "tiny", "rcnn", 0, tmp_path / "run")
    with pytest.raises(UserError, match=said):
        covariances.compute_covariance(config.parse(values), tmp_path / "run", tmp_path / "c.h5")
    values["covariance"]["split"] = "train"
    network_check.check_network(config.parse(values), "tiny", "rcnn")


def test_an_image_whose_loss_is_not_finite_is_named(
    run: tuple[config.Experiment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_split(run[0], "detection", "train")
    _, second, *_ = covariances.probe_indices(len(data), 5, "data")
    decoded = Decoded.sample

    def broken(self: Decoded, index: int) -> Any:
        image, target = decoded(self, index)
        return image, {**target, "boxes": target["boxes"] * (np.nan if index == second else 1)}

    monkeypatch.setattr(Decoded, "sample", broken)
    with pytest.raises(UserError, match=rf"probe image {second}: its losses are .*(nan|inf)"):
        covariances.compute_covariance(*run, tmp_path / "c.h5")


DROPPING = """
from eigendet.plugins import detector

@detector
def dropping(backbone, classes, size):
    import torch
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
    from eigendet.networks.parts import PyramidBackbone

    class Dropping(RetinaNet):
        def eager_outputs(self, losses, detections):
            return LOSSES if self.training else detections

    class Changed(PyramidBackbone):
        def forward(self, images):
            return super().forward(CHANGE if self.training else images)

    anchors = AnchorGenerator(((8,), (16,), (32,), (48,), (64,)), ((1.0,),) * 5)
    pyramid = Changed(backbone, 16, LastLevelMaxPool())
    return Dropping(pyramid, classes + 1, *size, anchor_generator=anchors, _skip_resize=True)
"""


@pytest.mark.parametrize(
    ("change", "losses", "said"),
    [
        ("torch.nn.functional.dropout(images)", "losses", None),
        ("torch.nn.functional.avg_pool2d(images, 2)", "losses", "has 1024 positions in evaluation, and 256 where the"),
        ("images", "losses if self.transform.training else {}", "Dropping gives no losses where its layers and its"),
        (
            "images",
            "losses if self.transform.training else {n: v.detach() for n, v in losses.items()}",
            "with a gradient",
        ),
        ("images", "losses if self.transform.training else {'other': sum(losses.values())}", "in training, and other"),
    ],
)
def test_a_detector_whose_maps_or_losses_would_be_others_is_refused(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, losses: str, said: str | None
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/mine.py").write_text(DROPPING.replace("CHANGE", change).replace("LOSSES", losses))
    monkeypatch.chdir(tmp_path)
    values["detectors"] = {"rcnn": {"plugin": "dropping"}}
    values["covariance"]["gradients"] = True
    with nullcontext() if said is None else pytest.raises(UserError, match=said):
        network_check.check_network(config.parse(values), "tiny", "rcnn")


def test_a_loss_is_that_of_its_image_alone_and_leaves_the_detector_as_it_was() -> None:
    backbone = BackboneChoice(plugin="resnet", depth=18, width=0.125, norm="batch")
    detector = PluginChoice(plugin="faster_rcnn", fpn_channels=16, head_channels=32, box_samples=16)
    model = Definition(backbone, Rectangles(64).classes, (64, 64), detector).build()
    model.eval().get_submodule("backbone.body.relu").train()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    samples = gradients.Samples(Decoded(Rectangles(80)), [3, 0, 1], masks=False, device=CPU)
    with gradients.computing_losses(model) as losses:
        first = losses(samples[0])
        losses(samples[1])
        again = losses(samples[0])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    maps_of_the_loss(model.eval())


def test_dropout_of_functions_is_left_out_however_it_is_called() -> None:
    maps = torch.rand(2, 3, 4, 4)
    attention = nn.functional.scaled_dot_product_attention
    with gradients._WithoutDropout():
        for dropped in (
            nn.functional.dropout(maps, 0.9),
            nn.functional.dropout(input=maps, p=0.9, training=True),
            nn.functional.dropout2d(maps, 0.9),
            torch.dropout(maps, 0.9, True),
        ):
            assert torch.equal(dropped, maps)
        by_place, by_name = attention(maps, maps, maps, None, 0.9), attention(maps, maps, maps, dropout_p=0.9)
    assert torch.equal(by_place, attention(maps, maps, maps)) and torch.equal(by_name, by_place)
