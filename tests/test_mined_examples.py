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
from stillroom.mining.examples.mislabels import Doubt, better, doubt
from stillroom.mining.examples.pace import DRAWS, FEWEST, LEAST
from stillroom.mining.examples.prototypes import chosen, nearest
from stillroom.models.table_encode import table_encode
from stillroom.models.text_encode import words_for
from stillroom.models.text_zoo import TextMLP
from stillroom.utf8 import unpack_bytes

LONG = 600.0  # seconds
DOUBTED = 0.05  # of the training rows, the most doubted, which are to be the wrong ones


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


@pytest.mark.parametrize("width", [5, 80])
def test_without_rows_is_a_fit_without_them(width):
    """By the formula of a penalised fit; of more features than rows, by that of Woodbury, in which these are many."""
    features, labels = torch.randn(50, width).double(), torch.randint(0, 2, (50,))
    layer = fitted(features, labels, 2)
    none, gone = torch.tensor([], dtype=torch.long), torch.tensor([3, 4, 40])
    torch.testing.assert_close(layer.without(none), layer.weights)
    left = torch.tensor([row for row in range(50) if row not in gone])
    middle, scale = features.mean(0), features.std(0) * width**0.5
    rows = torch.cat([(features - middle) / scale, torch.ones(50, 1)], 1)
    penalty = torch.full((width + 1,), layer.strength * 47 / (width + 1)).double()
    penalty[-1] = 1e-9 * 47
    kernel = (rows[left] / penalty) @ rows[left].T + torch.eye(47)
    weights = (rows[left] / penalty).T @ torch.linalg.solve(kernel, one_hot(labels, 2)[left])
    torch.testing.assert_close(layer.asked(features) @ layer.without(gone), rows @ weights, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(layer.answer(features), rows @ weights, atol=1e-3)


def test_the_effect_of_a_row_is_the_same_where_there_are_more_features_than_rows():
    features, labels = torch.randn(40, 70), torch.randint(0, 3, (40,))
    others, aims = torch.randn(9, 70), one_hot(torch.randint(0, 3, (9,)), 3)
    layer = fitted(features, labels, 3)
    before = (aims - layer.answer(others)).square().sum()
    row = 17
    kept = torch.arange(40) != row
    penalised = layer.rows[kept].T @ layer.rows[kept] + layer.standing.penalty(layer.strength, 40)
    weights = torch.linalg.solve(penalised, layer.rows[kept].T @ layer.aims[kept])
    after = (aims - layer.asked(others) @ weights).square().sum()
    torch.testing.assert_close(after - before, layer.loss_without(others, aims)[row])
    torch.testing.assert_close(layer.rows[row] @ weights, layer.left_out[row])


def test_a_wrong_label_weighs_on_its_own_answer_only_through_its_leverage():
    features, labels = torch.randn(40, 3), torch.randint(0, 2, (40,))
    layer = fitted(features, labels, 2)
    assert bool(((layer.leverage > 0) & (layer.leverage < 1)).all())
    torch.testing.assert_close(layer.left_out.sum(1), torch.ones(40, dtype=torch.float64), atol=1e-6, rtol=0)


# --- wrong labels --------------------------------------------------------------------------------------


def precision(panel, bad):
    """How many of the most doubted twentieth of all training rows are wrong; as many are wrong in all."""
    every = json.loads(panel.files["doubt.json"])
    count = round(DOUBTED * len(every))
    assert panel.numbers["labels"]["most_doubted"][:count] == every[:count]
    return np.mean([one["example"] in set(bad.tolist()) for one in every[:count]])


@pytest.mark.parametrize("seed", range(3))
def test_planted_wrong_labels_are_found_and_their_share_is_told(seed):
    data, bad = digits(0.05, seed)
    panel = examples(Subject(data, taught(data, 300, seed)), Budget(LONG))
    every = json.loads(panel.files["suspects.json"])
    wrong = set(bad.tolist())
    assert len(wrong) == round(DOUBTED * len(data.splits["train"])) == 67 and precision(panel, bad) >= 0.6
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
    assert "memorised" in panel.findings[-1].sentence
    assert precision(panel, bad) >= 0.6


def test_the_order_of_doubt_is_complete_and_suspects_come_first():
    data, _ = digits(0.05, 0)
    panel = examples(Subject(data, taught(data, 100, 0)), Budget(LONG))
    every, suspects = (json.loads(panel.files[name]) for name in ("doubt.json", "suspects.json"))
    assert sorted(one["example"] for one in every) == sorted(data.splits["train"].tolist())
    scores = [one["score"] for one in every]
    assert scores == sorted(scores, reverse=True) and every[: len(suspects)] == suspects
    assert all(one["label"] == str(int(data.labels[one["example"]])) for one in every)


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

CARRY, HARM = "these matter more than others", "more than by chance: look at them"


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
    panel = examples(of_features(features, labels, parts=parts), Budget(LONG))
    told = panel.numbers["influence"]
    first = [one["example"] for one in told["most_helpful"][:10]]
    assert sum(one < 10 for one in first) >= 8
    assert told["without_most_helpful"] < told["chance"]["lowest"] < told["without_random"]["low"] - 0.03
    assert CARRY in panel.findings[1].sentence and HARM not in panel.findings[1].sentence


def test_the_few_examples_that_teach_a_part_of_a_class_wrongly_are_named():
    """A part of class 1 lies along a direction of its own; the 10 rows that show it in training are told to be 0."""
    torch.manual_seed(0)
    train, others = 600, 300
    labels = torch.randint(0, 2, (train + 2 * others,))
    features = 0.3 * torch.randn(len(labels), 6)
    features[:, 0] += 2.0 * labels
    rare = torch.cat(
        [torch.arange(start, start + many) for start, many in ((0, 10), (train, 90), (train + others, 90))]
    )
    features[rare] = 0.3 * torch.randn(len(rare), 6)
    features[rare, 0] += 2.0
    features[rare, 3] += 4.0
    labels[rare] = 1
    labels[:10] = 0
    parts = dict(
        zip(("train", "validation", "test"), torch.arange(len(labels)).split([train, others, others]), strict=True)
    )
    panel = examples(of_features(features, labels, parts=parts), Budget(LONG))
    told = panel.numbers["influence"]
    assert sum(one["example"] < 10 for one in told["most_harmful"][:10]) >= 8
    assert told["without_most_harmful"] > told["chance"]["highest"] and HARM in panel.findings[1].sentence


@pytest.mark.parametrize(("apart", "width"), [(3.0, 4), (1.5, 20)])
def test_among_rows_that_are_all_alike_none_is_said_to_carry_the_answer(apart, width):
    said = []
    for seed in range(10, 20):  # among these the least and the most of 20 draws would claim three and four times
        torch.manual_seed(seed)
        labels = torch.randint(0, 2, (1600,))
        features = torch.randn(1600, width)
        features[:, 0] += apart * labels
        panel = examples(of_features(features, labels), Budget(LONG))
        assert panel.numbers["influence"]["agreement"] > 0.95
        said.append(panel.findings[1].sentence)
    assert sum(CARRY in one for one in said) <= 1 and sum(HARM in one for one in said) <= 1
    assert all("no few examples decide" in one for one in said if CARRY not in one)


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
    classes, turns, asked = torch.tensor([4, 4, 9]), torch.tensor([0, 1, 0]), torch.tensor([[0.1], [2.5], [5.0]])
    found = nearest(asked, torch.tensor([[0.0], [2.0], [4.0]]), classes, turns, (1, 2))
    assert [one.tolist() for one in found] == [[4, 9, 9], [4, 4, 9]]


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
    assert [one.title for one in panel.findings] == ["What it finds typical"] and "labelled" in panel.notes[-1]


# --- in time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_with_hardly_any_time_few_rows_are_looked_at_and_it_is_said(seconds):
    labels = torch.arange(15000) % 10
    features = torch.randn(15000, 700)
    features[torch.arange(15000), labels] += 3.0
    parts = dict(zip(("train", "validation", "test"), torch.arange(15000).split(5000), strict=True))
    subject = Subject(ArraySource(features, labels, splits=parts), nn.Linear(700, 10))
    panel = examples(subject, Budget(seconds))
    rows = panel.numbers["examples"]
    assert LEAST <= rows < 5000 and panel.numbers["labels"]["examples"] == rows
    assert f"{rows:,} rows of a split at most were looked at, not 5,000" in panel.notes[0]
    assert len(panel.findings) == 3 and len(json.loads(panel.files["doubt.json"])) == rows
    drawn = panel.numbers["influence"]["without_random"]["draws"], panel.numbers["prototypes"]["draws"]
    if seconds == 0:
        assert rows == LEAST and drawn == (FEWEST, FEWEST)
        assert f"{FEWEST} random draws were compared with, not {DRAWS}" in panel.notes[-1]
    assert f"{drawn[0]} draws" in panel.findings[1].control and f"{drawn[1]} draws" in panel.findings[0].control


def test_with_time_enough_every_row_is_looked_at_and_nothing_is_noted():
    data, _ = digits(0.0, 0)
    panel = examples(Subject(data, taught(data, 100, 0)), Budget(LONG))
    assert panel.numbers["examples"] == len(data.splits["train"]) and not panel.notes
    assert panel.numbers["influence"]["without_random"]["draws"] == panel.numbers["prototypes"]["draws"] == DRAWS


def test_of_few_rows_none_is_left_out_for_want_of_time_and_classes_stay_in_proportion():
    data, _ = digits(0.0, 0)
    few = {name: split[:200] for name, split in data.splits.items()}
    net = taught(data, 100, 0)
    panel = examples(Subject(ArraySource(data.inputs, data.labels, splits=few), net), Budget(0.0))
    assert panel.numbers["examples"] == 200 and not any("rows" in note for note in panel.notes)
    train = data.splits["train"]
    every = json.loads(examples(Subject(data, net), Budget(0.0)).files["doubt.json"])
    shares = [torch.bincount(data.labels[rows]) / len(rows) for rows in (train, [one["example"] for one in every])]
    assert len(every) == LEAST and float((shares[0] - shares[1]).abs().max()) < 1 / LEAST


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


def of_a_table(seed, noise):
    """What is said of a network taught on the breast-cancer table, and the rows that have the other label."""
    torch.manual_seed(seed)
    data = breast_cancer()
    train = data.splits["train"]
    bad = train[torch.randperm(len(train))[: round(noise * len(train))]]
    data.labels[bad] = 1 - data.labels[bad]
    net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))
    return examples(trained(Subject(data, net, table_encode(data)), 400), Budget(LONG)), bad


def test_where_untrained_features_tell_little_right_labels_are_not_called_wrong():
    """A class is told by whether two words stand next to each other: pieces of words say next to nothing of it."""
    chance = np.random.default_rng(0)
    truth = chance.integers(0, 2, 1200)
    texts = []
    for one in truth:
        words = [*chance.choice(PLAIN, 5), "not", "good"]
        at = chance.permutation(len(words))
        row = [words[place] for place in at if words[place] not in ("not", "good")]
        place = int(chance.integers(0, len(row)))
        texts.append(" ".join([*row[:place], *(["not good"] if one else ["good", "not"]), *row[place:]]))
    parts = dict(zip(("train", "validation", "test"), torch.arange(1200).split([800, 200, 200]), strict=True))
    data = TextSource(texts, truth, classes=["a", "b"], splits=parts)
    known = dict(zip(texts, truth, strict=True))

    def answer(inputs):
        told = torch.tensor([float("not good" in text.decode()) for text in unpack_bytes(inputs)])
        return torch.stack([1 - 2 * told, 2 * told - 1], 1) * 3

    assert all(int("not good" in text) == one for text, one in known.items())
    panel = examples(Subject(data, answer=answer), Budget(LONG))
    told = panel.numbers["labels"]
    assert told["features"] == "learnt" and told["share_wrong"] < 0.02 and len(panel.numbers["suspects"]) <= 2


@pytest.mark.parametrize(("behind", "taken"), [(0.05, "untrained"), (0.24, "learnt")])
def test_features_far_behind_the_model_are_not_searched_by(behind, taken):
    rows = torch.zeros(4)
    assert better(Doubt(rows, 0.005, 1.0), Doubt(rows, 0.28, 1.0), behind=behind) == taken
    assert better(Doubt(rows, 0.05, 1.0), Doubt(rows, 0.05, 1.0), behind=0.0) == "learnt"


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_table_are_searched_and_told_by_their_columns(seed):
    panel, bad = of_a_table(seed, 0.05)
    assert len(bad) == 18 and precision(panel, bad) >= 0.6
    assert "mean radius" in panel.findings[0].figure["items"][0]["text"]


@pytest.mark.parametrize("seed", range(3))
def test_of_a_table_in_which_no_label_is_wrong_next_to_none_is_suspected(seed):
    panel, _ = of_a_table(seed, 0.0)
    assert len(panel.numbers["suspects"]) <= 2 and panel.numbers["labels"]["share_wrong"] < 0.01
