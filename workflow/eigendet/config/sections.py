"""The sections of an experiment's configuration, each a typed value that checks itself (see `config`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)

from eigendet.files import Plain, value_digest
from eigendet.moments.weighting import Weighting
from eigendet.observe.keys import Point

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


def _once_each(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError(f"got {values}; each may occur once")
    return values


def _number_or_steps(value: Any, accept: ValidatorFunctionWrapHandler) -> Any:
    try:
        return accept(value)
    except ValidationError:
        raise ValueError(
            f"got {value!r}; expected how many, at least 2, or a list of steps, such as [0, 100]"
        ) from None


Name = Annotated[str, Field(pattern=NAME)]
OnceEach = AfterValidator(_once_each)
Share = Annotated[float, Field(gt=0, le=100)]  # of the reference's cost; beyond, a number of operations is meant
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what random generators and tables take
Snapshots = Annotated[Annotated[int, Field(ge=2)] | list[NonNegativeInt], WrapValidator(_number_or_steps)]

MOST_SNAPSHOTS = 10_000  # each is a file, and takes as long as the others to observe
# Settings that change how a run proceeds but not what comes of it.
IMMATERIAL = {"workers", "log_every", "checkpoint_every", "tensorboard", "seeds"}  # of which each has a run


class Section(BaseModel):
    """Keys with values, none of which is taken for one of another kind: to pydantic, true would be the number 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _a_truth_is_no_number(cls, value: Any, accept: ValidatorFunctionWrapHandler) -> Any:
        accepted = accept(value)
        several = isinstance(value, list) and isinstance(accepted, list | tuple)
        for own, taken in zip(value, accepted, strict=True) if several else [(value, accepted)]:
            if isinstance(own, bool) and not isinstance(taken, bool):
                raise ValueError(f"got {value}; expected {'numbers' if several else 'a number'}")
        return accepted


class PluginChoice(Section):
    """A plugin by name; every further key is one of its options."""

    model_config = ConfigDict(extra="allow")
    plugin: str = Field(description="name of the plugin")

    @property
    def options(self) -> Plain:
        """Every key beside the plugin's name and those of its kind."""
        return dict(self.model_extra or {})

    @property
    def digest(self) -> str:
        """Eight characters that stand for the plugin and its options in file names."""
        return value_digest(self.model_dump(mode="json"))[:8]


class BackboneChoice(PluginChoice):
    """A backbone plugin, with what every backbone has."""

    width: PositiveFloat = Field(1.0, description="factor on every width of the network, to multiples of 8")
    pretrained: str = Field(
        "workflow",
        description="start of the finetune arm: 'workflow' (pre-train here), a state-dict file, or published weights "
        "as torchvision or timm name them, for example 'torchvision:ResNet50_Weights.IMAGENET1K_V2', or "
        "'timm:resnet50.a1_in1k' for the backbone plugin timm",
    )


class Splits(Section):
    """The data sets of a task."""

    train: PluginChoice = Field(description="the data set plugin that networks learn from, with its options")
    val: PluginChoice = Field(description="likewise, of what they are evaluated on")


class Data(Section):
    """The data sets of an experiment."""

    classification: Splits | None = Field(None, description="for pre-training; not needed with other weights")
    detection: Splits = Field(description="what detectors learn, and are evaluated on")


class Optimization(Section):
    """What both training loops share. Steps are optimizer updates."""

    steps: PositiveInt = Field(description="optimizer updates")
    batch_size: PositiveInt = Field(16, description="images of a step, over all processes together")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    learning_rate: PositiveFloat = Field(0.02, description="highest, after the warm-up")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of SGD; AdamW keeps its own betas")
    weight_decay: NonNegativeFloat = Field(1e-4, description="on weights; not on biases and normalization")
    warmup_steps: NonNegativeInt = Field(0, description="linear rise of the learning rate from 0")
    schedule: Literal["cosine", "step"] = Field(
        "cosine", description="how the learning rate falls: along a cosine to 0, or to a tenth at each milestone"
    )
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.67, 0.89], description="of the step schedule: shares of all steps after which the rate falls to a tenth"
    )
    clip_norm: PositiveFloat | None = Field(None, description="largest norm of the gradient; null: no clipping")
    precision: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="of the forward pass on a GPU; a CPU always computes in float32"
    )
    snapshots: Snapshots = Field(
        8,
        description="how many (first, then spaced logarithmically, then last), or the steps themselves, to which the "
        "last is added; of an arm whose covariance is not observed, the last alone, unless the arm says otherwise",
    )
    log_every: PositiveInt = Field(20, description="steps between rows of the log")
    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints for resuming")
    tensorboard: bool = Field(
        False,
        description="rows of the log for TensorBoard too, as they come, in the run's folder; needs that package",
    )
    workers: NonNegativeInt = Field(0, description="processes that load data; 0: the training process itself")

    @model_validator(mode="after")
    def _within_steps(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be below steps, {self.steps}")
        if isinstance(self.snapshots, int) and self.snapshots > MOST_SNAPSHOTS:
            raise ValueError(f"snapshots is {self.snapshots}; expected at most {MOST_SNAPSHOTS}")
        if isinstance(self.snapshots, list):
            outside = [step for step in self.snapshots if step > self.steps]
            if outside:
                raise ValueError(
                    f"snapshots holds {outside[0]}; no snapshot can come after the last step, {self.steps}"
                )
        return self


class Pretraining(Optimization):
    """How a backbone is trained as a classifier."""

    snapshots: Snapshots = Field(
        [], description="as of `training`; the last, from which detectors start, is always kept"
    )
    image_size: PositiveInt = Field(224, description="side of the square crop, pixels")
    crop_scale: tuple[PositiveFloat, PositiveFloat] = Field((0.35, 1.0), description="share of the image in a crop")
    flip: bool = Field(True, description="mirror half of the images")
    seeds: Annotated[list[Seed], OnceEach] = Field(
        [0],
        min_length=1,
        description="a backbone is pre-trained with each; detectors of several seeds start from these in turns, so "
        "that what fine-tuned runs differ in can include the pre-training",
    )

    @model_validator(mode="after")
    def _scale_in_order(self) -> Self:
        _in_order("crop_scale", self.crop_scale)
        return self


class DetectorTraining(Optimization):
    """How a detector is trained."""

    min_size: PositiveInt = Field(800, description="shorter side after resizing, pixels")
    max_size: PositiveInt = Field(1333, description="longest side allowed, pixels")
    scale_jitter: tuple[PositiveFloat, PositiveFloat] = Field((0.8, 1.25), description="range of the random factor")
    flip: bool = Field(True, description="mirror half of the images")

    @model_validator(mode="after")
    def _sizes_in_order(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError(f"min_size is {self.min_size}; it must not exceed max_size, {self.max_size}")
        _in_order("scale_jitter", self.scale_jitter)
        return self


class Arm(Section):
    """What sets an arm apart: every key but `widths` and `init` changes one of `training`."""

    model_config = ConfigDict(extra="allow")
    widths: str | None = Field(None, description="file of widths, of an arm with a name of the user's own")
    init: str | None = Field(
        None,
        description="weights that its backbone starts from, of such an arm: 'workflow' (pre-trained here, with its "
        "widths), a state-dict file, or published weights, as in `backbones.NAME.pretrained`",
    )

    @property
    def training(self) -> Plain:
        """What the arm changes in `training`."""
        return dict(self.model_extra or {})

    @model_serializer(mode="wrap")
    def _as_written(self, plain: SerializerFunctionWrapHandler) -> Plain:
        own = ("widths", "init")
        return {key: value for key, value in plain(self).items() if key not in own or value is not None}


def _in_order(key: str, interval: tuple[float, float]) -> None:
    if interval[0] > interval[1]:
        raise ValueError(f"{key} is {list(interval)}; the lower end comes first")


class CovarianceSettings(Section):
    """Which feature maps are observed, in which runs, on which images."""

    arms: Annotated[list[Name], OnceEach, Field(min_length=1)] | None = Field(
        None, description="whose runs are observed; null: those of all arms with the reference's widths but `reference`"
    )
    points: Annotated[list[Point], OnceEach] = Field(
        ["act"],
        min_length=1,
        description="kinds of modules whose output is observed: convolutions, linear layers, norms, activations, "
        "residual blocks, feature pyramids, any others; a channel group that has none of them is observed at the "
        "nearest that it has",
    )
    heads: bool = Field(False, description="also at these points of the detector's own layers: proposals, boxes, masks")
    weighting: Weighting = Field(
        "positions",
        description="what counts alike: every position, or every image whatever its size; in a box head every region",
    )
    images: PositiveInt = Field(200, description="images of the probe set, the same for every run and snapshot")
    split: Literal["train", "val"] = Field(
        "train", description="where the probe images come from; widths read from 'val' would have seen the test"
    )
    memory: PositiveFloat | None = Field(
        None,
        description="GiB that accumulators may take at a time, with several passes over the images; null: no limit",
    )
    jackknife: Annotated[int, Field(ge=2)] | None = Field(
        8,
        description="parts of the probe set that are each left out in turn, for intervals of what is read from the "
        "last snapshot; they are stored too; null: no intervals, nor effective samples",
    )
    shards: PositiveInt = Field(
        1, description="jobs among which the images of each run are divided; what they write is merged"
    )
    single: bool = Field(False, description="scatter stored in float32: half the disk")
    gradients: bool = Field(
        False,
        description="also moments of the loss's gradient at every map, over the probe images with objects: for what "
        "reads widths from the loss",
    )

    @model_validator(mode="after")
    def _images_for_every_shard(self) -> Self:
        if self.shards > self.images:
            raise ValueError(f"shards is {self.shards}; it must not exceed images, {self.images}")
        return self


class EvaluationSettings(Section):
    """Which snapshots are scored."""

    snapshots: PositiveInt | None = Field(
        None,
        description="of every observed run, evenly spread, the last among them; null: all; of other runs the last is",
    )

    def chosen(self, steps: list[int]) -> list[int]:
        """Return the steps of those that are scored, of an observed run.

        >>> EvaluationSettings(snapshots=3).chosen([0, 1, 4, 16, 64]), EvaluationSettings().chosen([0, 9])
        ([0, 4, 64], [0, 9])
        """
        kept = len(steps) if self.snapshots is None else min(self.snapshots, len(steps))
        first = 0 if kept > 1 else len(steps) - 1
        places = [first + round(place * (len(steps) - 1 - first) / max(kept - 1, 1)) for place in range(kept)]
        return [steps[place] for place in places]


def _named(value: Any) -> Any:
    return {"plugin": value} if isinstance(value, str) else value


class WidthSettings(Section):
    """How spectra become widths. The paper leaves all of it open; docs/configuration.md gives reasons of defaults."""

    arm: Name = Field("scratch", description="whose last spectra are read, of those with the reference's widths")
    point: Literal["conv", "norm", "act", "block"] = Field(
        "act", description="where spectra are read, one of `covariance.points`; else at the nearest point there is"
    )
    centered: bool = Field(True, description="spectra of the covariance; false: of raw second moments")
    rule: Annotated[PluginChoice, BeforeValidator(_named, json_schema_input_type=PluginChoice | str)] = Field(
        PluginChoice(plugin="dof"),
        description="plugin that gives a spectrum's dimension, with its options, or its name alone",
    )
    allocation: Annotated[PluginChoice, BeforeValidator(_named, json_schema_input_type=PluginChoice | str)] = Field(
        PluginChoice(plugin="proportional"),
        description="allocator plugin that spends the budget on the groups, with its options, or its name alone",
    )
    heads: bool = Field(
        False,
        description="also the widths of the detector's own layers: pyramid and heads; its predictions keep their sizes",
    )
    round_to: PositiveInt = Field(
        8, description="widths are multiples of this, and of what the network divides them into, as GroupNorm does"
    )
    macs: Share | None = Field(1.0, description="cap on multiply-accumulates, as a share of the reference's")
    parameters: Share | None = Field(None, description="cap on parameters, likewise")
    activations: Share | None = Field(
        None,
        description="cap on the elements that its convolutions and linear layers write, likewise; of a transposed "
        "convolution, at each position that it reads",
    )
    min_factor: NonNegativeFloat = Field(0.0, description="least width of a group, as a share of the reference's")
    max_factor: PositiveFloat | None = Field(
        4.0,
        description="largest width of a group, likewise: far beyond what was observed lies extrapolation; null: any",
    )

    @model_validator(mode="after")
    def _caps_and_factors(self) -> Self:
        if self.macs is self.parameters is self.activations is None:
            raise ValueError("macs, parameters and activations are all null; give at least one cap")
        if self.max_factor is not None and self.min_factor > self.max_factor:
            raise ValueError(f"min_factor is {self.min_factor}; it must not exceed max_factor, {self.max_factor}")
        return self
