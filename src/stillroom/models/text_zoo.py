"""Small networks for texts: ``bilstm``, ``bigru``, ``textcnn`` and ``textmlp``.

All take ``ids`` (int64, B x T; 0 is padding, real steps come first) and ``mask`` (bool, B x T), answer with logits
(B, classes), and answer the same for a text alone and beside longer ones. ``shape`` is (vocabulary size,), padding and
unknown counted. A row without a real step counts as one of padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.errors import ModelError, say
from stillroom.models.recurrent import PaddedGRU, PaddedLSTM, at_least_one, pooled

START = 0.1
"""Standard deviation of embeddings before training."""


class WordVectors(nn.Embedding):
    """A vector for each item of a vocabulary; that of padding (0) stays zero."""

    def __init__(self, vocabulary: int, width: int, *, frozen: bool = False) -> None:
        super().__init__(vocabulary, width, padding_idx=0)
        self.weight.requires_grad_(not frozen)

    def reset_parameters(self) -> None:
        """Draw all vectors anew but that of padding."""
        nn.init.normal_(self.weight, std=START)
        self._fill_padding_idx_with_zero()

    def start(self, vectors: Tensor, known: Tensor | None = None) -> None:
        """Begin with ``vectors`` (vocabulary, width) where ``known`` (bool, vocabulary; None: everywhere) says so.

        Raises:
            ModelError: the shapes do not fit this vocabulary and width.
        """
        rows = torch.ones(len(self.weight), dtype=torch.bool) if known is None else known.clone()
        if vectors.shape != self.weight.shape or rows.shape != self.weight.shape[:1]:
            given = f"vectors {tuple(vectors.shape)} and rows {tuple(rows.shape)}"
            allowed = f"{tuple(self.weight.shape)} and {tuple(self.weight.shape[:1])}"
            do = "Make them of the same vocabulary, at the width of the option 'embedding'."
            raise ModelError(say("These word vectors do not fit the model", given, allowed, do))
        rows[0] = False
        with torch.no_grad():
            self.weight[rows] = vectors.to(self.weight)[rows]


class _Recurrent(nn.Module):
    """Embeddings, dropout, ``memory`` in both directions, one vector a text, dropout, logits."""

    kind: ClassVar[type[PaddedLSTM | PaddedGRU]]

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        embedding: int = 100,
        hidden: int = 128,
        layers: int = 1,
        dropout: float = 0.2,
        pool: Literal["max", "mean", "last"] = "max",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.pool = pool
        self.embed = WordVectors(shape[0], embedding, frozen=frozen)
        self.memory = self.kind(embedding, hidden, num_layers=layers, bidirectional=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        mask = at_least_one(mask)
        outputs, _ = self.memory(self.dropout(self.embed(ids)), lengths=mask.sum(1), last=False)
        logits: Tensor = self.head(self.dropout(pooled(outputs, mask, self.pool, directions=2)))
        return logits

    def start_embeddings(self, vectors: Tensor, known: Tensor | None = None) -> None:
        """Begin with these word vectors; see :meth:`WordVectors.start`."""
        self.embed.start(vectors, known)


class BiLSTM(_Recurrent):
    """An LSTM in both directions: 236,034 parameters for 2 classes beside its word vectors."""

    kind = PaddedLSTM


class BiGRU(_Recurrent):
    """A GRU in both directions."""

    kind = PaddedGRU


class TextCNN(nn.Module):
    """Windows of several widths over the word vectors, the highest answer of each filter, dropout, logits.

    Kim 2014 (https://aclanthology.org/D14-1181). A window stands at each word, centred; there it differs from the
    paper's code, which pads every text of a corpus to one length and lets windows stand in the padding.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        embedding: int = 100,
        filters: int = 100,
        kernels: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.kernels = tuple(kernels)
        self.embed = WordVectors(shape[0], embedding, frozen=frozen)
        self.windows = nn.ModuleList(nn.Conv1d(embedding, filters, width) for width in self.kernels)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(filters * len(self.kernels), classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        mask = at_least_one(mask)[:, None]
        vectors = self.embed(ids).transpose(1, 2) * mask
        highest = []
        for width, window in zip(self.kernels, self.windows, strict=True):
            seen = window(functional.pad(vectors, ((width - 1) // 2, width // 2)))
            highest.append((functional.relu(seen) * mask).amax(2))
        logits: Tensor = self.head(self.dropout(torch.cat(highest, 1)))
        return logits

    def start_embeddings(self, vectors: Tensor, known: Tensor | None = None) -> None:
        """Begin with these word vectors; see :meth:`WordVectors.start`."""
        self.embed.start(vectors, known)


class TextMLP(nn.Module):
    """The mean of the word vectors, one hidden layer with ReLU, dropout, logits.

    Iyyer et al. 2015 (https://aclanthology.org/P15-1162) without their word dropout.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        embedding: int = 100,
        hidden: int = 128,
        dropout: float = 0.2,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.embed = WordVectors(shape[0], embedding, frozen=frozen)
        self.hidden = nn.Linear(embedding, hidden)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        mean = pooled(self.embed(ids), at_least_one(mask), "mean")
        logits: Tensor = self.head(self.dropout(self.relu(self.hidden(mean))))
        return logits

    def start_embeddings(self, vectors: Tensor, known: Tensor | None = None) -> None:
        """Begin with these word vectors; see :meth:`WordVectors.start`."""
        self.embed.start(vectors, known)
