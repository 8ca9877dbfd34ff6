"""What is mined: a model that answers, the data it is asked about, and its like with random weights as a control."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.contracts import UNLABELLED, Source
from stillroom.data.splits import choose, labels_known
from stillroom.errors import DataError, TapError, say
from stillroom.evaluate import BATCH, plain_ids
from stillroom.order import lengths_of
from stillroom.randomness import forked, permutation
from stillroom.taps import read
from stillroom.taps.places import find_logits
from stillroom.taps.reader import Reader
from stillroom.tasks import check_answers, check_names
from stillroom.tensors import copy_of

ROWS = 5000  # of a split that are asked about
CELLS = 20_000_000  # rows x classes that are asked about at most: in float64 160 MB, which panels hold several times
TEXTS = 64  # that are asked together, of like length, so that little is padding
PILOT, LEAST = 64, 200  # examples by which the pace is measured; no fewer of a split are asked about for want of time
CONTROL = 1000  # examples of a split that random weights are asked about
Kind = Literal["image", "text", "table"]
Answer = Callable[[Tensor], Tensor]


class Subject:
    """A model to be mined, with its data; what it answers is asked once and kept.

    ``answer`` takes raw inputs (B, ...), as the source has them, and returns logits (B, classes): all there is of a
    model of which only outputs are known. ``module`` and ``encode`` are there for models that can be looked into.

    Raises:
        DataError: the source has no classes, or the model knows others by name.
        ModelError: when asked, answers that are no logits of the source's classes.
    """

    def __init__(
        self,
        data: Source,
        module: nn.Module | None = None,
        encode: nn.Module | None = None,
        *,
        answer: Answer | None = None,
        name: str = "teacher",
        rows: int = ROWS,
        seed: int = 0,
    ) -> None:
        if (module is None) == (answer is None):
            what = "both" if answer is not None else "neither"
            raise DataError(say("A model to be mined is a module or a function", what, "one of the two"))
        self.data, self.module, self.encode, self.name, self.seed = data, module, encode, name, seed
        self.asked_for = self.most = min(rows, max(LEAST, CELLS // len(data.classes or [""])))
        self._answer = answer
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._readers: dict[tuple[str, ...], Reader] = {}
        if not data.classes:
            raise DataError(say("Mining tells classes apart", "data without classes", "a source with labels"))
        self.classes = [str(one) for one in data.classes]
        check_names(getattr(module, "classes", None), self.classes, f"The {name}")

    # --- the data ------------------------------------------------------------------------------------

    @cached_property
    def kind(self) -> Kind:
        """Whether the examples are pictures, texts or rows of numbers."""
        if getattr(self.data, "modality", "") == "text":
            return "text"
        first = self.data.batch(plain_ids(self.examples("train")[:1]))["inputs"]
        return "image" if first.dim() == 4 else "table"

    def examples(self, split: str) -> Tensor:
        """Return the numbers of a split's examples, at most ``rows`` of them, each class in proportion."""
        chosen = self.data.splits[split]
        if len(chosen) <= self.most:
            return chosen
        labels = labels_known(self.data)
        kept = choose(None if labels is None else labels.numpy(), chosen.numpy(), self.most, self.seed, "mining")
        return torch.from_numpy(kept)

    def inputs(self, examples: Tensor) -> Tensor:
        """Return raw inputs (B, ...) of examples; texts padded to the longest."""
        return self.data.batch(plain_ids(examples))["inputs"]

    def labels(self, examples: Tensor) -> Tensor:
        """Return labels (B), -1 where unknown."""
        known = labels_known(self.data)
        return torch.full((len(examples),), UNLABELLED) if known is None else known[examples]

    # --- the model -----------------------------------------------------------------------------------

    def answer(self, inputs: Tensor) -> Tensor:
        """Return logits (B, classes), float32, of raw inputs, in batches, without a graph, in eval mode."""
        if self.kind != "text":
            return torch.cat([self._answered(part) for part in inputs.split(BATCH)])
        lengths = (inputs != 0).sum(1)
        order = lengths.argsort(stable=True)
        parts = [self._answered(inputs[part, : max(1, int(lengths[part].max()))]) for part in order.split(TEXTS)]
        return torch.cat(parts)[order.argsort()]

    def _answered(self, part: Tensor) -> Tensor:
        with torch.no_grad():
            answers = self.forward(part) if self._answer is None else self._answer(part)
            return check_answers(answers, f"the {self.name}", len(part), self.classes).detach().float()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits of raw inputs with their graph; for models that can be looked into alone.

        Raises:
            DataError: only the outputs of this model are known.
        """
        module = self.opened
        module.eval()
        encoded: Any = inputs if self.encode is None else self.encode(inputs)
        if isinstance(encoded, Mapping):
            output = module(**encoded)
        else:
            output = module(*encoded) if isinstance(encoded, tuple) else module(encoded)
        return find_logits(output, type(module).__name__)

    @property
    def opened(self) -> nn.Module:
        """The module.

        Raises:
            DataError: only the outputs of this model are known.
        """
        if self.module is None:
            raise DataError(say(f"'{self.name}' cannot be looked into", "a model that shows answers only", "a module"))
        return self.module

    def logits(self, split: str) -> Tensor:
        """Return what the model answers to :meth:`examples` of a split, asked once."""
        return self.asked(split)["logits"]

    def features(self, split: str) -> Tensor:
        """Return what enters the layer that makes the logits (N, D), for :meth:`examples` of a split, asked once.

        Raises:
            TapError: no layer makes the logits, or what enters it is not one vector an example.
            DataError: only the outputs of this model are known.
        """
        _ = self.opened
        found = self.asked(split)
        if "features" not in found:
            raise TapError(f"'{self.name}' shows no features: no layer makes its logits from one vector an example.")
        return found["features"]

    def asked(self, split: str) -> dict[str, Tensor]:
        """Return ``logits`` and, where there are any, ``features`` of a split's :meth:`examples`, asked by one pass."""
        if split not in self._kept:
            self._kept[split] = self._seen(self.examples(split))
        return self._kept[split]

    def _seen(self, examples: Tensor) -> dict[str, Tensor]:
        """Logits and, where there are any, features (N, D), by one pass."""
        if self._has_vectors(examples):
            return self.rows(["logits", "features"], examples)
        return {"logits": torch.cat([self.answer(self.inputs(part)) for part in examples.split(BATCH)])}

    def _has_vectors(self, examples: Tensor) -> bool:
        """Whether one vector an example enters the layer that makes the logits."""
        if self.module is None or not len(examples):
            return False
        try:
            return self.rows(["logits", "features"], examples[:2])["features"].dim() == 2
        except TapError:
            return False

    def keep(self, found: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take answers and features by split as those of :meth:`examples`, so that they are not asked for again."""
        self._kept |= {split: dict(values) for split, values in found.items()}

    def limit(self, rows: int) -> None:
        """Ask about at most so many examples of a split from here on."""
        if rows != self.most:
            self.most = rows
            self._kept.clear()

    def pace(self, seconds: float) -> str | None:
        """Ask about so few examples of a split that a pass takes ``seconds`` at most; say so, if they are fewer."""
        train = self.data.splits["train"]
        order = torch.from_numpy(permutation(len(train), self.seed, "pace").copy())
        some = train[order[:PILOT]]
        self._seen(some[:4])  # what is done once, such as finding memory, is not timed
        began = time.perf_counter()
        self._seen(some)
        fit = int(seconds * len(some) / max(1e-9, time.perf_counter() - began))
        longest = max(len(split) for split in self.data.splits.values())
        if fit >= min(self.asked_for, longest):
            return None
        self.limit(max(LEAST, fit))
        return (
            f"to keep to the time, {self.most:,} examples of a split at most were asked about, not {self.asked_for:,}"
        )

    def rows(
        self, taps: Iterable[str], examples: Tensor, take: Callable[[str, Tensor, Tensor | None], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return what the model shows at several taps, (N, ...) each, by one pass over the examples.

        ``take`` makes of a tap, its value in a batch, and its mask where it has one, what is kept.

        Raises:
            TapError: a layer does not run once in a pass, or gives other than a row for each example.
        """
        taps = list(taps)
        reader, parts = self._reader(tuple(taps)), []
        order, size = self._order(examples)
        with torch.no_grad():
            for part in order.split(size):
                shown = reader(self.data.batch(plain_ids(examples[part])))
                values = {tap: shown[tap].float() for tap in taps}
                if "logits" in values:
                    check_answers(values["logits"], f"the {self.name}", len(part), self.classes)
                if take is not None:
                    values = {tap: take(tap, value, shown.get(f"{tap}.mask")) for tap, value in values.items()}
                if any(len(value) != len(part) for value in values.values()):
                    raise TapError(say("A layer does not give a row for each example", taps, "layers that do"))
                parts.append(values)
        back = order.argsort()
        return {tap: torch.cat([values[tap] for values in parts])[back] for tap in taps}

    def _reader(self, taps: tuple[str, ...]) -> Reader:
        """A reader is kept: its first batch takes longer, since it finds out where things are."""
        module = self.opened.eval()
        if taps not in self._readers:
            self._readers[taps] = read(module, taps, self.encode)
        return self._readers[taps]

    def show(self, tap: str, examples: Tensor) -> Tensor:
        """Return what the model shows at a tap, (B, ...)."""
        return self.rows([tap], examples)[tap]

    def _order(self, examples: Tensor) -> tuple[Tensor, int]:
        """In which order examples are asked, and how many together."""
        lengths = lengths_of(self.data) if self.kind == "text" else None
        if lengths is None:
            return torch.arange(len(examples)), BATCH
        return lengths[examples].argsort(stable=True), TEXTS

    def randomised(self, seed: int = 0) -> Subject:
        """Return the same architecture with random weights, the control that knows nothing.

        Layers that know how to begin anew do so; other weights are drawn from a normal distribution of their own
        mean and deviation. Statistics of batches are kept, so that activations have their size.
        """
        module = copy_of(self.opened, "The model")
        with forked(seed, "random weights"), torch.no_grad():
            begun: set[int] = set()
            for part in module.modules():
                if hasattr(part, "reset_parameters") and not isinstance(part, nn.modules.batchnorm._NormBase):
                    part.reset_parameters()  # type: ignore[operator]
                    begun |= {id(value) for value in part.parameters(recurse=False)}
            for value in module.parameters():
                if id(value) not in begun and value.dim() > 1:
                    value.normal_(float(value.mean()), float(value.std()) if value.numel() > 1 else 1.0)
        few = min(self.most, CONTROL)
        return Subject(self.data, module, self.encode, name="random weights", rows=few, seed=self.seed)
