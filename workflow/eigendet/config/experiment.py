"""The experiment as typed, validated values.

One YAML file describes one experiment. What it leaves out takes the default given here. `load` reads files (later ones
override earlier ones, key by key), `parse` takes a dictionary; both raise `UserError` with one line for each wrong key.
Nothing here imports torch, so the Snakefile can use it.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from eigendet.config.plain_yaml import read_yaml
from eigendet.config.presets import Preset, with_preset
from eigendet.config.sections import (
    NAME,
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

# Arms by their names, and what sets each apart. All others are named by the user, and have a file of widths.
ARMS = {
    "finetune": "from the pre-trained backbone",
    "scratch": "from random weights",
    "derived": "from random weights, with the widths derived from the spectra",
    "reference": "control: the reference's widths, trained as derived is",
    "uniform_parameters": "control: all widths scaled alike, to the parameters of derived",
    "uniform_macs": "control: all widths scaled alike, to the multiply-accumulates of derived",
    "profile": "control: widths scaled by a factor and a constant ratio from stage to stage, to the parameters and "
    "multiply-accumulates of derived",
    "untrained": "control: widths derived from the spectra before training, with such a factor and ratio",
    "permuted": "control: widths derived with the spectra of other layers, at random, with such a factor and ratio",
}
# Keys by their names in version 0.1.
RENAMED = {"experiment": "name", "covariance.dump_shards": "covariance.shards", "widths.centred": "widths.centered"}
REMOVED = {
    "covariance.compress": "gone: it was slow, and gained only where many channels are dead; leave it out",
    "widths.tie": "gone: channels that several layers write are as wide as the widest asks; leave it out",
}
WITH_REFERENCE_WIDTHS = ("finetune", "scratch")
UNIFORM = "uniform scaling"  # the rule, in a table of the front, of widths that all have one factor
AFTER_DERIVED = ("uniform_parameters", "uniform_macs", "profile", "permuted")
FROM_SPECTRA = ("derived", "untrained", *AFTER_DERIVED)  # themselves, or of what they are compared with


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
        "other name with `widths`, a file of widths",
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

    @property
    def controls(self) -> list[str]:
        """The other arms whose widths are not the reference's by themselves."""
        return [arm for arm in self.arms if arm not in (*WITH_REFERENCE_WIDTHS, "derived")]

    @property
    def all_arms(self) -> list[str]:
        """Every arm that is run, a derived one for every round."""
        return [run for arm in self.arms for run in (self.derived if arm == "derived" else [arm])]

    @property
    def observed(self) -> list[str]:
        """The arms whose covariance is observed: those asked for, and those from which a next round starts."""
        return [arm for arm in self.all_arms if arm in self.covariance.arms or arm in self.derived[:-1]]

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
            if arm in ARMS and section.widths is not None:
                raise ValueError(f"arms.{arm}.widths is given; this arm has widths of its own, so choose another name")
            if section.widths == "":
                raise ValueError(f"arms.{arm}.widths: got ''; expected a file of widths")
            if arm not in ARMS and section.widths is None:
                raise ValueError(
                    f"arms: {unknown('arm', arm, ARMS)} An arm of another name needs `widths`, a file of widths"
                )
            if re.fullmatch(r"derived_\d+", arm):
                raise ValueError(f"arms.{arm}: the name of a later round of derived; choose another")
            if arm in AFTER_DERIVED and "derived" not in self.arms:
                raise ValueError(f"arms.{arm} is compared with derived, which is not in arms; add it")
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
        if "finetune" in self.arms:
            for name, backbone in self.backbones.items():
                if backbone.pretrained == "workflow" and not (self.data.classification and self.pretraining):
                    raise ValueError(
                        f"backbones.{name}.pretrained is 'workflow', which needs the sections data.classification and "
                        "pretraining; give these, name a weights file, or leave the arm finetune out"
                    )
        for arm in self.covariance.arms:
            if arm not in ARMS and arm not in self.all_arms:
                raise ValueError(f"covariance.arms: {unknown('arm', arm, self.all_arms)}")
        if not self.observed:
            raise ValueError(f"covariance.arms is {self.covariance.arms}; none of these is in arms, {list(self.arms)}")
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
                raise ValueError("; ".join(_lines(error, DetectorTraining, f"arms.{arm}"))) from None
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
        raise UserError(*(f"{source}: {line}" for line in _lines(error, Experiment))) from None


def validate_options(model: type[BaseModel], options: Mapping[str, Any], where: str) -> BaseModel:
    """Check and complete the options of a plugin by `model`; `where` is the key they stand under."""
    try:
        return model.model_validate(options)
    except ValidationError as error:
        raise UserError(*_lines(error, model, where)) from None


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


def _lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return a line for each fault: the key, the value, what would be accepted."""
    lines = []
    for fault in error.errors():
        location = [str(part) for part in fault["loc"] if part != "[key]"]  # as pydantic calls a name that is wrong
        key = ".".join([prefix, *location] if prefix else location)
        key = key if key.isprintable() else ascii(key)
        if key in RENAMED:
            lines.append(f"{key}: is called '{RENAMED[key]}' now")
        elif key in REMOVED:
            lines.append(f"{key}: is {REMOVED[key]}")
        elif fault["type"] == "missing" and key in _renamed_to(error):
            continue  # the key that is called otherwise now says it
        elif fault["type"] == "extra_forbidden":
            accepted = _keys_at(model, fault["loc"][:-1])
            near = difflib.get_close_matches(str(fault["loc"][-1]), accepted, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            lines.append(f"{key}: unknown key; {hint}accepted here: {', '.join(accepted) or 'none'}")
        elif fault["type"] == "missing":
            lines.append(f"{key}: missing; a value is required")
        elif fault["type"] == "value_error":
            lines.append(f"{key}: {fault['ctx']['error']}" if key else str(fault["ctx"]["error"]))
        elif fault["type"] == "model_type":
            accepted = _keys_at(model, fault["loc"])
            lines.append(
                f"{key}: got {_shown(fault['input'])}; expected a mapping with keys such as {', '.join(accepted)}"
            )
        else:
            lines.append(f"{key}: got {_shown(fault['input'])}; {_expected(fault)}")
    return lines


def _shown(value: object) -> str:
    """Return a value as it would be written, its middle left out where it is long."""
    short = reprlib.Repr()
    short.maxlong = short.maxstring = short.maxother = 60
    return short.repr(value)


def _expected(fault: ErrorDetails) -> str:
    """Say what would be accepted, in pydantic's words where these do not speak of its own workings."""
    if fault["type"] == "too_short":
        return f"expected {fault['ctx']['min_length']} or more"
    if fault["type"] == "too_long":
        return f"expected {fault['ctx']['max_length']}" + (" or fewer" if fault["ctx"]["field_type"] == "List" else "")
    if fault["type"] == "string_pattern_mismatch" and fault["ctx"]["pattern"] == NAME:
        return "expected letters and digits, and after the first also '-' and '_'"
    if fault["type"] == "dict_type":
        names = fault["input"] if isinstance(fault["input"], list) else []
        names = [name for name in names if isinstance(name, str) and name in ARMS] or ["scratch", "derived"]
        is_arms = fault["loc"][-1] == "arms"
        example = (
            f", each with what sets it apart: {{{', '.join(f'{name}: {{}}' for name in names)}}}" if is_arms else ""
        )
        return f"expected a mapping of names to their settings{example}"
    if fault["type"] == "list_type":
        return f"expected a list, for example [{_shown(fault['input'])}]"
    return f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"


def _renamed_to(error: ValidationError) -> set[str]:
    """Return today's names of the keys that are given by their old ones."""
    given = {".".join(map(str, fault["loc"])) for fault in error.errors()}
    return {new for old, new in RENAMED.items() if old in given}


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the names of the fields of the section that `location` leads to."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        elif typing.get_origin(current) is dict:
            current = typing.get_args(current)[1]
        if isinstance(current, types.UnionType):
            current = next((arm for arm in typing.get_args(current) if isinstance(arm, type)), None)
    if current is Arm:  # whose own key is for arms of other names alone
        return [*DetectorTraining.model_fields, *Arm.model_fields]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
