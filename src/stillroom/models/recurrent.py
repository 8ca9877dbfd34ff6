"""nn.LSTM and nn.GRU for rows of unequal length, and the zoo's networks for sequences of numbers.

Nothing is packed: packing leaves the fast kernels and cannot be exported as a graph. A padded row is read as if it
stood alone, since each direction begins at the row's own end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stillroom.taps.recurrent import at_ends, walk

State = tuple[Tensor, Tensor]


class PaddedLSTM(nn.LSTM):
    """An nn.LSTM, the batch first, that may be told how long each row is.

    Forget gates start one higher than PyTorch's (Jozefowicz, Zaremba and Sutskever 2015,
    https://proceedings.mlr.press/v37/jozefowicz15.html), without which long memories are hardly learned.
    """

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        super().__init__(input_size, hidden_size, batch_first=True, **options)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        super().reset_parameters()
        with torch.no_grad():
            for name, value in self.named_parameters():
                if name.startswith("bias_ih"):
                    value[self.hidden_size : 2 * self.hidden_size] += 1

    def forward(  # type: ignore[override]
        self, values: Tensor, state: State | None = None, *, lengths: Tensor | None = None, last: bool = True
    ) -> tuple[Tensor, State | None]:
        """Return outputs (B, T, directions x H) and the last (h, c), each (layers x directions, B, H).

        With ``lengths`` (B, at least 1) a row's answer does not depend on the padding behind it, and its last state is
        that of its own last step; outputs behind it mean nothing. ``last=False`` leaves the last state out.
        """
        if lengths is None:
            answer: tuple[Tensor, State | None] = super().forward(values, state)
            return answer
        if not (last or self.bidirectional):
            return super().forward(values, state)[0], None
        seen = walk(self, values, state, lengths=lengths, ends=last)
        return seen.outputs, (seen.last[0], seen.last[1]) if last else None


class PaddedGRU(nn.GRU):
    """An nn.GRU, the batch first, that may be told how long each row is."""

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        super().__init__(input_size, hidden_size, batch_first=True, **options)

    def forward(  # type: ignore[override]
        self, values: Tensor, state: Tensor | None = None, *, lengths: Tensor | None = None, last: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs (B, T, directions x H) and the last h (layers x directions, B, H); see :class:`PaddedLSTM`."""
        if lengths is None:
            answer: tuple[Tensor, Tensor | None] = super().forward(values, state)
            return answer
        if not (last or self.bidirectional):
            return super().forward(values, state)[0], None
        seen = walk(self, values, None if state is None else (state,), lengths=lengths, ends=last)
        return seen.outputs, seen.last[0] if last else None


def at_least_one(mask: Tensor) -> Tensor:
    """Let a row without a real step count its first: ``mask`` (bool, B x T)."""
    return torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], 1)


def pooled(outputs: Tensor, mask: Tensor | None, pool: str, *, directions: int = 1) -> Tensor:
    """Return one vector a row from ``outputs`` (B, T, directions x H): the ``max`` or ``mean`` of its steps, or

    ``last``: the forward direction at the row's last step, the reverse one at its first, where it ends. Each row of
    ``mask`` (bool, B x T) has a real step; None: all are real.
    """
    if pool == "last":
        forward, backward = outputs.tensor_split([outputs.shape[2] // directions], 2)
        ending = forward[:, -1] if mask is None else at_ends(forward, mask.sum(1))
        return ending if directions == 1 else torch.cat([ending, backward[:, 0]], 1)
    if pool == "max":
        lowest = torch.finfo(outputs.dtype).min
        return (outputs if mask is None else outputs.masked_fill(~mask[..., None], lowest)).amax(1)
    if mask is None:
        return outputs.mean(1)
    return (outputs * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class _Sequences(nn.Module):
    """Steps of numbers through ``memory``, one vector a row, dropout, logits."""

    kind: ClassVar[type[PaddedLSTM | PaddedGRU]]

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        hidden: int = 64,
        layers: int = 1,
        bidirectional: bool = False,
        pool: Literal["last", "mean"] = "last",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.pool, self.directions = pool, 1 + bidirectional
        self.memory = self.kind(shape[-1], hidden, num_layers=layers, bidirectional=bidirectional, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden * self.directions, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, classes) of ``inputs`` (B, T, F), or of images (B, 1, H, W) read row by row."""
        steps = inputs[:, 0] if inputs.dim() == 4 else inputs
        outputs, _ = self.memory(steps)
        features = pooled(outputs, None, self.pool, directions=self.directions)
        logits: Tensor = self.head(self.dropout(features))
        return logits


class SequenceLSTM(_Sequences):
    """An LSTM over the steps; 64 units over rows of 28 pixels have 24,714 parameters for 10 classes."""

    kind = PaddedLSTM


class SequenceGRU(_Sequences):
    """A GRU over the steps."""

    kind = PaddedGRU
