"""Finding places in a module: paths, the layer that makes the logits, and the parts of what a model returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts import Signals
from stillroom.errors import TapError, say


def submodule(module: nn.Module, path: str) -> nn.Module:
    """Return the submodule at ``path``.

    Raises:
        TapError: there is none, and names the nearest paths; or it is TorchScript.
    """
    refuse_script(module, path)
    try:
        found = module.get_submodule(path)
        refuse_script(found, path)
        return found
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


def refuse_script(module: nn.Module, where: str) -> None:
    """See that a module can be looked into.

    Raises:
        TapError: it is TorchScript, in which nothing listens.
    """
    if isinstance(module, torch.jit.ScriptModule):
        do = "Tap the logits or a part of the output, or give the module that the script was made of."
        raise TapError(say("A TorchScript module cannot be looked into", f"'{where}'", "logits, output[part]", do))


def never_ran(module: nn.Module, text: str, path: str) -> TapError:
    """Return the error of a tap whose module was not called in a pass: compiled, or no module that runs."""
    failed, steps = f"The tap '{text}' saw nothing", path.split(".")
    for count in range(len(steps) + 1):
        above = ".".join(steps[:count])
        part = module.get_submodule(above)
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            given = f"a compiled module ('{above}')" if above else "a compiled module"
            do = "Hand the module over before it is compiled, or compile the whole: torch.compile(module)."
            return TapError(say(failed, f"{given}, inside which no hook is called", "a place outside of it", do))
    kind = type(submodule(module, path)).__name__
    given = f"a pass in which '{path}' ({kind}) was never called"
    allowed = "modules whose forward runs (not a ModuleList, nor a layer used only for its weights)"
    return TapError(say(failed, given, allowed, "Tap a place before or after it."))


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
    parts = _parts(output)
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
        "Let its forward name them, for example return {'logits': first, 'other': second}; an objective reads any part "
        "by its tap, 'output[0]' or 'output[other]'."
    )


def _parts(output: Any) -> dict[Any, Any]:
    """Return what a model returned by its keys, fields or positions; nothing where it is none of these."""
    if isinstance(output, Mapping):
        return dict(output)
    if is_dataclass(output) and not isinstance(output, type):
        return {one.name: getattr(output, one.name) for one in fields(output)}
    return dict(enumerate(output)) if isinstance(output, Sequence) else {}


def refuse_other_rows(module: nn.Module, shown: Signals, rows: int, paths: Mapping[str, str]) -> None:
    """See that what was shown of ``rows`` examples has the example for its first axis; ``paths`` says whose it is.

    Raises:
        TapError: a tap gives other than a row for each example; says what to do.
    """
    for name, path in paths.items():
        value = shown.get(name)
        if value is None or (value.dim() and len(value) == rows):
            continue
        part = submodule(module, path)
        do = "Tap a place whose first axis is the example, or turn the axes in the model's forward."
        if isinstance(part, nn.RNNBase | nn.Transformer | nn.TransformerEncoderLayer | nn.MultiheadAttention):
            do = f"Make the {type(part).__name__} with batch_first=True, as its input then must be"
            do += f", or tap '{path}@h', which stands batch first." if isinstance(part, nn.RNNBase) else "."
        given = f"shape {tuple(value.shape)} of {rows} examples"
        raise TapError(say(f"The tap '{name}' does not give a row for each example", given, f"({rows}, ...)", do))


def leaves(module: nn.Module) -> dict[str, nn.Module]:
    """Return the submodules without children, by path."""
    return {name: part for name, part in module.named_modules() if name and not any(part.children())}
