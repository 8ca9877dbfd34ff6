"""A recipe as values: frozen, complete with every default, written back as YAML that reads the same."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import to_jsonable_python
from ruamel.yaml import YAML

from stillroom.errors import RecipeError, nearest
from stillroom.settings import (
    MOST_SEEDS,
    MOST_VIEWS,
    Positive,
    PrecisionSetting,
    Ramp,
    Seed,
    Settings,
    Share,
    Synthesis,
    Training,
    plain_or_block,
)

TapText = Annotated[str, Field(min_length=1)]
TapTexts = Annotated[tuple[TapText, ...], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Examples = tuple[Annotated[int, Field(ge=0)], ...]
RESERVED_ARMS = ("alone", "teacher", "distilled")
MAIN = "main"


def _one_list_or_block(value: object) -> str:
    if isinstance(value, dict | BaseModel):
        return "block"
    return "list" if isinstance(value, list | tuple) else "plain"


def _file_or_list(value: object) -> str:
    return "file" if isinstance(value, str | None) else "list"


class Own(Settings):
    """The student's own tap, read without a gradient, in the place of a teacher's."""

    student: Annotated[
        Annotated[TapText, Tag("plain")] | Annotated[TapTexts, Tag("list")], Discriminator(_one_list_or_block)
    ]

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps as a tuple, also when one was written."""
        return (self.student,) if isinstance(self.student, str) else self.student


class Encode(Settings):
    """What a model does to raw inputs before its own layers.

    ``size`` is the side images are resized to. Texts: ``longest`` is how many tokens are read, ``unit`` and
    ``vocabulary`` what a model with words of its own reads (the most frequent ones of the training texts).
    """

    size: Count | None = None
    unit: Literal["auto", "word", "character"] = "auto"
    vocabulary: Annotated[int, Field(ge=10)] = 8000
    longest: Count | None = None


class Data(Settings):
    """Which source, with its loader's options; ``labels`` is how many labels the student may see, None for all.

    ``unlabelled``: whether it may see the examples whose labels it does not; without, it has the labelled ones alone.
    ``leave_out``: training examples from which neither student nor teacher learns, by number or as a JSON file of them.
    """

    use: str
    labels: Annotated[int, Field(ge=0)] | None = None
    unlabelled: bool = True
    leave_out: Annotated[
        Annotated[str | None, Tag("file")] | Annotated[Examples, Tag("list")], Discriminator(_file_or_list)
    ] = None
    options: dict[str, Any] = {}


class Teacher(Settings):
    """One of: a zoo ``model`` to train, an ``hf`` encoder to train further, a bundle to ``load``, a ``store``."""

    model: str | None = None
    hf: str | None = None
    load: str | None = None
    store: str | None = None
    options: dict[str, Any] = {}
    train: Training = Training()
    encode: Encode = Encode()


class Student(Settings):
    """A zoo ``model`` with its options."""

    model: str
    options: dict[str, Any] = {}
    encode: Encode = Encode()


class DistilledData(Settings):
    """Synthetic examples in the place of real ones: how they are made, and on which network (None: the student's)."""

    making: Synthesis = Synthesis()
    network: Student | None = None


class Objective(Settings):
    """A loss with its options, where it reads, how much and how often it counts, and on which part of a batch."""

    use: str
    options: dict[str, Any] = {}
    student: Annotated[
        Annotated[TapText | None, Tag("plain")] | Annotated[TapTexts, Tag("list")], Discriminator(_one_list_or_block)
    ] = None
    teacher: Annotated[
        Annotated[TapText | None, Tag("plain")] | Annotated[TapTexts, Tag("list")] | Annotated[Own, Tag("block")],
        Discriminator(_one_list_or_block),
    ] = None
    weight: Annotated[
        Annotated[Annotated[float, Field(ge=0)], Tag("plain")] | Annotated[Ramp, Tag("block")],
        Discriminator(plain_or_block),
    ] = 1.0
    connector: Literal["auto", "none", "linear"] = "auto"
    every: Count = 1
    part: Share = 1.0
    name: Annotated[str, Field(min_length=1)] | None = None


class Record(Settings):
    """What is recorded besides what the objectives read, under how many views of each example, in which precision."""

    also: tuple[TapText, ...] = ()
    views: Annotated[int, Field(ge=1, le=MOST_VIEWS)] = 1
    precision: PrecisionSetting = "float32"


class Onnx(Settings):
    """An ONNX file of every exported student; ``int8`` adds a quantised one."""

    int8: bool = False


class Export(Settings):
    """What is written beside safetensors; ``onnx: false`` for nothing more."""

    onnx: Onnx | None = Onnx()

    @field_validator("onnx", mode="wrap")
    @classmethod
    def _switch(cls, given: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(given, bool):
            return Onnx() if given else None
        return handler(given)


class Evaluate(Settings):
    """Other tasks on which the features are tried, and from how many labelled rows each is learnt."""

    on: tuple[Data, ...] = ()
    rows: Annotated[int, Field(ge=50)] = 2000


class Stage(Settings):
    """A part of a training in several parts; what is absent is as in the recipe."""

    student: Student | None = None
    objectives: tuple[Objective, ...] | None = None
    train: Training | None = None


class Arm(Settings):
    """What differs from the recipe: blocks are complete, ``objectives`` replace and ``add`` appends."""

    objectives: tuple[Objective, ...] | None = None
    add: tuple[Objective, ...] = ()
    data: Data | None = None
    student: Student | None = None
    train: Training | None = None
    distilled_data: DistilledData | None = None


class Recipe(Settings):
    """Everything a run needs to know; made by :func:`stillroom.recipe.read_recipe`."""

    name: str
    data: Data
    teacher: Teacher | None = None
    teachers: dict[str, Teacher] = {}
    student: Student
    objectives: tuple[Objective, ...]
    record: Record = Record()
    train: Training = Training()
    distilled_data: DistilledData | None = None
    arms: dict[str, Arm] = {MAIN: Arm()}
    stages: tuple[Stage, ...] = ()
    control: bool = True
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MOST_SEEDS)] = (0, 1, 2)
    export: Export = Export()
    evaluate: Evaluate | None = None
    jobs: Annotated[Literal["auto"] | Count, Field(union_mode="left_to_right")] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    trials: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=MOST_SEEDS)] = (0.3, 1.0, 3.0)

    def arm(self, name: str) -> Recipe:
        """Return the recipe with the differences of one arm applied; it holds that arm alone.

        Raises:
            RecipeError: there is no such arm.
        """
        if name not in self.arms:
            close = nearest(name, self.arms)
            raise RecipeError(
                f"Unknown arm: got '{name}'."
                + (f" Did you mean '{close}'?" if close else "")
                + f" Allowed: {', '.join(self.arms)}. Name one of the recipe's arms."
            )
        change = self.arms[name]
        update: dict[str, Any] = {
            key: value
            for key in ("data", "student", "train", "distilled_data")
            if (value := getattr(change, key)) is not None
        }
        base = self.objectives if change.objectives is None else change.objectives
        return self.model_copy(update={**update, "objectives": base + change.add, "arms": {name: Arm()}})

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain values with every default filled in; reading it gives the same recipe."""
        plain: dict[str, Any] = {key: written(getattr(self, key)) for key in type(self).model_fields}
        plain["arms"] = {name: _difference(arm) for name, arm in self.arms.items()}
        plain["stages"] = [_difference(stage) for stage in self.stages]
        return {key: value for key, value in plain.items() if value is not None and value not in ({}, [])}

    def to_yaml(self) -> str:
        """Return :meth:`resolved` as YAML text."""
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = None
        yaml.width = 118
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        text = io.StringIO()
        yaml.dump(self.resolved(), text)
        return text.getvalue()

    def parts(self) -> dict[str, Any]:
        """Return what a result depends on, block by block, for fingerprints; names, places and machines are left out.

        ``teachers`` maps each teacher's name to its block; a single teacher has the name ``""``.
        """
        teachers = {"": self.teacher} if self.teacher else self.teachers
        return {
            "data": written(self.data),
            "teachers": {name: written(teacher) for name, teacher in teachers.items()},
            "student": written(self.student),
            "objectives": written(self.objectives),
            "record": written(self.record),
            "train": written(self.train),
            "stages": [_difference(stage) for stage in self.stages],
            "trials": written(self.trials),
            **({"distilled_data": written(self.distilled_data)} if self.distilled_data else {}),
        }


def written(value: Any) -> Any:
    """Return a part of a recipe as its author could have written it: plain, options beside the other keys."""
    if isinstance(value, Objective | Data | Student | Teacher):
        block = {key: written(getattr(value, key)) for key in type(value).model_fields if key != "options"}
        if isinstance(value, Teacher) and value.model is None and value.hf is None:
            block = {key: block[key] for key in ("load", "store")}
        kept = {key: part for key, part in block.items() if part is not None or key == "labels"}
        first = {key: kept[key] for key in ("use", "model", "hf") if key in kept}
        return {**first, **written(value.options), **kept}
    if isinstance(value, DistilledData):
        return {**written(value.making), **({"network": written(value.network)} if value.network else {})}
    if isinstance(value, Evaluate):
        return {"on": written(value.on), "rows": value.rows}
    if isinstance(value, Export):
        return {"onnx": False if value.onnx is None else written(value.onnx)}
    if isinstance(value, Training):
        length = "steps" if value.steps else "epochs"
        return {
            key: part
            for key, part in to_jsonable_python(value, by_alias=True).items()
            if key not in ("steps", "epochs") or key == length
        }
    if isinstance(value, Mapping):
        return {key: written(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [written(part) for part in value]
    return to_jsonable_python(value, by_alias=True)


def _difference(change: Arm | Stage) -> dict[str, Any]:
    given = {key: written(getattr(change, key)) for key in type(change).model_fields}
    if isinstance(change, Arm) and change.data is not None:
        given["data"] = {"labels": change.data.labels, "unlabelled": change.data.unlabelled}
    return {key: value for key, value in given.items() if value is not None and value != []}
