"""Memory capacity: how many numbers of its past input can be read, linearly, from a recurrent network's state.

After Jaeger, "Short term memory in echo state networks" (2001), GMD report 152: the network is frozen and fed with
independent inputs, a probe learns to tell the input k steps back from the state, and the sum of its r2 over k is the
capacity. With uncorrelated targets it cannot exceed the number of state units. Differing from the paper: the probe is
fitted and scored on different rows, and a trace fainter than a tenth of a unit's spread counts for little, since
nothing behind the state could use what only the fifth decimal shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.contracts import State
from stillroom.errors import DataError, UserError, say
from stillroom.fingerprints import fingerprint_of
from stillroom.memory.probes import Encode, Steps, steps_of
from stillroom.memory.ridge import Numbers, explained, one_thread, predicted
from stillroom.memory.states import state_r2
from stillroom.taps import Takes, read, sizing

FAINTEST = 0.1  # of a unit's deviation
PENALTIES = tuple(FAINTEST**2 * factor for factor in (1.0, 10.0, 100.0, 1000.0))
CHUNK = 64
MOST = 2048  # real rows whose steps are used
COMPARED = 256  # rows of real inputs on which the student's state is compared with the teacher's


@dataclass(frozen=True)
class Capacity:
    """What a state remembers.

    ``curve``: r2 of the input k steps back, k = 0 .. reach, the mean over the ``targets`` numbers asked of each step.
    ``total``: their sum over steps back and targets, at most ``units``. ``chance``: the total for inputs the network
    never saw. ``steps``: length of the probe inputs; ``kind``: of numbers or tokens.
    """

    curve: tuple[float, ...]
    total: float
    chance: float
    units: int
    targets: int
    steps: int
    kind: str

    @property
    def depth(self) -> int:
        """The steps back up to which at least half of the input is there; -1 where not even the present is."""
        return next((back for back, share in enumerate(self.curve) if share < 0.5), len(self.curve)) - 1

    def plain(self) -> dict[str, Any]:
        """Return this as JSON values."""
        return {
            "curve": list(self.curve), "total": self.total, "chance": self.chance, "units": self.units,
            "targets": self.targets, "steps": self.steps, "kind": self.kind, "depth": self.depth,
        }  # fmt: skip


UNASKED = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)  # what a foreign network may raise


class _How(NamedTuple):
    """How it is measured; see :func:`capacity`."""

    reach: int
    rows: int
    length: int | None
    cells: bool
    seed: int


def _how(reach: int, rows: int, length: int | None, cells: bool, seed: int) -> _How:
    how = _How(reach, rows, length, cells, seed)
    if how.reach < 1 or how.rows < 4 or (how.length is not None and how.length < 2):
        given = f"reach {how.reach}, {how.rows} rows" + ("" if how.length is None else f" of {how.length}")
        raise DataError(say("Memory is not measured so", given, "reach 1 or more, 4 rows or more of 2 steps or more"))
    return how


@dataclass(frozen=True)
class Remembers:
    """A network to be asked: its module, what turns a Batch's ``inputs`` into what it takes, where its memory is."""

    module: nn.Module
    encode: Encode | None = None
    takes: Takes = ("inputs",)
    path: str | None = None

    @property
    def place(self) -> str | None:
        """The path of its memory: the one given, or the first found."""
        return self.path or recurrent_path(self.module)


def recurrent_path(module: nn.Module) -> str | None:
    """Return the path of the first ``nn.LSTM`` or ``nn.GRU`` inside ``module``; None where there is none."""
    return next((path for path, one in module.named_modules() if path and isinstance(one, nn.LSTM | nn.GRU)), None)


def capacity(
    module: nn.Module,
    path: str,
    inputs: Tensor,
    *,
    encode: Encode | None = None,
    takes: Takes = ("inputs",),
    reach: int = 30,
    rows: int = 256,
    length: int | None = None,
    cells: bool = False,
    seed: int = 0,
) -> Capacity:
    """Return what the memory at ``path`` of a frozen network holds of its input 0 .. ``reach`` steps back.

    ``inputs``: real rows, as the Batch column has them. Their steps, taken apart after ``encode``, are shuffled over
    all rows and steps, so that each is as likely as before and none tells of another; ``rows`` rows of ``length`` steps
    are built (three times ``reach``; the real rows' own where the module takes no other; ``reach`` is cut to half of a
    row). The first ``reach`` steps of a row are not asked.

    The state is ``h`` of all layers (with ``cells`` an LSTM's ``c`` too), forward directions only: a backward one has
    not been there yet. Layers above the first of a bidirectional memory read both directions of the one below, so
    part of what they know of earlier steps came by that way.

    Raises:
        DataError: inputs without steps or that never change, or a network that shortens time before its memory.
    """
    how = _how(reach, rows, length, cells, seed)
    return _capacity(Remembers(module, None, takes, path), steps_of(inputs[:MOST], encode, seed=seed), how)


def _capacity(model: Remembers, steps: Steps, how: _How) -> Capacity:
    length = how.length or 3 * how.reach
    try:
        _states(model, steps, steps.rows(2, length, how.seed)[0], how.cells)
    except Exception:  # whatever a foreign module raises on a length that is not its own
        length = steps.length
    reach = min(how.reach, length // 2)
    if not reach:
        raise DataError(say("There is no past to remember", f"inputs of {length} step", "rows of two steps or more"))
    fed, targets = steps.rows(how.rows, length, how.seed)
    return recalled(_states(model, steps, fed, how.cells), targets, reach, kind=steps.kind)


def recalled(states: Numbers, targets: Numbers, reach: int, *, kind: str = "numbers") -> Capacity:
    """Return what ``states`` (rows, T, units) hold of ``targets`` (rows, T, targets) 0 .. ``reach`` steps back.

    The first half of the rows fits the probe, the other is asked. ``targets`` must be uncorrelated, of variance 1 and
    independent from step to step, or the present alone will pass for memory.
    """
    rows, length, count = targets.shape
    half = rows // 2
    back = np.stack([targets[:, reach - k : length - k] for k in range(reach + 1)], 2)  # (rows, T, back, targets)
    other = np.concatenate([np.roll(back[:half], 1, 0), np.roll(back[half:], 1, 0)])
    wanted = np.concatenate([back, other], 2).reshape(rows, length - reach, -1)
    known, asked = (_flat(states[part, reach:]) for part in (slice(half), slice(half, None)))
    truth = _flat(wanted[half:])
    with one_thread():
        shares = explained(truth, predicted(known, _flat(wanted[:half]), asked, PENALTIES)).clip(min=0)
    held, chance = shares.reshape(2, reach + 1, count)
    curve = tuple(float(share) for share in held.mean(1))
    return Capacity(curve, float(held.sum()), float(chance.sum()), states.shape[2], count, length, kind)


def _flat(rows: Numbers) -> Numbers:
    return rows.reshape(-1, rows.shape[-1])


def _states(model: Remembers, steps: Steps, fed: Tensor, cells: bool) -> Numbers:
    """Return the states (rows, T, units) of the forward directions on probe inputs."""
    length = fed.shape[2] if fed.dim() == 4 else fed.shape[1]
    found = _read(Remembers(model.module, steps.encode, model.takes, model.path), fed, length, cells)[0]
    if found.shape[1] != length:
        raise DataError(
            say(
                f"The memory at '{model.place}' does not keep the input's time",
                f"{found.shape[1]} states for {length} steps",
                "one state a step",
            )
        )
    return found


def _read(model: Remembers, inputs: Tensor, length: int | None, cells: bool) -> tuple[Numbers, Tensor]:
    """Return states (rows, T, units) and their mask (rows, T)."""
    path = model.place
    assert path is not None
    module = model.module
    device = next((one.device for one in module.parameters()), inputs.device)
    takes = model.takes
    columns = list(takes.values()) if isinstance(takes, Mapping) else list(takes)
    memory = module.get_submodule(path)
    parts: list[Tensor] = []
    masks: list[Tensor] = []
    with sizing(module):
        reader = read(module, [State(path, part="state" if cells else "h")], model.encode, takes=takes)
        for number, rows in enumerate(inputs.split(CHUNK)):
            rows = rows.to(device)
            ids = torch.zeros(len(rows), 2, dtype=torch.int64, device=device)
            batch = {"id": ids, columns[0]: rows}
            if length is not None:
                batch["lengths"] = torch.full((len(rows),), length, device=device)
            if not number:
                reader.prepare({name: one[:2] for name, one in batch.items()})
            seen = reader(batch)
            sides = [_forward(seen[f"{path}@{part}"], memory) for part in ("h", "c") if part == "h" or cells]
            parts.append(torch.cat(sides, 2).cpu())
            masks.append(seen[f"{path}@h.mask"].cpu())
    longest = max(part.shape[1] for part in parts)
    parts = [nn.functional.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts]
    masks = [nn.functional.pad(mask, (0, longest - mask.shape[1])) for mask in masks]
    return torch.cat(parts).double().numpy(), torch.cat(masks)


def _forward(states: Tensor, memory: nn.Module) -> Tensor:
    """Return (B, T, layers * hidden) of the forward directions."""
    directions = 2 if getattr(memory, "bidirectional", False) else 1
    apart = states.flatten(2, -2)  # (B, T, layers * directions, hidden)
    return apart[:, :, ::directions].flatten(2)


def memory_of(
    models: Mapping[str, Sequence[Remembers]],
    inputs: Tensor,
    *,
    teacher: str = "teacher",
    reach: int = 30,
    rows: int = 256,
    length: int | None = None,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Return the capacity of every recurrent network, as JSON values; None where none of them can be asked.

    ``models``: by name (``teacher``, ``alone``, the arms, ``random weights``), one for each seed of training.
    ``inputs``: real rows, as the Batch column has them. Where one takes its own length only, all are asked at that one.
    ``models`` of the answer holds by name ``totals``, ``curves``,
    ``chances`` and ``depths`` (one a seed), ``units``, ``targets``, ``kind`` and, where the teacher's time is the
    student's, ``state``: {r2, ceiling, ratio} a seed, of its state against the teacher's on the real rows. ``left_out``
    says why a recurrent network could not be asked.
    """
    asked = {name: [one for one in seeds if one.place] for name, seeds in models.items()}
    asked = {name: seeds for name, seeds in asked.items() if seeds}
    if not asked:
        return None
    how = _how(reach, rows, length, False, seed)
    taken: dict[str, Steps] = {}
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, seeds in asked.items():
        held = []
        try:
            for one in seeds:
                key = _key(one.encode)
                taken[key] = taken.get(key) or steps_of(inputs[:MOST], one.encode, seed=seed)
                held.append(_capacity(one, taken[key], how))
        except (UserError, *UNASKED) as error:  # it must not cost the others their answers, nor a run its report
            left_out[name] = str(error).strip().split("\n")[0]
        else:
            found[name] = _entry(held)
    if not found:
        return None
    lengths = {entry["steps"] for entry in found.values()}
    if len(lengths) > 1 and length is None:  # sums over unequal reaches cannot be compared
        return memory_of(models, inputs, teacher=teacher, reach=reach, rows=rows, length=min(lengths), seed=seed)
    _compare(found, {name: asked[name] for name in found}, inputs[:COMPARED], teacher)
    return {"reach": reach, "rows": rows, "steps": max(lengths), "seed": seed, "models": found, "left_out": left_out}


def _key(encode: Encode | None) -> str:
    """Return what tells one encode from another: every seed's model has an equal one of its own."""
    return fingerprint_of(encode) or str(id(encode))


def _entry(held: Sequence[Capacity]) -> dict[str, Any]:
    first = held[0]
    return {
        "units": first.units, "targets": first.targets, "steps": first.steps, "kind": first.kind,
        "totals": [one.total for one in held], "curves": [list(one.curve) for one in held],
        "chances": [one.chance for one in held], "depths": [one.depth for one in held],
    }  # fmt: skip


def _compare(found: dict[str, Any], asked: Mapping[str, Sequence[Remembers]], inputs: Tensor, teacher: str) -> None:
    """Add ``state`` to every entry whose states stand at the teacher's steps."""
    if teacher not in asked or len(inputs) < 4:
        return
    numbers = inputs.is_floating_point() or inputs.dim() > 2
    length = (inputs.shape[2] if inputs.dim() == 4 else inputs.shape[1]) if numbers else None
    theirs, mask = _read(asked[teacher][0], inputs, length, False)
    for name, seeds in asked.items():
        if name == teacher:
            continue
        fits = []
        for one in seeds:
            ours, own = _read(one, inputs, length, False)
            if ours.shape[:2] != theirs.shape[:2] or not torch.equal(own, mask):
                break
            fits.append(state_r2(ours, theirs, mask.numpy()).plain())
        if len(fits) == len(seeds):
            found[name]["state"] = fits
