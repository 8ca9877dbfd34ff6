"""Concepts: planted directions are found, noise has none, and what is taken away is what the class needs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.contracts import Hidden
from stillroom.data.arrays import ArraySource
from stillroom.data.images import digits
from stillroom.data.tables import breast_cancer
from stillroom.data.texts import TextSource
from stillroom.errors import TapError
from stillroom.mining import Budget, Panel, Subject
from stillroom.mining.concepts import concepts
from stillroom.mining.concepts.controls import axes, drawn, explained, found_again, principal, without_parts
from stillroom.mining.concepts.effects import effects
from stillroom.mining.concepts.parts import factored
from stillroom.mining.concepts.sparse import fit
from stillroom.models.text_encode import words_for
from stillroom.models.text_zoo import TextMLP
from stillroom.report.figures import draw
from stillroom.taps import read


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Net(nn.Module):
    """Two layers; what lies between them are the features."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, hidden), nn.Linear(hidden, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(inputs.flatten(1).float() / (255 if inputs.dtype == torch.uint8 else 1)).relu())


def planted(rows: int, seed: int = 0, *, positive: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve directions (12, 32) and rows that are sums of two of them."""
    make = torch.Generator().manual_seed(0)
    truth = torch.randn(12, 32, generator=make)
    truth = nn.functional.normalize(truth.relu() if positive else truth, dim=1)
    make.manual_seed(1 + seed)
    used = torch.rand(rows, 12, generator=make).argsort(1) < 2
    return truth, (used * (1 + torch.rand(rows, 12, generator=make))) @ truth


def trained(model: nn.Module, source: ArraySource, steps: int = 150) -> nn.Module:
    ids = torch.stack([source.splits["train"], torch.zeros_like(source.splits["train"])], 1)
    batch = source.batch(ids)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def drawable(panel: Panel) -> None:
    json.dumps(panel.numbers, allow_nan=False)
    for finding in panel.findings:
        assert finding.control and draw(finding.figure, {})


def ahead(rows: torch.Tensor, others: torch.Tensor, **options: object) -> tuple[float, float, torch.Tensor]:
    """What is explained, how much more than of rows without parts, and the directions."""
    plain = without_parts(rows, len(rows) + len(others))
    found, chance = (fit(one, 20, 2, **options) for one in (rows, plain[: len(rows)]))  # type: ignore[arg-type]
    held = explained(others, found.rebuilt(others), found.middle)
    rest = plain[len(rows) :]
    return held, held - explained(rest, chance.rebuilt(rest), chance.middle), found.directions


@pytest.mark.parametrize("positive", [False, True])
def test_planted_directions_are_found_and_noise_has_none(positive: bool):
    truth, rows = planted(2000, positive=positive)
    others = planted(1000, 1, positive=positive)[1]
    held, more, directions = ahead(rows, others, moved=True)
    assert found_again(truth, directions) >= 0.9 and held > 0.95
    assert more > 0.15 and held - principal(others, rows.mean(0), axes(rows)[-2:]) > 0.15
    torch.manual_seed(0)
    noise = torch.randn(4000, 32) @ torch.randn(32, 32) / 6
    noise = noise.relu() if positive else noise
    _, more, _ = ahead(noise[:2000], noise[2000:])
    assert abs(more) < 0.02, "choosing a unit for each row explains something of noise too, and no more than that"


def test_planted_parts_are_found_and_found_again():
    truth, rows = planted(2000, positive=True)
    one, other = factored(rows[:1000], 12), factored(rows[1000:], 12)
    assert found_again(truth, one.directions) >= 0.9 and found_again(one.directions, other.directions) >= 0.9
    assert float(one.codes(rows).min()) >= 0 and explained(rows, one.rebuilt(rows), one.middle) > 0.99
    plain = without_parts(rows, 2000)
    chance = factored(plain[:1000], 12)
    assert explained(plain[1000:], chance.rebuilt(plain[1000:]), chance.middle) < 0.95


def test_rows_without_parts_have_mean_and_covariance_and_no_sign_that_is_not_there():
    _, signed = planted(1000)
    _, positive = planted(1000, positive=True)
    for rows, close in ((signed, 0.1), (positive, 0.15)):
        plain = without_parts(rows, 5000)
        spread = [(one - one.mean(0)).T.cov() for one in (rows, plain)]
        assert float((spread[0] - spread[1]).norm() / spread[0].norm()) < close
        assert float((rows.mean(0) - plain.mean(0)).norm() / rows.mean(0).norm()) < close
    assert float(plain.min()) >= 0 and float(without_parts(signed, 100).min()) < 0


def test_directions_drawn_as_rows_vary_lie_where_they_vary():
    rows = torch.randn(500, 20) * torch.tensor([5.0] * 2 + [0.1] * 18)
    like, anywhere = drawn(rows, 50, like=True), drawn(rows, 50, like=False)
    assert float(like[:, :2].norm(dim=1).mean()) > 0.95 and float(anywhere[:, :2].norm(dim=1).mean()) < 0.5


class Squashed(nn.Linear):
    """A last layer that is no sum of its inputs."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(rows.tanh())


@pytest.mark.parametrize("kind", [nn.Linear, Squashed])
def test_the_effect_is_that_of_a_concept_planted_in_the_last_layer(kind: type[nn.Linear]):
    """Each class reads one of twelve directions: it must be the concept found for it, and beat the best at random."""
    truth, rows = planted(3000)
    layer = kind(32, 6)
    with torch.no_grad():
        layer.weight.copy_(4 * torch.linalg.pinv(truth).T[:6])
        layer.bias.zero_()
    found = fit(rows[:1000], 20, 2)
    told = effects(found, layer, rows[:1000], rows[1000:2000], rows[2000:])
    assert len(told) == 6
    for one in told:
        assert float(truth[one["class"]] @ found.directions[one["unit"]]) > 0.9, one
        assert one["effect"] > 3 * one["random"] and one["p"] <= 0.05 and one["changed"] > one["changed_such"], one


def test_digits_reach_what_is_asked_and_the_same_numbers_come_twice():
    source = digits()
    torch.manual_seed(0)
    model = trained(Net(784, 64, 10), source)
    panel = concepts(Subject(source, model), Budget(60.0))
    sparse, parts = (panel.numbers["methods"][name] for name in ("sparse", "parts"))
    print({key: value for key, value in sparse.items() if key != "classes"})
    for one in sparse["classes"]:
        print(one["class"], one["effect"] / one["random"], one["effect"] / one["such"], one["p"])
    assert sparse["explained"] >= 0.9 and sparse["dead"] <= 0.05 and parts["explained"] >= 0.9
    assert all(one["effect"] >= 3 * one["random"] for one in sparse["classes"]), sparse["classes"]
    assert len(sparse["classes"]) == 10 and not panel.notes
    drawable(panel)
    again = concepts(Subject(source, model), Budget(60.0))
    assert again.numbers == panel.numbers and again.findings == panel.findings
    assert concepts(Subject(source, answer=lambda rows: torch.zeros(len(rows), 10)), Budget()).notes


def made(rows: torch.Tensor, labels: torch.Tensor, classes: int) -> ArraySource:
    return ArraySource(rows.numpy(), labels=labels.numpy(), classes=[f"kind {one}" for one in range(classes)])


class Shown(nn.Module):
    """Features are the inputs themselves."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(inputs)


def test_planted_concepts_are_told_and_noise_is_told_to_be_none():
    torch.manual_seed(0)
    truth, rows = planted(3000, positive=True)
    model = Shown(32, 6)
    with torch.no_grad():
        model.last.weight.copy_(4 * torch.linalg.pinv(truth).T[:6])
    panel = concepts(Subject(made(rows, model(rows).argmax(1), 6), model), Budget(60.0))
    assert (
        "do not take the directions for parts" not in panel.findings[0].sentence
        and "where the features vary most" not in panel.findings[2].sentence
    )
    for told in panel.numbers["methods"].values():
        assert told["explained"] > 0.9 and told["found_again"] > told["found_again_by_chance"]
    drawable(panel)

    noise = torch.randn(3000, 32) @ torch.randn(32, 32) / 6
    empty = Shown(32, 6)
    panel = concepts(Subject(made(noise, empty(noise).argmax(1), 6), empty), Budget(60.0))
    assert list(panel.numbers["methods"]) == ["sparse"] and any("no NMF" in note for note in panel.notes)
    assert "do not take the directions for parts" in panel.findings[0].sentence, panel.findings[0].sentence
    assert "where the features vary most" in panel.findings[2].sentence, panel.findings[2].sentence
    drawable(panel)


WORDS = "film plot scene actor story music light camera house river stone paper".split()


def test_texts_and_rows_of_a_table_are_shown_as_a_person_reads_them():
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 2, 500)
    texts = [" ".join([*chance.choice(WORDS, 6), "good" if label else "dull"]) for label in labels]
    data = TextSource(texts, labels, classes=["bad", "fine"])
    encode = words_for(data)
    torch.manual_seed(0)
    model = TextMLP(shape=(encode.size,), classes=2, embedding=16, hidden=16, dropout=0.0)
    panel = concepts(Subject(data, model, encode), Budget(60.0))
    items = panel.findings[1].figure["items"]
    assert items and all(item["text"] in texts and item["caption"].startswith("concept ") for item in items)
    drawable(panel)

    table = breast_cancer()
    model = trained(Net(30, 24, 2), table, steps=40)
    panel = concepts(Subject(table, model), Budget(60.0))
    items = panel.findings[1].figure["items"]
    assert items and all(item["text"].count("=") == 5 for item in items) and "worst area=" in str(items)
    assert set(panel.numbers["methods"]) == {"sparse", "parts"}
    drawable(panel)


def test_at_maps_the_pieces_of_pictures_that_show_a_concept_are_cut_out():
    """A cross somewhere in noise: the picture's piece that a concept of the map shows must hold it."""
    chance = np.random.default_rng(0)
    pictures = chance.integers(0, 40, (600, 1, 28, 28)).astype(np.uint8)
    corners = chance.integers(4, 18, (600, 2))
    for picture, (down, across) in zip(pictures, corners, strict=True):
        picture[0, down + 2, across : across + 5] = picture[0, down : down + 5, across + 2] = 255
    source = ArraySource(pictures, labels=np.arange(600) % 2, classes=["one", "two"])

    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 6, 5, padding=2), nn.Linear(6, 2)
            with torch.no_grad():
                self.conv.weight[0].fill_(-0.1)
                self.conv.weight[0, 0, 2], self.conv.weight[0, 0, :, 2] = 1.0, 1.0

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.last(self.conv(inputs.float() / 255).relu().mean((2, 3)))

    torch.manual_seed(0)
    panel = concepts(Subject(source, Seeing()), Budget(60.0), tap="conv")
    assert any("asked of 'features' alone" in note for note in panel.notes) and len(panel.findings) == 2
    rows = panel.findings[1].figure["rows"]
    assert np.asarray(rows[0][0]["pixels"]).shape == (12, 12)
    bright = [np.mean([(np.asarray(cell["pixels"]) == 255).sum() for cell in row]) for row in rows]
    assert max(bright) >= 7, "of nine pixels of the cross"
    drawable(panel)
    with pytest.raises(TapError, match="nowhere"):
        concepts(Subject(source, Seeing()), Budget(60.0), tap="nowhere")


class Short(Budget):
    """Time for a few rows only."""

    def rows(self, rows: int, timed: int, seconds: float, *, share: float = 1.0) -> int:
        return min(rows, 200)


def test_what_does_not_fit_the_time_is_left_out_and_said():
    torch.manual_seed(0)
    source = digits()
    model = Net(784, 32, 10)
    panel = concepts(Subject(source, model), Short(60.0), tap="first")
    assert panel.numbers["rows"] == 200 and sum("keep to the time" in note for note in panel.notes) >= 3
    drawable(panel)
    nothing = concepts(Subject(source, model), Budget(0.0), tap="first")
    assert not nothing.findings and "too few" in nothing.notes[-1]
    asked = Subject(source, model)
    features = asked.features("train")
    hurried = concepts(asked, Budget(0.0))
    assert hurried.numbers["rows"] == len(features), "what was asked for all panels is not asked again"
    assert any("keep to the time" in note for note in hurried.notes)
    drawable(hurried)


class Doubled(nn.Module):
    """No layer's output is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * self.last(inputs)


def test_the_place_of_the_features_is_told_before_and_after_the_first_pass_and_leaves_no_hook():
    model = Net(6, 5, 3).train()
    reader = read(model, ["features"])
    batch = {"id": torch.zeros(2, 2, dtype=torch.int64), "inputs": torch.randn(2, 6)}
    assert reader.place_of_features(batch) == Hidden("last", "in")
    reader(batch)
    assert reader.place_of_features(batch) == Hidden("last", "in")
    assert read(model, ["logits"]).place_of_features(batch) == Hidden("last", "in")
    assert model.training and not any(part._forward_hooks for part in model.modules())
    with pytest.raises(TapError, match="Cannot tell which layer"):
        read(Doubled(), []).place_of_features(batch)
