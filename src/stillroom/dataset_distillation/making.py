"""Dataset distillation by gradient matching: a few examples a class are changed until networks learn alike from them.

Dataset condensation (Zhao, Mopuri, Bilen, ICLR 2021, https://arxiv.org/abs/2006.05929).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.contracts import Progress, Source
from stillroom.data.splits import checksum_of, labelled_rows, labels_of
from stillroom.dataset_distillation.matching import gradient_distance, input_gradient, loss_gradients
from stillroom.dataset_distillation.moving import moved
from stillroom.dataset_distillation.synthetic import real_inputs
from stillroom.errors import Damaged, DataError, ModelError, TrainError, say
from stillroom.files import fingerprint, heal, write_bytes
from stillroom.fingerprints import fingerprint_or_new
from stillroom.paths import is_file
from stillroom.randomness import draw, permutation, stream
from stillroom.settings import Synthesis
from stillroom.tensors import pack, unpack

MakeNetwork = Callable[[int], nn.Module]
CHECKPOINT = "synthetic.safetensors"
PART = 4096
SAVES = 10  # checkpoints of a whole making
LOGGED = 60  # moments of the curve that are kept
STATISTICS = 16  # real examples a class that BatchNorm's statistics are taken from, as in the authors' code
# How a network is trained in between. The authors' code, 10 images a class: 50 steps at 0.01; 10 at 0.05 get as far.
NETWORK_LR, NETWORK_MOMENTUM = 0.05, 0.5


@dataclass(frozen=True)
class Made:
    """Synthetic examples (classes x per_class, ...) in the type of the real ones, their labels, and how it went.

    ``start`` are the examples they began as. ``curve``: ``step``, and ``distance``, the mean over the
    classes and the life of a network.
    """

    inputs: Tensor
    labels: Tensor
    start: Tensor
    curve: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Real:
    """What is distilled: the labelled training rows by class, where their values lie, and how far they spread."""

    inputs: Tensor
    rows: tuple[Tensor, ...]
    low: float
    high: float
    mean: float
    spread: float

    @classmethod
    def of(cls, source: Source, per_class: int) -> Real:
        """Read the training rows that carry a label.

        Raises:
            DataError: texts, values that are no numbers, fewer than two classes, or a class with too few examples.
        """
        check_source(source)
        rows, inputs = rows_by_class(source, per_class), real_inputs(source, labelled_rows(source))
        low, high = (0.0, 255.0) if inputs.dtype == torch.uint8 else (float(inputs.min()), float(inputs.max()))
        # In parts: all at once as 64-bit floats would take eight times the room of the images themselves.
        count, parts = inputs.numel(), inputs.split(PART)
        mean = sum(float(part.double().sum()) for part in parts) / count
        spread = (sum(float((part.double() - mean).square().sum()) for part in parts) / count) ** 0.5
        return cls(inputs, rows, low, high, mean, max(spread, 1e-6))

    def examples(self, number: int, count: int, seed: int, *position: int | str) -> Tensor:
        """Return up to ``count`` examples of one class, chosen by (seed, position), as float32."""
        rows = self.rows[number]
        return self.inputs[rows[torch.from_numpy(permutation(len(rows), seed, *position, number)[:count])]].float()


def rows_by_class(source: Source, per_class: int) -> tuple[Tensor, ...]:
    """Return, for each class, which of the labelled training rows are of it: places among those, int64.

    Raises:
        DataError: a class has fewer than ``per_class``.
    """
    labels = labels_of(source)[labelled_rows(source)]
    rows = tuple((labels == number).nonzero()[:, 0] for number in range(len(source.classes or ())))
    short = min(range(len(rows)), key=lambda number: len(rows[number]))
    if len(rows[short]) < per_class:
        raise DataError(
            say(
                "There are fewer real examples than synthetic ones are to be made",
                f"per_class={per_class}; class '{(source.classes or ())[short]}' has {len(rows[short])} labelled "
                "training rows",
                f"1 to {len(rows[short])}" if len(rows[short]) else "classes that all have examples",
                "Lower per_class: fewer examples than there were is the point.",
            )
        )
    return rows


def check_source(source: Source) -> None:
    """See that examples can be made in the kind of a source's: numbers, in at least two classes, nothing beside.

    Raises:
        DataError: they cannot.
    """
    if getattr(source, "modality", "") == "text":
        raise DataError(
            say("Texts cannot be distilled into synthetic ones", "texts", "images or numbers: they change by degrees")
        )
    classes = source.classes or ()
    if len(classes) < 2:
        given = f"{len(classes)} class{'es' if len(classes) != 1 else ''}"
        raise DataError(say("Distilled data need classes to tell apart", given, "at least 2", "Check the labels."))
    first = source.batch(torch.tensor([[int(source.splits["train"][0]), 0]]))
    more = sorted(set(first) - {"id", "inputs", "labels"})
    kind = first["inputs"].dtype
    if more or not (kind == torch.uint8 or kind.is_floating_point):
        given = f"columns {', '.join(more)}" if more else f"inputs of type {str(kind).removeprefix('torch.')}"
        raise DataError(say("Such examples cannot be made", given, "inputs of uint8 or floats, and labels alone"))


def making_print(source: Source, settings: Synthesis) -> str:
    """Return a fingerprint of what is to be made, networks aside: which examples from which, and how."""
    rows = labelled_rows(source)
    about = {"data": source.fingerprint, "rows": checksum_of(rows), "settings": settings.model_dump()}
    return fingerprint(about | {"torch": torch.__version__, "threads": torch.get_num_threads()})


def first_examples(real: Real, settings: Synthesis) -> Tensor:
    """Return the examples that the making begins with, as float32: real ones of each class, or noise like them."""
    if settings.start == "real":
        picked = [real.examples(number, settings.per_class, settings.seed, "start") for number in range(len(real.rows))]
        return torch.cat(picked)
    generator = torch.Generator().manual_seed(stream(settings.seed, "start", "noise"))
    shape = (len(real.rows) * settings.per_class, *real.inputs.shape[1:])
    return (torch.randn(shape, generator=generator) * real.spread + real.mean).clamp(real.low, real.high)


def finished(inputs: Tensor, real: Real) -> Tensor:
    """Return examples in the type of the real ones: whole numbers where those are."""
    inputs = inputs.detach().clamp(real.low, real.high)
    return inputs.round().to(torch.uint8) if real.inputs.dtype == torch.uint8 else inputs.to(real.inputs.dtype)


def make_examples(
    source: Source,
    make_network: MakeNetwork,
    settings: Synthesis,
    *,
    encode: nn.Module | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Made:
    """Make ``settings.per_class`` synthetic examples of every class from the labelled training rows of ``source``.

    ``make_network(seed)`` gives a fresh network each time; ``encode`` stands before it. At every step, for each class,
    the gradient that real examples give is compared with the one that the synthetic examples of the class give, and
    the latter are moved to make the distance less. With a ``folder`` the state is kept there, and a killed making goes
    on from it to the same examples, bit for bit, at the same number of threads.

    Where it differs from the authors' code: the step is in standard deviations of the data, values stay in their range
    and become whole numbers again at the end, a network is renewed more often and trained in between only where it is
    asked (five times as fast), and a norm over the batch takes its statistics whole from real examples of all classes
    (theirs: a tenth).

    Raises:
        UserError: of the kind that fits: data that cannot be made, a network that cannot be differentiated twice, a
            folder of another making.
    """
    work = _Making(Real.of(source, settings.per_class), make_network, settings, encode)
    inputs = fingerprint({"making": making_print(source, settings), "network": _network_print(make_network(0), encode)})
    begun = work.resume(folder, inputs)
    every = max(1, settings.steps // SAVES)
    for step in range(begun, settings.steps):
        distance = work.step(step)
        work.note(step + 1, distance)
        due = (step + 1) % every == 0 or step + 1 == settings.steps
        if folder is not None and due and (step + 1) % settings.renew == 0:
            work.save(folder, step + 1, inputs)
        if progress is not None:
            progress(step + 1, settings.steps, f"distance {distance:.2f}")
    return Made(finished(work.images, work.real), work.labels, finished(work.start, work.real), work.curve)


class _Making:
    """The state of one making: the images, their momentum, and the network in use."""

    def __init__(self, real: Real, make_network: MakeNetwork, settings: Synthesis, encode: nn.Module | None) -> None:
        self.real, self.make_network, self.settings, self.encode = real, make_network, settings, encode
        self.start = first_examples(real, settings)
        self.images, self.pace = self.start.clone(), torch.zeros_like(self.start)
        self.labels = torch.arange(len(real.rows)).repeat_interleave(settings.per_class)
        self.network: nn.Module | None = None
        self.curve: dict[str, list[float]] = {"step": [], "distance": []}
        self.life: list[float] = []  # distances of the network in use

    def step(self, step: int) -> float:
        """Move the images once; return the mean distance over the classes."""
        if step % self.settings.renew == 0 or self.network is None:
            self.network = self.make_network(stream(self.settings.seed, "network", step) % 2**31)
            self.optimizer = torch.optim.SGD(self.network.parameters(), lr=NETWORK_LR, momentum=NETWORK_MOMENTUM)
        self._settle(self.network, step)
        size, total = self.settings.per_class, 0.0
        gradient = torch.zeros_like(self.images)
        for number in range(len(self.real.rows)):
            place = slice(number * size, (number + 1) * size)
            images = self.images[place].clone().requires_grad_()
            distance = self._distance(self.network, images, number, step)
            gradient[place] = input_gradient(distance, images, self.network)
            total += float(distance.detach())
        if not np.isfinite(total) or not bool(gradient.isfinite().all()):
            raise TrainError(
                f"The gradients of the synthetic examples are not finite at step {step + 1}. Lower lr, or look for NaN "
                "in the data."
            )
        # In units of the data's spread, so that one rate fits pixels and measurements alike.
        self.pace = self.settings.momentum * self.pace + gradient * self.real.spread
        moved_to = self.images - self.settings.lr * self.real.spread * self.pace
        self.images = moved_to.clamp(self.real.low, self.real.high)
        if (step + 1) % self.settings.renew:
            self._train_between(self.network, step)
        return total / len(self.real.rows)

    def _distance(self, network: nn.Module, images: Tensor, number: int, step: int) -> Tensor:
        settings = self.settings
        real = self.real.examples(number, settings.batch, settings.seed, "batch", step)
        labels = torch.full((len(real),), number), torch.full((len(images),), number)
        position = (step, number)
        theirs = loss_gradients(network, self.encode, self._moved(real, *position), labels[0])
        seen = self._moved(images, *position)
        ours = loss_gradients(network, self.encode, seen, labels[1], create_graph=True)
        return gradient_distance(ours, theirs)

    def _moved(self, images: Tensor, *position: int | str) -> Tensor:
        if not self.settings.augment:
            return images
        if images.ndim != 4:
            given = f"augment={self.settings.augment:g} on inputs of shape {tuple(images.shape[1:])}"
            raise DataError(say("Only images can be moved", given, "images (channels, height, width)", "Leave it out."))
        return moved(images, self.settings.augment, self.settings.seed, *position)

    def _settle(self, network: nn.Module, step: int) -> None:
        """Fix what a norm over the batch reads to real examples of all classes: one class alone would mislead it."""
        norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        if norms:
            seed, count = self.settings.seed, range(len(self.real.rows))
            mixed = torch.cat([self.real.examples(number, STATISTICS, seed, "norm", step) for number in count])
            network.train()
            for part in norms:
                part.reset_running_stats()
                part.momentum = None  # the statistics of this one batch, whole
            with torch.no_grad():
                network(mixed if self.encode is None else self.encode(mixed))
        network.eval()  # dropout is off, too

    def _train_between(self, network: nn.Module, step: int) -> None:
        network.train()
        for turn in range(self.settings.between):
            order = draw(self.settings.seed, "between", step, turn, np.arange(len(self.images)))
            chosen = torch.from_numpy(np.argsort(order, kind="stable")[:256])
            seen = self._moved(self.images[chosen], step, "between", turn)
            logits = network(seen if self.encode is None else self.encode(seen))
            self.optimizer.zero_grad()
            functional.cross_entropy(logits, self.labels[chosen]).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def note(self, step: int, distance: float) -> None:
        """Keep a moment of the curve, now and then: the mean over the life of a network, so that each is like the next.

        Trained networks lie further apart than fresh ones, whatever the examples.
        """
        renew, steps = self.settings.renew, self.settings.steps
        self.life.append(distance)
        if step % renew and step != steps:
            return
        if ((step - 1) // renew) % max(1, steps // (LOGGED * renew)) == 0 or step == steps:
            self.curve["step"].append(float(step))
            self.curve["distance"].append(sum(self.life) / len(self.life))
        self.life.clear()

    def save(self, folder: Path, step: int, inputs: str) -> None:
        """Write the state: a fresh network begins the next step, so none is kept."""
        meta = {"step": step, "inputs": inputs, "curve": self.curve}
        write_bytes(folder / CHECKPOINT, pack({"images": self.images, "pace": self.pace}, meta))

    def resume(self, folder: Path | None, inputs: str) -> int:
        """Bring the state back from ``folder``, if there is one; return how many steps are done.

        Raises:
            TrainError: what is there belongs to another making. What is damaged is moved to ``old/``.
        """
        if folder is None or not is_file(folder / CHECKPOINT):
            return 0
        try:
            tensors, meta = unpack(folder / CHECKPOINT, error=Damaged)
        except Damaged as error:
            heal(folder / CHECKPOINT, error)
            return 0
        if meta.get("inputs") != inputs:
            given = f"other data, settings or networks ({str(meta.get('inputs'))[:12]})"
            do = "Use another folder, or remove the file to begin anew."
            file = folder / CHECKPOINT
            raise TrainError(say(f"{file} belongs to another making", given, f"those of now ({inputs[:12]})", do))
        self.images, self.pace = tensors["images"], tensors["pace"]
        self.curve = {key: [float(value) for value in values] for key, values in meta["curve"].items()}
        return int(meta["step"])


def _network_print(network: Any, encode: nn.Module | None) -> str:
    if not isinstance(network, nn.Module):
        raise ModelError(
            say("The function that makes the networks made something else", type(network).__name__, "an nn.Module")
        )
    return fingerprint_or_new(network, encode, trained=True)
