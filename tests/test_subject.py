"""What is mined answers the same however it is asked; its control knows nothing."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillroom.data.arrays import ArraySource
from stillroom.data.texts import TextSource
from stillroom.errors import DataError, TapError
from stillroom.mining import Budget, Subject
from stillroom.models.text_encode import words_for
from stillroom.models.text_zoo import TextMLP


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


class Counted(nn.Module):
    """A network that counts the rows it was asked about and takes its time for each."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.body, self.head, self.seconds, self.rows = nn.Linear(6, 4), nn.Linear(4, 2), seconds, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.rows += len(inputs)
        time.sleep(self.seconds * len(inputs))
        return self.head(self.body(inputs).relu())


def test_answers_and_features_of_a_split_come_from_one_pass():
    net, data = Counted(), source(2000)
    subject = Subject(data, net)
    before = net.rows
    logits, features = subject.logits("test"), subject.features("test")
    assert net.rows - before <= len(data.splits["test"]) + 12, "the few are for finding where features are"
    inputs = data.inputs[data.splits["test"]]
    with torch.no_grad():
        torch.testing.assert_close(features, net.body(inputs).relu())
        torch.testing.assert_close(logits, net(inputs))
    other = Subject(data, network())
    other.keep({"test": {"logits": logits, "features": features}})
    assert other.logits("test") is logits and other.features("test") is features


def test_a_model_without_features_says_so():
    class Bare(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs[:, :2].tanh()

    subject = Subject(source(), Bare())
    with pytest.raises(TapError, match="shows no features"):
        subject.features("test")
    assert subject.logits("test").shape[1] == 2


def test_a_slow_model_is_asked_about_fewer_examples_and_a_quick_one_about_all():
    data = source(6000)
    slow = Subject(data, Counted(0.002))
    note = slow.pace(1.0)
    assert note is not None and 200 <= slow.most <= 550 and f"{slow.most:,} examples" in note
    assert len(slow.examples("train")) == slow.most
    quick = Subject(data, Counted())
    assert quick.pace(20.0) is None and len(quick.examples("train")) == len(data.splits["train"])


def test_texts_are_answered_alike_in_any_order_and_padding():
    kinds = ["a bad film", "good " * 30, "a plain one that goes on for a while"]
    texts = [f"{kinds[number % 3]} {number}" for number in range(120)]
    data = TextSource(texts, np.arange(120) % 2, classes=["bad", "good"])
    encode = words_for(data)
    subject = Subject(data, TextMLP(shape=(encode.size,), classes=2), encode)
    examples = torch.arange(120)
    alone = torch.cat([subject.answer(subject.inputs(one[None])) for one in examples])
    torch.testing.assert_close(subject.answer(subject.inputs(examples)), alone)
    split = data.splits["train"]
    torch.testing.assert_close(subject.logits("train"), alone[split])
    torch.testing.assert_close(subject.rows(["hidden"], split)["hidden"][3], subject.show("hidden", split[3:4])[0])
