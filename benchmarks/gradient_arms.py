"""What gradient_derivatives.py trains: tasks, teachers, arms of students, and how many steps each arm may take.

All students of a task and seed start from the same weights and see the same examples; each arm's number of steps is
such that the student's floating-point operations, counted by PyTorch, come to the same sum.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stillroom.contracts import Batch, Signals, Teacher
from stillroom.data.arrays import ArraySource
from stillroom.data.splits import LabelledSubset, few_labels
from stillroom.data.table import open_source
from stillroom.data.views import Views
from stillroom.evaluate import plain_ids
from stillroom.learner import Learner
from stillroom.models.encode import encode_for
from stillroom.models.zoo import build
from stillroom.objectives import Objective, match
from stillroom.record import record
from stillroom.settings import Mixed, Training
from stillroom.taps import read
from stillroom.teachers import Live
from stillroom.train import Rows, train

GRADIENT, RANDOM = "logits@gradient", "logits@gradient(random=1)"
LIVE = 100_000  # views of an example where the teacher answers while the student trains: each is met once
POINTS = {"train": 8192, "validation": 512, "test": 4096}
FEW = 64
TEACHERS_SEED = 7

Choice = Mapping[str, float]


@dataclass(frozen=True)
class Arm:
    """One way to learn. ``asks``: what beside the answers (``""``: nothing); ``views``: how inputs are noised.

    ``views`` is ``plain``, ``two`` or ``recorded`` (two or ``Task.views`` of each, the plain one among them) or
    ``live`` (a new one at each step, the teacher asked each time; without noise only the directions of derivatives are
    new). ``everywhere``: all training examples are given, most of them unlabelled.
    """

    name: str
    tries: tuple[Choice, ...]
    asks: str = ""
    views: str = "plain"
    teacher: bool = True
    everywhere: bool = False


@dataclass
class Task:
    """Data, teacher and student. ``rows(seed)`` are the few examples; ``steps`` those of an arm with gradients.

    A point of a regression has as many recorded views as value and gradient have numbers; two views cost the teacher
    what value and gradient do.
    """

    name: str
    title: str
    data: ArraySource
    teacher: nn.Module
    student: Callable[[], nn.Module]
    encode: nn.Module | None
    rows: Callable[[int], Tensor]
    views: int
    steps: int
    arms: tuple[Arm, ...]
    answers: Callable[[], list[Objective]]
    alone: Callable[[], list[Objective]] | None
    score: Callable[[Task, nn.Module, str], dict[str, Any]]
    best: str
    more: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Signals] = field(default_factory=dict)


# --- one student -------------------------------------------------------------------------------------


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network that is the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def objectives(task: Task, arm: Arm, choice: Choice) -> list[Objective]:
    """Return what a student of ``arm`` is asked."""
    if not arm.teacher:
        assert task.alone is not None
        return task.alone()
    asked, weight = task.answers(), choice.get("weight", 0.0)
    if arm.asks == "gradient":
        asked.append(match("input_gradient", weight=weight, batch_share=choice.get("share", 0.01), name="derivatives"))
    elif arm.asks == "cosine":
        asked.append(match("input_gradient_cosine", weight=weight, name="derivatives"))
    elif arm.asks == "directions":
        asked.append(
            match(
                "directional_derivative", student=RANDOM, teacher=RANDOM, weight=weight, name="derivatives",
                batch_share=choice.get("share", 0.01),
            )
        )  # fmt: skip
    elif arm.asks.endswith("@gradcam"):
        asked.append(match("explanation", student=arm.asks, teacher=arm.asks, weight=weight, name="maps"))
    return asked


def student(task: Task, arm: Arm, choice: Choice, seed: int, folder: str) -> tuple[nn.Module, dict[str, float]]:
    """Return a trained student, how many steps it took, and the operations of one: its own and the teacher's."""
    module = seeded(task.student, seed)
    learner = Learner(module, objectives(task, arm, choice), encode=task.encode)
    rows = task.rows(seed)
    views = {"plain": 1, "two": 2, "recorded": task.views, "live": LIVE}[arm.views]
    source = _noised(task, choice.get("noise", 0.0), views, seed)
    data: Any = LabelledSubset(source, rows) if source.labels is not None else source
    teacher = _teacher(task, arm, learner, source, rows, views, folder)
    given = Rows(rows, source.splits["train"]) if arm.everywhere else Rows(rows)
    batch: Any = Mixed(labelled=len(rows), transfer=64) if arm.everywhere else len(rows)
    cost = _cost(task, learner, data, teacher, given, batch)
    steps = max(1, round(task.steps * task.more["operations"] / cost["student"]))
    settings = Training(steps=steps, batch=batch, lr=choice["rate"], warmup=0.05, gradient_norms_every=0)
    for _ in train(learner, data, teacher, settings, rows=given, views=views, seed=seed):
        pass
    return module, {**cost, "steps": steps}


def _noised(task: Task, noise: float, views: int, seed: int) -> ArraySource:
    if views == 1:
        return task.data
    data = task.data
    columns = {name: values for name, values in data.columns.items() if name not in ("inputs", "labels")}
    made = Views(views, pad=0, flip=False, seed=seed, noise=noise)
    return ArraySource(
        data.inputs, data.labels, classes=data.classes, splits=data.splits, views=made, columns=columns, name=data.name
    )


def _teacher(
    task: Task, arm: Arm, learner: Learner, source: ArraySource, rows: Tensor, views: int, folder: str
) -> Teacher | None:
    """Return who answers: a store of the plain examples or of their few views, or the network at work."""
    taps = list(dict.fromkeys(str(one.tap) for one in learner.teacher_places))
    if not taps:
        return None
    live = Live(task.teacher, taps, encode=task.encode)
    if arm.views == "live":
        return live
    ids = None if arm.everywhere else rows
    place = tempfile.mkdtemp(dir=folder)
    return record(live, source, place, splits=["train"], taps=taps, ids=ids, views=views)


def _cost(
    task: Task, learner: Learner, data: Any, teacher: Teacher | None, rows: Rows, batch: int | Mixed
) -> dict[str, float]:
    """Count the operations of one step: forward and backward of the student, and a live teacher's forward."""
    ids = rows.order(Training(steps=1, batch=batch), seed=0).ids(0)
    given: Batch = data.batch(ids)
    with FlopCounterMode(display=False) as asked:
        told = teacher(given) if teacher is not None else {}
    learner.size(given, told)
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.train()
    with FlopCounterMode(display=False) as counted:
        learner(given, told)["loss"].backward()
    learner.zero_grad(set_to_none=True)
    learner.load_state_dict(state)  # batch normalisation has taken note of the batch
    return {"student": float(counted.get_total_flops()), "teacher": float(asked.get_total_flops())}


def operations(task: Task, folder: str) -> float:
    """Return the operations of a step with input gradients on the few examples, by which all steps are counted."""
    arm = next(one for one in task.arms if one.asks == "gradient" and one.views == "plain")
    learner = Learner(seeded(task.student, 0), objectives(task, arm, {"weight": 1.0}), encode=task.encode)
    rows = task.rows(0)
    teacher = Live(task.teacher, [str(one.tap) for one in learner.teacher_places], encode=task.encode)
    return _cost(task, learner, task.data, teacher, Rows(rows), len(rows))["student"]


# --- regression --------------------------------------------------------------------------------------


def waves(points: Tensor) -> Tensor:
    """A sum of six waves across a cube of four dimensions, their directions and phases drawn once."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(points.shape[1], 6, generator=generator) * (2.2 / math.sqrt(points.shape[1]))
    return torch.sin(points @ directions + 2 * math.pi * torch.rand(6, generator=generator)).sum(1)


def friedman(points: Tensor) -> Tensor:
    """Friedman's first function (1991, https://doi.org/10.1214/aos/1176347963), of five numbers; a sixth is idle."""
    unit = (points + 1) / 2
    wave = 10 * torch.sin(math.pi * unit[:, 0] * unit[:, 1])
    return wave + 20 * (unit[:, 2] - 0.5) ** 2 + 10 * unit[:, 3] + 5 * unit[:, 4]


def smooth(inputs: int, hidden: int) -> nn.Module:
    """Two hidden layers with GELU and one answer."""
    layers = (nn.Flatten(), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
    return nn.Sequential(*layers, nn.Linear(hidden, 1))


def regression(name: str, quick: bool) -> Task:
    """64 points of a smooth function of a few numbers, which a larger network was taught before."""
    function, width, title = {
        "waves": (waves, 4, "Six waves in four dimensions"),
        "friedman": (friedman, 6, "Friedman's function in six dimensions"),
    }[name]
    sizes = {split: size // 8 if quick else size for split, size in POINTS.items()}
    points = torch.rand(sum(sizes.values()), width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ends = torch.tensor(list(sizes.values())).cumsum(0).tolist()
    splits = {split: torch.arange(end - size, end) for (split, size), end in zip(sizes.items(), ends, strict=True)}
    values = function(points)
    truth = ((values - values[splits["train"]].mean()) / values[splits["train"]].std())[:, None]
    data = ArraySource(points[:, None, None], splits=splits, columns={"value": truth}, name=name)
    teacher = seeded(lambda: smooth(width, 128), TEACHERS_SEED)
    learner = Learner(teacher, [match(_squares, name="task")])
    taught = Training(steps=60 if quick else 2000, batch=256, lr=3e-3, warmup=0.02, gradient_norms_every=0)
    for _ in train(learner, data, None, taught, seed=TEACHERS_SEED):
        pass

    def few(seed: int) -> Tensor:
        return torch.arange(FEW) + FEW * (seed % (len(splits["train"]) // FEW))

    task = Task(
        name=name, title=f"{title}, {FEW} points", data=data, teacher=teacher, student=lambda: smooth(width, 64),
        encode=None, rows=few, views=width + 1, steps=20 if quick else 400, arms=_regression_arms(quick),
        answers=lambda: [match("regression", name="answers")], alone=None, score=_error, best="error",
    )  # fmt: skip
    with torch.no_grad():
        task.told = {split: {"logits": teacher(data.inputs[rows])} for split, rows in splits.items()}
    task.more["teacher"] = {"error": float((task.told["test"]["logits"] - truth[splits["test"]]).square().mean())}
    return task


def _squares(student_logits: Tensor, value: Tensor) -> Tensor:
    return F.mse_loss(student_logits, value)


def _error(task: Task, module: nn.Module, split: str) -> dict[str, Any]:
    with torch.no_grad():
        answers = module.eval()(task.data.inputs[task.data.splits[split]])
    return {"error": float((answers - task.told[split]["logits"]).square().mean())}


def _regression_arms(quick: bool) -> tuple[Arm, ...]:
    rates, noises = (1e-2, 2e-2, 4e-2), (0.2, 0.4, 0.6, 0.8)
    plain = tuple({"rate": rate} for rate in (2.5e-3, 5e-3, *rates[:2]))
    noised = tuple({"rate": rate, "noise": noise} for noise in noises for rate in rates)
    weighed = tuple(
        {"rate": rate, "weight": weight, "share": share}
        for weight, share in ((1.0, 0.01), (1.0, 1.0), (10.0, 1.0))
        for rate in rates
    )
    both = tuple({**one, "weight": 10.0, "share": 1.0} for one in noised[:9])
    arms = (
        Arm("values", plain),
        Arm("noised, 2 views recorded", noised, views="two"),
        Arm("noised, recorded", noised, views="recorded"),
        Arm("gradient", weighed, "gradient"),
        Arm("directions", weighed, "directions", "live"),
        Arm("noised, live", noised, views="live"),
        Arm("gradient, noised live", both, "gradient", "live"),
    )
    return _shortened(arms) if quick else arms


def _shortened(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    return tuple(replace(arm, tries=arm.tries[:1]) for arm in arms)


# --- few images --------------------------------------------------------------------------------------


def images(kind: str, quick: bool) -> Task:
    """Fashion-MNIST, five images a class; the teacher, of the same kind as the student, has seen all of them."""
    data: Any = open_source("fashion-mnist-sample")
    if quick:
        data = data.trimmed({"train": 1000, "validation": 200, "test": 300})
    encode = encode_for(data)
    make = {
        "mlp": (lambda: _net("mlp", hidden=[256, 128]), lambda: _net("mlp", hidden=[64])),
        "cnn": (lambda: _net("cnn", width=12), lambda: _net("cnn", width=6)),
    }[kind]
    teacher = _taught(make[0], data, encode, kind, quick, TEACHERS_SEED)
    train_rows, labels = data.splits["train"], data.labels

    def few(seed: int) -> Tensor:
        return few_labels(labels, train_rows, 50, seed)

    def answers() -> list[Objective]:
        return [match("labels", weight=0.1), match("kd", temperature=2.0)]

    task = Task(
        name=kind, title=f"Fashion-MNIST, 5 images a class, {kind}", data=data, teacher=teacher, student=make[1],
        encode=encode, rows=few, views=8, steps=10 if quick else {"mlp": 300, "cnn": 200}[kind],
        arms=_image_arms(kind, quick), answers=answers, alone=lambda: [match("labels")], score=_seen, best="accuracy",
    )  # fmt: skip
    task.more["cam"] = "mix@gradcam" if kind == "cnn" else None
    shown = Live(teacher, ["logits", GRADIENT, *([task.more["cam"]] if kind == "cnn" else [])], encode=encode)
    task.told = {split: shown(data.batch(plain_ids(rows))) for split, rows in data.splits.items() if split != "train"}
    hits = task.told["test"]["logits"].argmax(1) == labels[data.splits["test"]]
    task.more["teacher"] = {"accuracy": float(hits.float().mean())}
    twin = _seen(task, _taught(make[0], data, encode, kind, quick, TEACHERS_SEED + 1), "test")
    task.more["twin"] = {name: value for name, value in twin.items() if name != "right"}
    return task


def _taught(
    make: Callable[[], nn.Module], data: ArraySource, encode: nn.Module | None, kind: str, quick: bool, seed: int
) -> nn.Module:
    """Return a teacher that has learnt from all training images, noised by a tenth of their range."""
    module = seeded(make, seed)
    rough = ArraySource(
        data.inputs, data.labels, classes=data.classes, splits=data.splits, name=data.name,
        views=Views(LIVE, pad=0, flip=False, noise=0.1),
    )  # fmt: skip
    steps = 20 if quick else {"mlp": 1000, "cnn": 800}[kind]
    settings = Training(steps=steps, batch=128, lr=2e-3, warmup=0.05, gradient_norms_every=0)
    for _ in train(Learner(module, ["labels"], encode=encode), rough, None, settings, views=LIVE, seed=seed):
        pass
    return module


def _net(name: str, **options: Any) -> nn.Module:
    return build(name, shape=(1, 28, 28), classes=10, **options)


def _seen(task: Task, module: nn.Module, split: str) -> dict[str, Any]:
    """Return accuracy, agreement with the teacher, and the cosines of input gradients and, of a CNN, Grad-CAM."""
    told, cam = task.told[split], task.more["cam"]
    batch = task.data.batch(plain_ids(task.data.splits[split]))
    module.eval()
    with torch.no_grad():
        taps = ["logits", GRADIENT, *([cam] if cam else [])]
        shown = read(module, taps, task.encode)(batch, told)
    answers, theirs = shown["logits"].argmax(1), told["logits"].argmax(1)
    right = (answers == batch["labels"]).float()
    found = {"accuracy": float(right.mean()), "agreement": float((answers == theirs).float().mean())}
    for name, tap in (("cosine", GRADIENT), *((("maps", cam),) if cam else ())):
        alike = F.cosine_similarity(shown[tap].flatten(1), told[tap].flatten(1))
        found[name] = float(alike[told[tap].flatten(1).norm(dim=1) > 0].mean())
    return {**found, "right": right.double()}


def _image_arms(kind: str, quick: bool) -> tuple[Arm, ...]:
    rates = (3e-3, 1e-2)
    plain = tuple({"rate": rate} for rate in (*rates, 2e-2))
    noised = tuple({"rate": rate, "noise": noise} for noise in (0.1, 0.2, 0.35, 0.5, 0.7) for rate in rates)
    faster = tuple({"rate": 2e-2, "noise": noise} for noise in (0.2, 0.35, 0.5))
    weighed = tuple({"rate": rate, "weight": weight} for weight in (3.0, 10.0, 30.0) for rate in rates)
    both = tuple({"rate": rate, "noise": noise, "weight": 3.0} for noise in (0.1, 0.35) for rate in rates)
    mild = tuple({"rate": rate, "noise": 0.1} for rate in (*rates, 2e-2))
    light = tuple({"rate": rate, "weight": weight} for weight in (1.0, 3.0) for rate in (*rates, 2e-2))
    arms = [
        Arm("alone", plain, teacher=False),
        Arm("kd", plain),
        Arm("kd, noised live", (*noised, *faster), views="live"),
        Arm("gradient", weighed, "gradient"),
        Arm("gradient, noised live", both, "gradient", "live"),
    ]
    if kind == "cnn":
        gentle = tuple({"rate": rate, "weight": weight} for rate, weight in ((1e-3, 1.0), (1e-3, 3.0), (3e-3, 1.0)))
        arms.append(Arm("explanation", (*gentle, *weighed), "mix@gradcam"))
    else:
        arms[3:3] = [Arm("kd, noised, 8 views recorded", noised[2:], views="recorded")]
        arms += [
            Arm("gradient cosine", weighed, "cosine"),
            Arm("directions", weighed, "directions", "live"),
            Arm("kd, all images", plain, everywhere=True),
            Arm("kd, all images, noised live", mild, views="live", everywhere=True),
            Arm("gradient, all images", light, "gradient", everywhere=True),
        ]
    return _shortened(arms) if quick else tuple(arms)
