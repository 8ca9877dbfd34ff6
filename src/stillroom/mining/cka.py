"""How alike two layers represent the same examples, whatever their widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

LAYERS = 8


def cka(one: Tensor, other: Tensor) -> float:
    """Return the debiased linear centred kernel alignment of two representations of the same examples.

    Kornblith et al. 2019 (https://arxiv.org/abs/1905.00414), with the unbiased estimate of HSIC of Song et al. 2012
    (https://jmlr.org/papers/v13/song12a.html) in the place of the biased one, which is near 1 for any two layers wider
    than there are examples. 1 for a copy, rotated or scaled; near 0, and at times below, for what has nothing in
    common. It says nothing of function: look at answers beside it.

    Shapes: (N, D1) and (N, D2), N at least 4. NaN where a representation does not vary.
    """
    left, right = (_gram(values) for values in (one, other))
    size = math.sqrt(max(0.0, _hsic(left, left)) * max(0.0, _hsic(right, right)))
    return _hsic(left, right) / size if size > 0 else math.nan


def _gram(values: Tensor) -> Tensor:
    wide = values.double().flatten(1)
    wide = wide - wide.mean(0)
    scale = wide.norm() / math.sqrt(max(1, len(wide)))
    wide = wide / scale if float(scale) > 1e-12 else wide * 0
    return (wide @ wide.T).fill_diagonal_(0.0)


def _hsic(left: Tensor, right: Tensor) -> float:
    """The unbiased estimate from Gram matrices without their diagonals."""
    count = len(left)
    if count < 4:
        return math.nan
    sums = left.sum(0), right.sum(0)
    value = (left * right).sum() + sums[0].sum() * sums[1].sum() / ((count - 1) * (count - 2))
    return float((value - 2 * (sums[0] @ sums[1]) / (count - 2)) / (count * (count - 3)))


def layers_of(module: nn.Module, most: int = LAYERS) -> list[str]:
    """Return the paths of at most ``most`` layers with weights, evenly spread from the first to the last.

    What stands in an ``nn.ModuleList`` and has parts of its own, such as a layer of a transformer, is one layer: what
    leaves it means more than what one of its projections gives.
    """
    blocks = {
        f"{path}.{name}".lstrip(".")
        for path, part in module.named_modules()
        if isinstance(part, nn.ModuleList)
        for name, one in part.named_children()
        if any(one.children())
    }
    found = []
    for path, part in module.named_modules():
        inside = any(path.startswith(f"{block}.") for block in blocks)
        leaf = bool(path) and not any(part.children()) and not isinstance(part, nn.RNNBase)
        weighty = leaf and any(value.dim() >= 2 for value in part.parameters(recurse=False))
        if not inside and (weighty or path in blocks):
            found.append(path)
    return spread(found, most)


def spread(paths: Sequence[str], most: int) -> list[str]:
    """Return at most ``most`` of ``paths``, evenly spread from the first to the last."""
    if len(paths) <= most:
        return list(paths)
    return [paths[round(place * (len(paths) - 1) / max(1, most - 1))] for place in range(most)]


def as_rows(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return one vector for each example: maps averaged over places, sequences over their real steps."""
    if values.dim() == 4:
        return values.mean((2, 3))
    if values.dim() == 3:
        if mask is None:
            return values.mean(1)
        kept = mask[..., None].to(values.dtype)
        return (values * kept).sum(1) / kept.sum(1).clamp(min=1)
    return values.flatten(1)


def matrix(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[list[float]]:
    """Return the alignment of each layer of one model (rows) with each of another (columns)."""
    return [[cka(left, right) for right in other.values()] for left in one.values()]
