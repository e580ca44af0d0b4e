"""What backbones and detectors promise: that they are built, trained, observed and resized."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from eigendet import plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import BackboneChoice, CovarianceSettings, DetectorTraining, Pretraining
from eigendet.data.samples import COLORS, Colors, Rectangles
from eigendet.errors import some
from eigendet.networks import checks
from eigendet.networks.backbones import backbone_of, parameter_count
from eigendet.networks.definition import Definition
from eigendet.networks.detector import learns_masks
from eigendet.networks.snapshots import read_snapshot
from eigendet.observe.passes import covariances as covariances_of
from eigendet.runs import training
from eigendet.runs.evaluation import average_precision
from eigendet.runs.folder import RunFolder
from eigendet.runs.images import Decoded, Images
from eigendet.runs.observation import observed_taps
from eigendet.testing.contract import Contract

CPU = torch.device("cpu")


class NetworkContract(Contract, ABC):
    """What backbones and detectors promise.

    Attributes:
        side: of the square images that the tests use, in pixels.
        steps: in which a tiny set is learned.
        learning_rate: with which it is learned.
    """

    side: ClassVar[int] = 64
    steps: ClassVar[int] = 60
    learning_rate: ClassVar[float] = 3e-3

    @abstractmethod
    def definition(self) -> Definition:
        """Return the network that is tried."""

    @abstractmethod
    def task(self) -> training.Task:
        """Return what it learns."""

    @abstractmethod
    def settings(self) -> Any:
        """Return how it learns."""

    @abstractmethod
    def step(self, model: nn.Module) -> None:
        """Compute losses and gradients of one batch."""

    def resizable(self) -> Definition:
        """Return the network whose widths are changed."""
        return self.definition()

    def build(self, definition: Definition | None = None) -> nn.Module:
        """Return the network of a definition with the weights of seed 0, or the one that is tried."""
        training.seed_everything(0)
        return (definition or self.definition()).build()

    @property
    def optimization(self) -> dict[str, Any]:
        """Settings that both kinds of networks learn with."""
        shared = {"steps": self.steps, "batch_size": 4, "optimizer": "adamw", "learning_rate": self.learning_rate}
        return shared | {"clip_norm": 5.0, "snapshots": 2, "log_every": 5, "flip": False}

    def test_it_builds(self) -> None:
        """Require that the plugin returns a network."""
        self.build()

    def test_it_takes_a_training_step(self) -> None:
        """Require losses that reach all of the backbone."""
        model = self.build()
        self.step(model)
        idle = [name for name, value in backbone_of(model).named_parameters() if value.grad is None]
        self.require(not idle, f"the loss does not reach {some(idle)} of the backbone.")

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        """Require that all weights are drawn from torch's generator."""
        first, second = self.build().state_dict(), self.build().state_dict()
        other = [name for name, value in first.items() if not torch.equal(value, second[name])]
        self.require(
            not other, f"{some(other)} differ between two networks from one seed; draw from torch's generator."
        )

    def test_a_snapshot_alone_gives_it_back(self) -> None:
        """Require that definition and state dict are all there is to the network."""
        model = self.build().eval()
        with tempfile.TemporaryDirectory() as name:
            folder = RunFolder(Path(name))
            folder.write_snapshot(3, model, self.definition())
            _, restored, _ = read_snapshot(folder.snapshot(3))
        image = torch.rand(3, self.side, self.side, generator=torch.Generator().manual_seed(0))
        images = [image] if self.kind == "detector" else image[None]
        with torch.no_grad():
            before, after = _tensors(model(images)), _tensors(restored(images))
        same = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        self.require(
            same, "gives other results once its state dict is read back; keep all state in parameters and buffers."
        )

    def test_it_is_resized_narrower_and_wider(self) -> None:
        """Require channel groups, and as many parameters at other widths as these predict."""
        definition = self.resizable()
        groups, reference = definition.reference(self.side)
        self.require(bool(groups.widths), "has no channel group whose width can change.")
        for factor in (0.5, 1.5):
            widths = _scaled(groups, reference, factor)
            model = self.build(replace(definition, widths=widths))
            resized = model if definition.heads else backbone_of(model)
            count, predicted = parameter_count(resized), groups.parameters(widths)
            self.require(
                count == predicted, f"has {count} parameters at {factor} of its widths; {predicted} were predicted."
            )
            self.step(model)

    def test_it_learns_a_tiny_set(self) -> None:
        """Require that the loss on four images falls."""
        with tempfile.TemporaryDirectory() as name:
            folder = RunFolder(Path(name))
            training.fit(folder, self.build(), self.definition(), self.task(), self.settings(), 0, {}, CPU)
            losses = pd.read_csv(folder.log)["loss"].tolist()
        self.require(
            losses[-1] < 0.75 * losses[0],
            f"the loss on four images went from {losses[0]:.3g} to {losses[-1]:.3g} in {self.steps} steps; "
            "expected less than three quarters.",
        )


class BackboneContract(NetworkContract):
    """What a backbone plugin promises: named feature maps of a plain network, finest first."""

    kind = "backbone"

    def definition(self) -> Definition:
        """Return a classifier over the backbone."""
        return Definition(BackboneChoice(**self.choice.model_dump()), COLORS, (self.side, self.side))

    def task(self) -> training.Task:
        """Return the task of telling colors apart."""
        return training.classification_task(Colors(self.side), self.settings(), 0)

    def settings(self) -> Pretraining:
        """Return settings with which images are seen whole."""
        return Pretraining(image_size=self.side, crop_scale=(1.0, 1.0), **self.optimization)

    def step(self, model: nn.Module) -> None:
        """Compute the loss of four images, and its gradients."""
        losses = training.classification_losses(model.train(), next(iter(self.task().batches(0))), CPU)
        losses["loss_classifier"].backward()

    def test_its_feature_maps_are_named_finest_first(self) -> None:
        """Require a dict of feature maps, whatever the proportions of the images."""
        backbone = backbone_of(self.build()).eval()
        images = torch.rand(2, 3, self.side, 2 * self.side)
        with torch.no_grad():
            checks.check_features(backbone(images), self.origin)

    def test_its_layers_are_tapped(self) -> None:
        """Require convolutions that run as modules."""
        images = [torch.rand(2, 3, self.side, self.side)]
        taps = list(covariances_of(self.build(), images, ["conv"], modules="backbone.*"))
        self.require(bool(taps), "no convolution of it ran as a module, so nothing can be tapped.")


class DetectorContract(NetworkContract):
    """What a detector plugin promises.

    Attributes:
        backbone: what it is tried over, a small residual network unless a test class says otherwise.
    """

    kind = "detector"
    backbone: ClassVar[dict[str, Any]] = {
        "plugin": "resnet",
        "depth": 18,
        "width": 0.125,
        "norm": "group",
        "norm_groups": 4,
    }

    def definition(self) -> Definition:
        """Return the detector over its backbone."""
        return Definition(BackboneChoice(**self.backbone), COLORS, (self.side, self.side), self.choice)

    def resizable(self) -> Definition:
        """Return the detector with widths of its own layers too."""
        return replace(self.definition(), heads=True)

    def task(self, model: nn.Module | None = None) -> training.Task:
        """Return the task of detecting rectangles, with masks if the detector learns them."""
        return training.detection_task(model or self.build(), Rectangles(self.side), self.settings(), 0)

    def settings(self) -> DetectorTraining:
        """Return settings with which images keep their size."""
        return DetectorTraining(min_size=self.side, max_size=self.side, scale_jitter=(1.0, 1.0), **self.optimization)

    def step(self, model: nn.Module) -> None:
        """Compute the losses of four images, and their gradients."""
        with plugins.failures_named(self.origin):
            losses = training.detection_losses(model.train(), next(iter(self.task(model).batches(0))), CPU)
            checks.check_losses(losses, str(self.origin))
            torch.stack(list(losses.values())).sum().backward()

    def test_it_detects_in_the_pixels_of_each_image(self) -> None:
        """Require detections inside images of two sizes, with masks if, and only if, it learns them."""
        model = self.build().eval()
        images = [torch.rand(3, self.side // 2, self.side), torch.rand(3, 3 * self.side // 2, self.side)]
        with torch.no_grad(), plugins.failures_named(self.origin):
            detections = model(images)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        checks.check_detections(detections, sizes, len(COLORS), str(self.origin))
        masks, learns = all("masks" in entry for entry in detections), learns_masks(model)
        self.require(
            masks == learns, f"learns_masks is {learns}, and in evaluation there are {'' if masks else 'no '}masks."
        )

    def test_it_is_evaluated(self) -> None:
        """Require detections that COCO's evaluation takes."""
        scores = average_precision(self.build(), Rectangles(self.side), CPU)["boxes"]
        self.require(
            all(value is None or 0 <= value <= 1 for value in scores.values()), f"average precision is {scores}."
        )

    def test_its_layers_are_tapped(self) -> None:
        """Require convolutions of the backbone that run as modules."""
        images = Images(Decoded(Rectangles(self.side)), [0], CPU)
        settings = CovarianceSettings(points=["conv"])
        taps = list(observed_taps(self.build(), settings, images))
        self.require(bool(taps), "no convolution of its backbone ran as a module, so nothing can be tapped.")


def _scaled(groups: Channels, reference: Widths, factor: float) -> Widths:
    """Return the widths nearest to a factor of the reference's that the groups can have."""
    return {
        group: groups.multiples[group] * max(1, round(factor * width / groups.multiples[group]))
        for group, width in reference.items()
    }


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors of a network's output in a fixed order."""
    return [output] if isinstance(output, Tensor) else [entry[key] for entry in output for key in sorted(entry)]
