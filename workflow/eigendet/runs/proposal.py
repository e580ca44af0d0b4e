"""Settings that fit a user's own data, each with the figure that it was chosen from.

There are two of them: for a CPU, to try everything, and what to lay over that on a GPU. They differ in how large images
and networks are and how long is trained; each follows from the data in the same way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from eigendet.data.survey import Classes, Detections, Survey
from eigendet.errors import some
from eigendet.files import Plain

LEVELS = 5  # of the pyramid: four maps of a backbone, and one more
FINEST = 8, 32  # pixels, least and most, of the anchors of the finest level, whose stride is 4
LEAST_RATIO = 2 ** (1 / 3)  # from the anchors of a level to those of the next
LEAST_SIDE = 96  # pixels of the shorter side of an image
FROM_SCRATCH = ("scratch", "derived", "uniform_parameters", "profile")


class Schedule(NamedTuple):
    """How long is trained, and in which steps.

    Attributes:
        batch_size: images of a step.
        epochs: how often every image is seen, within these limits.
        least: steps.
        most: steps.
        learning_rate: the highest, of AdamW.
    """

    batch_size: int
    epochs: int
    least: int
    most: int
    learning_rate: float

    def steps(self, images: int) -> int:
        """Return the number of steps, rounded to two digits.

        >>> Schedule(batch_size=8, epochs=20, least=300, most=600, learning_rate=1e-3).steps(205)
        510
        """
        steps = min(max(self.epochs * images / self.batch_size, self.least), self.most)
        return int(float(f"{steps:.2g}"))


@dataclass(frozen=True)
class Scale:
    """How large images and networks are, and how long is trained.

    Attributes:
        backbone: options of a backbone that is pre-trained here.
        published: options of one with published weights.
        detector: options of the detector.
        training: of detectors.
        pretraining: of a backbone.
        side: most pixels of the shorter side of an image.
        crop: the same of a crop, in pre-training.
        images: most that are observed.
        optimization: further keys of both kinds of training.
        from_scratch: how many times longer an arm is trained that starts from random weights.
    """

    backbone: Plain
    published: Plain
    detector: Plain
    training: Schedule
    pretraining: Schedule
    side: int
    crop: int
    images: int
    optimization: Plain
    from_scratch: int = 1


CPU = Scale(
    backbone={"depth": 18, "width": 0.25, "norm": "group", "norm_groups": 8},
    published={"depth": 18, "norm": "batch", "pretrained": "torchvision:ResNet18_Weights.IMAGENET1K_V1"},
    detector={"fpn_channels": 48, "head_channels": 192},
    training=Schedule(4, 8, 300, 500, 1e-3),
    pretraining=Schedule(64, 10, 500, 1500, 2e-3),
    side=192,
    crop=64,
    images=60,
    optimization={"checkpoint_every": 100},
)
GPU = Scale(
    backbone={"depth": 18, "width": 1.0, "norm": "group", "norm_groups": 32},
    published={"depth": 50, "norm": "batch", "pretrained": "torchvision:ResNet50_Weights.IMAGENET1K_V2"},
    detector={"fpn_channels": 256, "head_channels": 1024},
    training=Schedule(16, 24, 6000, 90000, 2.5e-4),
    pretraining=Schedule(256, 90, 20000, 450000, 1e-3),
    side=800,
    crop=224,
    images=200,
    optimization={"checkpoint_every": 1000, "precision": "bfloat16", "workers": 8},
    from_scratch=3,
)


def settings(survey: Survey, scale: Scale, name: str) -> Plain:
    """Return a configuration for what a survey saw; results go to results/<name>."""
    train, own = survey.detection.train, survey.classification is not None
    side, longest = sides(train, scale.side)
    steps = scale.training.steps(train.images - train.empty)
    objects = math.ceil(train.objects.high)
    values: Plain = {
        "name": name,
        "seeds": [0, 1],
        "data": _data(survey),
        "backbones": {"resnet": {"plugin": "resnet", **(scale.backbone if own else scale.published)}},
        "detectors": {
            "faster_rcnn": {
                "plugin": "faster_rcnn",
                **scale.detector,
                "anchor_sizes": anchor_sizes(train, side),
                "proposals": min(max(50 * math.ceil(objects / 5), 100), 1000),
                "box_samples": min(max(2 ** math.ceil(math.log2(4 * objects)), 64), 512),
            }
        },
    }
    if scale.from_scratch > 1:
        longer = {"steps": scale.from_scratch * steps}
        values["arms"] = {"finetune": {}} | dict.fromkeys(FROM_SCRATCH, longer)
    if survey.classification:
        values["pretraining"] = _pretraining(survey.classification.train, scale)
    values["training"] = {
        "steps": steps,
        "batch_size": scale.training.batch_size,
        "min_size": side,
        "max_size": longest,
        "flip": True,
        "optimizer": "adamw",
        "learning_rate": (scale if own else GPU).training.learning_rate,  # published weights have all widths
        "weight_decay": 0.05,
        "warmup_steps": steps // 10,
        "clip_norm": 5.0,
        **scale.optimization,
    }
    values["covariance"] = {"images": min(scale.images, train.images)}
    if own:
        values["widths"] = {"round_to": 4 if scale.backbone["width"] < 1 else 8}
    return values


def changes(base: Plain, other: Plain) -> Plain:
    """Return what must be laid over settings to make them others.

    >>> changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
    {'a': {'c': 3}, 'd': 4}
    """
    result: Plain = {}
    for key, value in other.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if inner := changes(old, value):
                result[key] = inner
        elif key not in base or value != old:
            result[key] = value
    return result


def experiment_name(folder: Path) -> str:
    """Return the name of a folder as an experiment may be called.

    >>> experiment_name(Path("data/blood cells (2)")), experiment_name(Path("/"))
    ('blood_cells_2', 'my_data')
    """
    return re.sub(r"[^A-Za-z0-9-]+", "_", folder.resolve().name).strip("_-") or "my_data"


def anchor_sizes(data: Detections, side: int) -> list[int]:
    """Return a size for each level, if the shorter side of images has `side` pixels.

    They go from the smallest 5 % of boxes to the largest, by a constant ratio, rounded to multiples of 4 pixels.
    """
    low, high = (share * side for share in (data.shares.low, data.shares.high))
    first = min(max(low, FINEST[0]), FINEST[1])
    ratio = max((high / first) ** (1 / (LEVELS - 1)), LEAST_RATIO)
    sizes: list[int] = []
    for level in range(LEVELS):
        size = 4 * round(first * ratio**level / 4)
        sizes.append(max(size, sizes[-1] + 4) if sizes else size)
    return sizes


def sides(data: Detections, most: int) -> tuple[int, int]:
    """Return the shorter side of resized images, and the longest side allowed, in multiples of 32 pixels.

    Images are not enlarged, unless they are very small. 95 % of them have that shorter side, unless they are more than
    twice as long.
    """
    shorter = min(max(_multiple(data.shorter.median), LEAST_SIDE), most)
    return shorter, 32 * math.ceil(shorter * min(data.longer.high, 2) / 32)


def _multiple(side: float) -> int:
    """Return the nearest multiple of 32 pixels, to which images are padded."""
    return 32 * max(round(side / 32), 1)


def _data(survey: Survey) -> Plain:
    """Return the section of data sets."""
    section: Plain = {}
    if survey.classification:
        section["classification"] = {
            split: {"plugin": "image_folder", "path": str(classes.folder)}
            for split, classes in survey.classification._asdict().items()
        }
    section["detection"] = {
        split: {"plugin": "coco", "annotations": str(data.annotations), "images": str(data.folder)}
        for split, data in survey.detection._asdict().items()
    }
    return section


def _pretraining(classes: Classes, scale: Scale) -> Plain:
    """Return how a backbone is trained as a classifier."""
    steps = scale.pretraining.steps(sum(classes.images.values()))
    return {
        "steps": steps,
        "batch_size": scale.pretraining.batch_size,
        "image_size": min(_multiple(classes.shorter.median), scale.crop),
        "optimizer": "adamw",
        "learning_rate": scale.pretraining.learning_rate,
        "weight_decay": 0.05,
        "warmup_steps": steps // 10,
        **scale.optimization,
    }


def reasons(survey: Survey, values: Plain) -> dict[str, str]:
    """Return what settings for a CPU were chosen from, by the paths of their keys."""
    train, training = survey.detection.train, values["training"]
    low, high = (share * training["min_size"] for share in (train.shares.low, train.shares.high))
    objects = f"{math.ceil(train.objects.high)} in 95 % of the images"
    said = {
        "seeds": "every arm is trained with each; two are too few to establish a difference between arms",
        "backbones": _reason_of_backbone(survey),
        "detectors.faster_rcnn.anchor_sizes": f"boxes of {train.boxes.low:.0f} to {train.boxes.high:.0f} px (root of "
        f"the area; 5 % are smaller, 5 % larger) are {low:.0f} to {high:.0f} px at this min_size; the finest maps take "
        f"anchors of {FINEST[0]} to {FINEST[1]} px",
        "detectors.faster_rcnn.proposals": f"ten for each box, of which there are at most {objects}; 100 to "
        "1000, in steps of 50",
        "detectors.faster_rcnn.box_samples": "proposals to learn from, a quarter of which may be boxes; 64 to 512, a "
        "power of two",
        "training.steps": _epochs(train.images - train.empty, training, CPU.training),
        "training.min_size": f"images are {_shape(train)} (median); for a CPU {LEAST_SIDE} to {CPU.side} are chosen",
        "training.max_size": f"min_size times {min(train.longer.high, 2):.2f}: 95 % of the images are at most "
        f"{train.longer.high:.2f} times as long as they are wide",
        "training.flip": "false if a mirrored object is another one, as of letters",
        "covariance.images": f"so many of the {train.images:,} for training are observed, the same in every run",
    }
    if train.masks:
        said["detectors"] = "every object has a mask, which `plugin: mask_rcnn` learns too"
    if survey.classification:
        classes, pretraining = survey.classification.train, values["pretraining"]
        said["pretraining.steps"] = _epochs(sum(classes.images.values()), pretraining, CPU.pretraining)
        said["pretraining.image_size"] = (
            f"the shorter side is {classes.shorter.median:.0f} px (median of {classes.opened}); for a CPU at most "
            f"{CPU.crop}"
        )
        said["widths.round_to"] = "the narrowest layers have 16 channels"
    return said


def _reason_of_backbone(survey: Survey) -> str:
    if survey.classification:
        return "ResNet-18 at a quarter of its widths, for a CPU; pre-trained here on the class folders"
    return (
        "There are no class folders to pre-train on, so the arm finetune starts from torchvision's weights for "
        "ImageNet, which ask for batch norm and all widths. They are downloaded once (45 MB). Without a network name a "
        "state-dict file here; or leave finetune out:\n"
        f"  arms: {{{', '.join(f'{arm}: {{}}' for arm in FROM_SCRATCH)}}}"
    )


def _shape(data: Detections) -> str:
    shorter = data.shorter.median
    return f"{shorter * data.longer.median:.0f}x{shorter:.0f} px"


def _epochs(images: int, section: Plain, schedule: Schedule) -> str:
    """Say how often every image is seen, and within which limits."""
    epochs = section["steps"] * section["batch_size"] / images
    return (
        f"{images:,} images in batches of {section['batch_size']}, so {epochs:.2g} epochs; for a CPU {schedule.epochs} "
        f"are chosen, but at least {schedule.least} steps and at most {schedule.most}"
    )


def seen(survey: Survey) -> Iterator[str]:
    """Yield lines about the data."""
    for split, data in survey.detection._asdict().items():
        empty = f" ({data.empty:,} without boxes)" if data.empty else ""
        yield f"{split}: {data.annotations}: {data.images:,} images{empty}, {sum(data.classes.values()):,} boxes"
        yield f"  images in {data.folder}; {data.opened} of them were opened"
    boxes = survey.detection.train.classes
    yield f"  {len(boxes)} classes: {some([f'{name} {count:,}' for name, count in boxes.items()], 10)}"
    absent = [name for name, count in boxes.items() if not count]
    if absent:
        yield f"  classes without a box in train: {some(absent)}"
    if survey.classification:
        for split, classes in survey.classification._asdict().items():
            yield (
                f"pre-training, {split}: {classes.folder}: {sum(classes.images.values()):,} images of "
                f"{len(classes.images)} classes; {classes.opened} of them were opened"
            )
    if survey.aside:
        yield f"left aside: {some(survey.aside)}"
