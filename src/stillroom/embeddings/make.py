"""Read each word of a vocabulary once through a transformer, and keep what is needed of the answers.

After Model2Vec (Tulkens and van Dongen 2024, https://github.com/MinishLab/model2vec). PyTorch is imported when a table
is made, not when one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.embeddings.static import StaticEmbeddings
from stillroom.errors import ModelError, say
from stillroom.models.vocabulary import Unit, check_unit

if TYPE_CHECKING:
    from torch import Tensor, nn

SIF = 1e-4  # the a of Arora et al. 2017; Model2Vec takes the same


def static_embeddings(
    module: nn.Module,
    encode: nn.Module,
    vocabulary: Sequence[str],
    *,
    unit: Unit = "word",
    dimensions: int = 256,
    counts: Mapping[str, int] | None = None,
    sif: float | None = SIF,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> StaticEmbeddings:
    """Make a table of ``vocabulary``, the most frequent piece first, from what ``module`` answers to each piece alone.

    A piece's vector is the mean of the last hidden states of its tokens, special ones such as [CLS] left out (of a
    module without ``body``: its ``features``); then PCA to ``dimensions`` (fewer where the module is narrower or the
    vocabulary smaller); then each vector times a / (a + p), a = ``sif`` (None: no weights), where p is the piece's
    share of ``counts`` or, without them, of Zipf's law: 1 / (rank + 1), made to sum to 1.

    Words outside the vocabulary are left out of a text's mean, where Model2Vec falls back on the tokenizer's own
    pieces; and PCA is kept at full width where Model2Vec skips it for small vocabularies. ``progress`` is told
    (pieces done, pieces in all).

    Raises:
        ModelError: an empty vocabulary, a size that does not fit, counts that name no piece, or answers that are not
            finite.

    Source: https://github.com/MinishLab/model2vec (``distill``); weights: Arora, Liang and Ma 2017,
    https://openreview.net/forum?id=SyK00v5xx
    """
    pieces = list(vocabulary)
    for name, value in (("dimensions", dimensions), ("batch", batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(say(f"The option '{name}' does not fit", repr(value), "a whole number from 1 on"))
    if len(set(pieces)) < max(2, len(pieces)):
        given = f"{len(pieces)} pieces, {len(set(pieces))} of them different"
        raise ModelError(say("No embeddings can be made", given, "at least 2 pieces, all different"))
    check_unit(unit)
    # before the teacher's minutes, not after them
    weights = np.ones(len(pieces)) if sif is None else _weights(pieces, counts, sif)
    answers = _answers(module, encode, pieces, batch, progress)
    if not np.isfinite(answers).all():
        raise ModelError(say("The model's answers cannot be used", "NaN or infinity among them", "finite numbers"))
    vectors, explained = _reduced(answers, dimensions)
    notes = {
        "teacher": type(module).__name__,
        "explained": round(explained, 6),
        "sif": sif,
        "frequencies": None if sif is None else "Zipf" if counts is None else "counted",
    }
    return StaticEmbeddings(pieces, vectors * weights[:, None], unit=unit, notes=notes)


def _answers(
    module: nn.Module,
    encode: nn.Module,
    pieces: Sequence[str],
    batch: int,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Return what ``module`` shows of each piece alone, float64 (pieces, width); its mode stays as it was."""
    import torch

    from stillroom.taps import sizing
    from stillroom.utf8 import pack

    order = sorted(range(len(pieces)), key=lambda row: len(pieces[row]))  # texts of like length need no padding
    found: np.ndarray | None = None
    with sizing(module), torch.no_grad():
        look = _body_of if getattr(module, "body", None) is not None else _features_of
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            answer = look(module, encode, pack([pieces[row] for row in rows])).double().cpu().numpy()
            found = np.zeros((len(pieces), answer.shape[1])) if found is None else found
            found[rows] = answer
            if progress is not None:
                progress(min(start + batch, len(order)), len(order))
    assert found is not None  # there are pieces
    return found


def _body_of(module: nn.Module, encode: Any, inputs: Tensor) -> Tensor:
    """Mean of the last hidden states over the tokens that stand for text."""
    body: Any = module.body
    states: Tensor = body(**encode(inputs)).last_hidden_state
    mask, spans = encode.steps(inputs)
    text = mask & (spans[..., 1] > spans[..., 0])
    real = text.unsqueeze(-1).to(states.dtype)
    return (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def _features_of(module: nn.Module, encode: Any, inputs: Tensor) -> Tensor:
    import torch

    from stillroom.taps import read

    number = torch.arange(len(inputs))
    batch = {"id": torch.stack([number, torch.zeros_like(number)], dim=1), "inputs": inputs}
    return read(module, ["features"], encode)(batch)["features"]


def _reduced(answers: np.ndarray, dimensions: int) -> tuple[np.ndarray, float]:
    """Return the first principal components of ``answers`` and the share of the variance that they explain."""
    from sklearn.decomposition import PCA

    kept = min(dimensions, *answers.shape)
    made = PCA(n_components=kept, svd_solver="covariance_eigh")
    vectors = made.fit_transform(answers)
    explained = made.explained_variance_ratio_.sum()
    return vectors, float(explained) if np.isfinite(explained) else 0.0


def _weights(pieces: Sequence[str], counts: Mapping[str, int] | None, sif: float) -> np.ndarray:
    """Return a / (a + p) of each piece."""
    if isinstance(sif, bool) or not 0 < sif < 1:
        raise ModelError(
            say("The weight a does not fit", repr(sif), "a number between 0 and 1, or None for no weights")
        )
    if counts is None:
        shares = 1 / np.arange(2, len(pieces) + 2)
    else:
        shares = np.array([float(counts.get(piece, 0)) for piece in pieces])
        if not shares.sum() > 0 or (shares < 0).any():
            given = f"{len(counts)} counts, none above 0 for a piece of the vocabulary"
            raise ModelError(say("These counts do not fit the vocabulary", given, "how often each piece occurs"))
    weights: np.ndarray = sif / (sif + shares / shares.sum())
    return weights
