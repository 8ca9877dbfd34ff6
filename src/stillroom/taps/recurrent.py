"""Reading the memory of an nn.LSTM or nn.GRU: its states at every step, layer and direction.

The module's own forward gives only the last state. For the time of one reading it is replaced by a walk
over layers and directions in chunks of ``every`` steps, each row reversed within its own length, so that
what leaves the module stays what it was and every state on the way is seen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from stillroom.errors import TapError

Seen = dict[str, Tensor]
RECURRENT = (nn.LSTM, nn.GRU)


def reverse_within(values: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each row of ``values`` (B, T, ...) within its own length; padding stays where it is."""
    steps = torch.arange(values.shape[1], device=values.device)
    places = lengths[:, None] - 1 - steps
    places = torch.where(places >= 0, places, steps)
    return values.gather(1, places[..., None].expand_as(values))


def _weights(module: nn.RNNBase, layer: int, reverse: bool) -> list[Tensor]:
    suffix = f"_l{layer}" + ("_reverse" if reverse else "")
    names = [f"weight_ih{suffix}", f"weight_hh{suffix}"]
    if module.bias:
        names += [f"bias_ih{suffix}", f"bias_hh{suffix}"]
    if getattr(module, "proj_size", 0):
        names.append(f"weight_hr{suffix}")
    return [getattr(module, name) for name in names]


def _walk(
    module: nn.RNNBase, values: Tensor, weights: list[Tensor], start: tuple[Tensor, ...], every: int
) -> tuple[Tensor, list[Tensor]]:
    """Run one layer in one direction; return its outputs (B, T, H) and the cell after each chunk."""
    outputs, cells, state = [], [], start
    for begin in range(0, values.shape[1], every):
        chunk = values[:, begin : begin + every]
        options = (module.bias, 1, 0.0, False, False, True)
        if isinstance(module, nn.LSTM):
            out, *rest = torch.lstm(chunk, state, weights, *options)
            state = tuple(rest)
            cells.append(state[1][0])
        else:
            out, hidden = torch.gru(chunk, state[0], weights, *options)
            state = (hidden,)
        outputs.append(out)
    return torch.cat(outputs, 1), cells


def _starts(module: nn.RNNBase, values: Tensor, given: tuple[Tensor, ...] | None, index: int) -> tuple[Tensor, ...]:
    if given is not None:
        return tuple(part[index : index + 1].contiguous() for part in given)
    sizes = [getattr(module, "proj_size", 0) or module.hidden_size, module.hidden_size]
    count = 2 if isinstance(module, nn.LSTM) else 1
    return tuple(values.new_zeros(1, len(values), size) for size in sizes[:count])


class StateReading:
    """A stand-in for one recurrent module's forward that also notes its states in ``seen``."""

    def __init__(self, module: nn.RNNBase, path: str, every: int, seen: Callable[[Seen], None]) -> None:
        if not isinstance(module, RECURRENT):
            raise TapError(
                f"The tap '{path}@state' reads the memory of an nn.LSTM or nn.GRU: got {type(module).__name__}. "
                f"For a module that returns its state itself, tap its output: '{path}[1]'."
            )
        self.module, self.path, self.every, self.seen = module, path, every, seen
        self.lengths: Tensor | None = None

    def __call__(self, values: Tensor | PackedSequence, state: object = None) -> tuple[object, object]:
        """Answer as the module's forward does: (outputs, last state)."""
        packed = values if isinstance(values, PackedSequence) else None
        if packed is not None:
            padded, lengths = pad_packed_sequence(packed, batch_first=True)
        else:
            assert isinstance(values, Tensor)
            if values.dim() == 2:
                raise TapError(f"The tap '{self.path}@state' needs a batch: got an input without a batch axis.")
            padded = values if self.module.batch_first else values.transpose(0, 1)
            lengths = torch.full((len(padded),), padded.shape[1])
        given = (state,) if isinstance(state, Tensor) else state
        reading = self.lengths if packed is None and self.lengths is not None else lengths
        outputs, last = self._layers(padded, lengths.to(padded.device), reading.to(padded.device), given)  # type: ignore[arg-type]
        if packed is not None:
            answer: object = pack_padded_sequence(outputs, lengths, batch_first=True, enforce_sorted=False)
            answer = PackedSequence(answer.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)  # type: ignore[attr-defined]
        else:
            answer = outputs if self.module.batch_first else outputs.transpose(0, 1)
        return answer, (last if isinstance(self.module, nn.LSTM) else last[0])

    def _layers(
        self, values: Tensor, lengths: Tensor, reading: Tensor, given: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        module, hidden, cells, lasts = self.module, [], [], []
        directions = 2 if module.bidirectional else 1
        for layer in range(module.num_layers):
            sides = []
            for side in range(directions):
                index = layer * directions + side
                start = _starts(module, values, given, index)
                facing = reverse_within(values, lengths) if side else values
                out, borders = _walk(module, facing, _weights(module, layer, bool(side)), start, self.every)
                hidden.append(out)
                cells.append(borders)
                lasts.append(self._last(facing, out, start, borders, lengths, index))
                out = out * (torch.arange(out.shape[1], device=out.device) < lengths[:, None])[..., None]
                sides.append(reverse_within(out, lengths) if side else out)
            values = torch.cat(sides, 2)
            if module.dropout and module.training and layer + 1 < module.num_layers:
                values = nn.functional.dropout(values, module.dropout)
        self._note(hidden, cells, reading)
        return values, tuple(torch.stack(part) for part in zip(*lasts, strict=True))

    def _last(
        self, values: Tensor, out: Tensor, start: tuple[Tensor, ...], borders: list[Tensor], lengths: Tensor, index: int
    ) -> tuple[Tensor, ...]:
        """The state of each row at its own last step: the border before it, and the few steps from there."""
        rows = torch.arange(len(out), device=out.device)
        ending = out[rows, lengths - 1]
        if not isinstance(self.module, nn.LSTM):
            return (ending,)
        chunk = torch.div(lengths, self.every, rounding_mode="floor")
        before = torch.stack([start[1][0], *borders], 1)[rows, chunk.clamp(max=len(borders))]
        cell = before
        weights = _weights(
            self.module, index // (2 if self.module.bidirectional else 1), bool(self.module.bidirectional and index % 2)
        )
        for step in range(1, self.every):
            alive = (chunk * self.every + step) <= lengths
            if not bool(alive.any()):
                break
            at = (chunk * self.every + step - 1).clamp(max=out.shape[1] - 1)
            previous = torch.where((at > 0)[:, None], out[rows, (at - 1).clamp(min=0)], start[0][0])
            gates = nn.functional.linear(values[rows, at], weights[0]) + nn.functional.linear(previous, weights[1])
            if self.module.bias:
                gates = gates + weights[2] + weights[3]
            enter, keep, new, _ = gates.chunk(4, 1)
            moved = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
            cell = torch.where(alive[:, None], moved, cell)
        return ending, cell

    def _note(self, hidden: list[Tensor], cells: list[list[Tensor]], lengths: Tensor) -> None:
        steps = torch.arange(1, hidden[0].shape[1] + 1, device=lengths.device)
        noted = {f"{self.path}@h": torch.stack(hidden, 2), f"{self.path}@h.mask": steps <= lengths[:, None]}
        if isinstance(self.module, nn.LSTM):
            noted[f"{self.path}@c"] = torch.stack([torch.stack(part, 1) for part in cells], 2)
            ends = torch.arange(1, len(cells[0]) + 1, device=lengths.device) * self.every
            noted[f"{self.path}@c.mask"] = ends.clamp(max=hidden[0].shape[1]) <= lengths[:, None]
        self.seen(noted)
