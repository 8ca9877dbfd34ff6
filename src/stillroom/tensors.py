"""Named tensors as bytes and back, without pickle: what bundles and checkpoints are made of.

The format is safetensors. Four things it leaves open are settled here: a tensor shared by several names
is written once and its other names noted, any memory layout is accepted, all that is not a tensor
stands in one metadata key as sorted JSON, so that equal content gives equal bytes, and there stands a SHA-256
of everything in the file, which is compared when it is read.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stillroom.errors import Damaged, ModelError, UserError, nearest, out_of_memory, say
from stillroom.files import parse_json
from stillroom.paths import reading, unreadable

NOTE, SEAL = "stillroom", "sha256"
_LISTED = 6


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and persistent buffer of ``module`` by name, detached and not copied.

    Raises:
        ModelError: the module keeps state that is not a tensor, or has parameters without a shape yet.
    """
    lazy = sorted(name for name, value in module.named_parameters() if is_lazy(value))
    if lazy:
        raise ModelError(
            say(
                f"{type(module).__name__} has parameters whose shape is not known yet",
                f"{_some(lazy)}, of a lazy module",
                "a module that has seen its inputs once",
                "Run it on one batch before it is handed over: made = Net(); made(inputs[:2]); return made.",
            )
        )
    state = {name: value for name, value in module.state_dict().items() if value is not None}
    odd = sorted(name for name, value in state.items() if not isinstance(value, Tensor))
    if odd and _quantised(module):
        raise ModelError(
            say(
                "A quantised module keeps its weights packed, not as tensors",
                f"{_some(odd)} of {type(module).__name__}",
                "a module of floating weights; a quantised one can teach, since a teacher is only asked",
                "Give the network as it was before it was quantised (an export can be: int8).",
            )
        )
    if odd:
        raise ModelError(
            say(
                "The state of a module holds something that is not a tensor",
                f"{_some(odd)} of {type(module).__name__}",
                "tensors only, since nothing is pickled",
                "Make get_extra_state return a tensor, or leave it out.",
            )
        )
    return {name: value.detach() for name, value in state.items()}


def copy_of(module: nn.Module, whose: str) -> nn.Module:
    """Return a copy that shares no tensor with ``module``; weights that are computed before each call are copied too.

    Raises:
        ModelError: a part of it cannot be copied, as where it holds an open file.
    """
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    computed = {id(value): value.detach().clone() for value in held if value.grad_fn is not None}
    try:
        return copy.deepcopy(module, dict(computed))
    except Exception as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise ModelError(
            say(
                f"{whose} cannot be copied",
                f"a {type(module).__name__} ('{type(error).__name__}: {reason}')",
                "modules that copy.deepcopy copies",
                "Keep open files, sessions and generators out of it, or pass a function that makes it anew.",
            )
        ) from error


def shared_tensors(one: nn.Module, others: Iterable[Tensor]) -> list[str]:
    """Return the names of the parameters and buffers of ``one`` that lie in the memory of ``others``."""
    places = {_memory(value) for value in others} - {None}
    named = [*one.named_parameters(), *one.named_buffers()]
    return [name for name, value in named if _memory(value) in places]


def _memory(value: Tensor) -> tuple[str, int] | None:
    if value.is_meta or value.layout != torch.strided or nn.parameter.is_lazy(value) or not value.numel():
        return None
    return str(value.device), value.untyped_storage().data_ptr()


def count_parameters(module: nn.Module) -> int:
    """Return how many numbers ``module`` learns; tied ones are counted once."""
    return sum(value.numel() for value in module.parameters())


def holds_tensors(module: nn.Module) -> bool:
    """Whether all that a module's state holds can be written as tensors: not so where it is quantised."""
    values = [value for value in module.state_dict().values() if value is not None]
    return all(isinstance(one, Tensor) and one.layout == torch.strided and not one.is_quantized for one in values)


def _quantised(module: nn.Module) -> bool:
    return any(".quantized." in type(part).__module__ for part in module.modules())


def restore(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    error: type[UserError] = ModelError,
    source: str = "the stored weights",
) -> None:
    """Copy ``tensors`` into ``module`` by name; every name and shape is checked before the first is copied.

    The module keeps its own memory layout, type and device. ``source`` is named in the message.

    Raises:
        UserError: of the class ``error``, when a tensor is missing, left over, or of another shape or kind.
    """
    own = state_of(module)
    kind = type(module).__name__
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    do = "Give the module these weights were made with, built with the same options."
    if missing or extra:
        given = [f"without {_some(missing)}"] if missing else []
        given += [f"with {_some(extra)} that it lacks"] if extra else []
        close = nearest(missing[0], extra) if len(missing) == len(extra) else None
        hint = f" '{missing[0]}' may have been called '{close}' before." if close else ""
        allowed = f"its own {len(own)} names"
        raise error(
            say(f"Weights in {source} are not those of {kind}", "weights " + "; ".join(given), allowed, do) + hint
        )
    for name, value in own.items():
        stored = tensors[name]
        if stored.shape != value.shape or stored.is_floating_point() != value.is_floating_point():
            raise error(
                say(
                    f"The tensor '{name}' in {source} does not fit {kind}",
                    _form(stored),
                    _form(value),
                    do,
                )
            )
    module.load_state_dict(dict(tensors))


def pack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> bytes:
    """Return ``tensors`` and ``meta`` (JSON) as safetensors bytes; equal content gives equal bytes.

    Any layout and device is accepted. Names that stand for the same memory are written once.

    Raises:
        ModelError: a tensor is sparse, quantised or holds no data, or ``meta`` is not plain JSON.
    """
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    taken: set[int] = set()
    for name in sorted(tensors):
        value = tensors[name].detach()
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            form = "without data (device meta)" if value.is_meta else f"{value.layout}, {value.dtype}"
            raise ModelError(
                say(
                    f"The tensor '{name}' cannot be written",
                    form,
                    "dense tensors that hold data",
                    "Convert it first, for example with .to_dense() or .dequantize(), or load its weights.",
                )
            )
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in seen:
            aliases[name] = seen[place]
            continue
        seen[place] = name
        kept[name] = _own_memory(value, taken)
    note = {"aliases": aliases, "meta": dict(meta or {}), SEAL: "0" * 64}
    try:
        blank = json.dumps(note, sort_keys=True, allow_nan=False)
        content: bytes = safetensors.torch.save(kept, metadata={NOTE: blank})
        sealed = json.dumps(note | {SEAL: _digest(content, *_header(content))}, sort_keys=True)
        size = 8 + int.from_bytes(content[:8], "little")
        old, new = (json.dumps(text).encode() for text in (blank, sealed))  # as a text inside the header's JSON
        return content[:size].replace(old, new, 1) + content[size:]
    except (TypeError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise ModelError(
            say(
                "These tensors and their note cannot be written as safetensors",
                str(error),
                "tensors of the common types, and a note of texts, numbers, lists and dictionaries",
                "Convert what is named here.",
            )
        ) from error


def unpack(path: Path, *, error: type[UserError] = ModelError) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`pack` wrote: the tensors under all their names, and the note.

    A safetensors file of another author is read too, its note is empty; not so with :class:`Damaged` as ``error``,
    which is for files that Stillroom alone writes: they must carry their checksum.

    Raises:
        UserError: of the class ``error``, when the file is absent, cut short, a pickle, or anything else.
    """
    try:
        with reading(path, error):
            content = path.read_bytes()
    except FileNotFoundError as cause:
        raise error(f"Missing file: {path} does not exist. Check the path, or make it again.") from cause
    except OSError as cause:
        raise error(unreadable(path, cause)) from cause
    _recognise(path, content, error)
    try:
        tensors = safetensors.torch.load(content)
        header, note = _header(content)
        if (SEAL in note or issubclass(error, Damaged)) and note.get(SEAL) != _digest(content, header, note):
            given = "another checksum" if SEAL in note else "no checksum"
            do = "Restore it, or make it again. In a run folder, run the recipe again: it makes anew what is damaged."
            raise error(say(f"{path} is not the file that was written", given, "every byte as it was", do))
        aliases, meta = note.get("aliases", {}), note.get("meta", {})
        if not isinstance(meta, dict):
            raise ValueError("its note is not a dictionary")
        tensors |= {name: tensors[kept] for name, kept in aliases.items()}
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as cause:
        if out_of_memory(cause):
            raise
        _refuse(path, f"{len(content):,} bytes, damaged or cut short ({cause})", error, cause)
    return tensors, meta


def refuse_not_finite(
    module: nn.Module, *, error: type[UserError] = ModelError, source: str = "the stored weights"
) -> None:
    """Check that no parameter is NaN or infinite and no buffer NaN (a mask may well hold -inf).

    Raises:
        UserError: of the class ``error``, naming the first such tensors.
    """
    parameters = [name for name, value in module.named_parameters() if not bool(torch.isfinite(value).all())]
    buffers = [name for name, value in module.named_buffers() if bool(torch.isnan(value).any())]
    if parameters or buffers:
        raise error(
            say(
                f"A network that cannot answer: {source} hold values that are not finite",
                f"NaN or infinity in {_some(parameters + buffers)}",
                "finite weights",
                "Training went astray before they were saved: take an earlier checkpoint, or train with a lower rate.",
            )
        )


def _header(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header of safetensors bytes: what it says of tensors, and our note in it (empty: another author's)."""
    header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header, parse_json(header.pop("__metadata__", {}).get(NOTE, "{}"))


def _digest(content: bytes, header: Mapping[str, Any], note: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that a file says but the digest: tensors' names, forms and bytes, and the note."""
    said = {key: part for key, part in note.items() if key != SEAL}
    digest = hashlib.sha256(json.dumps([header, said], sort_keys=True).encode())
    digest.update(memoryview(content)[8 + int.from_bytes(content[:8], "little") :])
    return digest.hexdigest()


def _own_memory(value: Tensor, taken: set[int]) -> Tensor:
    """Return ``value`` on the CPU, contiguous, and alone in its memory: safetensors accepts nothing else."""
    value = value.cpu().contiguous()
    memory = value.untyped_storage()
    if memory.nbytes() != value.numel() * value.element_size() or memory.data_ptr() in taken:
        value = value.clone(memory_format=torch.contiguous_format)
    taken.add(value.untyped_storage().data_ptr())
    return value


def _recognise(path: Path, content: bytes, error: type[UserError]) -> None:
    """Refuse what is plainly something else, each with its own advice."""
    # A header's length may begin with the same byte as a pickle; but then JSON follows it.
    if content.startswith((b"PK\x03\x04", b"\x80")) and content[8:9] != b"{":
        raise error(
            say(
                f"{path} is not a safetensors file",
                "a pickle (as torch.save writes), which can run code while it is read",
                "safetensors, which holds numbers only",
                "Where you trust it, read it with torch.load(..., weights_only=True) and save it as safetensors.",
            )
        )
    if content.startswith(b"version https://git-lfs"):
        _refuse(path, "a Git LFS pointer, not the weights; fetch them with 'git lfs pull'", error, None)
    if len(content) < 8:
        _refuse(path, f"{len(content)} bytes", error, None)


def _refuse(path: Path, given: str, error: type[UserError], cause: Exception | None) -> NoReturn:
    raise error(
        say(f"{path} is not a safetensors file", given, "a whole safetensors file", "Restore it, or make it again.")
    ) from cause


def _form(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _some(names: Iterable[str]) -> str:
    listed = [f"'{name}'" for name in names]
    more = len(listed) - _LISTED
    return ", ".join(listed[:_LISTED]) + (f" and {more} more" if more > 0 else "")


@functools.cache
def lstm_runs_in_bf16() -> bool:
    """Return whether this processor has an LSTM in bf16: PyTorch raises where it has not. One tiny one is tried."""
    with torch.autocast("cpu", torch.bfloat16):
        try:
            nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
        except RuntimeError:
            return False
    return True


def check_precision(module: nn.Module, precision: str) -> None:
    """Refuse an LSTM in bf16 on a processor that cannot compute it.

    Raises:
        ModelError: that is so.
    """
    if precision == "bf16" and any(isinstance(part, nn.LSTM) for part in module.modules()) and not lstm_runs_in_bf16():
        do = "Write precision: auto, which takes bf16 only where the processor has it."
        raise ModelError(say("An LSTM cannot run in bf16 on this processor", "precision: bf16", "auto, float32", do))
