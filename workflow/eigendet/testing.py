"""The contract of plugins as tests, which `eigendet plugins check NAME` runs and a package's own tests subclass:

    from eigendet.testing import DetectorContract


    class TestMine(DetectorContract):
        plugin = "mine"

Every method is one promise; it raises UserError, naming the plugin's file and line, where the promise is not kept.
"""

from __future__ import annotations

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from eigendet import plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import BackboneChoice, CovarianceSettings, DetectorTraining, PluginChoice, Pretraining
from eigendet.data.batches import classification_batches, detection_batches
from eigendet.data.checks import check_dataset, check_sample
from eigendet.data.samples import COLORS, Colors, Rectangles
from eigendet.errors import UserError, some
from eigendet.networks import checks, models
from eigendet.networks.models import Definition
from eigendet.plugins.discovery import Kind
from eigendet.runs import covariances, training
from eigendet.runs.evaluation import average_precision
from eigendet.spectra.metrics import intrinsic_dimension

CPU = torch.device("cpu")
FIRST = ("it says what it is", "it builds", "it knows its classes before any image is decoded")  # all else needs these


class Contract:
    """What all kinds have in common. `options` are those of the plugin with which it is tried."""

    kind: ClassVar[Kind]
    plugin: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    @property
    def choice(self) -> PluginChoice:
        return PluginChoice(plugin=self.plugin, **self.options)

    def require(self, kept: bool, otherwise: str) -> None:
        if not kept:
            raise UserError(f"{plugins.find(self.kind, self.plugin)}: {otherwise}")

    def test_it_says_what_it_is(self) -> None:
        self.require(
            bool(plugins.find(self.kind, self.plugin).summary), "has no docstring; its first line is the summary."
        )
        plugins.bind(self.kind, self.choice)


class NetworkContract(Contract, ABC):
    """Of networks: `side` is that of the square images that the tests use, in pixels."""

    side: ClassVar[int] = 64
    steps: ClassVar[int] = 60  # in which a tiny set is learned
    learning_rate: ClassVar[float] = 3e-3

    @abstractmethod
    def definition(self) -> Definition: ...

    def build(self, definition: Definition | None = None) -> nn.Module:
        training.seed_everything(0)
        return (definition or self.definition()).build()

    @abstractmethod
    def step(self, model: nn.Module) -> None:
        """Losses and gradients of one batch."""

    def test_it_builds(self) -> None:
        self.build()

    def test_it_takes_a_training_step(self) -> None:
        model = self.build()
        self.step(model)
        idle = [name for name, value in models.backbone_of(model).named_parameters() if value.grad is None]
        self.require(not idle, f"the loss does not reach {some(idle)} of the backbone.")

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        first, second = self.build().state_dict(), self.build().state_dict()
        other = [name for name, value in first.items() if not torch.equal(value, second[name])]
        self.require(
            not other, f"{some(other)} differ between two networks from one seed; draw from torch's generator."
        )

    def test_a_snapshot_alone_gives_it_back(self) -> None:
        model = self.build().eval()
        with tempfile.TemporaryDirectory() as folder:
            training._snapshot(Path(folder), 3, model, self.definition())
            _, restored, _ = models.read_snapshot(training.snapshot_path(Path(folder), 3))
        image = torch.rand(3, self.side, self.side, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            outputs = [
                _tensors(network([image] if self.kind == "detector" else image[None])) for network in (model, restored)
            ]
        same = all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
        self.require(
            same, "gives other results once its state dict is read back; keep all state in parameters and buffers."
        )

    def test_it_is_resized_narrower_and_wider(self) -> None:
        reference = self.resizable()
        groups, usual = reference.reference(self.side)
        self.require(bool(groups.widths), "has no channel group whose width can change.")
        for factor in (0.5, 1.5):
            widths = _scaled(groups, usual, factor)
            model = self.build(replace(reference, widths=widths))
            resized = model if reference.heads else models.backbone_of(model)
            found, wanted = models.parameter_count(resized), groups.parameters(widths)
            self.require(found == wanted, f"has {found} parameters at {factor} of its widths; {wanted} were predicted.")
            self.step(model)

    def resizable(self) -> Definition:
        return self.definition()

    def test_it_learns_a_tiny_set(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            training.fit(folder, self.build(), self.definition(), self.task(), self.settings(), 0, {}, CPU)
            losses = pd.read_csv(folder / "log.csv")["loss"].tolist()
        self.require(
            losses[-1] < 0.75 * losses[0],
            f"the loss on four images went from {losses[0]:.3g} to {losses[-1]:.3g} in {self.steps} steps; "
            "expected less than three quarters.",
        )

    @abstractmethod
    def task(self) -> training.Task: ...

    @abstractmethod
    def settings(self) -> Any: ...

    @property
    def optimization(self) -> dict[str, Any]:
        """Settings that both kinds of networks learn with."""
        shared = {"steps": self.steps, "batch_size": 4, "optimizer": "adamw", "learning_rate": self.learning_rate}
        return shared | {"clip_norm": 5.0, "snapshots": 2, "log_every": 5, "flip": False}


class BackboneContract(NetworkContract):
    """A backbone plugin: named feature maps of a plain network, finest first."""

    kind = "backbone"

    def definition(self) -> Definition:
        return Definition(BackboneChoice(**self.choice.model_dump()), COLORS, (self.side, self.side))

    def step(self, model: nn.Module) -> None:
        losses = training.classification_losses(model.train(), next(iter(self.task().batches(0))), CPU)
        losses["loss_classifier"].backward()

    def test_its_feature_maps_are_named_finest_first(self) -> None:
        backbone = models.backbone_of(self.build()).eval()
        images = torch.rand(2, 3, self.side, 2 * self.side)
        with torch.no_grad():
            checks.check_features(backbone(images), plugins.find("backbone", self.plugin))

    def test_its_layers_are_tapped(self) -> None:
        from eigendet.observe.passes import covariances

        taps = list(covariances(self.build(), [torch.rand(2, 3, self.side, self.side)], ["conv"], modules="backbone.*"))
        self.require(bool(taps), "no convolution of it ran as a module, so nothing can be tapped.")

    def task(self) -> training.Task:
        return training.Task(
            partial(classification_batches, Colors(self.side), self.settings(), 0), training.classification_losses
        )

    def settings(self) -> Pretraining:
        return Pretraining(image_size=self.side, crop_scale=(1.0, 1.0), **self.optimization)


class DetectorContract(NetworkContract):
    """A detector plugin, over a small residual network unless `backbone` says otherwise."""

    kind = "detector"
    backbone: ClassVar[dict[str, Any]] = {
        "plugin": "resnet",
        "depth": 18,
        "width": 0.125,
        "norm": "group",
        "norm_groups": 4,
    }

    def definition(self) -> Definition:
        return Definition(BackboneChoice(**self.backbone), COLORS, (self.side, self.side), self.choice)

    def resizable(self) -> Definition:
        return replace(self.definition(), heads=True)

    def step(self, model: nn.Module) -> None:
        plugin = plugins.find("detector", self.plugin)
        with plugins.failures_named(plugin):
            losses = training.detection_losses(model.train(), next(iter(self.task(model).batches(0))), CPU)
            checks.check_losses(losses, str(plugin))
            torch.stack(list(losses.values())).sum().backward()

    def test_it_detects_in_the_pixels_of_each_image(self) -> None:
        model, plugin = self.build().eval(), plugins.find("detector", self.plugin)
        images = [torch.rand(3, self.side // 2, self.side), torch.rand(3, 3 * self.side // 2, self.side)]
        with torch.no_grad(), plugins.failures_named(plugin):
            found = model(images)
        checks.check_detections(found, [(image.shape[1], image.shape[2]) for image in images], len(COLORS), str(plugin))
        masks = all("masks" in entry for entry in found)
        learns = bool(getattr(model, "learns_masks", False))
        self.require(
            masks == learns, f"learns_masks is {learns}, and in evaluation there are {'' if masks else 'no '}masks."
        )

    def test_it_is_evaluated(self) -> None:
        scores = average_precision(self.build(), Rectangles(self.side), CPU)["boxes"]
        self.require(
            all(value is None or 0 <= value <= 1 for value in scores.values()), f"average precision is {scores}."
        )

    def test_its_layers_are_tapped(self) -> None:
        images = covariances.Images(Rectangles(self.side), [0], CPU)
        settings = CovarianceSettings(points=["conv"])
        taps = list(covariances.observed_taps(self.build(), settings, images))
        self.require(bool(taps), "no convolution of its backbone ran as a module, so nothing can be tapped.")

    def task(self, model: nn.Module | None = None) -> training.Task:
        masks = bool(getattr(model or self.build(), "learns_masks", False))
        batches = partial(detection_batches, Rectangles(self.side), self.settings(), 0, masks=masks)
        return training.Task(batches, training.detection_losses)

    def settings(self) -> DetectorTraining:
        return DetectorTraining(min_size=self.side, max_size=self.side, scale_jitter=(1.0, 1.0), **self.optimization)


class DatasetContract(Contract):
    """A data set plugin, with options under which its files are there."""

    kind = "dataset"

    def open(self) -> Any:
        return plugins.bind("dataset", self.choice)()

    def test_it_knows_its_classes_before_any_image_is_decoded(self) -> None:
        data = self.open()
        check_dataset(data, str(plugins.find("dataset", self.plugin)))
        self.require(data.digest == self.open().digest, "has another digest each time it is opened.")

    def test_its_samples_are_what_it_says(self) -> None:
        data = self.open()
        for index in range(min(len(data), 8)):
            check_sample(data, index, str(plugins.find("dataset", self.plugin)))


class RuleContract(Contract):
    """A width rule: from a spectrum to a number of channels."""

    kind = "rule"

    def test_a_dimension_is_between_one_and_all_channels(self) -> None:
        rule = plugins.bind("rule", self.choice)
        for name, spectrum in {
            "of one direction": np.eye(1, 64)[0],
            "all equal": np.ones(64),
            "falling": np.geomspace(1, 1e-9, 64),
            "with a tail of zeros": np.concatenate([np.linspace(1, 0.1, 32), np.zeros(32)]),
        }.items():
            found = intrinsic_dimension(spectrum, rule)
            self.require(
                0 < found <= 64 * (1 + 1e-9), f"gives {found} for 64 eigenvalues {name}; expected a number up to 64."
            )

    def test_units_do_not_matter(self) -> None:
        rule = plugins.bind("rule", self.choice)
        spectrum = np.geomspace(1, 1e-6, 64)
        found = [intrinsic_dimension(scale * spectrum, rule) for scale in (1e-6, 1.0, 1e6)]
        self.require(
            all(math.isclose(f, found[1], rel_tol=1e-6) for f in found),
            f"gives {found} for one spectrum in three units.",
        )


CONTRACTS: dict[Kind, type[Contract]] = {
    "backbone": BackboneContract, "detector": DetectorContract, "dataset": DatasetContract, "rule": RuleContract,
}  # fmt: skip


def promises(kind: Kind, choice: PluginChoice) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every promise of a plugin in words, and the test of it."""
    contract = type("Chosen", (CONTRACTS[kind],), {"plugin": choice.plugin, "options": choice.options})()
    for part in reversed(type(contract).__mro__):
        for name in vars(part):
            if name.startswith("test_"):
                yield name.removeprefix("test_").replace("_", " "), getattr(contract, name)


def _scaled(groups: Channels, usual: Widths, factor: float) -> Widths:
    return {
        group: groups.multiples[group] * max(1, round(factor * width / groups.multiples[group]))
        for group, width in usual.items()
    }


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [entry[key] for entry in output for key in sorted(entry)]
