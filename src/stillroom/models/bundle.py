"""A bundle: the folder of ``model.safetensors`` and ``config.json`` that answers at inference, and nothing else.

The weights carry no code and the configuration names none to run: a model of the zoo is built again from
its options, any other is handed in by the caller. ``config.json`` is written last and holds the checksum of
the weights, so that a bundle is whole or refused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from stillroom import files, tensors, utf8
from stillroom.errors import ModelError, StillroomError, nearest, out_of_memory, say
from stillroom.models.encode import from_description
from stillroom.models.raw_inputs import held_to
from stillroom.models.table_encode import TableEncode
from stillroom.models.zoo import build, built
from stillroom.paths import expand, is_file, is_folder
from stillroom.randomness import forked
from stillroom.taps.places import find_logits

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TEXT = "text"  # the dtype of an input that is text; its shape is then []


class Deployed(nn.Module):
    """What is handed over: the model with its own ``encode``, from raw inputs to logits.

    ``classes`` are the names of the logits, where known; ``config`` is what ``config.json`` says of it.
    """

    def __init__(
        self,
        model: nn.Module,
        encode: nn.Module | None = None,
        *,
        classes: Sequence[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encode: nn.Module | None = encode
        self.model: nn.Module = model
        self.config: dict[str, Any] = dict(config or {})
        named = self.config.get("classes") if classes is None else classes
        self.classes: list[str] | None = None if named is None else [str(name) for name in named]

    @property
    def reads_text(self) -> bool:
        """Whether a raw input is a text: its bytes as uint8, or a string."""
        outside = bool(getattr(self.encode, "outside", False))
        return outside or dict(self.config.get("input") or {}).get("dtype") == TEXT

    def forward(self, inputs: Tensor | Sequence[str]) -> Tensor:
        """Return logits (B, classes) of raw ``inputs`` (B, ...), as the source has them.

        Those are uint8 (B, C, H, W) for images and uint8 (B, bytes) for texts (see :mod:`stillroom.utf8`), or simply
        a list of B strings.

        Raises:
            ModelError: texts for a model of something else, or something else for a model of texts.
            DataError: numbers that are not of the dtype and range that ``config`` names.
        """
        if isinstance(inputs, Tensor) and not self.reads_text:
            gaps = isinstance(self.encode, TableEncode)
            rows = held_to(inputs, self.config.get("input") or {}, "The inputs", gaps=gaps)
        else:
            rows = self._texts(inputs)
        encoded = rows if self.encode is None else self.encode(rows)
        if isinstance(encoded, Mapping):
            output = self.model(**encoded)
        else:
            output = self.model(*encoded) if isinstance(encoded, tuple) else self.model(encoded)
        return find_logits(output, type(self.model).__name__)

    def _texts(self, inputs: Tensor | Sequence[str]) -> Tensor:
        """Return texts as their bytes, uint8 (B, longest)."""
        if isinstance(inputs, Tensor):
            if inputs.dtype == torch.uint8 and inputs.ndim == 2:
                return inputs
            given = f"{str(inputs.dtype).removeprefix('torch.')} of shape {tuple(inputs.shape)}"
            raise ModelError(
                say("This model takes texts", given, "a list of strings, or their bytes, uint8 (B, bytes)")
            )
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        if not self.reads_text:
            input_ = dict(self.config.get("input") or {})
            allowed = f"a tensor, {input_['dtype']} (B, {input_['shape']})" if input_ else "a tensor of raw inputs"
            raise ModelError(say("This model does not take texts", type(inputs).__name__, allowed))
        odd = next((type(text).__name__ for text in texts if not isinstance(text, str)), None)
        if odd is not None or not texts:
            given = "an empty list" if odd is None else f"a list with {odd} in it"
            raise ModelError(say("This model takes texts", given, "a list of strings"))
        return utf8.pack(texts)


# --- the configuration -----------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


class _Zoo(_Part):
    use: str
    options: dict[str, Any] = {}


class _Foreign(_Part):
    name: str = Field(alias="class")


class _Input(_Part):
    dtype: str
    shape: list[int]


class _Weights(_Part):
    bytes: int
    sha256: str


class _Config(_Part):
    format: Literal[1] = 1
    model: _Zoo | _Foreign
    shape: list[int]
    input: _Input
    classes: list[str] | None = None
    outputs: int | None = Field(default=None, ge=1)
    encode: dict[str, Any] | None = None
    score: dict[str, Any] | None = None
    notes: dict[str, Any] = {}
    made_with: dict[str, str] = {}
    weights: _Weights


def _checked(content: Mapping[str, Any], source: str) -> _Config:
    """Check a configuration whole, telling every mistake at once."""
    if content.get("format", 1) != 1:
        raise ModelError(
            say(
                f"{source} is of an unknown format",
                repr(content["format"]),
                "format 1",
                "Upgrade Stillroom to read it.",
            )
        )
    try:
        config = _Config.model_validate(content)
    except ValidationError as error:
        mistakes = []
        for mistake in error.errors(include_url=False, include_context=False):
            place = ".".join(str(part) for part in mistake["loc"])
            close = nearest(place, _Config.model_fields) if mistake["type"] == "extra_forbidden" else None
            mistakes.append(f"{place}: {mistake['msg']}" + (f" (did you mean '{close}'?)" if close else ""))
        allowed = sorted(_Config.model_fields)
        raise ModelError(
            say(f"{source} does not describe a model", "; ".join(mistakes), ", ".join(allowed), "Correct it.")
        ) from error
    if isinstance(config.model, _Zoo) and not (config.classes or config.outputs):
        raise ModelError(
            say(
                f"{source} does not say how many logits there are",
                "neither 'classes' nor 'outputs'",
                "the names of the classes, or 'outputs' as a number",
                "Add one.",
            )
        )
    return config


def versions() -> dict[str, str]:
    """Return the versions that weights depend on, by package."""
    try:
        own = importlib.metadata.version("stillroom")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {"stillroom": own, "torch": str(torch.__version__)}


# --- writing ---------------------------------------------------------------------------------------


def save_bundle(
    folder: Path | str, model: nn.Module, *, encode: nn.Module | None = None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Write ``model`` and its ``encode`` as a bundle and return its whole configuration.

    ``config`` needs ``shape`` (one example, as the model takes it) and ``input`` (``dtype`` and ``shape`` of
    one raw example); ``model`` ({"use", "options"} for the zoo), ``classes``, ``outputs``, ``score`` and
    ``notes`` may stand beside them. A model that is not of the zoo is noted by the name of its class.
    Equal weights and configuration give equal bytes.

    Raises:
        ModelError: weights are not finite, or the configuration is incomplete or not JSON.
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    if isinstance(model, Deployed):
        whole = model if encode is None else Deployed(model.model, encode)
        model, encode = whole.model, whole.encode
    else:
        whole = Deployed(model, encode)
    tensors.refuse_not_finite(whole, source=f"the weights for {folder}")
    packed = tensors.pack(tensors.state_of(whole))
    _must_fit(encode, config.get("shape"), f"The bundle {folder}")
    content = dict(config)
    content["model"] = _described_model(model, content)
    content["encode"] = _describe(encode)
    content["made_with"] = versions()
    content["weights"] = {"bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    content = _plain(content)
    complete = _checked(content, "The configuration of a bundle").model_dump(mode="json", by_alias=True)
    files.write_bytes(folder / WEIGHTS, packed)
    files.faultpoint("bundle:weights")
    files.write_json(folder / CONFIG, complete)
    return complete


def _described_model(model: nn.Module, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the model is made: as ``content`` says, by the zoo that made it, or the name of its class."""
    given = dict(content.get("model") or {"class": _class_name(model)})
    outputs = content.get("outputs") or len(content.get("classes") or ())
    own = None if "use" in given or not outputs else built(model, content.get("shape") or (), int(outputs))
    return given if own is None else own


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``content`` as JSON would give it back, so that what is checked is what is written."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ModelError(
            say(
                "The configuration of a bundle cannot be written",
                str(error),
                "texts, finite numbers, lists and dictionaries",
                "Turn tensors and arrays into lists first.",
            )
        ) from error
    return plain


def _describe(encode: nn.Module | None) -> dict[str, Any] | None:
    """Return what rebuilds ``encode``: its own description, or the name of a class from elsewhere."""
    if encode is None:
        return None
    describe = getattr(encode, "describe", None)
    return dict(describe()) if callable(describe) else {"class": _class_name(encode)}


def _must_fit(encode: nn.Module | None, shape: object, source: str) -> None:
    """Refuse a tokenizer with more ids than the model has tokens: a text would ask for one that is not there."""
    size = getattr(encode, "size", None)
    if not getattr(encode, "outside", False) or not isinstance(size, int) or not isinstance(shape, list | tuple):
        return
    if len(shape) != 1 or size > shape[0]:
        given = f"{size} ids of the tokenizer and the shape {list(shape)}"
        do = "Give the model and the encode that were trained together."
        raise ModelError(say(f"{source} holds parts of two models", given, f"[{size}], the size of its vocabulary", do))


def _class_name(module: nn.Module) -> str:
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


# --- reading ---------------------------------------------------------------------------------------


def load(folder: Path | str, *, model: nn.Module | None = None, encode: nn.Module | None = None) -> Deployed:
    """Return the model in a bundle, ready to answer: raw inputs to logits, on the CPU, in eval mode.

    ``model`` and ``encode`` are instances to fill, needed only where they are not Stillroom's own: a bundle
    never names code to run.

    Raises:
        ModelError: the folder is not a bundle, is damaged, or holds other weights than the model needs.
    """
    folder = expand(folder, "The folder of a bundle", ModelError)
    config = read_config(folder)
    weights = folder / WEIGHTS
    stored, _ = tensors.unpack(weights)
    if files.checksum(weights) != config.weights.sha256:
        raise ModelError(
            say(
                f"{weights} is not the file that {CONFIG} was written for",
                "another checksum",
                "both files of one export",
                "A byte may have changed, or two exports were mixed: copy the folder again, or export again. In a run "
                "folder, run the recipe again: it makes anew what is damaged.",
            )
        )
    encode = _build_encode(config, folder) if encode is None else encode
    _must_fit(encode, config.shape, str(folder))
    if encode is None and config.input.dtype == TEXT and isinstance(config.model, _Zoo):
        given = f"no 'encode' in {CONFIG}"
        do = "Export the model again, together with its encode."
        raise ModelError(say(f"{folder} takes texts, and nothing turns them into tokens", given, "its vocabulary", do))
    built = Deployed(
        _build(config, folder) if model is None else model,
        encode,
        config=config.model_dump(mode="json", by_alias=True),
    )
    tensors.restore(built, stored, source=str(weights))
    tensors.refuse_not_finite(built, source=str(weights))
    return built.eval()


def read_config(folder: Path | str) -> _Config:
    """Return the checked ``config.json`` of a bundle.

    Raises:
        ModelError: the folder is not a bundle, or its configuration is wrong.
    """
    folder = Path(folder)
    if not is_file(folder / CONFIG, ModelError):
        given = "no such folder" if not is_folder(folder, ModelError) else f"a folder without {CONFIG}"
        raise ModelError(
            say(
                f"{folder} is not a bundle",
                given,
                f"a folder with {WEIGHTS} and {CONFIG}",
                "Give the folder that 'stillroom export' wrote.",
            )
        )
    try:
        content = files.read_json(folder / CONFIG)
    except StillroomError as error:
        raise ModelError(str(error)) from error
    if not isinstance(content, dict):
        raise ModelError(say(f"{folder / CONFIG} does not describe a model", type(content).__name__, "a dictionary"))
    return _checked(content, str(folder / CONFIG))


def _build(config: _Config, folder: Path) -> nn.Module:
    """Build the model that ``config`` describes, without weights."""
    if isinstance(config.model, _Foreign):
        raise ModelError(
            say(
                f"The model in {folder} cannot be built from its configuration alone",
                f"the class '{config.model.name}', which is not Stillroom's",
                "an instance of that class",
                "Pass one: stillroom.load(folder, model=...); a bundle never runs code by its name.",
            )
        )
    outputs = config.outputs or len(config.classes or [])
    try:
        with forked(0, "bundle"):
            return build(config.model.use, shape=config.shape, classes=outputs, **config.model.options)
    except (ModelError, TypeError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        do = "Upgrade Stillroom or export again; or pass an instance: stillroom.load(folder, model=...)."
        raise ModelError(f"The model in {folder} cannot be built from its configuration. {error} {do}") from error


def _build_encode(config: _Config, folder: Path) -> nn.Module | None:
    """Build the ``encode`` that ``config`` describes."""
    if config.encode is None:
        return None
    if "class" in config.encode:
        raise ModelError(
            say(
                f"The encode in {folder} cannot be built from its configuration alone",
                f"the class '{config.encode['class']}', which is not Stillroom's",
                "an instance of that class",
                "Pass one: stillroom.load(folder, encode=...).",
            )
        )
    try:
        return from_description(config.encode)
    except (ModelError, TypeError, ValueError, KeyError) as error:
        raise ModelError(f"The encode in {folder / CONFIG} cannot be built. {error} Export the model again.") from error
