"""What is mined answers the same however it is asked; its control knows nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillroom.data.arrays import ArraySource
from stillroom.errors import DataError
from stillroom.mining import Budget, Subject


def source(rows: int = 300) -> ArraySource:
    values = np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float32)
    return ArraySource(values, labels=(values[:, 0] > 0).astype(np.int64), classes=["low", "high"])


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))


def test_a_module_and_a_function_give_the_same_answers():
    net, data = network(), source()

    def outside(inputs: Tensor) -> Tensor:
        return net.eval()(inputs)

    opened, closed = Subject(data, net), Subject(data, answer=outside)
    assert torch.equal(opened.logits("test"), closed.logits("test")) and not closed.logits("test").requires_grad
    assert opened.logits("test").shape == (len(data.splits["test"]), 2) and opened.kind == "table"
    with pytest.raises(DataError, match="cannot be looked into"):
        closed.show("0", data.splits["test"])
    assert opened.show("0", data.splits["test"][:5]).shape == (5, 8)


@pytest.mark.parametrize("given", [{}, {"module": network(), "answer": lambda inputs: inputs}])
def test_a_subject_is_a_module_or_a_function(given):
    with pytest.raises(DataError, match="a module or a function"):
        Subject(source(), **given)


def test_without_classes_there_is_nothing_to_tell_apart():
    with pytest.raises(DataError, match="without classes"):
        Subject(ArraySource(np.zeros((20, 3), np.float32)), network())


def test_no_more_rows_than_asked_for_each_class_in_proportion():
    data = source(2000)
    subject = Subject(data, network(), rows=100)
    few, whole = subject.examples("train"), data.splits["train"]
    assert len(few) == 100 and set(few.tolist()) <= set(whole.tolist())
    assert abs(float(subject.labels(few).double().mean() - data.labels[whole].double().mean())) < 0.02
    assert torch.equal(few, Subject(data, network(), rows=100).examples("train"))


def test_random_weights_keep_the_architecture_and_nothing_else():
    net = network()
    control = Subject(source(), net).randomised(1)
    assert control.name == "random weights" and control.opened is not net
    pairs = list(zip(net.named_parameters(), control.opened.named_parameters(), strict=True))
    assert all(mine[0] == theirs[0] and mine[1].shape == theirs[1].shape for mine, theirs in pairs)
    changed = {mine[0] for mine, theirs in pairs if not torch.equal(mine[1], theirs[1])}
    assert {"0.weight", "0.bias", "4.weight", "4.bias"} <= changed
    again = Subject(source(), net).randomised(1)
    assert all(torch.equal(a, b) for a, b in zip(control.opened.parameters(), again.opened.parameters(), strict=True))


def test_a_budget_says_how_many_rows_fit():
    budget = Budget(10.0)
    assert budget.rows(1000, timed=10, seconds=1.0) in (99, 100)
    assert budget.rows(1000, timed=10, seconds=1e-6) == 1000 and budget.rows(1000, 10, 0) == 1000
    spent = Budget(0.0)
    assert spent.left == 0 and spent.rows(1000, 10, 1.0) == 1
