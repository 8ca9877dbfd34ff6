"""Finding places in a module: paths, the layer that makes the logits, and the parts of what a model returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts import Signals
from stillroom.errors import TapError, say


def submodule(module: nn.Module, path: str) -> nn.Module:
    """Return the submodule at ``path``.

    Raises:
        TapError: there is none; names the nearest paths.
    """
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        paths = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
        raise TapError(
            say(
                f"{type(module).__name__} has no submodule to tap",
                f"'{path}'",
                paths or "logits, features or output, since it has no submodules",
                "Name one of these, or logits, features or output." if paths else "",
            )
        ) from error


def pick(value: Any, part: str | int | None, where: str) -> Any:
    """Return one part of what a module gave: a key, an attribute or a position.

    Raises:
        TapError: there is no such part; names the parts there are.
    """
    if part is None:
        return value
    if isinstance(value, Mapping):
        if part in value:
            return value[part]
        raise TapError(say(f"'{where}' gave a dictionary without that part", f"'{part}'", [str(key) for key in value]))
    if isinstance(part, int) and isinstance(value, Sequence):
        if -len(value) <= part < len(value):
            return value[part]
        raise TapError(say(f"'{where}' gave {len(value)} parts", f"[{part}]", f"0 to {len(value) - 1}"))
    if isinstance(part, str) and isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        return [pick(row, part, where) for row in value]
    if isinstance(part, str) and hasattr(value, part):
        return getattr(value, part)
    raise TapError(
        say(
            f"'{where}' gave a {type(value).__name__}, which has no such part",
            f"'{part}'",
            "a key, attribute or position",
        )
    )


def as_signals(value: Any, name: str, rows: int) -> Signals:
    """Return ``value`` as Signals called ``name``: a tensor as it is, a list of one tensor a row padded, with its mask.

    Raises:
        TapError: it is neither; says which parts could be picked.
    """
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, list) and len(value) == rows and all(isinstance(row, Tensor) for row in value):
        return pad_rows(value, name)
    if isinstance(value, Mapping):
        raise TapError(
            f"'{name}' gave a dictionary, not a tensor. Parts: {', '.join(map(str, value))}. "
            f"Say which one, for example '{name}[{next(iter(value), 'key')}]'."
        )
    if isinstance(value, list | tuple):
        raise TapError(
            f"'{name}' gave a {type(value).__name__} of {len(value)} parts, not a tensor. Say which one, for example "
            f"'{name}[0]'."
        )
    raise TapError(f"'{name}' gave a {type(value).__name__}, not a tensor. Tap a place that gives a tensor.")


def pad_rows(rows: Sequence[Tensor], name: str) -> Signals:
    """Stack rows of unequal first axis into (B, longest, ...) with zeros, and ``<name>.mask`` (B, longest)."""
    longest = max((len(row) for row in rows), default=0)
    rest = rows[0].shape[1:]
    padded = rows[0].new_zeros(len(rows), longest, *rest)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=rows[0].device)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
        mask[index, : len(row)] = True
    return {name: padded, f"{name}.mask": mask}


def find_logits(output: Any, model: str) -> Tensor:
    """Return the logits in what a model returned: the tensor, its ``.logits``, or its only floating 2-D tensor.

    Raises:
        TapError: the rule does not decide.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    parts = (
        dict(output) if isinstance(output, Mapping) else dict(enumerate(output)) if isinstance(output, Sequence) else {}
    )
    flat = {
        key: part
        for key, part in parts.items()
        if isinstance(part, Tensor) and part.dim() == 2 and part.is_floating_point()
    }
    if len(flat) == 1:
        return next(iter(flat.values()))
    shapes = ", ".join(f"{key}: {tuple(part.shape)}" for key, part in parts.items() if isinstance(part, Tensor))
    raise TapError(
        f"Cannot tell which part of {model}'s answer is the logits: got {type(output).__name__} "
        f"({shapes or 'no tensors'}). "
        "Allowed: a tensor, something with .logits, or exactly one floating 2-D tensor. "
        "Name the part, for example the tap 'output[0]' or 'output[scores]'."
    )


def leaves(module: nn.Module) -> dict[str, nn.Module]:
    """Return the submodules without children, by path."""
    return {name: part for name, part in module.named_modules() if name and not any(part.children())}
