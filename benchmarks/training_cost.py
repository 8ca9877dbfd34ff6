"""Parts a, b and d: what a step of our own training costs beside a plain loop on hard labels."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timing import Figure, advance, calls_a_step, extra_calls, paired
from torch import Tensor, nn
from torch.nn import functional

from stillroom.contracts import Batch, Signals
from stillroom.data.arrays import ArraySource
from stillroom.data.images import fashion_mnist, fashion_mnist_sample
from stillroom.errors import DataError
from stillroom.learner import Learner
from stillroom.models.encode import ImageEncode, encode_for
from stillroom.models.zoo import build, parameters
from stillroom.objectives import match
from stillroom.record import record
from stillroom.settings import Training
from stillroom.store import Store
from stillroom.train import train

BATCH, MOMENTUM = 128, 0.9
ENDLESS = 10**6  # steps: more than are ever taken
COUNTED = 100  # steps, so that the look at gradient norms, every 100 steps, is in the mean


@dataclass(frozen=True)
class Student:
    """A student of the benchmark: the zoo's model, its learning rate, and the most that distilling may cost."""

    name: str
    title: str
    lr: float
    bound: float
    options: dict[str, Any]

    def make(self, seed: int = 0) -> nn.Module:
        """Return it with the weights of ``seed``."""
        torch.manual_seed(seed)
        return build(self.name, shape=(1, 28, 28), classes=10, **self.options)


NET = Student("net", "net 784-256-10", 0.05, 1.15, {})
CNN = Student("cnn", "cnn, width 22", 0.01, 1.08, {"width": 22})


@dataclass(frozen=True)
class Material:
    """Real images: as they are stored (uint8), and as floats normalised beforehand for the floor."""

    source: ArraySource
    encode: ImageEncode
    inputs: Tensor
    labels: Tensor

    @classmethod
    def load(cls) -> Material:
        """Load Fashion-MNIST: Debian's package, or the shipped sample, repeated to as many rows."""
        try:
            source = fashion_mnist()
        except DataError:
            source = _repeated(fashion_mnist_sample(), 55_000)
        encode, rows = encode_for(source), source.splits["train"]
        assert encode is not None and source.labels is not None
        return cls(source, encode, encode(source.inputs[rows]), source.labels[rows])

    def store(self, folder: Path) -> Store:
        """Record the logits of a small network, untrained: what is stored does not change what it costs."""
        network, encode = NET.make(seed=1).eval(), self.encode

        def teacher(batch: Batch) -> Signals:
            with torch.no_grad():
                return {"logits": network(encode(batch["inputs"]))}

        return record(teacher, self.source, folder)


def _repeated(sample: ArraySource, rows: int) -> ArraySource:
    train, test = sample.splits["train"], sample.splits["test"]
    assert sample.labels is not None
    chosen = torch.cat([train.repeat(-(-rows // len(train)))[:rows], test])
    splits = {"train": torch.arange(rows), "test": torch.arange(rows, len(chosen))}
    return ArraySource(sample.inputs[chosen], sample.labels[chosen], classes=sample.classes, splits=splits)


def floor(student: nn.Module, inputs: Tensor, labels: Tensor, lr: float) -> Iterator[Tensor]:
    """Train on hard labels with nothing around it: the plain loop, without end."""
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=MOMENTUM)
    student.train()
    while True:
        order = torch.randperm(len(inputs))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            loss = functional.cross_entropy(student(inputs.index_select(0, rows)), labels.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.detach()


def ours(
    student: Student,
    material: Material,
    objectives: dict[str, float],
    store: Store | None = None,
    *,
    fast: bool = False,
    seed: int = 0,
    steps: int = ENDLESS,
) -> tuple[nn.Module, Iterator[object]]:
    """Return a student and Stillroom's training of it, from uint8 images, all settings else as they come."""
    network = student.make(seed)
    bound = [
        match(name, weight=weight, **({"temperature": 4.0} if name == "kd" else {}))
        for name, weight in objectives.items()
    ]
    precision = "bf16" if fast else "float32"
    learner = Learner(network, bound, encode=material.encode, precision=precision)
    settings = Training(
        steps=steps,
        batch=BATCH,
        optimizer="sgd",
        lr=student.lr,
        momentum=MOMENTUM,
        precision=precision,
        channels_last=fast,
    )
    return network, train(learner, material.source, store, settings, seed=seed)


def distilling(material: Material, *, pairs: int, block: int) -> list[Figure]:
    """Part b, and the floor against itself as a control."""
    figures = []
    with TemporaryDirectory() as folder:
        store = material.store(Path(folder) / "store")
        for student in (NET, CNN):
            figures += _distilling_one(student, material, store, pairs, block)
    return figures


def _distilling_one(student: Student, material: Material, store: Store, pairs: int, block: int) -> list[Figure]:
    def plain() -> Iterator[Tensor]:
        return floor(student.make(), material.inputs, material.labels, student.lr)

    counts = calls_a_step(plain(), COUNTED)
    sizes = f"{parameters(student.make()):,} parameters"
    block *= 2 if student is NET else 1
    base = advance(plain(), block)
    control = paired(base, advance(plain(), block), pairs)
    seconds = sorted(a / block for a, _ in control.clock)
    figures = [
        Figure("a", f"floor, {student.title}", tuple(1e3 * value for value in seconds), unit="ms a step", note=sizes),
        Figure("a", f"floor against itself, {student.title}", control.slowdown(), more=control.more()),
    ]
    for title, objectives in (("kd", {"kd": 1.0}), ("kd 0.9 + labels 0.1", {"kd": 0.9, "labels": 0.1})):
        timed = paired(base, advance(ours(student, material, objectives, store)[1], block), pairs)
        figures.append(Figure("b", f"{title}, {student.title}", timed.slowdown(), student.bound, more=timed.more()))
        found = calls_a_step(ours(student, material, objectives, store)[1], COUNTED)
        extra = sum(found.values()) - sum(counts.values())
        more = {"floor": sum(counts.values()), "ours": sum(found.values()), "extra": extra_calls(found, counts)}
        name = f"ATen calls a step above the floor's, {title}, {student.title}"
        note = f"floor {sum(counts.values()):.1f}"
        bound = 20 if len(objectives) == 1 else None  # a second term has a loss of its own to compute
        figures.append(Figure("b", name, (extra,), bound, unit="calls", note=note, more=more))
    return figures


def fast_path(material: Material, *, pairs: int, block: int, steps: int, seeds: int) -> list[Figure]:
    """Part d: bf16 and channels_last against the float32 floor, and what both have learnt after as many steps."""
    plain = floor(CNN.make(), material.inputs, material.labels, CNN.lr)
    timed = paired(advance(plain, block), advance(ours(CNN, material, {"labels": 1.0}, fast=True)[1], block), pairs)
    able = "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    figures = [
        Figure(
            "d",
            f"bf16 + channels_last against the float32 floor, {CNN.title}",
            timed.speed(),
            1.5 if able else None,
            most=False,
            unit="x as fast",
            note="" if able else "no avx512_bf16 here",
            more=timed.more(),
        )
    ]
    scores: dict[bool, list[float]] = {}
    for fast in (False, True):
        scores[fast] = []
        for seed in range(seeds):
            network, training = ours(CNN, material, {"labels": 1.0}, fast=fast, seed=seed, steps=steps)
            advance(training, steps)()
            scores[fast].append(accuracy(network, material))
    return [*figures, _equal(scores[False], scores[True], steps)]


def _equal(wide: list[float], narrow: list[float], steps: int) -> Figure:
    """Paired by seed: equal start, equal batches. The bound is what seeds alone do to float32, two deviations."""
    differences = tuple(100 * (b - a) for a, b in zip(wide, narrow, strict=True))
    spread = 200 * statistics.stdev(wide) if len(wide) > 1 else None
    means = [100 * statistics.fmean(scores) for scores in (wide, narrow)]
    shown = f"float32 {means[0]:.2f} %, bf16 {means[1]:.2f} % after {steps} steps"
    passed = None if spread is None else abs(statistics.fmean(differences)) <= spread
    return Figure(
        "d",
        f"accuracy of bf16 less float32, {CNN.title}",
        differences,
        spread,
        unit="points",
        note=shown,
        passed=passed,
        more={"float32": wide, "bf16": narrow},
    )


def accuracy(network: nn.Module, material: Material) -> float:
    """Return the share of test images that are named rightly, computed in float32."""
    rows, labels = material.source.splits["test"], material.source.labels
    assert labels is not None
    network.eval()
    with torch.no_grad():
        found = [network(material.encode(material.source.inputs[part])).argmax(1) for part in rows.split(1000)]
    return float((torch.cat(found) == labels[rows]).float().mean())
