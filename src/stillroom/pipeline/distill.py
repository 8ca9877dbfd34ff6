"""distill(): the one-call door for Python. The same tasks as a recipe, with objects in the place of names."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.behaviour import behaviour
from stillroom.contracts import Finding, Source
from stillroom.data.arrays import as_source
from stillroom.errors import ModelError, UserError, say
from stillroom.files import fingerprint
from stillroom.models.bundle import Deployed, load
from stillroom.models.encode import encode_for
from stillroom.models.open_box import fingerprint as fingerprint_of
from stillroom.objectives import Given, Objective, match, objectives_of
from stillroom.pipeline.costing import slow_precision
from stillroom.pipeline.dry_step import blaming
from stillroom.pipeline.making import input_of
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment, TeacherPlan, control_of
from stillroom.pipeline.run import perform, titles_of
from stillroom.pipeline.shown import as_html, as_text
from stillroom.progress import ticking, warn
from stillroom.randomness import forked
from stillroom.settings import Training
from stillroom.store import Store
from stillroom.tasks import check_names
from stillroom.tensors import copy_of

MakeStudent = Callable[[], nn.Module]
TRIALS = (0.3, 1.0, 3.0)


@dataclass(frozen=True, repr=False)
class Result:
    """What distilling gave: the verdict, the table, the student (of the first seed), and everything in ``folder``."""

    folder: Path
    metrics: dict[str, Any]
    findings: list[Finding]
    student: nn.Module

    @property
    def verdict(self) -> str:
        """One sentence: did it help?"""
        return str(self.metrics["verdict"])

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row a model: name, score and whatever else was measured, as means over the seeds."""
        order = [name for name in ("teacher", ALONE, *self.metrics["arms"]) if name in self.metrics["models"]]
        return [
            {
                "model": name,
                **{
                    key: value["mean"]
                    for key, value in self.metrics["models"][name].items()
                    if isinstance(value, dict) and "mean" in value
                },
            }
            for name in order
        ]

    def report(self) -> Path:
        """Return the path of the report."""
        return self.folder / "report.html"

    def __repr__(self) -> str:
        return as_text(self.verdict, self.table, self.folder)

    def _repr_html_(self) -> str:
        return as_html(self.verdict, self.table, self.folder)


def distill(
    teacher: nn.Module | Store,
    student: nn.Module | MakeStudent,
    data: Any,
    objectives: str | Sequence[Given] = ("kd",),
    *,
    steps: int,
    seeds: Sequence[int] = (0,),
    control: bool = True,
    out: str | Path | None = None,
    labels: int | None = None,
    training: Training | None = None,
) -> Result:
    """Distil ``teacher`` into ``student`` on ``data`` and say whether it helped.

    ``teacher``: a trained module, or a Store. ``student``: a function that makes it (needed for several seeds), or an
    untrained module. ``data``: a source, ``(inputs, labels)``, a Dataset, or a dictionary of those by split; ``labels``
    is how many labels the student may see (None: all). ``objectives``: names, losses of your own, or
    ``match("hint", "layer2", "layer3")``. With ``control`` the same student is also trained without the
    teacher, on labels alone. uint8 images are normalised before both models, by the mean and standard deviation of the
    training images; other inputs are given as they are. A teacher that normalises them itself would do so twice and
    answer at chance: hand it over as ``Deployed(model, encode)``, which owns its preparation and is given the raw
    inputs. Its logits must be in the order of the data's classes. Texts need an encode, for example
    ``words_for(data)``, and the two models need not share it.
    ``training`` holds batch, optimizer, rate and the rest; ``steps`` wins. Three learning rates (x0.3, x1, x3) are
    tried with the first seed, for the control as well. Everything is kept in ``out``, and a second call resumes from
    there. Progress goes to standard error: bars in a terminal, lines in a notebook or a log, nothing where the
    environment has STILLROOM_QUIET=1.

    Raises:
        UserError: of the kind that says what is wrong: data, taps, shapes, losses.

    Example:
        >>> result = stillroom.distill(teacher, lambda: Small(), (images, labels), ["labels", "kd"], steps=500)
        >>> print(result.verdict, result.report())
    """
    _check_call(student, seeds, steps)
    source = as_source(data)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="stillroom-"))
    settings = (training or Training(steps=steps)).model_copy(update={"steps": steps, "epochs": None})
    arm = _arm(student, source, objectives, settings, labels, seeds)
    arms = {"main": arm}
    if control and source.classes and labels != 0 and arm.reads_teacher:
        arms = {ALONE: control_of(arm, lambda: match("labels")), **arms}
    plan = _teacher(teacher, source)
    experiment = Experiment("distill", source, {"": plan}, arms, list(seeds), TRIALS)
    titles = titles_of(experiment)
    if (slow := slow_precision(experiment)) is not None:
        warn(slow)
    with ticking(len(titles), titles) as told:
        outcome = perform(experiment, folder, told=told)
    chosen = load(folder / "arms" / f"main-{seeds[0]}", model=arm.make_student(seeds[0]), encode=arm.encode)
    return Result(folder, outcome.metrics, outcome.findings, chosen)


def _check_call(student: nn.Module | MakeStudent, seeds: Sequence[int], steps: int) -> None:
    if isinstance(seeds, int):
        raise UserError(say("Seeds are several", f"seeds={seeds}", f"a list, for example seeds=[{seeds}]"))
    if steps < 1:
        raise UserError(say("A student needs at least one step of training", f"steps={steps}", "1 or more"))
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(
            say(
                "These cannot be the seeds",
                f"seeds={tuple(seeds)}",
                "at least one, each only once",
                "Pass seeds=(0, 1, 2).",
            )
        )
    if not callable(student):
        raise ModelError(
            say(
                "This cannot be a student",
                repr(student),
                "an nn.Module, or a function that makes one",
                "Pass lambda: Small().",
            )
        )
    if isinstance(student, nn.Module) and len(seeds) > 1:
        raise UserError(
            f"{len(seeds)} seeds need {len(seeds)} fresh students: got one module, which has one start. "
            "Pass a function that makes it, for example lambda: Small()."
        )


def _network(module: nn.Module) -> nn.Module:
    """Return a network without the encode it may have been handed over with."""
    return module.model if isinstance(module, Deployed) else module


def _encode(module: nn.Module, source: Source) -> nn.Module | None:
    """Return what stands before a network: its own encode, or the normalisation of the data."""
    return module.encode if isinstance(module, Deployed) else encode_for(source)


def _teacher(teacher: nn.Module | Store, source: Source) -> TeacherPlan:
    if isinstance(teacher, Store):
        return TeacherPlan({"store": str(teacher.folder)}, store=str(teacher.folder))
    if not isinstance(teacher, nn.Module):
        raise ModelError(say("This cannot teach", type(teacher).__name__, "an nn.Module or a Store"))
    check_names(getattr(teacher, "classes", None), source.classes, "The teacher")
    network, encode = _network(teacher), _encode(teacher, source)
    return TeacherPlan(
        {"module": fingerprint_of(teacher)}, lambda: network, encode, None, None, _config(network, source, encode)
    )


def _arm(
    student: nn.Module | MakeStudent,
    source: Source,
    objectives: str | Sequence[Given],
    settings: Training,
    labels: int | None,
    seeds: Sequence[int],
) -> ArmPlan:
    start = copy_of(student, "The student") if isinstance(student, nn.Module) else None

    def whole(seed: int) -> nn.Module:
        if start is not None:
            return copy_of(start, "The student")
        with forked(seed, "weights"), blaming("the function that makes the student", {}):
            made = student()
        if not isinstance(made, nn.Module):
            raise ModelError(
                say("The function that makes the student made something else", type(made).__name__, "an nn.Module")
            )
        return made

    def build() -> list[Objective]:
        return objectives_of(objectives)

    first = whole(seeds[0])
    encode, network = _encode(first, source), _network(first)
    described = {
        "student": fingerprint_of(first) + behaviour(first),
        "train": settings.model_dump(mode="json"),
        "objectives": [_described(one) for one in build()],
        "encode": fingerprint(getattr(encode, "describe", dict)()),
    }
    config = _config(network, source, encode)
    return ArmPlan("main", build, settings, labels, lambda seed: _network(whole(seed)), encode, config, described)


def _described(objective: Objective) -> list[str]:
    return [
        objective.name,
        f"{objective.loss.__module__}.{objective.loss.__qualname__}" + behaviour(objective.loss),
        str(sorted(objective.options.items())),
        str(objective.pairs),
        str(objective.weight),
        str(objective.every),
        objective.connect,
        str(objective.own),
    ]


def _config(module: nn.Module, source: Source, encode: nn.Module | None) -> dict[str, Any]:
    raw = input_of(source)
    size = getattr(encode, "size", None)  # a text has no shape: its network is as wide as the vocabulary
    shape = [size] if raw["dtype"] == "text" and isinstance(size, int) else raw["shape"]
    classes = [str(name) for name in source.classes or ()]
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    config: dict[str, Any] = {"model": {"class": name}, "shape": shape, "input": raw}
    return config | ({"classes": classes} if classes else {})


__all__ = ["Result", "distill"]
