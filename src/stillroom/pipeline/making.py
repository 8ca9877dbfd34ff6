"""From a recipe's words to models: a maker for each seed, the encode that belongs to it, the bundle's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from stillroom.contracts import Source
from stillroom.errors import DataError, ModelError, enough_memory, say
from stillroom.evaluate import plain_ids
from stillroom.fingerprints import fingerprint_of
from stillroom.models.encode import encode_for
from stillroom.models.hugging_face import Pretrained, from_folder
from stillroom.models.table_encode import table_encode
from stillroom.models.text_encode import words_for
from stillroom.models.zoo import TEXTS, build
from stillroom.pipeline.space import SMALLER, check_model
from stillroom.randomness import forked
from stillroom.recipe import Encode
from stillroom.tensors import state_of


@dataclass(frozen=True)
class Made:
    """A model to be: ``make`` builds it from a seed; ``facts`` is what else its results depend on."""

    make: Callable[[int], nn.Module]
    encode: nn.Module | None
    config: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Making:
    """Makes the models of one experiment: all of its data, with as many classes; equal encodes are shared."""

    data: Source
    classes: int
    encodes: dict[str, Any] = field(default_factory=dict)

    def zoo(self, name: str, options: Mapping[str, Any], wanted: Encode) -> Made:
        """Make a model of the zoo.

        Raises:
            ModelError: the model reads another kind of data, or ``encode`` says what is not for it.
        """
        kinds = {"text": self._words, "table": self._columns}
        encode, shape = kinds.get(str(getattr(self.data, "modality", "")), self._pixels)(name, wanted)

        check_model(name, shape, self.classes, options)

        def make(seed: int) -> nn.Module:
            with forked(seed, "weights"), enough_memory(f"for the model '{name}'", SMALLER, ModelError):
                return build(name, shape=tuple(shape), classes=self.classes, **options)

        return Made(make, encode, self._config({"use": name, "options": dict(options)}, shape))

    def hugging_face(self, place: str, options: Mapping[str, Any], wanted: Encode) -> Made:
        """Make a classifier on the encoder in a folder, or in an installed package of weights.

        Raises:
            ModelError: the data are no texts, or there is no such folder.
        """
        if not reads_texts(self.data):
            raise ModelError(
                say(f"The encoder '{place}' reads texts", "data without texts", "a source of texts", "Name another.")
            )
        self._refuse(wanted, ("size", "unit", "vocabulary"), f"the encoder '{place}', which has a tokenizer of its own")
        length = _length(wanted)

        def read(seed: int) -> Pretrained:
            with forked(seed, "weights"):
                return from_folder(place, classes=self.classes, **length, **options)

        found = read(0)
        described = found.described
        weights = fingerprint_of(state_of(found.model.body), described["model"])
        facts = {"weights": weights, "tokenizer": found.encode.fingerprint}
        return Made(
            lambda seed: read(seed).model, found.encode, self._config(described["model"], described["shape"]), facts
        )

    def _words(self, name: str, wanted: Encode) -> tuple[nn.Module | None, list[int]]:
        if name not in TEXTS:
            do = "Choose a model that reads texts."
            raise ModelError(say(f"Model '{name}' does not read texts", "a source of texts", TEXTS, do))
        self._refuse(wanted, ("size",), "texts")
        key = repr(wanted)
        if key not in self.encodes:
            length = _length(wanted)
            self.encodes[key] = words_for(self.data, unit=wanted.unit, size=wanted.vocabulary, **length)
        encode = self.encodes[key]
        return encode, [encode.size]

    def _pixels(self, name: str, wanted: Encode) -> tuple[nn.Module | None, list[int]]:
        if name in TEXTS:
            do = "Choose a model that reads images or numbers, or data of texts."
            raise ModelError(say(f"Model '{name}' reads texts", "a source of images or numbers", "texts", do))
        self._refuse(wanted, ("unit", "vocabulary", "longest"), "data that are no texts")
        shape = list(input_of(self.data)["shape"])
        if wanted.size is not None:
            shape[1:] = [wanted.size, wanted.size]
        key = f"size {wanted.size}"
        if key not in self.encodes:
            self.encodes[key] = encode_for(self.data, wanted.size)
        return self.encodes[key], shape

    def _columns(self, name: str, wanted: Encode) -> tuple[nn.Module | None, list[int]]:
        if name in TEXTS:
            do = "Choose a model that reads numbers (mlp, net), or data of texts."
            raise ModelError(say(f"Model '{name}' reads texts", "a table", "texts", do))
        self._refuse(wanted, ("size", "unit", "vocabulary", "longest"), "tables")
        if "table" not in self.encodes:
            self.encodes["table"] = table_encode(self.data)
        encode = self.encodes["table"]
        return encode, [encode.width]

    def _refuse(self, wanted: Encode, keys: tuple[str, ...], what: str) -> None:
        """Refuse what an ``encode`` block says and cannot mean here."""
        for key in keys:
            given = getattr(wanted, key)
            if given != type(wanted).model_fields[key].default:
                raise ModelError(
                    say(f"encode.{key} means nothing for {what}", given, "to leave it out", f"Take '{key}' away.")
                )

    def _config(self, model: Mapping[str, Any], shape: list[int]) -> dict[str, Any]:
        names = [str(one) for one in self.data.classes or ()]
        return {"model": dict(model), "shape": list(shape), "input": input_of(self.data), "classes": names}


def _length(wanted: Encode) -> dict[str, Any]:
    """Return the option ``longest`` where the recipe says it; each encode's maker has a default of its own."""
    return {} if wanted.longest is None else {"longest": wanted.longest}


def reads_texts(data: Source) -> bool:
    """Whether the examples of a source are texts."""
    return getattr(data, "modality", "") == "text"


def input_of(data: Source) -> dict[str, Any]:
    """Return dtype and shape of one raw example, as a bundle's configuration notes it; a text has no shape."""
    if reads_texts(data):
        return {"dtype": "text", "shape": []}
    train = data.splits["train"]
    if not len(train):
        raise DataError(say("The data has no train rows", "0", "at least 1", "Choose another split or more data."))
    first = data.batch(plain_ids(train[:1]))["inputs"]
    return {"dtype": str(first.dtype).removeprefix("torch."), "shape": list(first.shape[1:])}
