"""Which data taught it: leaving out is exact, planted wrong labels are found; where none is planted none is found."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.data.tables import breast_cancer
from stillroom.data.texts import TextSource
from stillroom.mining import Budget, Subject
from stillroom.mining.examples import examples
from stillroom.mining.examples.left_out import fitted, one_hot
from stillroom.mining.examples.mislabels import doubt
from stillroom.mining.examples.prototypes import chosen, nearest
from stillroom.models.table_encode import table_encode
from stillroom.models.text_encode import words_for
from stillroom.models.text_zoo import TextMLP

LONG = 600.0  # seconds


def generator(seed):
    return torch.Generator().manual_seed(seed)


def splits(rows):
    order = torch.randperm(rows, generator=generator(0))
    return {
        "train": order[: rows * 3 // 4],
        "validation": order[rows * 3 // 4 : rows * 7 // 8],
        "test": order[rows * 7 // 8 :],
    }


def digits(noise, seed):
    """Digits, a share of whose training labels is exchanged, and which ones these are."""
    found = load_digits()
    inputs, labels = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    parts = splits(len(labels))
    train = parts["train"]
    bad = train[torch.randperm(len(train), generator=generator(seed))[: round(noise * len(train))]]
    given = labels.clone()
    given[bad] = (labels[bad] + torch.randint(1, 10, (len(bad),), generator=generator(seed))) % 10
    return ArraySource(inputs, given, splits=parts), bad


def taught(data, steps, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer, rows = torch.optim.AdamW(net.parameters(), 2e-3), data.splits["train"]
    for _ in range(steps):
        part = rows[torch.randint(len(rows), (64,))]
        loss = nn.functional.cross_entropy(net(data.inputs[part]), data.labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


# --- leaving out ---------------------------------------------------------------------------------------


def test_what_is_said_of_a_row_left_out_is_what_a_fit_without_it_says():
    features, labels = torch.randn(60, 7), torch.randint(0, 3, (60,))
    others, aims = torch.randn(9, 7), one_hot(torch.randint(0, 3, (9,)), 3)
    layer = fitted(features, labels, 3)
    before = (aims - layer.answer(others)).square().sum()
    for row in (0, 17, 59):
        # the penalty of `without` belongs to the mean row: here it is kept as it was, so that only the row is gone
        kept = torch.arange(60) != row
        penalty = torch.full((8,), layer.strength * 60 / 8, dtype=torch.float64)
        penalty[-1] = 1e-9 * 60
        rows = layer.rows[kept]
        weights = torch.linalg.solve(rows.T @ rows + torch.diag(penalty), rows.T @ layer.aims[kept])
        torch.testing.assert_close(layer.rows[row] @ weights, layer.left_out[row])
        moved = layer.answer(others) - layer.asked(others) @ weights
        torch.testing.assert_close(moved, layer.pull(others)[:, row, None] * (layer.aims - layer.scores)[row])
        after = (aims - layer.asked(others) @ weights).square().sum()
        torch.testing.assert_close(after - before, layer.loss_without(others, aims)[row])


def test_without_rows_is_a_fit_without_them():
    features, labels = torch.randn(50, 5), torch.randint(0, 2, (50,))
    layer = fitted(features, labels, 2)
    gone = torch.tensor([3, 4, 40])
    fewer = layer.without(gone)
    assert len(fewer.rows) == 47 and not torch.allclose(fewer.answer(features), layer.answer(features))
    torch.testing.assert_close(
        layer.without(torch.tensor([], dtype=torch.long)).answer(features), layer.answer(features)
    )


def test_a_wrong_label_weighs_on_its_own_answer_only_through_its_leverage():
    features, labels = torch.randn(40, 3), torch.randint(0, 2, (40,))
    layer = fitted(features, labels, 2)
    assert bool(((layer.leverage > 0) & (layer.leverage < 1)).all())
    torch.testing.assert_close(layer.left_out.sum(1), torch.ones(40, dtype=torch.float64), atol=1e-6, rtol=0)


# --- wrong labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_planted_wrong_labels_are_found_and_their_share_is_told(seed):
    data, bad = digits(0.05, seed)
    panel = examples(Subject(data, taught(data, 300, seed)), Budget(LONG))
    top = [one["example"] for one in panel.numbers["labels"]["most_doubted"]][:50]
    every = json.loads(panel.files["suspects.json"])
    wrong = set(bad.tolist())
    assert len(wrong) == 67 and np.mean([one in wrong for one in top]) >= 0.9
    assert 0.03 <= panel.numbers["labels"]["share_wrong"] <= 0.06
    assert np.mean([one["example"] in wrong for one in every]) >= 0.8
    assert len(wrong & {one["example"] for one in every}) >= 0.7 * len(wrong)
    truth = load_digits().target
    right = [one["suggested"] == str(truth[one["example"]]) for one in every if one["example"] in wrong]
    assert np.mean(right) >= 0.9
    assert panel.numbers["labels"]["planted"] >= 0.6
    assert f"{len(every)} of 1,347 training labels are more likely wrong than right" in panel.findings[-1].sentence


@pytest.mark.parametrize("seed", range(3))
def test_wrong_labels_are_found_where_the_model_has_them_by_heart(seed):
    data, bad = digits(0.05, seed)
    subject = Subject(data, taught(data, 2500, seed))
    panel = examples(subject, Budget(LONG))
    told, every = panel.numbers["labels"], [one["example"] for one in panel.numbers["suspects"]]
    assert told["right_in"] > 0.98 and told["features"] == "untrained"
    assert told["searches"]["learnt"]["suspects"] < 0.3 * len(bad), "in its own features they look right"
    assert np.mean([one in set(bad.tolist()) for one in every]) >= 0.8 and len(every) >= 0.7 * len(bad)
    assert 0.03 <= told["share_wrong"] <= 0.06 and told["given_back"] > 0.8 * len(every)
    assert "by heart" in panel.findings[-1].sentence
    top = [one["example"] for one in told["most_doubted"]][: len(bad)]
    assert np.mean([one in set(bad.tolist()) for one in top]) >= 0.6


@pytest.mark.parametrize("seed", range(3))
def test_where_no_label_is_wrong_next_to_none_is_suspected(seed):
    data, _ = digits(0.0, seed)
    for steps in (300, 2500):
        panel = examples(Subject(data, taught(data, steps, seed)), Budget(LONG))
        assert len(panel.numbers["suspects"]) <= 2 and panel.numbers["labels"]["share_wrong"] < 0.005


def test_hard_is_not_wrong():
    """Two classes that overlap by half, their labels drawn as they should be: many mistakes, no suspect."""
    centre = torch.randint(0, 2, (4000,))
    features = torch.randn(4000, 5)
    features[:, 0] += centre * 1.5
    layer = fitted(features, centre, 2)
    found = doubt(layer.left_out, centre)
    assert float((layer.left_out.argmax(1) != centre).double().mean()) > 0.15
    assert len(found.suspects) <= 4 and found.share < 0.02


# --- what moved it -------------------------------------------------------------------------------------


class Given(nn.Module):
    """A last layer on features as they are."""

    def __init__(self, weights):
        super().__init__()
        self.head = nn.Linear(len(weights) - 1, weights.shape[1])
        with torch.no_grad():
            self.head.weight.copy_(weights[:-1].T)
            self.head.bias.copy_(weights[-1])

    def forward(self, inputs):
        return self.head(inputs)


def of_features(features, labels, *, parts=None):
    """A model that is the best last layer on these features."""
    parts = parts or splits(len(labels))
    rows, aims = torch.cat([features, torch.ones(len(features), 1)], 1).double(), one_hot(labels, int(labels.max()) + 1)
    weights = torch.linalg.lstsq(rows[parts["train"]], aims[parts["train"]], driver="gelsd").solution.float()
    return Subject(ArraySource(features, labels, splits=parts), Given(weights))


def test_the_few_examples_that_alone_teach_a_part_of_a_class_are_named():
    """A twentieth of class 1 lies along a direction of its own; in training only 10 rows show it, in test many."""
    train, others = 600, 300
    labels = torch.randint(0, 2, (train + 2 * others,))
    features = 0.3 * torch.randn(len(labels), 6)
    features[:, 0] += 2.0 * labels
    rare = torch.cat(
        [torch.arange(10), torch.arange(train, train + 90), torch.arange(train + others, train + others + 90)]
    )
    labels[rare] = 1
    features[rare] = 0.3 * torch.randn(len(rare), 6)
    features[rare, 3] += 4.0
    parts = dict(
        zip(("train", "validation", "test"), torch.arange(len(labels)).split([train, others, others]), strict=True)
    )
    told = examples(of_features(features, labels, parts=parts), Budget(LONG)).numbers["influence"]
    first = [one["example"] for one in told["most_helpful"][:10]]
    assert sum(one < 10 for one in first) >= 8
    assert told["without_most_helpful"] < told["without_random"]["low"] - 0.05


def test_among_rows_that_are_all_alike_none_is_said_to_carry_the_answer():
    labels = torch.randint(0, 2, (1600,))
    features = torch.randn(1600, 4)
    features[:, 0] += 3.0 * labels
    panel = examples(of_features(features, labels), Budget(LONG))
    told = panel.numbers["influence"]
    assert told["without_most_helpful"] >= told["without_random"]["low"] - 0.03
    assert told["agreement"] > 0.95


def test_a_mistake_is_traced_to_the_example_that_taught_it():
    """One training row of class 1 stands where class 0 lives; a test row beside it is answered 1."""
    torch.manual_seed(1)
    labels = torch.randint(0, 2, (400,))
    features = 0.1 * torch.randn(400, 12)
    features[torch.arange(400), labels] += 1.0
    parts = dict(zip(("train", "validation", "test"), torch.arange(400).split([300, 50, 50]), strict=True))
    labels[7], labels[399] = 1, 0
    features[7], features[399] = 0.0, 0.0
    features[7, 5], features[399, 5] = 6.0, 6.0
    told = examples(of_features(features, labels, parts=parts), Budget(LONG)).numbers["influence"]["mistakes"]
    assert [(one["example"], one["to_answered"]["example"]) for one in told if one["example"] == 399] == [(399, 7)]


# --- what is typical -----------------------------------------------------------------------------------


def test_prototypes_stand_for_each_cluster_and_criticisms_are_the_odd_ones():
    clusters = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [20.0, 20.0], [-15.0, 9.0]])
    features = clusters.repeat_interleave(torch.tensor([40, 40, 40, 10, 10]), 0) + 0.3 * torch.randn(140, 2)
    typical, odd = chosen(features, 3, 2)
    assert sorted(place // 40 for place in typical) == [0, 1, 2]
    assert sorted((place - 120) // 10 for place in odd) == [0, 1]


def test_the_first_prototypes_reach_more_than_any_other_pair():
    features = torch.randn(25, 3)
    from stillroom.mining.examples.prototypes import _kernel

    kernel = _kernel(features.double())

    def gain(rows):
        return float(2 * kernel[:, rows].mean(0).sum() / len(rows) - kernel[rows][:, rows].sum() / len(rows) ** 2)

    first = chosen(features, 2, 0)[0]
    assert gain(first[:1]) == pytest.approx(max(gain([one]) for one in range(25)))
    assert gain(first) == pytest.approx(max(gain([first[0], one]) for one in range(25) if one != first[0]))


def test_few_rows_and_rows_that_do_not_vary():
    assert chosen(torch.zeros(1, 3), 3, 2) == ([0], [])
    typical, odd = chosen(torch.zeros(4, 3), 3, 2)
    assert len({*typical, *odd}) == 4
    classes = torch.tensor([4, 9])
    assert nearest(torch.tensor([[0.1], [5.0]]), torch.tensor([[0.0], [4.0]]), classes).tolist() == [4, 9]


def test_prototypes_beat_random_rows_where_classes_have_a_middle():
    data, _ = digits(0.0, 0)
    curve = examples(Subject(data, taught(data, 300, 0)), Budget(LONG)).numbers["prototypes"]["curve"]
    assert [one["each"] for one in curve] == [1, 2, 3, 5, 10] and curve[0]["prototypes"] > curve[0]["random_best"]
    assert all(one["prototypes"] > one["random"] for one in curve)


def test_where_any_example_stands_for_its_class_prototypes_are_said_to_be_within_chance():
    labels = torch.arange(400) % 4
    panel = examples(of_features(torch.eye(4)[labels], labels), Budget(LONG))
    told = panel.numbers["prototypes"]["curve"][2]
    assert told["prototypes"] == told["random"] == 1.0 and "within chance" in panel.findings[0].sentence


# --- the panel -----------------------------------------------------------------------------------------


def test_the_same_twice_and_of_answers_alone():
    data, _ = digits(0.05, 0)
    net = taught(data, 200, 0)
    first, second = (examples(Subject(data, net), Budget(LONG)) for _ in range(2))
    assert first.numbers == second.numbers and first.files == second.files
    closed = examples(Subject(data, answer=net), Budget(LONG))
    assert len(closed.findings) == 3 and closed.numbers["labels"]["planted"] > 0.3


def test_without_labels_what_is_typical_is_told_and_why_not_the_rest():
    data, _ = digits(0.0, 0)
    bare = ArraySource(
        data.inputs, torch.full_like(data.labels, -1), splits=data.splits, classes=tuple(map(str, range(10)))
    )
    panel = examples(Subject(bare, taught(data, 100, 0)), Budget(LONG))
    assert [one.title for one in panel.findings] == ["What is typical to it"] and "labelled" in panel.notes[-1]


# --- texts and tables ----------------------------------------------------------------------------------

GOOD, BAD = ("splendid", "lovely", "superb"), ("dreadful", "dull", "poor")
PLAIN = ("the", "film", "was", "and", "plot", "actor")


def reviews(noise):
    """Short reviews that one word tells, a share of whose training labels is exchanged, and which ones these are."""
    chance = np.random.default_rng(0)
    truth = chance.integers(0, 2, 1200)
    told = [chance.choice(GOOD if one else BAD) for one in truth]
    texts = [" ".join([*chance.choice(PLAIN, 5), word, f"n{chance.integers(50)}"]) for word in told]
    parts = dict(zip(("train", "validation", "test"), torch.arange(1200).split([800, 200, 200]), strict=True))
    bad = chance.choice(800, round(800 * noise), replace=False)
    given = truth.copy()
    given[bad] = 1 - truth[bad]
    return TextSource(texts, given, classes=["bad", "good"], splits=parts), set(bad.tolist())


def trained(subject, steps):
    """The subject, its network taught on all training rows at once."""
    train = subject.examples("train")
    optimizer = torch.optim.Adam(subject.opened.parameters(), 1e-2)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(subject.forward(subject.inputs(train)), subject.labels(train))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return subject


@pytest.mark.parametrize("noise", [0.05, 0.0])
def test_texts_are_searched_and_shown_as_texts(noise):
    data, bad = reviews(noise)
    encode = words_for(data)
    net = TextMLP(shape=(encode.size,), classes=2, embedding=8, hidden=8, dropout=0.0)
    panel = examples(trained(Subject(data, net, encode), 300), Budget(LONG))
    found = {one["example"] for one in panel.numbers["suspects"]}
    assert len(found & bad) >= 0.8 * len(bad) and len(found - bad) <= 2 + 0.2 * len(bad)
    words = panel.findings[0].figure["items"][0]["text"].split()
    assert any(word in (*GOOD, *BAD) for word in words)
    if noise:
        assert panel.findings[-1].figure["items"][0]["caption"] in ("bad? rather good", "good? rather bad")


def test_rows_of_a_table_are_searched_and_told_by_their_columns():
    data = breast_cancer()
    bad = data.splits["train"][::20]
    data.labels[bad] = 1 - data.labels[bad]
    net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))
    panel = examples(trained(Subject(data, net, table_encode(data)), 400), Budget(LONG))
    top = [one["example"] for one in panel.numbers["labels"]["most_doubted"]][: len(bad)]
    assert np.mean([one in bad.tolist() for one in top]) >= 0.6
    assert "mean radius" in panel.findings[0].figure["items"][0]["text"]
