"""Reading the memory of an nn.LSTM or nn.GRU: its states at every step, layer and direction.

The module's own forward gives only the last state. :func:`walk` goes through layers and directions itself, in chunks
where cells are wanted on the way, each row reversed within its own length, so that what leaves the module stays what
it was and every state on the way is seen. For the time of one reading it stands in for the module's forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from stillroom.errors import TapError, say

Seen = dict[str, Tensor]
State = tuple[Tensor, ...]
RECURRENT = (nn.LSTM, nn.GRU)

SHUT = 1e4
"""What is added to a gate to shut it (or, with the other sign, to open it) to the last bit of its sigmoid."""


def _turned(values: Tensor, lengths: Tensor) -> Tensor:
    """Return which step stands where when each row is reversed within its own length: (B, T)."""
    steps = torch.arange(values.shape[1], device=values.device)
    places = lengths[:, None] - 1 - steps
    return torch.where(places >= 0, places, steps)


def _chosen(values: Tensor, places: Tensor) -> Tensor:
    """Return the steps of ``values`` (B, T, ...) that ``places`` (B, n) names: (B, n, ...)."""
    rest = values.shape[2:]
    return values.gather(1, places.view(*places.shape, *[1] * len(rest)).expand(-1, -1, *rest))


def at_ends(values: Tensor, lengths: Tensor) -> Tensor:
    """Return what ``values`` (B, T, H) holds at each row's last step: (B, H)."""
    return _chosen(values, (lengths - 1).clamp(min=0)[:, None])[:, 0]


@dataclass(frozen=True)
class Walk:
    """What a walk saw: outputs (B, T, directions x H) and the last state (layers x directions, B, H) of each kind;

    where they were wanted, ``hidden`` (B, T, layers, directions, H) in the order of time and ``cells``
    (B, borders, layers, directions, H) in the order of reading.
    """

    outputs: Tensor
    last: State
    hidden: Tensor | None
    cells: Tensor | None


@dataclass
class _Notes:
    """Gathered while walking, an entry for each layer and direction."""

    lasts: list[State] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    cells: list[Tensor] = field(default_factory=list)


def walk(
    module: nn.RNNBase,
    values: Tensor,
    start: State | None = None,
    *,
    lengths: Tensor | None = None,
    own: Tensor | None = None,
    every: int | None = None,
    noting: bool = False,
    ends: bool = True,
) -> Walk:
    """Run ``module`` (an nn.LSTM or nn.GRU) over ``values`` (B, T, F; the batch first, whatever the module says).

    With ``lengths`` (B) each row is read as if it stood alone: the reverse direction begins at its own end, and the
    last state is that of its own last step; outputs behind it mean nothing. Without, every row is T long to the
    module, as it is when nn.LSTM is called on padded values; ``own`` then says how much of it is the row's, which
    decides where ``cells`` begin and end and nothing else. ``every``: note an LSTM's cells after so many steps each.
    ``noting``: note ``hidden``. Without ``ends`` there is no last state, and nothing is done for its sake.
    """
    directions = 2 if module.bidirectional else 1
    notes = _Notes()
    holds = lengths is not None and isinstance(module, nn.LSTM) and (ends or every is not None)
    held = _behind(values, lengths) if holds and lengths is not None else None
    # made once, of the input: an exporter knows no longer that the steps of what an LSTM gives are as many
    turned = _turned(values, lengths) if directions == 2 and lengths is not None else None
    for layer in range(module.num_layers):
        sides = []
        for side in range(directions):
            weights = _weights(module, layer, bool(side))
            first = _start(module, values, start, layer * directions + side)
            facing = _turn(values, turned) if side else values
            out, borders = _run(module, facing, weights, first, every, held)
            if ends:
                ending = out[:, -1] if lengths is None else at_ends(out, lengths)
                notes.lasts.append((ending, borders[-1]) if borders else (ending,))
            if every and borders:
                cells = torch.stack(borders, 1)
                if own is not None:
                    reading = _Reading(module, facing, weights, first, out, cells, every)
                    cells = _backwards(reading, own) if side else _forwards(reading, own)
                notes.cells.append(cells)
            out = _turn(out, turned) if side else out
            sides.append(out)
        if noting:
            notes.hidden += sides
        values = sides[0] if directions == 1 else torch.cat(sides, 2)
        if module.dropout and module.training and layer + 1 < module.num_layers:
            values = nn.functional.dropout(values, module.dropout)
    shape = (module.num_layers, directions)
    return Walk(
        values,
        tuple(torch.stack(part) for part in zip(*notes.lasts, strict=True)),
        torch.stack(notes.hidden, 2).unflatten(2, shape) if notes.hidden else None,
        torch.stack(notes.cells, 2).unflatten(2, shape) if notes.cells else None,
    )


def _turn(values: Tensor, turned: Tensor | None) -> Tensor:
    return values.flip(1) if turned is None else _chosen(values, turned)


def _behind(values: Tensor, lengths: Tensor) -> Tensor:
    """Return 1 behind each row's end, else 0: (B, T, 1)."""
    steps = torch.arange(values.shape[1], device=values.device)
    return (steps >= lengths[:, None])[..., None].to(values.dtype)


def _weights(module: nn.RNNBase, layer: int, reverse: bool) -> list[Tensor]:
    suffix = f"_l{layer}" + ("_reverse" if reverse else "")
    names = [f"weight_ih{suffix}", f"weight_hh{suffix}"]
    if module.bias:
        names += [f"bias_ih{suffix}", f"bias_hh{suffix}"]
    if module.proj_size:
        names.append(f"weight_hr{suffix}")
    return [getattr(module, name) for name in names]


def _start(module: nn.RNNBase, values: Tensor, given: State | None, index: int) -> State:
    if given is not None:
        return tuple(part[index : index + 1].contiguous() for part in given)
    sizes = [module.proj_size or module.hidden_size, module.hidden_size]
    count = 2 if isinstance(module, nn.LSTM) else 1
    return tuple(values.new_zeros(1, values.shape[0], size) for size in sizes[:count])


def _holding(values: Tensor, weights: list[Tensor], held: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Let an LSTM keep its cell, bit for bit, at the steps where ``held`` (B, T, 1) is 1.

    One more input shuts the input gate and opens the forget gate (the first two of the four blocks of rows), so that
    rows of unequal length run in one call and each ends with its own last cell.
    """
    quarter = len(weights[0]) // 4
    column = weights[0].new_zeros(4, quarter)
    column[0], column[1] = -SHUT, SHUT
    return torch.cat([values, held], 2), [torch.cat([weights[0], column.view(-1, 1)], 1), *weights[1:]]


def _run(
    module: nn.RNNBase, values: Tensor, weights: list[Tensor], state: State, every: int | None, held: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Run one layer in one direction; return its outputs (B, T, H) and an LSTM's cell (B, H) after each chunk."""
    if not isinstance(module, nn.LSTM):
        return torch.gru(values, state[0], weights, module.bias, 1, 0.0, False, False, True)[0], []
    if held is not None:
        values, weights = _holding(values, weights, held)
    outputs, cells = [], []
    for chunk in values.split(every, 1) if every else [values]:
        out, *rest = torch.lstm(chunk, state, weights, module.bias, 1, 0.0, False, False, True)
        state = tuple(rest)
        outputs.append(out)
        cells.append(state[1][0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), cells


@dataclass(frozen=True)
class _Reading:
    """One LSTM layer's walk in one direction over padding too: what goes in and what came out."""

    module: nn.RNNBase
    values: Tensor
    weights: list[Tensor]
    first: State
    out: Tensor
    cells: Tensor
    every: int


def _forwards(one: _Reading, own: Tensor) -> Tensor:
    """Return the cells with the border that a row ends before replaced by the row's own last one."""
    ends = (own - 1).clamp(min=0) // one.every
    borders = torch.arange(one.cells.shape[1], device=own.device)
    return torch.where((borders == ends[:, None])[..., None], _cells_at(one, own[:, None]), one.cells)


def _backwards(one: _Reading, own: Tensor) -> Tensor:
    """Return the cells at borders counted from each row's own end: before it the padding was read, as the model did."""
    borders = torch.arange(1, one.cells.shape[1] + 1, device=own.device) * one.every
    return _cells_at(one, torch.minimum(borders, own[:, None]) + (one.out.shape[1] - own)[:, None])


def _cells_at(one: _Reading, places: Tensor) -> Tensor:
    """Return the cells after ``places`` (B, n) steps: from the border before, the few steps up to there."""
    rows, count = places.shape
    chunk = places // one.every
    rest = places - chunk * one.every

    before = _chosen(torch.cat([one.first[1][0][:, None], one.cells], 1), chunk)
    if not bool(rest.any()):
        return before
    hidden = _chosen(torch.cat([one.first[0][0][:, None], one.out], 1), chunk * one.every)
    steps = torch.arange(min(one.every - 1, one.values.shape[1]), device=places.device)
    index = ((chunk * one.every)[..., None] + steps).clamp(max=one.values.shape[1] - 1)
    few = _chosen(one.values, index.flatten(1)).view(rows * count, len(steps), -1)
    held = (steps >= rest.view(-1, 1))[..., None].to(few.dtype)
    few, weights = _holding(few, one.weights, held)
    state = tuple(part.reshape(1, rows * count, -1) for part in (hidden, before))
    return torch.lstm(few, state, weights, one.module.bias, 1, 0.0, False, False, True)[2].view_as(before)


class StateReading:
    """A stand-in for one recurrent module's forward that also notes its states in ``seen``.

    ``every`` is the spacing of an LSTM's cells, None where only ``h`` is wanted: that costs one call for each layer
    and direction. ``lengths`` says of T steps how long each row is (B), where the module itself is not told.
    """

    def __init__(self, module: nn.RNNBase, path: str, every: int | None, seen: Callable[[Seen], None]) -> None:
        if not isinstance(module, RECURRENT):
            raise TapError(
                f"The tap '{path}@state' reads the memory of an nn.LSTM or nn.GRU: got {type(module).__name__}. "
                f"For a module that returns its state itself, tap its output: '{path}[1]'."
            )
        self.module, self.path, self.every, self.seen = module, path, every, seen
        self.lengths: Callable[[int], Tensor | None] = lambda steps: None
        self.also: list[Callable[[Tensor, State | None, Tensor | None], Seen]] = []  # other readings of what enters

    def __call__(
        self,
        values: Tensor | PackedSequence,
        state: object = None,
        *,
        lengths: Tensor | None = None,
        last: bool = True,
    ) -> tuple[object, object]:
        """Answer as the module's forward does: (outputs, last state)."""
        packed = values if isinstance(values, PackedSequence) else None
        if packed is not None:
            padded, lengths = pad_packed_sequence(packed, batch_first=True)
        else:
            assert isinstance(values, Tensor)
            if values.dim() == 2:
                raise TapError(f"The tap '{self.path}@state' needs a batch: got an input without a batch axis.")
            padded = values if self.module.batch_first else values.transpose(0, 1)
        given: State | None = (state,) if isinstance(state, Tensor) else state  # type: ignore[assignment]
        run = None if lengths is None else lengths.to(padded.device)
        own = self._own(padded) if run is None else None
        seen = walk(self.module, padded, given, lengths=run, own=own, every=self.every, noting=True, ends=last)
        self._note(seen, padded, run if run is not None else own)
        for reading in self.also:
            self.seen(reading(padded, given, run if run is not None else own))
        if packed is not None:
            assert lengths is not None
            answer: object = _packed_as(packed, seen.outputs, lengths)
        else:
            answer = seen.outputs if self.module.batch_first else seen.outputs.transpose(0, 1)
        if not last:
            return answer, None
        return answer, (seen.last if isinstance(self.module, nn.LSTM) else seen.last[0])

    def _own(self, values: Tensor) -> Tensor | None:
        """Return the rows' lengths where they are known, and differ from T."""
        own = self.lengths(values.shape[1])
        if own is None or len(own) != len(values):
            return None
        own = own.to(values.device)
        return own if bool((own < values.shape[1]).any()) else None

    def _note(self, seen: Walk, values: Tensor, lengths: Tensor | None) -> None:
        longest = values.shape[1]
        if lengths is None:
            lengths = torch.full((len(values),), longest, device=values.device)
        assert seen.hidden is not None
        steps = torch.arange(longest, device=values.device)
        noted = {f"{self.path}@h": seen.hidden, f"{self.path}@h.mask": steps < lengths[:, None]}
        if seen.cells is not None:
            assert self.every is not None
            noted[f"{self.path}@c"] = seen.cells
            noted[f"{self.path}@c.mask"] = steps[: seen.cells.shape[1]] * self.every < lengths[:, None]
        self.seen(noted)


def _packed_as(packed: PackedSequence, outputs: Tensor, lengths: Tensor) -> PackedSequence:
    """Return ``outputs`` (B, T, H) packed in the order in which ``packed`` is."""
    if packed.sorted_indices is not None:
        outputs = outputs.index_select(0, packed.sorted_indices)
        lengths = lengths.index_select(0, packed.sorted_indices.cpu())
    data = pack_padded_sequence(outputs, lengths, batch_first=True).data
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)  # type: ignore[attr-defined]


def refuse_cells(module: nn.Module, name: str) -> None:
    """See that the module which ``name`` reads has cells.

    Raises:
        TapError: it is a GRU, whose memory is ``h`` alone.
    """
    if isinstance(module, nn.GRU):
        raise TapError(say("A GRU has no cells", f"'{name}'", [f"{name.split('@')[0]}@h"], "Its h is all its memory."))
