"""A decision tree on soft answers: grown once, best question first, so that each smaller tree is a part of it."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAF = -1


def one_hot(labels: NDArray[np.int64], classes: int) -> Floats:
    """Return labels (N) as answers (N, classes) that are sure."""
    found = np.zeros((len(labels), classes))
    found[np.arange(len(labels)), labels] = 1
    return found


@dataclass(frozen=True)
class Tree:
    """Questions "is this feature below this threshold?": yes goes left, no goes right.

    ``feature``, ``left``, ``right`` (nodes, int64; -1 at a leaf), ``threshold`` (nodes), ``value`` (nodes, classes):
    the mean answer of what came to a node. Node 0 is the first question. ``order`` names the questions, best first.
    """

    feature: NDArray[np.int64]
    threshold: Floats
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: Floats
    order: tuple[int, ...]

    def leaf(self, rows: Floats) -> NDArray[np.int64]:
        """Return the leaf (B) at which each row (B, features) ends."""
        at = np.zeros(len(rows), np.int64)
        going = np.arange(len(rows))
        while len(going := going[self.feature[at[going]] != LEAF]):
            node = at[going]
            below = rows[going, self.feature[node]] < self.threshold[node]
            at[going] = np.where(below, self.left[node], self.right[node])
        return at

    def probabilities(self, rows: Floats) -> Floats:
        """Return the answer (B, classes) to each row (B, features)."""
        told: Floats = self.value[self.leaf(rows)]
        return told

    def answer(self, rows: Floats) -> NDArray[np.int64]:
        """Return the class (B) that is answered to each row (B, features)."""
        top: NDArray[np.int64] = self.value.argmax(1)[self.leaf(rows)]
        return top

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self.order) + 1

    @property
    def leaves(self) -> list[int]:
        """The leaves that can be reached, from left to right."""
        found, waiting = [], [0]
        while waiting:
            node = waiting.pop()
            if self.feature[node] == LEAF:
                found.append(node)
            else:
                waiting += [int(self.right[node]), int(self.left[node])]
        return found

    def cut(self, leaves: int) -> Tree:
        """Return the tree as it was when it had this many leaves, two of one answer under one question made one."""
        kept = set(self.order[: max(0, leaves - 1)])
        top = self.value.argmax(1)
        one: dict[int, int | None] = {}  # the answer that all below a node share
        for node in reversed(self.order):  # a question comes before those below it
            if node in kept:
                sides = [int(side[node]) for side in (self.left, self.right)]
                first, second = (one[side] if side in kept else int(top[side]) for side in sides)
                one[node] = first if first == second else None
        asked = {node for node in kept if one[node] is None}
        feature = np.array([self.feature[node] if node in asked else LEAF for node in range(len(self.feature))])
        # What shares one answer below must answer so itself; its mean does, unless a tie was broken the other way.
        return replace(self, feature=feature, order=tuple(node for node in self.order if node in asked))


def grow(rows: Floats, answers: Floats, *, leaves: int, weights: Floats | None = None, seed: int = 0) -> Tree:
    """Grow a tree of at most ``leaves`` leaves on ``answers`` (B, classes; probabilities) to ``rows`` (B, features).

    Each question is the one that brings the squared error of the answers down most, over the whole tree. With answers
    of 0 and 1 that is the Gini index: the same tree on hard labels. Thresholds are then the shortest numbers that part
    the rows alike, so that what is printed is what is computed.

    Source: the questions are scikit-learn's ``DecisionTreeRegressor``; growing on a model's answers to rows and
    queries, best question first, is TREPAN (Craven and Shavlik 1996,
    https://papers.nips.cc/paper/1152-extracting-tree-structured-representations-of-trained-networks), which asks
    m-of-n questions and draws queries at each node; here there is one question a node, and queries are drawn once.
    """
    from sklearn.tree import DecisionTreeRegressor

    grown = DecisionTreeRegressor(max_leaf_nodes=max(2, leaves), random_state=seed)
    inside = grown.fit(rows, answers, sample_weight=weights).tree_
    feature = np.where(inside.children_left == -1, LEAF, inside.feature).astype(np.int64)
    left, right = inside.children_left.astype(np.int64), inside.children_right.astype(np.int64)
    tree = Tree(
        feature=feature,
        threshold=np.array(inside.threshold, np.float64),
        left=left,
        right=right,
        value=np.array(inside.value, np.float64).reshape(len(feature), -1),
        order=_best_first(feature, left, right, inside.weighted_n_node_samples * inside.impurity),
    )
    return _rounded(tree, rows, np.asarray(inside.decision_path(rows.astype(np.float32)).todense(), bool))


def _best_first(feature: NDArray, left: NDArray, right: NDArray, error: NDArray) -> tuple[int, ...]:
    """Return the questions in the order in which they were asked: always the one that gains most."""
    waiting, order = [(0.0, 0)], []
    while waiting:
        node = heapq.heappop(waiting)[1]
        if feature[node] == LEAF:
            continue
        order.append(node)
        for side in (int(left[node]), int(right[node])):
            gain = 0.0 if feature[side] == LEAF else error[side] - error[left[side]] - error[right[side]]
            heapq.heappush(waiting, (-float(gain), side))
    return tuple(order)


def _rounded(tree: Tree, rows: Floats, path: NDArray[np.bool_]) -> Tree:
    """Return the tree with the shortest thresholds that part ``rows`` as before; ``path`` (B, nodes) says where."""
    threshold = tree.threshold.copy()
    for node in tree.order:
        column = rows[:, tree.feature[node]]
        threshold[node] = shortest(column[path[:, tree.left[node]]].max(), column[path[:, tree.right[node]]].min())
    return replace(tree, threshold=threshold)


def shortest(low: float, high: float) -> float:
    """Return a number above ``low`` and not above ``high`` with as few digits as there can be, near the middle."""
    low, high = float(low), float(high)
    middle = low / 2 + high / 2
    size = max(abs(low), abs(high), 1e-300)
    first = -math.ceil(math.log10(size)) - 1
    for digits in range(first, first + 20):
        if low < (near := round(middle, digits)) <= high:
            return near
    return high
