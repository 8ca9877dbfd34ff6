"""A module whose inside can be seen: its size, its name, and the fingerprint by which teachers are told apart."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from stillroom import tensors
from stillroom.errors import ModelError, StillroomError, say
from stillroom.taps.places import find_logits
from stillroom.taps.reader import sizing


def describe(module: nn.Module) -> dict[str, Any]:
    """Return what a manifest notes of ``module``, as plain JSON values.

    ``class``; ``parameters`` and ``trainable`` (numbers, tied ones counted once); ``buffers`` (numbers);
    ``bytes`` of both; ``fingerprint``.

    Raises:
        ModelError: the module holds no data, or state that is not a tensor.
    """
    parameters, buffers = list(module.parameters()), list(module.buffers())
    kind = type(module)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "parameters": count_parameters(module),
        "trainable": sum(value.numel() for value in parameters if value.requires_grad),
        "buffers": sum(value.numel() for value in buffers),
        "bytes": sum(value.numel() * value.element_size() for value in [*parameters, *buffers]),
        "fingerprint": fingerprint(module),
    }


def count_parameters(module: nn.Module) -> int:
    """Return how many numbers ``module`` learns; tied ones are counted once."""
    return sum(value.numel() for value in module.parameters())


def fingerprint(module: nn.Module) -> str:
    """Return a SHA-256 (64 hexadecimal digits) of the architecture, and of every parameter and buffer by name.

    Equal for equal networks whatever their memory layout, device, mode, compilation and whether gradients are
    wanted; another for another type, value, name or option that the module shows in its ``repr``.

    Raises:
        ModelError: the module holds no data, or state that is not a tensor.
    """
    module = getattr(module, "_orig_mod", module)
    held: dict[str, Tensor] = tensors.state_of(module)
    # Buffers that are left out of checkpoints (position tables, masks) change the answers too.
    held |= {name: value.detach() for name, value in module.named_buffers(remove_duplicate=False)}
    digest = hashlib.sha256(repr(module).encode())
    for name in sorted(held):
        value = held[name]
        if value.is_meta:
            raise ModelError(
                say(
                    f"{type(module).__name__} has no fingerprint",
                    f"'{name}' without data (device meta)",
                    "a module whose weights are loaded",
                    "Load its weights first.",
                )
            )
        form = (name, str(value.dtype), tuple(value.shape))
        digest.update(repr(form).encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def shape_after(module: nn.Module, example: Tensor) -> tuple[int, ...]:
    """Return the shape of the logits of one example: ``module`` runs once on ``example`` (B x ...) and stays as it was.

    Raises:
        ModelError: the module does not take such an example, or does not answer for each of its rows.
    """
    try:
        with sizing(module):
            logits = find_logits(module(example), type(module).__name__)
    except StillroomError:
        raise
    except Exception as error:
        raise ModelError(
            say(
                f"{type(module).__name__} does not take these inputs",
                f"{str(example.dtype).removeprefix('torch.')} {tuple(example.shape)} ({type(error).__name__}: {error})",
                "inputs as the model was made for",
                "Check the shape and type, and whether an encode (normalisation, tokens) belongs before it.",
            )
        ) from error
    if logits.ndim < 1 or len(logits) != len(example):
        raise ModelError(
            say(
                f"{type(module).__name__} does not answer for each example",
                f"an answer of shape {tuple(logits.shape)} to {len(example)} examples",
                f"({len(example)}, ...)",
                "Put the batch first.",
            )
        )
    return tuple(logits.shape[1:])


def _bytes(value: Tensor) -> bytes:
    """Return the numbers of a tensor in their logical order, little-endian as the machines PyTorch runs on."""
    if value.layout != torch.strided or value.is_quantized:
        value = value.dequantize() if value.is_quantized else value.to_dense()
    # Through uint8, since NumPy knows neither bfloat16 nor float8.
    return value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
