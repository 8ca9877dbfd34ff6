"""Probe inputs whose steps know nothing of each other: only so does remembering them prove a memory.

Neighbouring steps of real inputs resemble each other, and a state that holds the present then seems to hold the past:
an untrained LSTM of 16 units scores four times as much on smooth inputs as on independent ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillroom.contracts import HasSteps
from stillroom.errors import DataError, say
from stillroom.memory.ridge import Numbers
from stillroom.randomness import draw, permutation

Encode = Callable[..., Any]
COMPONENTS = 4  # of a step's numbers: the largest principal components are asked for
CODE = 8  # numbers that stand for a token
FREQUENT = 256  # tokens that have a code of their own; the others share the code 0


@dataclass(frozen=True)
class Steps:
    """All real steps of some inputs, as a model takes them, and how to build rows of any length from them.

    ``pool`` (steps, ...) of numbers or ids; ``targets`` (steps, at most 4 or 8), uncorrelated, each of variance 1;
    ``build`` turns (rows, T, ...) of steps into what the reader is given, ``encode`` that into what the model takes.
    """

    pool: Tensor
    targets: Numbers
    build: Callable[[Tensor], Tensor]
    encode: Encode | None
    length: int
    kind: str

    def rows(self, rows: int, length: int, seed: int) -> tuple[Tensor, Numbers]:
        """Return inputs (rows, T, ...), every step drawn without regard to row and time, and their targets."""
        wanted, count = rows * length, len(self.pool)
        rounds = [permutation(count, seed, "memory", turn) for turn in range(-(-wanted // count))]
        order = np.concatenate(rounds)[:wanted]
        order = order[permutation(wanted, seed, "memory", "mixed")]
        inputs = self.pool[torch.from_numpy(order)].unflatten(0, (rows, length))
        return self.build(inputs), self.targets[order].reshape(rows, length, -1)


def steps_of(inputs: Tensor, encode: Encode | None = None, *, seed: int = 0) -> Steps:
    """Return the steps of ``inputs`` (a Batch column), taken apart after ``encode``.

    Numbers (B, T), (B, T, F) or images (B, C, H, W) read row by row: a step's targets are its largest principal
    components. Tokens: each of the 256 most frequent ids has a fixed random code of 8 signs, made uncorrelated.

    Raises:
        DataError: no steps, steps that never change, or inputs of another form.
    """
    if isinstance(encode, nn.Module):  # its normalisation may live elsewhere
        inputs = inputs.to(next(encode.buffers(), inputs).device)
    with torch.no_grad():
        found = inputs if encode is None else encode(inputs)
    if isinstance(found, Mapping):
        return _tokens(found, inputs, encode, seed)
    if not isinstance(found, Tensor) or found.dim() not in (2, 3, 4):
        given = str(tuple(found.shape)) if isinstance(found, Tensor) else type(found).__name__
        raise DataError(say("Memory is not measured on such inputs", given, "(B, T), (B, T, F), (B, C, H, W) or ids"))
    if found.dtype in (torch.int32, torch.int64) and found.dim() == 2:
        return _tokens({"": found}, inputs, encode, seed)
    shape = found.shape[1:]
    apart = found.float()
    if found.dim() == 4:
        apart = apart.transpose(1, 2).flatten(2)
    if found.dim() == 2:
        apart = apart[..., None]

    def build(rows: Tensor) -> Tensor:
        if len(shape) == 1:
            return rows[..., 0]
        return rows.unflatten(2, (shape[0], shape[2])).transpose(1, 2) if len(shape) == 3 else rows

    pool = apart.flatten(0, 1).contiguous().cpu()
    return Steps(pool, _whitened(pool.double().numpy(), COMPONENTS), build, None, apart.shape[1], "numbers")


def _tokens(found: Mapping[str, Tensor], inputs: Tensor, encode: Encode | None, seed: int) -> Steps:
    """Ids among real steps that stand for text; the marks a tokenizer adds are left out."""
    whole = [name for name, one in found.items() if one.dim() == 2 and one.dtype in (torch.int32, torch.int64)]
    named = [name for name in whole if name.endswith("ids") and "type" not in name and "position" not in name]
    if not (named or len(whole) == 1):
        raise DataError(say("The tokens in what encode gives cannot be told", list(found), "one entry named 'ids'"))
    key = (named or whole)[0]
    ids = found[key]
    mask = next((one.bool() for name, one in found.items() if "mask" in name), torch.ones_like(ids, dtype=torch.bool))
    if isinstance(encode, HasSteps):
        mask, spans = encode.steps(inputs)
        if spans is not None:
            mask = mask & (spans[..., 1] > spans[..., 0])
    pool = ids[mask].cpu()
    known, times = np.unique(pool.numpy(), return_counts=True)
    frequent = known[np.argsort(-times, kind="stable")][:FREQUENT]
    signs = 1.0 - 2.0 * (draw(seed, "code", frequent[:, None], np.arange(CODE)) >> np.uint64(63)).astype(np.float64)
    codes = np.zeros((int(known.max(initial=0)) + 1, CODE))
    codes[frequent] = signs

    def wrap(rows: Tensor) -> Any:
        if not key:
            return rows
        others = {name: torch.ones_like(rows, dtype=one.dtype) if "mask" in name else torch.zeros_like(rows)
                  for name, one in found.items() if name != key}  # fmt: skip
        return {name: rows if name == key else others[name] for name in found}

    targets = _whitened(codes[pool.numpy()], CODE)
    return Steps(pool, targets, lambda rows: rows, wrap, int(mask.sum(1).max()), "tokens")


def _whitened(steps: NDArray[np.float64], most: int) -> Numbers:
    """Return the largest principal components, each of mean 0 and variance 1; those next to nothing are left out.

    Raises:
        DataError: nothing changes.
    """
    if not len(steps):
        raise DataError(say("Memory cannot be measured", "inputs without a step", "some rows with real steps"))
    centred = steps - steps.mean(0)
    sizes, turn = np.linalg.eigh(centred.T @ centred / len(centred))
    keep = [place for place in np.argsort(-sizes, kind="stable")[:most] if sizes[place] > 1e-6 * max(sizes[-1], 1e-12)]
    if not keep or sizes[-1] < 1e-12:
        raise DataError(say("Memory cannot be measured", "inputs that are the same at every step", "inputs that vary"))
    found: Numbers = centred @ turn[:, keep] / np.sqrt(sizes[keep])
    return found
