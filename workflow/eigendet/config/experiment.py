"""The experiment as typed, validated values.

One YAML file describes one experiment. What it leaves out takes the default given here. `load` reads files (later ones
override earlier ones, key by key), `parse` takes a dictionary; both raise `UserError` with one line for each wrong key.
Nothing here imports torch, so the Snakefile can use it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PositiveInt, ValidationError, model_validator

from eigendet.config.arms import AFTER_DERIVED, ARMS
from eigendet.config.faults import lines
from eigendet.config.plain_yaml import read_yaml
from eigendet.config.presets import Preset, with_preset
from eigendet.config.sections import (
    Arm,
    BackboneChoice,
    CovarianceSettings,
    Data,
    DetectorTraining,
    EvaluationSettings,
    Name,
    OnceEach,
    PluginChoice,
    Pretraining,
    Section,
    Seed,
    WidthSettings,
)
from eigendet.errors import UserError, unknown
from eigendet.files import Plain


class Experiment(Section):
    """One experiment, validated."""

    name: Name = Field(description="of the experiment; its results go to results/NAME/")
    preset: Preset | None = Field(
        None,
        description="paper: what the paper's authors have stated, which is raw moments, equal weights of images and "
        "eigenvalues above 1e-3 (`absolute`; or `ratio`, of the largest); all else stays as it is",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    seeds: Annotated[list[Seed], OnceEach] = Field([0], min_length=1, description="every arm is trained once with each")
    plugins: list[str] = Field([], description="further folders with files of plugins, beside `plugins/`")
    data: Data = Field(description="what networks learn from and are evaluated on")
    backbones: dict[Name, BackboneChoice] = Field(min_length=1, description="by names of your own")
    detectors: dict[Name, PluginChoice] = Field(
        min_length=1, description="by names of your own; each is trained over every backbone"
    )
    arms: dict[Name, Arm] = Field(
        {arm: Arm() for arm in ("finetune", "scratch", "derived", "uniform_parameters", "profile")},
        min_length=1,
        description="which arms to run, and what each changes in `training`: " + ", ".join(ARMS) + "; or an arm of any "
        "other name with `widths`, a file of widths, with `init`, weights that its backbone starts from, or both",
    )
    rounds: PositiveInt = Field(
        1,
        le=100,
        description="how often widths are derived: each time from the spectra of the network derived before",
    )
    pretraining: Pretraining | None = Field(None, description="how backbones are trained as classifiers")
    training: DetectorTraining = Field(description="how detectors are trained")
    covariance: CovarianceSettings = Field(CovarianceSettings(), description="what is observed, and on which images")
    widths: WidthSettings = Field(WidthSettings(), description="how spectra become widths")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="which snapshots are scored")

    def training_of(self, arm: str) -> DetectorTraining:
        """Return `training` with the changes of one arm.

        An arm that is not observed keeps its last snapshot alone: nothing would read the others.
        """
        changes = self.arms.get("derived" if arm in self.derived else arm, Arm()).training
        settings = self.training.model_dump() | ({} if arm in self.observed else {"snapshots": []})
        return DetectorTraining.model_validate(settings | changes)

    @property
    def networks(self) -> list[tuple[str, str]]:
        """Every backbone with every detector."""
        return list(itertools.product(self.backbones, self.detectors))

    @property
    def derived(self) -> list[str]:
        """The arms with derived widths, one a round: derived, derived_2 and so on."""
        return ["derived", *(f"derived_{n}" for n in range(2, self.rounds + 1))] if "derived" in self.arms else []

    def widths_of(self, arm: str) -> str | None:
        """Return the arm under whose name an arm's widths are chosen, itself mostly; None: they are the reference's."""
        if arm == "derived_finetune":
            return self.derived[-1]
        own = self.arms[arm].widths if arm in self.arms else None
        return arm if own or (arm in ARMS and arm not in ("finetune", "scratch")) or arm in self.derived else None

    def init_of(self, arm: str, backbone: str) -> str | None:
        """Return the weights that an arm's backbone starts from: 'workflow', if pre-trained here; None: random ones."""
        if arm == "derived_finetune":
            return "workflow"
        if arm == "finetune":
            return self.backbones[backbone].pretrained
        return self.arms[arm].init if arm in self.arms else None

    def pretraining_seed(self, seed: int) -> int:
        """Return the seed of the pre-training that a run with this seed starts from: they take turns."""
        own = self.pretraining.seeds if self.pretraining else [0]
        return own[self.seeds.index(seed) % len(own)]

    @property
    def with_reference_widths(self) -> list[str]:
        """The arms whose widths are the reference's by themselves."""
        return [arm for arm in self.all_arms if self.widths_of(arm) is None]

    @property
    def controls(self) -> list[str]:
        """The arms whose widths are chosen by themselves, and are not derived."""
        return [arm for arm in self.arms if self.widths_of(arm) == arm and arm != "derived"]

    @property
    def all_arms(self) -> list[str]:
        """Every arm that is run, a derived one for every round."""
        return [run for arm in self.arms for run in (self.derived if arm == "derived" else [arm])]

    @property
    def observed(self) -> list[str]:
        """The arms whose covariance is observed: those asked for, and those from which a next round starts."""
        asked = self.covariance.arms
        observed = self.with_reference_widths if asked is None else asked
        return [arm for arm in self.all_arms if arm in observed or arm in self.derived[:-1]]

    def spectra_for(self, arm: str) -> str | None:
        """Return the arm whose spectra an arm's widths are read from, if any."""
        if arm in self.derived:
            position = self.derived.index(arm)
            return self.derived[position - 1] if position else self.widths.arm
        return {"untrained": "scratch", "permuted": self.spectra_for(self.derived[-1]) if self.derived else None}.get(
            arm
        )

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _arms_have_widths(self) -> Self:
        for arm, section in self.arms.items():
            for key, value in (("widths", section.widths), ("init", section.init)):
                if arm in ARMS and value is not None:
                    raise ValueError(
                        f"arms.{arm}.{key} is given; this arm has {key} of its own, so choose another name"
                    )
                if value == "":
                    expected = "a file of widths" if key == "widths" else "'workflow', a file, or published weights"
                    raise ValueError(f"arms.{arm}.{key}: got ''; expected {expected}")
            if arm not in ARMS and section.widths is section.init is None:
                raise ValueError(
                    f"arms: {unknown('arm', arm, ARMS)} An arm of another name needs `widths`, a file of widths, or "
                    "`init`, the weights that it starts from"
                )
            if re.fullmatch(r"derived_\d+", arm):
                raise ValueError(f"arms.{arm}: the name of a later round of derived; choose another")
            if arm in (*AFTER_DERIVED, "derived_finetune") and "derived" not in self.arms:
                follows = "has the widths of" if arm == "derived_finetune" else "is compared with"
                raise ValueError(f"arms.{arm} {follows} derived, which is not in arms; add it")
        if self.rounds > 1 and "derived" not in self.arms:
            raise ValueError(f"rounds is {self.rounds}; derived, which is repeated, is not in arms; add it")
        if "untrained" in self.arms:
            kept = self.training_of("scratch").snapshots
            if "scratch" not in self.observed or (isinstance(kept, list) and 0 not in kept):
                raise ValueError(
                    "arms.untrained takes its widths from step 0 of scratch; add scratch to arms and covariance.arms, "
                    "and 0 to training.snapshots"
                )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for arm, name in itertools.product(self.arms, self.backbones):
            lacks = self.init_of(arm, name) == "workflow" and not (self.data.classification and self.pretraining)
            if lacks:
                key = {"finetune": f"backbones.{name}.pretrained", "derived_finetune": "arms.derived_finetune"}
                own = "is there" if arm == "derived_finetune" else "is 'workflow'"
                others = "" if arm == "derived_finetune" else "name a weights file, "
                raise ValueError(
                    f"{key.get(arm, f'arms.{arm}.init')} {own}, which needs the sections data.classification and "
                    f"pretraining; give these, {others}or leave the arm {arm} out"
                )
        if self.pretraining and len(self.pretraining.seeds) > len(self.seeds):
            raise ValueError(
                f"pretraining.seeds is {self.pretraining.seeds}, and seeds is {self.seeds}; expected at most as many, "
                "since a detector of each seed starts from one pre-training"
            )
        for arm in self.covariance.arms or ():
            if arm not in ARMS and arm not in self.all_arms:
                raise ValueError(f"covariance.arms: {unknown('arm', arm, self.all_arms)}")
        if not self.observed:
            asked = self.covariance.arms
            raise ValueError(f"covariance.arms is {asked}; none of these is in arms, {list(self.arms)}")
        if self.widths.arm in self.all_arms and self.widths.arm not in self.with_reference_widths:
            raise ValueError(
                f"widths.arm is '{self.widths.arm}', whose widths are not the reference's; expected one of "
                f"{self.with_reference_widths}"
            )
        if "derived" in self.arms and self.widths.arm not in self.observed:
            raise ValueError(
                f"widths.arm is '{self.widths.arm}', whose covariance is not observed; add it to arms and "
                "covariance.arms, or leave the arm derived out"
            )
        if "derived" in self.arms or "untrained" in self.arms:
            if self.widths.heads and not self.covariance.heads:
                raise ValueError("widths.heads is true, and covariance.heads is not; set it, so that there are spectra")
            if self.widths.point not in self.covariance.points:
                raise ValueError(
                    f"widths.point is '{self.widths.point}'; it must be one of covariance.points, "
                    f"{self.covariance.points}"
                )
        return self

    @model_validator(mode="after")
    def _arms_change_training(self) -> Self:
        for arm in self.arms:
            try:
                self.training_of(arm)
            except ValidationError as error:
                raise ValueError("; ".join(lines(error, DetectorTraining, f"arms.{arm}"))) from None
        return self


def load(paths: Sequence[Path]) -> Experiment:
    """Read and merge YAML files: mappings key by key, anything else replaced by the later file.

    Raises:
        UserError: a file is missing or not YAML, or a key is wrong.
    """
    merged: Plain = {}
    for path in paths:
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds {type(content).__name__}; expected a mapping of keys to values.")
        merged = _merge(merged, content)
    return parse(merged, ", ".join(map(str, paths)))


def parse(values: Mapping[str, Any], source: str = "configuration") -> Experiment:
    """Validate a dictionary; `source` opens every line of the error."""
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise UserError(*(f"{source}: {line}" for line in lines(error, Experiment))) from None


def validate_options(model: type[BaseModel], options: Mapping[str, Any], where: str) -> BaseModel:
    """Check and complete the options of a plugin by `model`; `where` is the key they stand under."""
    try:
        return model.model_validate(options)
    except ValidationError as error:
        raise UserError(*lines(error, model, where)) from None


def schema_text() -> str:
    """Return the JSON schema of an experiment, for editors: `workflow/schemas/experiment.schema.json`."""
    return json.dumps(Experiment.model_json_schema(), indent=2) + "\n"


def dump_yaml(experiment: Experiment) -> str:
    """Return the experiment as YAML that `load` reads, with every default written out."""
    import yaml  # here, so that whoever builds an experiment of values need not have it

    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)


def _merge(base: Plain, changes: Plain) -> Plain:
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
