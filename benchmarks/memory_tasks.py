"""The three tasks of memory.py: their data, the network that reads them, what it is asked, and the teachers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom import ArraySource, Learner, Rows, Training, fit, match, open_source
from stillroom.evaluate import answer
from stillroom.losses import kd
from stillroom.objectives import Objective
from stillroom.settings import Mixed

SYMBOLS, KINDS, BLANK, CUE = 3, 4, 4, 5
ADDING = 50  # steps
DELAY, LONGEST = 30, 60
LABELLED = 500
POOL = {"train": 16_000, "validation": 2_000, "test": 4_000}
ENOUGH = 0.99  # of the teacher of the copy task


class Reader(nn.Module):
    """An LSTM and a head that answers at the last ``answers`` steps: (B, T, features) -> (B[, answers], outputs).

    Forget gates start one higher than PyTorch's, without which long memories are hardly learned.
    """

    def __init__(self, features: int, hidden: int, outputs: int, answers: int = 1) -> None:
        super().__init__()
        self.answers = answers
        self.memory = nn.LSTM(features, hidden, batch_first=True)
        with torch.no_grad():
            self.memory.get_parameter("bias_ih_l0")[hidden : 2 * hidden] += 1
        self.head = nn.Linear(hidden, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one answer a row, or one for each of the last steps."""
        answers: Tensor = self.head(self.memory(inputs)[0][:, -self.answers :])
        return answers[:, 0] if self.answers == 1 else answers


@dataclass(frozen=True)
class Task:
    """``source`` is what students learn from, ``known`` the same with every label (teacher and scores).

    ``alone``, ``distilled``: batches of the two kinds of arms; ``border``: steps from one stored cell to the next;
    ``score``: of logits and rows, the greater the better.
    """

    name: str
    title: str
    measure: str
    source: ArraySource
    known: ArraySource
    rows: Rows
    alone: int
    distilled: int | Mixed
    outputs: int
    answers: int
    border: int
    steps: int
    answering: Callable[[], Objective]
    imitating: Callable[[], Objective]
    score: Callable[[Tensor, Tensor], float]

    def reader(self, hidden: int, seed: int) -> Reader:
        """Return a network of ``hidden`` units, the same for the same seed."""
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        made = Reader(self.source.inputs.shape[2], hidden, self.outputs, self.answers)
        torch.random.set_rng_state(state)
        return made

    def scored(self, module: nn.Module, split: str) -> float:
        """Return the score of a network on a split."""
        examples = self.known.splits[split]
        return self.score(answer(module, self.known, examples)[0], examples)


# --- the adding problem ------------------------------------------------------------------------------


def _squares(student_logits: Tensor, value: Tensor) -> Tensor:
    return F.mse_loss(student_logits[:, 0], value)


def adding(quick: bool) -> Task:
    """Two of fifty numbers are marked, one in each half: what is their sum? (Hochreiter and Schmidhuber 1997)."""
    sizes = _sizes(quick)
    count, generator = sum(sizes.values()), torch.Generator().manual_seed(1)
    values, marks = torch.rand(count, ADDING, generator=generator), torch.zeros(count, ADDING)
    for low, high in ((0, ADDING // 2), (ADDING // 2, ADDING)):
        marks[torch.arange(count), torch.randint(low, high, (count,), generator=generator)] = 1
    value = (values * marks).sum(1)
    source = ArraySource(
        torch.stack([values, marks], 2), splits=_splits(sizes), columns={"value": value}, name="adding"
    )

    def score(logits: Tensor, examples: Tensor) -> float:
        truth = value[examples]
        return 1 - float((logits[:, 0] - truth).square().mean() / truth.var(correction=0))

    return Task(
        name="adding", title=f"Adding problem, {ADDING} steps", measure="variance explained", source=source,
        known=source, rows=Rows(source.splits["train"]), alone=64, distilled=64, outputs=1, answers=1, border=5,
        steps=500, answering=lambda: match(_squares, name="task"),
        imitating=lambda: match("regression", name="answers"), score=score,
    )  # fmt: skip


# --- delayed copy ------------------------------------------------------------------------------------


def _each_symbol(student_logits: Tensor, symbols: Tensor) -> Tensor:
    return F.cross_entropy(student_logits.flatten(0, 1), symbols.flatten())


def _each_answer(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    return kd(student_logits.flatten(0, 1), teacher_logits.flatten(0, 1), temperature=2.0)


def sequences(symbols: Tensor, delay: int) -> Tensor:
    """Return symbols, ``delay`` blanks and a cue for each symbol, one-hot: (B, 2 x 3 + delay, 6)."""
    steps = torch.full((len(symbols), 2 * SYMBOLS + delay), BLANK)
    steps[:, :SYMBOLS], steps[:, SYMBOLS + delay :] = symbols, CUE
    return F.one_hot(steps, 6).float()


def _copies(delay: int, sizes: dict[str, int]) -> ArraySource:
    generator = torch.Generator().manual_seed(2)
    symbols = torch.randint(0, KINDS, (sum(sizes.values()), SYMBOLS), generator=generator)
    return ArraySource(
        sequences(symbols, delay), splits=_splits(sizes), columns={"symbols": symbols}, name=f"copy-{delay}"
    )


def copying(quick: bool, delay: int = DELAY) -> Task:
    """Three symbols of four, ``delay`` blanks, then three cues: which symbols were they? There are 64 sequences."""
    source = _copies(delay, _sizes(quick))

    def score(logits: Tensor, examples: Tensor) -> float:
        return float((logits.argmax(2) == source.columns["symbols"][examples]).float().mean())

    return Task(
        name="copy" if delay == DELAY else f"copy-{delay}", title=f"Delayed copy, delay {delay}",
        measure="accuracy", source=source, known=source, rows=Rows(source.splits["train"]), alone=64, distilled=64,
        outputs=KINDS, answers=SYMBOLS, border=6, steps=1000, answering=lambda: match(_each_symbol, name="task"),
        imitating=lambda: match(_each_answer, name="answers", connector="none"), score=score,
    )  # fmt: skip


# --- Fashion-MNIST, row by row -----------------------------------------------------------------------


def rows(quick: bool) -> Task:
    """Images read row by row, 28 steps of 28 pixels; students have 500 labels and all training images."""
    found: Any = open_source("fashion-mnist-sample")
    steps = (found.inputs[:, 0].float() / 255 - 0.286) / 0.353
    names = found.classes
    known = ArraySource(steps, found.labels, classes=names, splits=found.splits, name="rows")
    train = found.splits["train"]
    labelled, hidden = train[:LABELLED], found.labels.clone()
    hidden[train[LABELLED:]] = -1
    source = ArraySource(steps, hidden, classes=names, splits=found.splits, name="rows")

    def score(logits: Tensor, examples: Tensor) -> float:
        return float((logits.argmax(1) == found.labels[examples]).float().mean())

    return Task(
        name="rows", title="Fashion-MNIST row by row, 500 labels", measure="accuracy", source=source, known=known,
        rows=Rows(labelled, train), alone=64, distilled=Mixed(labelled=64, transfer=64), outputs=10, answers=1,
        border=7, steps=600, answering=lambda: match("labels", name="task"),
        imitating=lambda: match("kd", name="answers", temperature=2), score=score,
    )  # fmt: skip


def _sizes(quick: bool) -> dict[str, int]:
    return {name: size // 8 if quick else size for name, size in POOL.items()}


def _splits(sizes: dict[str, int]) -> dict[str, Tensor]:
    ends = torch.tensor(list(sizes.values())).cumsum(0).tolist()
    return {name: torch.arange(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


# --- teachers ----------------------------------------------------------------------------------------


def teach(task: Task, hidden: int, quick: bool) -> tuple[Reader, list[dict[str, Any]]]:
    """Train the teacher with every label; returns it and what was done: steps, and the score on validation."""
    teacher = task.reader(hidden, seed=7)
    if task.name == "copy":
        log = _lengthen(teacher, range(5, DELAY, 5), quick)
        return teacher, log + [_stage(teacher, task, 60 if quick else 600, "cosine")]
    steps = {"adding": 4000, "rows": 1500}[task.name]
    return teacher, [_stage(teacher, task, 60 if quick else steps, "cosine", lr=2.0e-3)]


def lengthened(teacher: Reader, quick: bool) -> tuple[Reader, list[dict[str, Any]]]:
    """Return a copy of the copy task's teacher that was taught longer and longer delays, as far as it followed."""
    longer = copy.deepcopy(teacher)
    log = _lengthen(longer, range(DELAY + 10, LONGEST, 10), quick)
    return longer, log + [_stage(longer, copying(quick, LONGEST), 60 if quick else 600, "cosine")]


def _lengthen(teacher: Reader, delays: Sequence[int], quick: bool) -> list[dict[str, Any]]:
    log = []
    for delay in delays:
        task = copying(quick, delay)
        for _ in range(1 if quick else 6):
            log.append(_stage(teacher, task, 20 if quick else 200, "constant"))
            if log[-1]["validation"] > 0.95:
                break
    return log


def _stage(teacher: Reader, task: Task, steps: int, schedule: Any, lr: float = 3.0e-3) -> dict[str, Any]:
    settings = Training(
        steps=steps, batch=64, lr=lr, warmup=min(1.0, 20 / steps), schedule=schedule, clip=1.0, gradient_norms_every=0
    )
    learner = Learner(teacher, [task.answering()])
    fit(learner, task.known, None, settings, rows=Rows(task.known.splits["train"]), seed=7)
    return {"task": task.name, "steps": steps, "validation": task.scored(teacher, "validation")}
