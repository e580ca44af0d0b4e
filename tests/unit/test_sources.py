"""What allocators need beside eigenvalues, read from the files of runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eigendet import Covariance, config, plugins
from eigendet.channels.groups import Kind, Layer
from eigendet.config import Experiment
from eigendet.config.sections import PluginChoice
from eigendet.errors import UserError
from eigendet.networks.backbones import backbone_of
from eigendet.networks.definition import Definition
from eigendet.networks.snapshots import write_snapshot
from eigendet.observe import store
from eigendet.observe.keys import TapKey
from eigendet.observe.tap import Gradient, Tap
from eigendet.runs import definitions, network_check
from eigendet.spectra.spectrum import write_spectra
from eigendet.widths import controls, derivation, sources, views, weighting
from eigendet.widths.derivation import Sources
from eigendet.widths.dimensions import group_spectra, read_spectra_of_arm
from eigendet.widths.front import front
from eigendet.widths.views import Kernel
from tests.handmade import size


@pytest.fixture
def experiment(values: dict[str, Any]) -> Experiment:
    values["backbones"]["tiny"] = {"plugin": "resnet", "depth": 18, "width": 0.25, "norm_groups": 4}
    values["arms"] = {arm: {} for arm in ("scratch", "derived", "untrained", "permuted", "profile")}
    values["covariance"] = values.get("covariance", {}) | {"gradients": True}
    values["widths"] = {"round_to": 4, "allocation": "loss_weighted"}
    return config.parse(values)


def network_of(experiment: Experiment) -> Definition:
    return definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False)


def moments(channels: int, random: np.random.Generator, samples: int = 600) -> Covariance:
    own = Covariance(channels)
    mixed = random.normal(size=(samples, channels)) @ random.normal(size=(channels, channels))
    own.update(torch.from_numpy(mixed * np.arange(1.0, channels + 1) ** -0.7))
    return own


def observed(folder: Path, experiment: Experiment, seed: int, gradients: bool = True, start: int = 0) -> Path:
    """A run's covariances at steps 0 and 5, made up, with those of gradients, and their spectra in a folder."""
    network = network_of(experiment)
    traced, reference = network.reference(network.size[0])
    random = np.random.default_rng([start, seed])

    def taps() -> list[Tap]:
        rows = []
        for place, (module, call) in enumerate(key for key in traced.outputs if "relu" in key[0]):
            width = reference[traced.outputs[module, call]]
            gradient = Gradient(moments(width, random, 40 * (1 + place)), passes=4) if gradients else None
            rows.append(Tap(TapKey(module, call, "act"), place, "none", moments(width, random), gradient=gradient))
        return rows

    run = {"arm": "scratch", "backbone": "tiny", "detector": "rcnn", "seed": seed}
    provenance = {"run": run, "experiment": experiment.name, "definition": network.plain(), "settings": "s"}
    file = folder / f"covariance_{seed}.h5"
    store.write_covariances(file, [(0, taps()), (5, taps())], provenance | {"probe": {"data": "d"}})
    write_spectra(file, folder / f"spectra_{seed}")
    return file


@pytest.fixture
def files(experiment: Experiment, tmp_path: Path) -> list[Path]:
    return [observed(tmp_path, experiment, seed) for seed in (0, 1)]


def spectra_of(files: list[Path]) -> list[Path]:
    return [file.with_name(f"spectra_{seed}") for seed, file in enumerate(files)]


@pytest.mark.parametrize("first", [False, True])
def test_moments_are_those_of_the_maps_whose_spectra_are_read(
    experiment: Experiment, files: list[Path], first: bool
) -> None:
    network = network_of(experiment)
    traced, _ = network.reference(network.size[0])
    table = read_spectra_of_arm(experiment.name, network, "scratch", spectra_of(files))
    spectra = group_spectra(table, traced, experiment.widths, first)
    seen = sources.read_seen(("covariance", "gradients"), files, {}, network, spectra, experiment.widths, first)
    for group, seeds in spectra.groups.items():
        for seed, taps in seeds.items():
            assert len(taps) == len(seen.moments[seed][group]) >= 1
            for values, own in zip(taps, seen.moments[seed][group], strict=True):
                np.testing.assert_allclose(np.linalg.eigvalsh(own.covariance)[::-1], values, atol=1e-9 * values[0])
                assert own.gradient is not None and own.gradient.shape == own.covariance.shape
    last = [record for record in store.with_gradients(files[1]) if record.key.module == "layer1.0.relu"]
    own = seen.moments[1]["layer1.0.conv1"][0]
    if not first:
        assert last[0].gradient is not None and own.positions == last[0].gradient.positions
        np.testing.assert_array_equal(own.gradient, last[0].gradient.second_moment)
        np.testing.assert_array_equal(own.covariance, last[0].moment(centered=True))


def test_widths_are_derived_from_gradients_and_controls_cost_as_much(
    experiment: Experiment, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, folders, given = network_of(experiment), spectra_of(files), Sources(files)
    derived = derivation.derive_widths(experiment, network, folders, "scratch", given)
    assert derived.rule == "loss_weighted allocation at power 0.5" and derived.macs.share <= 1
    assert derived.width_intervals is None
    proportional = experiment.widths.model_copy(update={"allocation": PluginChoice(plugin="marginal")})
    plain = derivation.derive_widths(
        experiment.model_copy(update={"widths": proportional}), network, folders, "scratch"
    )
    assert plain.widths != derived.widths
    file = tmp_path / "derived.json"
    file.write_text(json.dumps({"widths": derived.widths}))
    for arm in ("untrained", "permuted", "profile"):
        control = controls.control_widths(experiment, network, arm, folders, file, given)
        assert control.used is not None and 0.9 <= min(control.used.values()) <= max(control.used.values()) <= 1
    assert control.widths != derived.widths
    decomposed: list[np.ndarray] = []

    def root(matrix: np.ndarray) -> np.ndarray:
        decomposed.append(matrix)
        return weighting.root(matrix)

    monkeypatch.setattr(views, "root", root)
    table = front(experiment, network, folders, given)
    assert 0 < len(decomposed) == len({id(matrix.base) for matrix in decomposed})  # each once, whatever powers and caps
    assert {f"loss_weighted allocation at power {power}" for power in ("1", "0.5", "0.25")} <= set(table["widths"])


def test_what_is_missing_or_of_other_runs_is_named(experiment: Experiment, files: list[Path], tmp_path: Path) -> None:
    network, folders = network_of(experiment), spectra_of(files)

    def derived(*given: Path) -> None:
        derivation.derive_widths(experiment, network, folders, "scratch", Sources(given))

    with pytest.raises(UserError, match=r"--covariance: .* of the runs whose spectra are given; of seed 0, 1 there is"):
        derived()
    with pytest.raises(UserError, match=r"--covariance: .*; of seed 1 there is none"):
        derived(files[0])
    (tmp_path / "without").mkdir()
    without = observed(tmp_path / "without", experiment, 1, gradients=False)
    with pytest.raises(UserError, match=r"covariance_1.h5: holds no gradient at .*; set covariance.gradients to true"):
        derived(files[0], without)
    (tmp_path / "other").mkdir()
    other = observed(tmp_path / "other", experiment, 1, start=1)
    with pytest.raises(UserError, match=r"other/covariance_1.h5: the maps of conv1 are not those of the spectra"):
        derived(files[0], other)
    table = read_spectra_of_arm(experiment.name, network, "scratch", folders)
    traced, _ = network.reference(network.size[0])
    spectra = group_spectra(table, traced, experiment.widths)
    for taps in spectra.groups["layer1.0.conv1"].values():
        taps.append(taps[0])
    with pytest.raises(UserError, match=r"covariance_0.h5: the maps of layer1.0.conv1 are not those of the spectra"):
        sources.read_seen(("covariance",), files, {}, network, spectra, experiment.widths)
    with pytest.raises(UserError, match=r"--run: the allocator needs the run folders .*; of seed 0, 1 there is none"):
        sources.read_seen(("kernels",), [], {}, network, spectra, experiment.widths)


def test_kernels_are_those_of_all_layers_that_read_a_group_alone_the_pyramid_included(
    experiment: Experiment, tmp_path: Path
) -> None:
    network = network_of(experiment)
    torch.manual_seed(0)
    detector = definitions.definition_of(experiment, "tiny", "rcnn", ["a", "b"], (64, 64))
    model = detector.build()
    write_snapshot(tmp_path / "step_0000005.pt", 5, model, detector)
    kernels = sources.read_kernels(tmp_path / "step_0000005.pt", network)
    body = backbone_of(model)
    by_layer = {kernel.module.removeprefix(f"{model.backbone_path}."): kernel for kernel in kernels["layer2.0.conv2"]}
    reading = {"layer2.1.conv1", "layer3.0.conv1", "layer3.0.downsample.0"}
    assert reading < by_layer.keys() and any("inner_blocks" in name for name in by_layer)
    for name in reading:
        weight = body.state_dict()[f"{name}.weight"].double().numpy()
        expected = np.einsum("oikl,ojkl->ij", weight, weight)
        np.testing.assert_allclose(by_layer[name].gram, expected, rtol=1e-9)
    other = replace(network, backbone=network.backbone.model_copy(update={"width": 0.5}))
    with pytest.raises(UserError, match=r"step_0000005.pt: of another backbone than"):
        sources.read_kernels(tmp_path / "step_0000005.pt", other)


def test_a_history_is_of_all_layers_that_read_or_write_a_group_at_every_snapshot(
    experiment: Experiment, tmp_path: Path
) -> None:
    network = network_of(experiment)
    detector = definitions.definition_of(experiment, "tiny", "rcnn", ["a", "b"], (64, 64))
    files, bodies = [], {}
    for step in (0, 5):
        torch.manual_seed(step)
        model = detector.build()
        files.append(tmp_path / f"step_{step:07d}.pt")
        write_snapshot(files[-1], step, model, detector)
        bodies[step] = backbone_of(model).state_dict()
    around = sources.read_history(files, network)["layer2.0.conv2"]
    by_layer = {(own.module.removeprefix(f"{model.backbone_path}."), own.step): own for own in around}
    reading = {"layer2.1.conv1", "layer3.0.conv1", "layer3.0.downsample.0"}
    writing = {"layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"}
    assert len(by_layer) == len(around) and reading | writing < {name for name, _ in by_layer}
    assert any("inner_blocks" in name for name, _ in by_layer)
    for name, step in itertools.product((*reading, *writing), (0, 5)):
        weight = bodies[step][f"{name}.weight"].double()
        rows = (weight if name in writing else weight.transpose(0, 1)).flatten(1).numpy()
        own = by_layer[name, step]
        assert own.shape == rows.shape
        np.testing.assert_allclose(own.values, np.linalg.svd(rows, compute_uv=False)[None], rtol=1e-6)
    table = read_spectra_of_arm(experiment.name, network, "scratch", spectra_of([observed(tmp_path, experiment, 0)]))
    spectra = group_spectra(table, network.reference(network.size[0])[0], experiment.widths)
    for first, steps in ((False, {0, 5}), (True, {0})):
        seen = sources.read_seen(("history",), [], {0: files}, network, spectra, experiment.widths, first)
        assert {own.step for own in seen.history[0]["layer2.0.conv2"]} == steps and not seen.kernels
    with pytest.raises(UserError, match=r"--run: the allocator needs the run folders .*; of seed 0 there is none"):
        sources.read_seen(("history",), [], {1: files}, network, spectra, experiment.widths)


def test_where_the_detector_cannot_be_followed_the_backbones_kernels_are_read_and_that_is_said(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    detector = definitions.definition_of(experiment, "tiny", "rcnn", ["a", "b"], (64, 64))
    write_snapshot(tmp_path / "step_0000005.pt", 5, detector.build(), detector)
    reference = Definition.reference

    def lost(self: Definition, *arguments: Any) -> Any:
        if self.heads:
            raise UserError("its head cannot be followed")
        return reference(self, *arguments)

    monkeypatch.setattr(Definition, "reference", lost)
    kernels = sources.read_kernels(tmp_path / "step_0000005.pt", network_of(experiment))
    names = {kernel.module for kernel in kernels["layer2.0.conv2"]}
    assert names == {"layer2.1.conv1", "layer3.0.conv1", "layer3.0.downsample.0"}
    said = "kernels of the backbone alone are read, since the whole detector cannot be followed: its head cannot be"
    assert said in caplog.text
    caplog.clear()
    reading = experiment.model_copy(
        update={"widths": experiment.widths.model_copy(update={"allocation": PluginChoice(plugin="output_aware")})}
    )
    network_check.check_observed(reading, detector, detector.build(), "it")
    assert f"it: {said}" in caplog.text


LAYERS: Mapping[str, tuple[nn.Module, int, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(6, 4, 3, bias=False), 1, (2, 6, 5, 5)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2, bias=False), 1, (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, bias=False), 1, (2, 6, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 4, 2, bias=False), 1, (2, 6, 5, 5)),
    "transposed grouped": (nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False), 1, (2, 6, 5, 5)),
    "linear": (nn.Linear(6, 5, bias=False), 1, (2, 6)),
    "flattened": (nn.Linear(24, 5, bias=False), 4, (2, 6, 2, 2)),
    "twice": (nn.Conv2d(12, 4, 3, bias=False), 2, (2, 6, 5, 5)),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_gram_is_how_strongly_a_layer_reads_each_direction(name: str) -> None:
    """Of one channel at one position, far from borders, all outputs squared are its entry on the diagonal."""
    module, factor, shape = LAYERS[name]
    kind: Kind = "linear" if isinstance(module, nn.Linear) else "conv"
    layer = Layer("it", kind, size(a=Fraction(factor)), size(b=1), positions=7)
    root = nn.ModuleDict({"it": module.double()})
    weight = sources._weight(root, layer)
    assert weight is not None
    kernel = sources._kernel(layer, weight, factor)
    assert kernel.module == "it" and kernel.gram.shape == (6, 6)

    def squared(direction: torch.Tensor) -> float:
        """The sum of squared outputs, over every position of a direction that the layer reads."""
        total = 0.0
        places = [()] if len(shape) == 2 else [(0, 0), (0, 1), (1, 0), (1, 1)] if name == "flattened" else [(2, 2)]
        for place in places:
            for copy in range(factor if name == "twice" else 1):
                image = torch.zeros(shape, dtype=torch.float64)[:1]
                image[(0, slice(None), *place)] = direction
                if name == "flattened":
                    image = image.flatten(1)
                elif name == "twice":
                    nothing = torch.zeros_like(image)
                    image = torch.cat([image, nothing] if copy == 0 else [nothing, image], 1)
                total += float((module(image).detach() ** 2).sum())
        return total

    generator = torch.Generator().manual_seed(0)
    for direction in (*torch.eye(6, dtype=torch.float64), torch.randn(6, generator=generator, dtype=torch.float64)):
        expected = float(direction @ torch.from_numpy(kernel.gram) @ direction)
        assert squared(direction) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", list(LAYERS))
def test_an_unfolding_has_a_row_for_each_channel_that_a_layer_reads_or_writes(name: str) -> None:
    module, factor, _ = LAYERS[name]
    kind: Kind = "linear" if isinstance(module, nn.Linear) else "conv"
    layer = Layer("it", kind, size(a=Fraction(factor)), size(b=1))
    weight = sources._weight(nn.ModuleDict({"it": module}), layer)
    assert weight is not None
    (read_group, read), (written_group, written) = sources._unfolded(layer, weight)
    assert (read_group, written_group) == ("a", "b")
    blocks = getattr(module, "groups", 1)
    channels = {"linear": 5, "flattened": 5, "depthwise": 6}.get(name, 4)
    assert read.shape[:2] == (blocks, 6 // blocks) and written.shape[:2] == (blocks, channels // blocks)
    assert read.size == written.size == weight.size
    total = np.square(weight).sum()
    assert np.square(read).sum() == pytest.approx(total) == np.square(written).sum()
    kernel = sources._kernel(layer, weight, factor)
    np.testing.assert_allclose(np.square(read).sum(2).ravel(), np.diag(kernel.gram))  # each channel in its row
    values = sources._singular_values(written)
    np.testing.assert_allclose(values, np.linalg.svd(written, compute_uv=False), rtol=1e-6)


def test_a_layer_without_weights_of_its_own_has_no_kernel() -> None:
    root = nn.ModuleDict({"it": nn.Identity()})
    assert sources._weight(root, Layer("it", "conv", size(a=1), size(b=1))) is None
    assert sources._weight(root, Layer("it", "norm", None, size(b=1))) is None
    assert Kernel("it", np.ones((2, 1, 1, 1))).gram.tolist() == [[1, 0], [0, 1]]


def test_what_allocators_need_is_known_without_any_file() -> None:
    needed = {name: plugins.needs(PluginChoice(plugin=name)) for name in ("entropy", "growth", "conet")}
    assert needed == {"entropy": (), "growth": ("covariance", "gradients"), "conet": ("history",)}
