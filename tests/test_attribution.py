"""What a model looks at: planted shortcuts are what is marked, and are not where they tell nothing."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn
from torch.nn import functional

from stillroom.data.arrays import ArraySource
from stillroom.data.tables import TableSource
from stillroom.data.texts import TextSource
from stillroom.mining import Budget, Subject
from stillroom.mining.attribution import attribution
from stillroom.mining.attribution.expected import expected
from stillroom.mining.attribution.explained import belongs, words_of
from stillroom.mining.attribution.faithful import curves, faithfulness, helps, randomisation
from stillroom.mining.attribution.findings import halves, in_parts, trust
from stillroom.mining.attribution.gradients import error, first_embedding, integrated
from stillroom.mining.attribution.outlines import Map, origin, outlines
from stillroom.mining.attribution.removal import occlusion, shapley
from stillroom.models.encode import encode_for
from stillroom.models.text_encode import words_for
from stillroom.models.text_zoo import TextMLP
from stillroom.report.figures import draw

ROWS, SIDE = 300, 16


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def trained(model: nn.Module, inputs: Tensor | dict[str, Tensor], labels: Tensor, steps: int = 80) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        answers = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        loss = functional.cross_entropy(answers, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


# --- the sums themselves -------------------------------------------------------------------------------


def test_integrated_gradients_are_the_exact_integral_of_a_quadratic():
    torch.manual_seed(0)
    square, slope = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    inputs, start = torch.randn(7, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)

    def score(points: Tensor, rows: Tensor) -> Tensor:
        return (points @ square * points).sum(1) + points @ slope

    values, ends = integrated(score, inputs, start, steps=8, batch=24)
    middle = (inputs + start) / 2  # the gradient is linear on the way, so that its mean is that of the middle
    exact = (inputs - start) * (middle @ (square + square.T) + slope)
    assert torch.allclose(values, exact, atol=1e-12) and error(values, ends) < 1e-12
    assert error(values * 1.1, ends) == pytest.approx(0.1)


def test_integrated_gradients_equal_captum():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs, start = torch.randn(4, 6), torch.zeros(6)
    ours, _ = integrated(lambda points, rows: model(points)[:, 1], inputs, start, steps=20)
    theirs = IntegratedGradients(model).attribute(inputs, start[None], 1, n_steps=20, method="riemann_middle")
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_expected_gradients_are_the_mean_of_integrated_ones_over_the_background():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    inputs, background = torch.randn(5, 6).double(), torch.randn(32, 6).double()

    def score(points: Tensor, rows: Tensor) -> Tensor:
        return model(points)[:, 0]

    one = expected(score, inputs, background[:1], steps=4)
    same, ends = integrated(score, inputs, background[0], steps=4)
    torch.testing.assert_close(one.values, same)
    torch.testing.assert_close(one.ends, ends)
    found = expected(score, inputs, background, batch=128)
    exact = torch.stack([integrated(score, inputs, start, steps=256)[0] for start in background]).mean(0)
    assert float((found.values - exact).abs().max()) < 0.02 * float(exact.abs().max())
    assert error(found.values, found.ends) < 0.02
    torch.testing.assert_close(found.ends[:, 0], score(background, background).mean().expand(5))
    torch.testing.assert_close(found.far, inputs - background.mean(0))
    straight = expected(lambda points, rows: points @ inputs[0], inputs, background)
    torch.testing.assert_close(straight.slopes, inputs[0].expand(5, 6))
    torch.testing.assert_close(straight.values, straight.slopes * straight.far)


def test_sampled_shapley_values_are_exact_for_sums_and_for_pairs():
    torch.manual_seed(1)
    inputs, background = torch.randn(5, 4), torch.randn(6, 4)

    def added(points: Tensor, rows: Tensor) -> Tensor:
        return (points.double() ** 2).sum(1)

    values, parts = shapley(added, inputs, background, 0)
    assert torch.allclose(values, inputs.double() ** 2 - (background.double() ** 2).mean(0), atol=1e-9)
    assert parts.shape == (2, 5, 4)

    def product(points: Tensor, rows: Tensor) -> Tensor:
        return (points[:, 0] * points[:, 1]).double() + 3 * rows

    one, other = torch.tensor([[2.0, 3.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert shapley(product, one, other, 0)[0].tolist() == [[3.0, 3.0]], "an order and its reverse share a pair evenly"
    values, _ = shapley(product, inputs, background, 0)
    whole = product(inputs, torch.arange(5)) - torch.stack(
        [product(background, torch.full((6,), n)) for n in range(5)]
    ).mean(1)
    assert torch.allclose(values.sum(1), whole, atol=1e-6), "whatever the score, they sum up to its difference"
    assert torch.equal(shapley(product, inputs, background, 0)[0], values)


def test_occlusion_of_parts_that_add_up_and_of_rows_with_fewer_parts():
    weights = torch.tensor([3.0, -1.0, 0.0, 2.0], dtype=torch.float64)

    def ask(rows: Tensor, keep: Tensor) -> Tensor:
        logit = (keep * weights).sum(1)
        return torch.stack([logit / 2, -logit / 2], 1).softmax(1)

    values, answers = occlusion(ask, torch.tensor([4, 2]), torch.tensor([0, 0]))
    assert torch.allclose(values, torch.tensor([[1.5, -0.5, 0, 1], [1.5, -0.5, 0, 0]], dtype=torch.float64))
    assert answers[1].tolist() == [0, 0, -1, -1]


def hangs_on_the_first(rows: Tensor, keep: Tensor) -> Tensor:
    logit = 6 * keep[:, 0].double() - 3
    return torch.stack([logit, -logit], 1).softmax(1)


@pytest.mark.parametrize(("order", "good"), [("right", True), ("wrong", False), ("none", False)])
def test_an_order_that_tells_nothing_is_called_no_better_than_random(order, good):
    counts, classes = torch.full((60,), 20), torch.zeros(60, dtype=torch.int64)
    values = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    values[:, 0] += {"right": 50, "wrong": -50, "none": 0}[order]
    told = faithfulness(curves(hangs_on_the_first, values, counts, classes, 0))
    assert helps(told, "deletion") == helps(told, "insertion") == good
    sentence = trust(told, "parts", "-").sentence
    assert ("no better than random" in sentence) != good and (
        "the answer depends on what is marked" in sentence
    ) == good


def test_maps_that_random_weights_give_too_do_not_pass():
    values = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    other = torch.randn(9, 50, generator=torch.Generator().manual_seed(1))
    contrast = torch.rand(9, 50, generator=torch.Generator().manual_seed(2)) * 10
    assert randomisation(values, values)["size"] == pytest.approx(1)
    assert abs(randomisation(values, other)["size"]) < 0.2
    seen = randomisation(values * contrast, other * contrast, contrast=contrast)
    assert seen["size"] > 0.2 > abs(seen["beyond"]), "what both owe to the input is told apart"
    assert halves([0.0, 3.0, 1.0]) == 1 and halves([1.0, 1.0, 1.0, 1.0]) == 2


def noise(seed: int) -> Tensor:
    return torch.randn(9, 200, generator=torch.Generator().manual_seed(seed))


def test_what_the_outlines_of_a_picture_bring_is_told_from_what_the_weights_bring():
    far = torch.rand(9, 200, generator=torch.Generator().manual_seed(2)) ** 3 * 10
    far[:, :20] = 0.0  # a border that is the same in all pictures
    own, *twins = (Map(one * far, one.abs()) for one in (noise(0), noise(1), noise(3)))
    told = origin(own, twins, far, 0)
    assert told["size"] > 0.4 and abs(told["size"] - told["blank"]) < 0.1, "noise with these outlines is as alike"
    assert abs(told["steep"]) < 0.1 and abs(told["signed"]) < 0.1 and len(told["steep_of_each"]) == 2
    finding = outlines(told, "the maps", "pixel", "picture")
    assert "show the model" in finding.sentence and "the outlines are the picture's own" in finding.sentence
    assert finding.number == told["steep"] and draw(finding.figure, {})


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_maps_whose_steepness_random_weights_have_too_are_not_to_be_relied_on(share):
    far = torch.rand(9, 200, generator=torch.Generator().manual_seed(2))
    own, other = noise(0), share * noise(0) + (1 - share) * noise(1)
    told = origin(Map(own * far, own.abs()), [Map(other * far, other.abs())], far, 0)
    assert told["steep"] > 0.3
    finding = outlines(told, "the maps", "pixel", "picture")
    assert "Do not rely on them" in finding.sentence and "the architecture has a share" in finding.sentence


# --- planted truths and their null twins -----------------------------------------------------------------


def patched(seed: int, planted: bool) -> Subject:
    """Noise with a weak signal in the middle, and a corner of 2 x 2 pixels that tells the class, or tells nothing."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 2, ROWS)
    pixels = chance.normal(110, 30, (ROWS, 1, SIDE, SIDE))
    pixels[:, 0, 6:10, 6:10] += 16 * labels[:, None, None]
    told = labels if planted else chance.integers(0, 2, ROWS)
    pixels[:, 0, :2, :2] = np.where(told == 1, 200, 60)[:, None, None]
    data = ArraySource(pixels.clip(0, 255).astype(np.uint8), labels=labels, classes=["cat", "dog"])
    encode = encode_for(data)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 24), nn.ReLU(), nn.Linear(24, 2))
    train = data.splits["train"]
    inputs = data.batch(torch.stack([train, train * 0], 1))["inputs"]
    trained(model, encode(inputs), torch.from_numpy(labels)[train], 60)
    return Subject(data, model, encode, seed=seed)


def test_a_planted_corner_is_what_the_model_looks_at_and_is_not_where_it_tells_nothing():
    tops, nulls = [], []
    for seed in range(10):
        for found, planted in ((tops, True), (nulls, False)):
            numbers = attribution(patched(seed, planted), Budget()).numbers
            top = numbers["top_patch"]
            found.append(top["rows"] == [0, 1] and top["columns"] == [0, 1])
            if planted:
                assert numbers["completeness"] < 0.05 and top["share"] > 3 * top["area"]
                control = numbers["random_weights"]
                assert control["steep"] <= 0.2 and abs(control["signed"]) <= 0.2, "random weights change the map"
    assert sum(tops) == 10 and sum(nulls) == 0, (tops, nulls)


def test_the_panel_of_pictures_is_plain_drawn_and_says_what_a_shortcut_is():
    subject = patched(0, True)
    panel = attribution(subject, Budget())
    assert [one.title for one in panel.findings][0] == "What it looks at"
    assert "shortcut" in panel.findings[0].sentence and panel.numbers["top_patch"]["changed"] > 0.1
    assert (
        "the answer depends on what is marked" in next(one for one in panel.findings if "trusted" in one.title).sentence
    )
    for finding in panel.findings:
        assert finding.sentence and finding.control and draw(finding.figure, {})
    again = attribution(patched(0, True), Budget())
    assert again.numbers == panel.numbers and again.files == panel.files


def test_a_model_that_shows_answers_only_is_asked_without_its_corner():
    subject = patched(1, True)
    closed = Subject(subject.data, answer=subject.answer, name="closed")
    panel = attribution(closed, Budget())
    top = panel.numbers["top_patch"]
    assert (top["rows"], top["columns"]) == ([0, 1], [0, 1]) and panel.numbers["completeness"] is None
    assert any("only its answers" in note for note in panel.notes) and "random_weights" not in panel.numbers


class Whole(nn.Module):
    """A model that asks for whole numbers, so that no gradient reaches its pixels."""

    def __init__(self, inner: Subject) -> None:
        super().__init__()
        self.inner = inner.opened
        self.encode = inner.encode

    def forward(self, inputs: Tensor) -> Tensor:
        answers: Tensor = self.inner(self.encode(inputs.round().to(torch.uint8)))
        return answers


def test_a_model_without_gradients_is_asked_with_patches_covered():
    subject = patched(2, True)
    panel = attribution(Subject(subject.data, Whole(subject)), Budget())
    assert any("no gradients" in note for note in panel.notes)
    assert panel.numbers["top_patch"]["rows"] == [0, 1]


def columns(seed: int, planted: bool, categorical: bool = False) -> Subject:
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 2, ROWS)
    values = chance.normal(size=(ROWS, 6)).astype(np.float32)
    values[:, 1] += 0.8 * labels
    told = labels if planted else chance.integers(0, 2, ROWS)
    values[:, 4] = told if categorical else values[:, 4] * 0.3 + 3 * told
    names = ["age", "height", "weight", "pulse", "stamp", "hour"]
    categories = {"stamp": ["blue", "red"]} if categorical else {}
    data = TableSource(values, labels, names=names, categories=categories, classes=["well", "ill"])
    encode = encode_for(data)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(encode.width, 16), nn.ReLU(), nn.Linear(16, 2))
    train = data.splits["train"]
    trained(model, encode(data.inputs[train]), torch.from_numpy(labels)[train])
    return Subject(data, model, encode, seed=seed)


def first(panel) -> dict:
    return max(panel.numbers["columns"], key=lambda column: column["share"])


@pytest.mark.parametrize("categorical", [False, True])
def test_a_planted_column_is_what_the_model_looks_at(categorical):
    for seed in range(3):
        panel = attribution(columns(seed, True, categorical), Budget())
        top = first(panel)
        assert top["name"] == "stamp" and top["share"] > 0.35
        assert top["for"] == {"well": "blue", "ill": "red"} if categorical else top["more_for"] == "ill"
        assert first(attribution(columns(seed, False, categorical), Budget()))["name"] == "height"
        assert ("integrated_gradients" in panel.numbers) == (not categorical)
        assert panel.numbers["one_at_a_time"] > 0.5
        assert any(
            "taking away one column at a time, orders the columns similarly" in one.sentence for one in panel.findings
        )
    assert "'stamp'" in panel.findings[0].sentence and panel.files["effects.csv"].startswith(b"answer,age,height")
    for finding in panel.findings:
        assert draw(finding.figure, {})


def test_a_closed_table_gives_the_same_values_as_an_open_one():
    subject = columns(0, True)
    closed = attribution(Subject(subject.data, answer=subject.answer, seed=0), Budget())
    shares = [
        [column["share"] for column in one.numbers["columns"]] for one in (closed, attribution(subject, Budget()))
    ]
    assert shares[0] == pytest.approx(shares[1], rel=1e-6) and "random_weights" not in closed.numbers


WORDS = "film plot scene actor story music light camera house river stone paper".split()


def reviews(seed: int, planted: bool, rows: int = ROWS, make: type[nn.Module] = TextMLP) -> Subject:
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 2, rows)
    told = labels if planted else chance.integers(0, 2, rows)
    texts = []
    for label, mark in zip(labels, told, strict=True):
        row = (
            list(chance.choice(WORDS, 8))
            + (["Émile"] if mark else [])
            + (["good"] if label and chance.random() < 0.4 else [])
        )
        chance.shuffle(row)
        texts.append(" ".join(row))
    data = TextSource(texts, labels, classes=["bad", "fine"])
    encode = words_for(data)
    torch.manual_seed(seed)
    model = make(shape=(encode.size,), classes=2, embedding=16, hidden=16, dropout=0.0)
    train = data.splits["train"][:ROWS]
    trained(model, encode(data.batch(torch.stack([train, train * 0], 1))["inputs"]), torch.from_numpy(labels)[train])
    return Subject(data, model, encode, seed=seed)


def test_a_planted_word_pushes_most_and_does_not_where_it_tells_nothing():
    for seed in range(10):
        subject = reviews(seed, True)
        panel = attribution(subject, Budget())
        assert panel.numbers["words"]["fine"][0]["word"] == "émile", panel.numbers["words"]["fine"][:3]
        assert (
            panel.numbers["stands_out"] == "émile"
            and "The word 'émile' has the strongest effect" in panel.findings[0].sentence
        )
        assert "émile" not in [row["word"] for row in panel.numbers["words"]["bad"]]
        assert not first_embedding(subject.opened)._forward_hooks
    null = attribution(reviews(0, False), Budget()).numbers["words"]["fine"]
    assert null[0]["word"] == "good"
    assert panel.numbers["completeness"] < 0.1 and b"\xc3\xa9mile" in panel.files["words.json"]
    told = panel.numbers["one_at_a_time"]
    assert told["examples"] == panel.numbers["examples"] and told["alike"] > 0.9, "words add up: both ways agree"
    assert any("leaving out one word at a time, orders the words similarly" in one.sentence for one in panel.findings)
    for finding in panel.findings:
        assert finding.control and draw(finding.figure, {})
    closed = attribution(Subject(subject.data, answer=subject.answer), Budget())
    assert closed.numbers["words"]["fine"][0]["word"] == "émile" and closed.numbers["method"] == "words taken away"


def test_where_no_word_tells_anything_none_stands_out():
    for seed in range(10):
        chance = np.random.default_rng(seed)
        texts = [" ".join(chance.choice(WORDS, 8)) for _ in range(ROWS)]
        labels = chance.integers(0, 2, ROWS)
        data = TextSource(texts, labels, classes=["bad", "fine"])
        encode = words_for(data)
        torch.manual_seed(seed)
        model = TextMLP(shape=(encode.size,), classes=2, embedding=16, hidden=16, dropout=0.0)
        train = data.splits["train"]
        inputs = encode(data.batch(torch.stack([train, train * 0], 1))["inputs"])
        panel = attribution(Subject(data, trained(model, inputs, torch.from_numpy(labels)[train]), encode), Budget())
        assert panel.numbers["stands_out"] is None, panel.findings[0].sentence
        assert "No word" in panel.findings[0].sentence


def test_a_text_is_shown_as_written_with_its_words_marked():
    panel = attribution(reviews(0, True), Budget())
    item = panel.findings[1].figure["items"][0]
    text = "".join(piece for piece, _ in item["words"])
    assert set(text.split()) <= {*WORDS, "Émile", "good"} and max(abs(much) for _, much in item["words"]) == 1
    page = str(draw(panel.findings[1].figure, {}))
    assert '<mark class="for" style="--much: 1.00">' in page and '<ul class="cards of-words">' in page


def test_parts_stop_when_the_time_is_up_and_leave_nothing_out():
    found = in_parts(Budget(100.0), 150, 0.5, lambda start, end: list(range(start, end)))
    assert sum(found, []) == list(range(150)) and max(map(len, found)) == 64
    late = in_parts(Budget(0.2), 1000, 0.5, lambda start, end: time.sleep(0.01 * (end - start)))
    assert len(late) < 6 and in_parts(Budget(0.0), 9, 1.0, lambda start, end: end) == [2]


def test_tokens_belong_to_the_word_whose_bytes_they_stand_for():
    subject = reviews(0, True)
    inputs = subject.inputs(subject.examples("test")[:1])
    words = words_of(subject, inputs)[0]
    mask, spans = subject.encode.steps(inputs)
    assert belongs(spans[0][mask[0]].numpy(), words).tolist() == list(range(len(words)))
    end = words[-1].end
    odd = np.array([[words[0].first, words[0].first + 1], [words[0].end, words[1].end], [end, end + 3]])
    assert belongs(odd, words).tolist() == [0, 1, -1], "a space before a word belongs to it, what comes after to none"


@pytest.mark.parametrize("make", [patched, columns, reviews])
def test_without_time_a_few_examples_are_explained_and_the_notes_say_so(make):
    panel = attribution(make(0, True), Budget(0.0))
    assert panel.numbers["examples"] <= 8 and any("to keep to the time" in note for note in panel.notes)
    assert all(finding.sentence for finding in panel.findings)
