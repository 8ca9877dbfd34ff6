"""distill(): the one-call door for Python. The same tasks as a recipe, with objects in the place of names."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stillroom.contracts import Finding, Source
from stillroom.data.arrays import as_source
from stillroom.errors import ModelError, UserError, say
from stillroom.fingerprints import fingerprint_of, never_again
from stillroom.models.bundle import Deployed, load
from stillroom.models.encode import encode_for
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
from stillroom.tensors import copy_of, shared_tensors

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

    ``teacher``: a trained module, or a Store; it is never trained. ``student``: a function that makes it (needed for
    several seeds), or an untrained module. ``data``: a source, ``(inputs, labels)``, a Dataset, or a dictionary of
    those by split; ``labels`` is how many labels the student may see (None: all). ``objectives``: names, losses of your
    own, or ``match("hint", "layer2", "layer3")``. With ``control`` the same student is also trained without the
    teacher, on labels alone. uint8 images are normalised before both models, by the mean and standard deviation of the
    training images; other inputs are given as they are. A teacher that normalises them itself would do so twice and
    answer at chance: hand it over as ``Deployed(model, encode)``, which owns its preparation and is given the raw
    inputs. Its logits must be in the order of the data's classes. Texts need an encode, for example
    ``words_for(data)``, and the two models need not share it.

    Every arm, rate and seed begins with what the function makes. Where that shares weights with the teacher, or with
    what the function made before, a copy is trained; a function that gives the teacher itself, or one module for
    several seeds, is refused. Parts of a student that were put into evaluation mode and whose parameters want no
    gradient stay so: a frozen BatchNorm keeps its statistics, a frozen Dropout drops nothing.

    ``training`` holds batch, optimizer, rate and the rest; ``steps`` wins. Three learning rates (x0.3, x1, x3) are
    tried with the first seed, for the control as well. Everything is kept in ``out``, and a second call resumes from
    there. What another call did is used again if models and losses have the same fingerprint (docs/runs.md, *What a
    fingerprint sees*); where a part of a model cannot be seen, nothing is. Progress goes to standard error: bars in a
    terminal, lines in a notebook or a log, nothing where the environment has STILLROOM_QUIET=1.

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
    plan = _teacher(teacher, source)
    students = _Students(student, None if plan.make is None else plan.make(), seeds)
    arm = _arm(students, source, objectives, settings, labels)
    arms = {"main": arm}
    if control and source.classes and labels != 0 and arm.reads_teacher:
        arms = {ALONE: control_of(arm, lambda: match("labels")), **arms}
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
    known, config = fingerprint_of(network, encode), _config(network, source, encode)
    described = {"module": known or never_again()}
    return TeacherPlan(described, lambda: network, encode, config=config, shared=known is not None)


class _Students:
    """The students of a call, fresh for each job, whatever a person's function gives: what it holds is never trained.

    Raises:
        ModelError: the function makes something else, the teacher itself, or what it has given to be trained before.
        UserError: it gives one and the same module for several seeds.
    """

    def __init__(self, student: nn.Module | MakeStudent, teacher: nn.Module | None, seeds: Sequence[int]) -> None:
        self.start = copy_of(student, "The student") if isinstance(student, nn.Module) else None
        self.make, self.teacher, self.seeds = student, teacher, seeds
        self.given: list[weakref.ref[Tensor]] = []
        self.first = self._made(seeds[0])  # never trained: what shares its weights is copied
        if self.start is None and len(seeds) > 1:
            second = self._made(seeds[1])
            if not _own(second, _tensors(self.first)):
                raise UserError(
                    f"{len(seeds)} seeds need {len(seeds)} fresh students: got a function that gives one and the same "
                    "module, which has one start. Make it in the function, for example lambda: Small(), or, for the "
                    "same start with every seed, lambda: copy.deepcopy(one)."
                )
        if self.start is None and teacher is not None and not _own(self.first, _tensors(teacher)):
            raise ModelError(
                say(
                    "The student would be trained over the teacher",
                    "a function that gives the teacher's own weights",
                    "a student with weights of its own",
                    "Pass lambda: Small(); to begin with the teacher's weights, lambda: copy.deepcopy(teacher).",
                )
            )

    def __call__(self, seed: int) -> nn.Module:
        """Return a student to be trained, equal to what the function makes for ``seed``."""
        if self.start is not None:
            return copy_of(self.start, "The student")
        made = self._made(seed)
        others = _tensors(self.first) if self.teacher is None else _tensors(self.first) + _tensors(self.teacher)
        if shared_tensors(_network(made), others):
            return copy_of(made, "The student")
        if shared := shared_tensors(_network(made), [one for known in self.given if (one := known()) is not None]):
            raise ModelError(
                say(
                    "The function that makes the student gave what is trained already",
                    f"the weights {', '.join(shared[:3])} for the second time",
                    "fresh weights each time",
                    "Make the module in the function, for example lambda: Small().",
                )
            )
        self.given += [weakref.ref(one) for one in _tensors(made)]
        return made

    def _made(self, seed: int) -> nn.Module:
        if self.start is not None:
            return self.start
        with forked(seed, "weights"), blaming("the function that makes the student", {}):
            made = self.make()
        if not isinstance(made, nn.Module):
            raise ModelError(
                say("The function that makes the student made something else", type(made).__name__, "an nn.Module")
            )
        return made

    def starts(self, encode: nn.Module | None) -> dict[int, str | None]:
        """Return the fingerprint of each seed's student before it is trained."""
        each = {seed: self.first if seed == self.seeds[0] else self._made(seed) for seed in self.seeds}
        return {seed: fingerprint_of(_network(one), encode, trained=True) for seed, one in each.items()}


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*_network(module).parameters(), *_network(module).buffers()]


def _own(module: nn.Module, others: Sequence[Tensor]) -> bool:
    """Whether some parameter that is trained lies in none of the ``others``' memory, or there is none to train."""
    shared = set(shared_tensors(_network(module), others))
    names = [name for name, value in _network(module).named_parameters() if value.requires_grad]
    return not names or not set(names) <= shared


def _arm(
    students: _Students,
    source: Source,
    objectives: str | Sequence[Given],
    settings: Training,
    labels: int | None,
) -> ArmPlan:
    def build() -> list[Objective]:
        return objectives_of(objectives)

    encode, network = _encode(students.first, source), _network(students.first)
    starts, each = students.starts(encode), [one.described() for one in build()]
    shared = None not in starts.values() and all(one["code"] is not None for one in each)
    described = {
        "train": settings.model_dump(mode="json"),
        "objectives": each,
        **({} if shared else {"unseen": never_again()}),
    }
    return ArmPlan(
        "main",
        build,
        settings,
        labels,
        lambda seed: _network(students(seed)),
        encode,
        _config(network, source, encode),
        described,
        starts={seed: str(start) for seed, start in starts.items()},
        shared=shared,
    )


def _config(module: nn.Module, source: Source, encode: nn.Module | None) -> dict[str, Any]:
    raw = input_of(source)
    size = getattr(encode, "size", None)  # a text has no shape: its network is as wide as the vocabulary
    shape = [size] if raw["dtype"] == "text" and isinstance(size, int) else raw["shape"]
    classes = [str(name) for name in source.classes or ()]
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    config: dict[str, Any] = {"model": {"class": name}, "shape": shape, "input": raw}
    return config | ({"classes": classes} if classes else {})


__all__ = ["Result", "distill"]
