"""What is typical of a class and what is not: examples that stand for many, and those that they do not stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillroom.randomness import permutation

MOST = 1000  # rows of a class that are compared with each other


def chosen(features: Tensor, typical: int, unusual: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Return prototypes and criticisms of features (N, D): rows by number, in the order they were taken.

    MMD-critic of Kim, Khanna and Koyejo 2016 (https://papers.nips.cc/paper/6300): prototypes are taken one by one so
    that their distribution comes nearest to that of all rows, in the maximum mean discrepancy of a Gaussian kernel of
    median width; criticisms where rows outweigh prototypes most, each unlike those before (a log-determinant). The
    paper takes either sign of the difference; where prototypes outweigh rows nothing is unusual. At most ``MOST`` rows
    are compared.
    """
    rows = torch.from_numpy(permutation(len(features), seed, "prototypes").copy())[:MOST].sort().values
    kernel = _kernel(features[rows].double())
    first = _prototypes(kernel, min(typical, len(rows)))
    return rows[first].tolist(), rows[_criticisms(kernel, first, min(unusual, len(rows) - len(first)))].tolist()


def _kernel(values: Tensor) -> Tensor:
    apart = torch.cdist(values, values).square()
    width = float(apart[apart > 0].median()) if bool((apart > 0).any()) else 1.0
    return torch.exp(-apart / width)


def _prototypes(kernel: Tensor, count: int) -> list[int]:
    to_all = kernel.mean(1)
    taken: list[int] = []
    among, near = 0.0, torch.zeros(len(kernel), dtype=kernel.dtype)
    for size in range(1, count + 1):
        reached = float(to_all[taken].sum())
        gain = 2 * (reached + to_all) / size - (among + 2 * near + kernel.diag()) / size**2
        gain[taken] = -torch.inf
        best = int(gain.argmax())
        among += 2 * float(near[best]) + float(kernel[best, best])
        near = near + kernel[:, best]
        taken.append(best)
    return taken


def _criticisms(kernel: Tensor, prototypes: list[int], count: int) -> list[int]:
    witness = kernel.mean(1) - kernel[:, prototypes].mean(1)
    taken: list[int] = []
    free = torch.ones(len(kernel), dtype=torch.bool)
    free[prototypes] = False
    for _ in range(count):
        rest = kernel.diag().clone()  # of each row's likeness to itself, what the criticisms before do not have
        if taken:
            part = kernel[:, taken]
            inner = kernel[taken][:, taken] + 1e-6 * torch.eye(len(taken), dtype=kernel.dtype)
            rest = rest - (part * torch.linalg.solve(inner, part.T).T).sum(1)
        gain = witness + rest.clamp(min=1e-9).log()
        gain[~free] = -torch.inf
        best = int(gain.argmax())
        free[best] = False
        taken.append(best)
    return taken


def nearest(features: Tensor, prototypes: Tensor, classes: Tensor, turns: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return the class (M) of the nearest of the prototypes (P, D), of classes (P), to features (M, D), for each size.

    ``turns`` (P) says which of its class a prototype is, from 0; with a size of 3 only the first three of each count.
    """
    apart = torch.cdist(features.double(), prototypes.double())
    return [classes[turns < size][apart[:, turns < size].argmin(1)] for size in sizes]
