"""suitability(): which of several teachers suits a student, from the student's gradients on their answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.contracts import UNLABELLED, Batch, Progress, Signals, Source, Teacher
from stillroom.errors import DataError, ModelError, UserError, say
from stillroom.learner import Learner
from stillroom.models.bundle import Deployed
from stillroom.models.encode import encode_for
from stillroom.objectives import match
from stillroom.randomness import draw, forked, permutation
from stillroom.settings import Training
from stillroom.store import Store
from stillroom.taps import Reader, Takes, read
from stillroom.tasks import check_answers, check_labels, check_names
from stillroom.teachers import Average, Live
from stillroom.tensors import copy_of
from stillroom.train import Rows, fit

WARMUP, RATE, BATCH = 200, 3e-3, 64  # steps on the mean of all teachers, before anything is asked
DIMENSIONS, RIDGE = 1024, 0.1
FOLD = 4  # GRACE sees so many of them as one: it wants fewer dimensions than examples
EXACT = 16  # classes up to which the whole Jacobian is taken; above, as many random directions of it
SPLITS, HELD, SMOOTH = 10, 0.1, 1e-3  # as GRACE has them
CHUNK = 500


@dataclass(frozen=True)
class Suitability:
    """What a student's gradients say of one teacher; :func:`suitability` gives them best first."""

    teacher: str
    foreseen: float
    each: tuple[float, ...]
    grace: float
    gradient_norm: float
    accuracy: float | None
    entropy: float
    agreement: float

    def plain(self) -> dict[str, Any]:
        """Return this as JSON values."""
        return asdict(self) | {"each": list(self.each)}


@dataclass(frozen=True)
class _Answers:
    """What the teachers say: logits by name on the rows that are looked at, and what counts as true where it is held.

    ``rows`` and ``held`` are batches of examples; ``told`` are logits (rows, classes) on the former, ``truth`` the
    class (rows) of the latter. ``accuracy`` is each teacher's own, on the labelled rows of validation, None without.
    """

    rows: Batch
    held: Batch
    told: dict[str, Tensor]
    truth: Tensor
    accuracy: dict[str, float | None]


def suitability(
    student: nn.Module | Callable[[], nn.Module],
    teachers: Mapping[str, Teacher | nn.Module],
    source: Source,
    *,
    encode: Callable[..., Any] | None = None,
    takes: Takes = ("inputs",),
    temperature: float = 4.0,
    rows: int = 512,
    starts: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Suitability]:
    """Return what suits ``student``, best teacher first: none of them is distilled, the student's gradients tell.

    ``student``: a function that makes it (then ``starts`` of them are asked and averaged), or one untrained module.
    ``teachers``: by name, Stores, modules, or any Batch -> Signals with ``logits``. ``rows`` training examples are
    looked at and twice as many are held out: of validation, then of the other training examples. Without ``encode``,
    uint8 images are normalised as :func:`stillroom.distill` does.

    The student first takes 200 steps on the mean of all teachers' probabilities. Then, with its logits z, their
    Jacobian J_i (classes x parameters) on example i, and both answers softened at temperature t:

    * the gradient on a teacher's answer: g_i = J_i' r_i, r_i = t C (p_teacher - p_student), C the number of classes:
      minus C times the gradient of :func:`stillroom.losses.kd`.
    * ``foreseen``: the share of held-out examples whose class argmax(z + J w) hits, w = (G + a m I)^-1 sum_i g_i, G the
      sum of J_i' J_i (classes centred), m its mean eigenvalue, a = 0.1: one Gauss-Newton step along the gradients.
      ``each`` holds it for each start. What is true is the label; without labels, the top class of the teachers' mean.
      This score is ours.
    * ``grace``: mean over 10 splits of trace(S^-1 H), less is better. S is the mean of u u' over 90 % of the examples,
      H that of g g' over the rest, u = g / |g|, g the gradient of the cross-entropy with the teacher's top class; each
      eigenvalue of S is mixed with a thousandth of their mean. Panigrahi et al. 2026, GRACE
      (https://arxiv.org/abs/2511.02833), as in the authors' code, except that they draw four answers at temperature
      1 to each question, and of classes one is taken, the likeliest, which served better here.
    * ``gradient_norm``: mean of |g_i|. ``accuracy``: the teacher's own on validation (None without labels).
      ``entropy``: of its answers at temperature 1, in nats. ``agreement``: with the top class of the teachers' mean.

    Gradients are projected to 1,024 numbers (256 for ``grace``): each parameter goes to one of them with a sign, both
    belonging to (seed, name, place), an unbiased sketch of all products (Charikar, Chen and Farach-Colton 2002,
    https://doi.org/10.1007/3-540-45465-9_59). One example at a time, which works with recurrent memories too and took
    no longer than vmap. Above 16 classes 16 random directions stand for the Jacobian's rows. J w is a central
    difference.

    Raises:
        UserError: fewer than two teachers, none by name, or a number out of range.
        ModelError: a teacher or the student does not answer as one, knows other classes, or has nothing to train.
        DataError: a split that is needed has no rows, or there is no source.
        StoreError: a store does not know the examples.
    """
    _check_teachers(teachers)
    _check(source, encode, temperature, {"rows": (rows, 20), "starts": (starts, 1), "seed": (seed, None)})
    _check_student(student)
    named = {name: _teacher(one, source) for name, one in teachers.items()}
    answers = _asked(named, source, rows, seed)
    starts = 1 if isinstance(student, nn.Module) else starts
    found: list[dict[str, tuple[float, float, float]]] = []
    for start in range(starts):
        module, own = _student(student, source, encode, seed + start)
        _same_classes(module, own, takes, answers)
        _warm(module, own, takes, named, source, temperature, seed + start)

        def tell(done: int, of: int, what: str, start: int = start) -> None:
            if progress is not None:
                progress(start * of + done, starts * of, what)

        found.append(_scores(module, own, takes, answers, temperature, seed + start, tell))
    scored = [_summed(name, [one[name] for one in found], answers) for name in named]
    return sorted(scored, key=lambda one: (-one.foreseen, one.grace, one.teacher))


def _check_teachers(teachers: object) -> None:
    if not isinstance(teachers, Mapping) or not all(isinstance(name, str) for name in teachers):
        given = f"names {list(teachers)}" if isinstance(teachers, Mapping) else f"a {type(teachers).__name__}"
        allowed = "a dictionary of teachers by name, such as {'big': store, 'small': module}"
        raise UserError(say("Teachers come by name", given, allowed))
    if len(teachers) < 2:
        raise UserError(
            say("There is nothing to choose from", f"teachers {sorted(teachers)}", "two or more", "Name another one.")
        )
    for name, one in teachers.items():
        if not callable(one):
            allowed = "a Store, a module, or a function from a Batch to signals with 'logits'"
            raise ModelError(say(f"'{name}' cannot be a teacher", repr(one), allowed))


def _check(source: Source, encode: object, temperature: float, numbers: Mapping[str, tuple[int, int | None]]) -> None:
    for name, (value, least) in numbers.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or (least is not None and value < least):
            allowed = "a whole number" if least is None else f"{least} or more"
            raise UserError(say(f"'{name}' is out of its range", repr(value), allowed))
    if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise UserError(say("A temperature is above 0", repr(temperature), "a number, for example 4"))
    if encode is not None and not callable(encode):
        raise UserError(say("This cannot be an encode", repr(encode), "a function of raw inputs"))
    if not isinstance(getattr(source, "splits", None), Mapping):
        raise DataError(say("This is no source of data", repr(source)[:80], "open_source('digits'), as_source(arrays)"))
    for split in ("train", "validation"):
        if not len(source.splits.get(split, ())):
            do = "Give data with rows of train and of validation."
            raise DataError(say(f"The data has no rows of '{split}', which this needs", "0 rows", "", do))


def _check_student(student: Any) -> None:
    """Refuse what is no student: a name, or a function that cannot be called without arguments."""
    with suppress(ValueError):  # some functions have no signature
        try:
            if not isinstance(student, nn.Module):
                inspect.signature(student).bind()
        except TypeError as error:
            allowed = "an nn.Module, or a function without arguments that makes one: partial(network, width=8)"
            raise ModelError(say("This cannot be a student", f"{student!r} ({error})", allowed)) from error


# --- who takes part ----------------------------------------------------------------------------------------


def _teacher(one: Teacher | nn.Module, source: Source) -> Teacher:
    if isinstance(one, Store):
        return one.use("logits")
    if isinstance(one, Deployed):
        check_names(one.classes, source.classes, "A teacher")
        return Live(one.model, encode=one.encode)
    return Live(one, encode=encode_for(source)) if isinstance(one, nn.Module) else one


def _student(
    student: nn.Module | Callable[[], nn.Module], source: Source, encode: Callable[..., Any] | None, seed: int
) -> tuple[nn.Module, Callable[..., Any] | None]:
    """Return a student of its own, to be warmed up, and its encode."""
    if isinstance(student, nn.Module):
        made = copy_of(student, "The student")
    else:
        with forked(seed, "weights"):
            made = student()
    if not isinstance(made, nn.Module):
        raise ModelError(say("This cannot be a student", type(made).__name__, "an nn.Module, or a function for it"))
    if not any(value.requires_grad for value in made.parameters()):
        raise ModelError("This student has nothing to train: got no parameter with a gradient. Unfreeze some of them.")
    if isinstance(made, Deployed):
        return made.model, made.encode if encode is None else encode
    return made, encode_for(source) if encode is None else encode


def _plain(examples: Tensor) -> Tensor:
    return torch.stack([examples, torch.zeros_like(examples)], 1)


def _asked(teachers: Mapping[str, Teacher], source: Source, rows: int, seed: int) -> _Answers:
    """Ask every teacher about the rows that are looked at, drawn by the seed and the examples themselves."""
    train, validation = _drawn(source, "train", seed), _drawn(source, "validation", seed)[: 2 * rows]
    seen, held = train[:rows], torch.cat([validation, train[rows:]])[: 2 * rows]
    asked = {name: _logits(teacher, source, seen, name) for name, teacher in teachers.items()}
    widths = {name: int(logits.shape[1]) for name, logits in asked.items()}
    if len(set(widths.values())) > 1:
        raise ModelError(
            say("These teachers know other classes than each other", widths, "as many for all", "Leave one out.")
        )
    batch = source.batch(_plain(held))
    check_labels(batch.get("labels"), len(held))
    truth = batch.get("labels", torch.full((len(held),), UNLABELLED))
    own = truth[: len(validation)]
    checked = validation[own != UNLABELLED]
    accuracy: dict[str, float | None] = dict.fromkeys(teachers)
    if len(checked):
        right = own[own != UNLABELLED]
        accuracy = {name: _share(_logits(one, source, checked), right) for name, one in teachers.items()}
    if bool((truth != UNLABELLED).any()):
        known = truth != UNLABELLED
        batch, truth = {name: value[known] for name, value in batch.items()}, truth[known]
    else:
        truth = _mean({name: _logits(teacher, source, held) for name, teacher in teachers.items()}).argmax(1)
    width, least = next(iter(widths.values())), int(truth.max()) + 1
    if least > width:
        raise ModelError(say("These teachers know fewer classes than the data", width, f"{least} or more"))
    return _Answers(source.batch(_plain(seen)), batch, asked, truth, accuracy)


def _share(logits: Tensor, truth: Tensor) -> float:
    return float((logits.argmax(1) == truth).double().mean())


def _drawn(source: Source, split: str, seed: int) -> Tensor:
    examples = source.splits[split].sort().values
    return examples[torch.from_numpy(permutation(len(examples), seed, "suitability", split))]


def _logits(teacher: Teacher, source: Source, examples: Tensor, name: str = "") -> Tensor:
    parts = []
    for part in examples.split(CHUNK):
        with _asking(f"the teacher '{name}'"):
            shown: Signals = teacher(source.batch(_plain(part)))
        if not isinstance(shown, Mapping) or "logits" not in shown:
            given = str(sorted(shown)) if isinstance(shown, Mapping) else f"a {type(shown).__name__}"
            raise ModelError(say("A teacher shows no logits", given, "signals with logits", "Record or show them."))
        parts.append(check_answers(shown["logits"], f"the teacher '{name}'", len(part)).float())
    return torch.cat(parts)


@contextmanager
def _asking(whose: str) -> Iterator[None]:
    """Say in words whose computing failed, which PyTorch alone does not know."""
    try:
        yield
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        allowed = "rows of the source, as their encode turns them"
        raise ModelError(say(f"Asking {whose} failed", f"'{reason}'", allowed, "Give what fits this data.")) from error


def _mean(answers: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([logits.softmax(1) for logits in answers.values()]).mean(0)


def _same_classes(module: nn.Module, encode: Callable[..., Any] | None, takes: Takes, answers: _Answers) -> None:
    first = {name: value[:1] for name, value in answers.rows.items()}
    with _resting(module), torch.no_grad(), _asking("the student"):
        shown = read(module, ["logits"], encode, takes=takes)(first)["logits"]
        mine = int(check_answers(shown, "the student", 1).shape[1])
    theirs = int(next(iter(answers.told.values())).shape[1])
    if mine != theirs:
        raise ModelError(
            say("The teachers know other classes than the student", f"{theirs} classes", f"{mine}, as the student has")
        )


def _warm(
    module: nn.Module,
    encode: Callable[..., Any] | None,
    takes: Takes,
    teachers: Mapping[str, Teacher],
    source: Source,
    temperature: float,
    seed: int,
) -> None:
    """Train the student a little on the mean of all teachers: at its start its gradients hardly depend on theirs."""
    learner = Learner(module, [match("kd", temperature=temperature)], encode=encode, takes=takes)
    settings = Training(steps=WARMUP, batch=BATCH, lr=RATE, gradient_norms_every=0)
    fit(learner, source, Average(teachers), settings, rows=Rows(source.splits["train"].sort().values), seed=seed)


@contextmanager
def _resting(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


# --- gradients, one example at a time ------------------------------------------------------------------------


class _Sketch:
    """Each parameter goes to one of the dimensions with a sign, both belonging to (seed, name, place)."""

    def __init__(self, module: nn.Module, seed: int) -> None:
        named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        self.parameters: list[nn.Parameter] = [value for _, value in named]
        words = np.concatenate([draw(seed, "sketch", name, np.arange(value.numel())) for name, value in named])
        self.places = torch.from_numpy(((words >> np.uint64(1)) % np.uint64(DIMENSIONS)).astype(np.int64))
        self.signs = torch.from_numpy(1.0 - 2.0 * (words & np.uint64(1)).astype(np.float32))

    def project(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return the sketch (dimensions) of one gradient, a tensor for each parameter."""
        flat = torch.cat(
            [
                (torch.zeros_like(value) if one is None else one).flatten().float()
                for value, one in zip(self.parameters, gradients, strict=True)
            ]
        )
        return torch.zeros(DIMENSIONS).index_add_(0, self.places, flat * self.signs)

    def spread(self, step: Tensor) -> list[Tensor]:
        """Return the direction of parameters that a sketched step stands for: the projection's transpose."""
        flat = step.float()[self.places] * self.signs
        parts = flat.split([value.numel() for value in self.parameters])
        return [part.view_as(value) for part, value in zip(parts, self.parameters, strict=True)]


def _gradients(reader: Reader, batch: Batch, ways: Tensor, sketch: _Sketch, progress: Progress) -> Tensor:
    """Return the sketched gradients (rows, ways, dimensions) of ``ways`` (rows, ways, classes) times the logits."""
    found = torch.empty(*ways.shape[:2], DIMENSIONS)
    for row in range(len(ways)):
        logits = reader({name: value[row : row + 1] for name, value in batch.items()})["logits"][0]
        for way in range(ways.shape[1]):
            last = way == ways.shape[1] - 1
            gradient = torch.autograd.grad(
                logits, sketch.parameters, ways[row, way], retain_graph=not last, allow_unused=True
            )
            found[row, way] = sketch.project(gradient)
        if row % 50 == 49 or row == len(ways) - 1:
            progress(row + 1, len(ways), "gradients")
    return found


def _residuals(mine: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """Return r: what the teacher's softened answer has more than the student's, in units of logits."""
    return temperature * mine.shape[1] * ((theirs / temperature).softmax(1) - (mine / temperature).softmax(1))


def _top(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy with the teacher's top class, with respect to the logits."""
    return mine.softmax(1) - functional.one_hot(theirs.argmax(1), mine.shape[1])


# --- scores --------------------------------------------------------------------------------------------------


def _scores(
    module: nn.Module,
    encode: Callable[..., Any] | None,
    takes: Takes,
    answers: _Answers,
    temperature: float,
    seed: int,
    progress: Progress,
) -> dict[str, tuple[float, float, float]]:
    """Return (foreseen, grace, gradient norm) by teacher."""
    sketch, reader = _Sketch(module, seed), read(module, ["logits"], encode, takes=takes)
    with _resting(module):
        mine = _student_logits(reader, answers.rows)
        classes = mine.shape[1]
        soft = {name: _residuals(mine, told, temperature) for name, told in answers.told.items()}
        hard = {name: _top(mine, told) for name, told in answers.told.items()}
        if classes <= EXACT:
            ways = torch.eye(classes).expand(len(mine), classes, classes)
            seen = _gradients(reader, answers.rows, ways, sketch, progress)
            follow = {name: torch.einsum("nk,nkd->nd", way, seen) for name, way in soft.items()}
            answer = {name: torch.einsum("nk,nkd->nd", way, seen) for name, way in hard.items()}
            rows = seen - seen.mean(1, keepdim=True)
        else:
            ways = torch.stack([*soft.values(), *hard.values(), *_signs(len(mine), classes, seed)], 1)
            seen = _gradients(reader, answers.rows, ways, sketch, progress)
            follow = {name: seen[:, place] for place, name in enumerate(soft)}
            answer = {name: seen[:, len(soft) + place] for place, name in enumerate(hard)}
            rows = seen[:, 2 * len(soft) :]
        steps = _steps(rows, {name: gradients.sum(0) for name, gradients in follow.items()})
        logits = _student_logits(reader, answers.held)
        result = {}
        for name, step in steps.items():
            foreseen = logits + _moved(reader, answers.held, sketch.spread(step), sketch.parameters)
            hit = _share(foreseen, answers.truth)
            norm = float(follow[name].norm(dim=1).mean())
            folded = answer[name].unflatten(1, (-1, FOLD)).sum(2)
            result[name] = (hit, grace(folded), norm)
    return result


def _signs(rows: int, classes: int, seed: int) -> list[Tensor]:
    """Return random directions over classes, centred, whose squares sum to the centring on average."""
    words = draw(seed, "ways", np.arange(EXACT)[:, None, None], np.arange(rows)[:, None], np.arange(classes))
    signs = torch.from_numpy(1.0 - 2.0 * (words >> np.uint64(63)).astype(np.float32))
    return list((signs - signs.mean(2, keepdim=True)) / EXACT**0.5)


def _steps(rows: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return w = (G + a m I)^-1 g by name, of Jacobians (rows, ways, dimensions) and summed gradients (dimensions)."""
    flat = rows.reshape(-1, rows.shape[-1])
    gram = (flat.T @ flat).double()
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + torch.finfo(torch.float32).tiny)
    solved = torch.linalg.solve(gram, torch.stack(list(gradients.values()), 1).double())
    return dict(zip(gradients, solved.T, strict=True))


@torch.no_grad()
def _moved(reader: Reader, batch: Batch, direction: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return J w, (rows, classes): the central difference of the logits along ``direction`` of the parameters."""
    length = torch.stack([part.norm() for part in direction]).norm()
    size = torch.stack([value.detach().norm() for value in parameters]).norm()
    if not length > 0:
        return torch.zeros_like(_student_logits(reader, batch))
    step = float(1e-3 * size.clamp(min=1e-3) / length)
    kept = [value.detach().clone() for value in parameters]
    sides = []
    try:
        for side in (step, -step):
            for value, old, way in zip(parameters, kept, direction, strict=True):
                value.copy_(old + side * way)
            sides.append(_student_logits(reader, batch))
    finally:
        for value, old in zip(parameters, kept, strict=True):
            value.copy_(old)
    return (sides[0] - sides[1]) / (2 * step)


@torch.no_grad()
def _student_logits(reader: Reader, batch: Batch) -> Tensor:
    count = len(batch["id"])
    parts = [
        reader({name: value[start : start + CHUNK] for name, value in batch.items()})["logits"].float()
        for start in range(0, count, CHUNK)
    ]
    return torch.cat(parts)


def grace(gradients: Tensor, *, seed: int = 0) -> float:
    """Return GRACE of gradients (rows, dimensions), one row an example; less is better.

    See :func:`suitability` for the formula. Panigrahi et al. 2026 (https://arxiv.org/abs/2511.02833).
    """
    values, rows = gradients.double(), len(gradients)
    held = max(1, int(rows * HELD))
    scores = []
    for split in range(SPLITS):
        order = torch.from_numpy(permutation(rows, seed, "grace", split))
        test, train = values[order[:held]], values[order[held:]]
        unit = train / train.norm(dim=1, keepdim=True).clamp(min=1e-12)
        smoothed = (1 - SMOOTH) * (unit.T @ unit) / len(unit)  # as its eigenvalues, mixed with their mean
        smoothed.diagonal().add_(SMOOTH * float((unit**2).sum()) / unit.numel() + 1e-12)
        scores.append(float((test * torch.linalg.solve(smoothed, test.T).T).sum(1).mean()))
    return sum(scores) / len(scores)


def _summed(name: str, found: Sequence[tuple[float, float, float]], answers: _Answers) -> Suitability:
    told = answers.told[name]
    foreseen, score, norm = (sum(values) / len(found) for values in zip(*found, strict=True))
    return Suitability(
        name,
        foreseen,
        tuple(one[0] for one in found),
        score,
        norm,
        answers.accuracy[name],
        float(-(told.softmax(1) * told.log_softmax(1)).sum(1).mean()),
        _share(told, _mean(answers.told).argmax(1)),
    )
