"""Reading a memory in stretches side by side, each started from a state that somebody else was in.

What goes wrong in one stretch does not add up over the next: the student is asked for its step from one border to the
next and not for its whole past, and a long sequence becomes a batch of short ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.contracts import Segments, Signals
from stillroom.errors import TapError, say
from stillroom.taps.recurrent import RECURRENT, State, walk


def refuse_segments(module: nn.Module, one: Segments) -> None:
    """See that ``module`` reads in one direction and has the part that is asked for.

    Raises:
        TapError: it is no nn.LSTM or nn.GRU, or it reads in two directions.
    """
    if not isinstance(module, RECURRENT) or module.bidirectional or module.proj_size:
        what = type(module).__name__
        if isinstance(module, RECURRENT):
            what += " in two directions" if module.bidirectional else " with a projection"
        raise TapError(
            say(f"The tap '{one}' reads stretches of a memory", what, "an nn.LSTM or nn.GRU in one direction")
        )
    if one.part == "c" and isinstance(module, nn.GRU):
        raise TapError(say("A GRU has no cells", f"'{one}'", [str(Segments(one.path, one.every, "h"))]))


def segments(
    module: nn.RNNBase,
    one: Segments,
    given: Signals,
    values: Tensor,
    first: State | None,
    lengths: Tensor | None,
) -> Signals:
    """Return where ``module`` gets to in each stretch, h and c, and the masks, under the names of their taps.

    ``values`` (B, T, F) enter it, ``first`` is its own start, ``lengths`` (B) say how much of T is real. The stretches
    after the first start from ``<tap>.start`` (B, stretches, layers, 1, hidden; of more layers the last) in ``given``,
    all from zeros where nothing is given, as when shapes are looked at.

    Raises:
        TapError: a start is of another shape, or one part of an LSTM's state is given and not the other.
    """
    every, (rows, steps) = one.every, values.shape[:2]
    parts = ("h", "c") if isinstance(module, nn.LSTM) else ("h",)
    names = [str(Segments(one.path, every, part)) for part in parts]  # type: ignore[arg-type]
    count = -(-steps // every)
    start = _starts(names, given, first, (rows, count, module.num_layers, module.hidden_size), values)
    real = torch.full((rows,), steps, device=values.device) if lengths is None else lengths
    left = (real[:, None] - torch.arange(count, device=values.device) * every).clamp(0, every)
    pieces = F.pad(values, (0, 0, 0, count * every - steps)).reshape(rows * count, every, -1)
    whole = lengths is None and steps % every == 0
    last = walk(module, pieces, start, lengths=None if whole else left.flatten()).last
    ends = [part.unflatten(1, (rows, count)).permute(1, 2, 0, 3)[:, :, :, None] for part in last]
    return dict(zip(names, ends, strict=True)) | {f"{name}.mask": left > 0 for name in names}


def _starts(
    names: list[str], given: Signals, first: State | None, shape: tuple[int, int, int, int], values: Tensor
) -> State:
    """Return each part of the state that every stretch starts from: (layers, B x stretches, hidden)."""
    told = [given.get(f"{name}.start") for name in names]
    missing = [name for name, part in zip(names, told, strict=True) if part is None]
    if 0 < len(missing) < len(names):
        other = next(name for name in names if name not in missing)
        raise TapError(
            f"A stretch of an LSTM starts from both parts of a state: got '{other}' alone. Allowed: both. "
            f"Add an objective, or a pair to this one, that reads '{missing[0]}'."
        )
    rows, count, layers, width = shape
    parts = []
    for place, (name, part) in enumerate(zip(names, told, strict=True)):
        if part is None:
            part = values.new_zeros(rows, count, layers, 1, width)
        part = part[:, :, -layers:]  # as the losses compare: the last layers of a deeper teacher
        if part.shape != (rows, count, layers, 1, width):
            wanted = f"{(rows, count, layers, 1, width)}: as many steps on both sides, and a teacher as deep"
            raise TapError(say(f"'{name}' cannot start from the states that are given", tuple(part.shape), wanted))
        start = part[:, :, :, 0].to(values.dtype).permute(2, 0, 1, 3)
        begin = torch.zeros_like(start[:, :, :1]) if first is None else first[place][:, :, None].to(values.dtype)
        parts.append(torch.cat([begin, start[:, :, 1:]], 2).flatten(1, 2).contiguous())
    return tuple(parts)
