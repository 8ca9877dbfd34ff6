"""Where a planted piece of knowledge lies is found; random weights hold none of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.data.texts import TextSource
from stillroom.mining import Budget, Subject
from stillroom.mining.layers import layers
from stillroom.mining.reading import read_once, vectors
from stillroom.models.text_encode import words_for


def source(rows: int = 1500) -> ArraySource:
    """Two classes by the sign of a product: nothing that a straight line through the inputs can tell."""
    values = np.random.default_rng(0).normal(size=(rows, 10)).astype(np.float32)
    labels = (values[:, 0] * values[:, 1] > 0).astype(np.int64)
    return ArraySource(values, labels=labels, classes=["apart", "together"])


class Product(nn.Module):
    """Its second layer knows the product of the first two inputs; its widest layer uses three directions."""

    def __init__(self, knows: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(10, 10), nn.Linear(4, 40), nn.Linear(40, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(10))
            self.first.bias.zero_()
            if not knows:
                self.second.weight.zero_()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        seen = self.first(inputs)
        product = (seen[:, 0] * seen[:, 1]).sign()
        made = torch.stack([product, seen[:, 2], seen[:, 3], torch.zeros_like(product)], 1)
        return self.last(self.second(made))


def test_the_layer_from_which_a_planted_product_can_be_read_is_named():
    panel = layers(Subject(source(), Product()), Budget())
    own = panel.numbers["layers"]
    assert own["first"]["probe"] < 0.6 and own["second"]["probe"] > 0.95
    sentence, twin = panel.findings[0].sentence, panel.numbers["control"]["second"]
    assert panel.numbers["earliest"] == "second" and "Layers after 'second' add nothing" in sentence
    assert sentence.startswith(
        f"A linear classifier on the first layer ('first') is already right on {100 * own['first']['probe']:.1f} %"
    )
    assert f"That layer with random weights reaches {100 * twin:.1f} %, so training adds" in sentence
    assert f"adds {100 * (own['second']['probe'] - twin):.1f} points there." in sentence
    assert own["second"]["directions"] == 3 and own["second"]["effective_rank"] == pytest.approx(3, abs=0.5)
    assert panel.numbers["suggested_width"] == 3
    assert "features of 3 numbers is worth a try" in panel.findings[1].sentence
    assert "With random weights it would be 3: training has not narrowed it" in panel.findings[1].sentence
    assert panel.numbers["random_weights"]["directions"] == [3] * 5


def test_where_nothing_was_learnt_nothing_is_claimed():
    values = np.random.default_rng(1).normal(size=(1500, 6)).astype(np.float32)
    data = ArraySource(values, labels=(values[:, 0] > 0).astype(np.int64), classes=["low", "high"])
    torch.manual_seed(0)
    panel = layers(Subject(data, nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 2))), Budget())
    assert "next to nothing" in panel.findings[0].sentence


def straight(seed: int, weight: torch.Tensor | None = None, stretch: float = 1.0) -> Subject:
    """A network of two layers, its first given or random; ``stretch`` is how much wider the first column lies."""
    values = np.random.default_rng(seed).normal(size=(1500, 10)).astype(np.float32)
    values[:, 0] *= stretch
    data = ArraySource(values, labels=(values[:, 0] > 0).astype(np.int64), classes=["low", "high"])
    torch.manual_seed(1000 + seed)
    net = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 2))
    if weight is not None:
        with torch.no_grad():
            net[0].weight.copy_(weight)
    return Subject(data, net, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_a_width_that_training_has_changed_is_said_to_be(seed):
    one = torch.zeros(30, 10)
    one[:, 0] = torch.linspace(-1, 1, 30)
    narrow = layers(straight(seed, one), Budget())
    found, sentence = narrow.numbers["random_weights"], narrow.findings[1].sentence
    assert narrow.numbers["suggested_width"] <= 3 < min(found["directions"]) and found["changed"] == "narrowed"
    ends = f"{min(found['directions'])} to {max(found['directions'])}"
    assert f"With random weights it would be {ends}: training has narrowed it." in sentence
    assert f"5 networks with random weights: {ends} directions" in narrow.findings[1].control
    assert narrow.findings[1].figure["rows"][-1][-1] == found["mean"]
    level = torch.eye(10).repeat(3, 1)
    level[:, 0] /= 100
    wide = layers(straight(seed, level, stretch=100.0), Budget())
    assert (
        wide.numbers["random_weights"]["changed"] == "widened"
        and "training has widened it" in wide.findings[1].sentence
    )


def test_a_network_that_has_learnt_nothing_has_not_changed_its_width():
    changed = [layers(straight(seed), Budget()).numbers["random_weights"]["changed"] for seed in range(10)]
    assert changed.count("neither") >= 9


def test_without_time_one_network_is_asked_and_the_sentence_leaves_it_open():
    panel = layers(straight(0), Budget(0.0))
    assert len(panel.numbers["random_weights"]["directions"]) == 1
    assert (
        panel.numbers["random_weights"]["changed"] is None
        and "one such network is too few" in panel.findings[1].sentence
    )


def test_labels_dealt_at_random_are_read_from_nowhere():
    data = source()
    data.columns["labels"][:] = torch.randint(0, 2, (len(data),), generator=torch.Generator().manual_seed(0))
    own = layers(Subject(data, Product()), Budget()).numbers["layers"]
    assert all(entry["probe"] < 0.62 for entry in own.values())


class Blocks(nn.Module):
    """Two blocks that give tuples, places that are the same for all, and windows whose steps come last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(50, 8), nn.Embedding(64, 8)
        self.blocks = nn.ModuleList([Pair(), Pair()])
        self.window, self.head = nn.Conv1d(8, 5, 1), nn.Linear(5, 2)
        self.passes = 0

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        states = self.embed(ids.clamp(max=49)) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            states = block(states)[0]
        return self.head(self.window(states.transpose(1, 2)).amax(2))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, str]:
        return self.other(self.one(states).relu()), "beside"


def test_blocks_are_layers_and_texts_of_any_length_are_read_by_one_pass():
    texts = [" ".join(["word", "other"][row % 2] for _ in range(9 + 7 * row % 30)) + f" {row}" for row in range(900)]
    data = TextSource(texts, [row % 2 for row in range(900)], classes=["no", "yes"])
    net = Blocks()
    subject = Subject(data, net, words_for(data))
    found = read_once(subject)
    assert found == ["embed", "blocks.0[0]", "blocks.1[0]", "window", "head"]
    before = net.passes
    shown = vectors(subject, found, data.splits["train"][:256])
    assert net.passes - before <= 2 * (256 // 64) and shown["window"].shape == (256, 5)
    panel = layers(subject, Budget())
    assert list(panel.numbers["layers"]) == found and panel.numbers["entering_the_last"]["width"] == 5
    assert panel.numbers["layers"]["embed"]["probe"] > 0.9 and not panel.notes


def test_closed_models_and_splits_without_labels_give_a_note():
    assert "only the answers" in layers(Subject(source(), answer=lambda inputs: inputs[:, :2]), Budget()).notes[0]
    data = source()
    data.columns["labels"][data.splits["validation"]] = -1
    assert "no labels" in layers(Subject(data, Product()), Budget()).notes[0]
