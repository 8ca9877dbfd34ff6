"""What is mined: a model that answers, the data it is asked about, and its like with random weights as a control."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.contracts import UNLABELLED, Source
from stillroom.data.splits import choose, labels_known
from stillroom.errors import DataError, say
from stillroom.evaluate import BATCH, plain_ids
from stillroom.randomness import forked
from stillroom.taps import read
from stillroom.taps.places import find_logits

ROWS = 5000  # of a split that are asked about
Kind = Literal["image", "text", "table"]
Answer = Callable[[Tensor], Tensor]


class Subject:
    """A model to be mined, with its data; what it answers is asked once and kept.

    ``answer`` takes raw inputs (B, ...), as the source has them, and returns logits (B, classes): all there is of a
    model of which only outputs are known. ``module`` and ``encode`` are there for models that can be looked into.

    Raises:
        DataError: the source has no classes, or answers and classes differ in number.
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
        self.most = rows
        self._answer = answer
        self._logits: dict[str, Tensor] = {}
        if not data.classes:
            raise DataError(say("Mining tells classes apart", "data without classes", "a source with labels"))
        self.classes = [str(one) for one in data.classes]

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
        parts = []
        for part in inputs.split(BATCH):
            if self._answer is not None:
                parts.append(self._answer(part).detach().float())
            else:
                with torch.no_grad():
                    parts.append(self.forward(part).float())
        return torch.cat(parts)

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
        if split not in self._logits:
            examples = self.examples(split)
            self._logits[split] = torch.cat([self.answer(self.inputs(part)) for part in examples.split(BATCH)])
        return self._logits[split]

    def show(self, tap: str, examples: Tensor) -> Tensor:
        """Return what the model shows at a tap, (B, ...)."""
        reader = read(self.opened.eval(), [tap], self.encode)
        with torch.no_grad():
            return torch.cat([reader(self.data.batch(plain_ids(part)))[tap].float() for part in examples.split(BATCH)])

    def randomised(self, seed: int = 0) -> Subject:
        """Return the same architecture with random weights, the control that knows nothing.

        Layers that know how to begin anew do so; other weights are drawn from a normal distribution of their own
        mean and deviation. Statistics of batches are kept, so that activations have their size.
        """
        module = copy.deepcopy(self.opened)
        with forked(seed, "random weights"), torch.no_grad():
            begun: set[int] = set()
            for part in module.modules():
                if hasattr(part, "reset_parameters") and not isinstance(part, nn.modules.batchnorm._NormBase):
                    part.reset_parameters()  # type: ignore[operator]
                    begun |= {id(value) for value in part.parameters(recurse=False)}
            for value in module.parameters():
                if id(value) not in begun and value.dim() > 1:
                    value.normal_(float(value.mean()), float(value.std()) if value.numel() > 1 else 1.0)
        return Subject(self.data, module, self.encode, name="random weights", rows=self.most, seed=self.seed)
