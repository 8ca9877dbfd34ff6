"""Super-classes that were planted are found; where none were, none are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.mining import Budget, Subject
from stillroom.mining.similarity import NETWORKS, similarity
from stillroom.statistics import one_more

CLASSES, ROWS = 12, 1500
SUPER = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3])


def subject(strength: float, seed: int = 0) -> Subject:
    """Answers whose second choices lie in the first one's super-class, ``strength`` logits above the others."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, CLASSES, ROWS)
    logits = chance.normal(size=(ROWS, CLASSES)) * 0.7 + strength * (SUPER[labels][:, None] == SUPER)
    logits[np.arange(ROWS), labels] += 8
    data = ArraySource(logits.astype(np.float32), labels=labels, classes=[f"class {one}" for one in range(CLASSES)])
    return Subject(data, answer=lambda inputs: inputs)


def member(groups: list[list[str]]) -> list[int]:
    found = [0] * CLASSES
    for number, group in enumerate(groups):
        for name in group:
            found[int(name.split()[1])] = number
    return found


@pytest.mark.parametrize("seed", range(5))
def test_planted_super_classes_are_found(seed):
    from sklearn.metrics import adjusted_rand_score

    panel = similarity(subject(2.0, seed), Budget())
    assert adjusted_rand_score(SUPER, member(panel.numbers["groups"])) >= 0.9
    assert panel.numbers["groups_again"] >= 0.9 and "4 families" in panel.findings[1].sentence
    top = panel.numbers["pairs"][0]["classes"]
    assert SUPER[int(top[0].split()[1])] == SUPER[int(top[1].split()[1])]


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_was_planted_no_families_are_told(seed):
    panel = similarity(subject(0.0, seed), Budget())
    assert panel.numbers["groups_again"] < 0.5 and "no firm families" in panel.findings[1].sentence
    assert panel.numbers["pairs"][0]["likeness"] < 1.5 * panel.numbers["even"]


@pytest.mark.parametrize("seed", range(5))
def test_likeness_that_was_planted_in_a_closed_model_is_more_than_chance(seed):
    panel = similarity(subject(2.0, seed), Budget())
    control, sentence = panel.numbers["control"], panel.findings[0].sentence
    assert panel.numbers["verdict"] == "beyond" and "That is more than chance" in sentence
    assert ("besides the right class a student is taught this" in sentence) == (panel.numbers["pairs_again"] >= 0.8)
    assert "what its architecture alone would show is not known" in panel.findings[0].control
    low, high = control["correlation_range"]
    assert -0.7 < low < control["correlation"] < high < 0.7 and abs(control["correlation"]) < 0.2
    assert control["strongest"] <= control["strongest_range"][1] < 0.75 * panel.numbers["pairs"][0]["likeness"]


def test_of_a_closed_model_without_likeness_nothing_is_claimed():
    panels = [similarity(subject(0.0, seed), Budget()) for seed in range(10)]
    assert sum(panel.numbers["verdict"] == "chance" for panel in panels) >= 9
    said = next(panel.findings[0].sentence for panel in panels if panel.numbers["verdict"] == "chance")
    assert "no more than chance" in said and "taught" not in said


def net(seed: int, lean: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(CLASSES, 64), nn.ReLU(), nn.Linear(64, CLASSES), Lean(lean))
    return made.eval()


class Lean(nn.Module):
    """Adds to the first class whatever is seen; random weights do not change it."""

    def __init__(self, lean: float) -> None:
        super().__init__()
        self.register_buffer("lean", lean * torch.eye(CLASSES)[0])

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.lean


def taught(made: Subject, module: nn.Module) -> Subject:
    """A network that has learnt to give planted answers."""
    inputs = made.data.columns["inputs"]
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(inputs), inputs).backward()
        optimizer.step()
    return Subject(made.data, module, seed=made.seed)


@pytest.mark.parametrize("lean", [0.0, 20.0])  # a control that leans to one class is compared all the same
@pytest.mark.parametrize("seed", range(3))
def test_likeness_that_was_learnt_goes_beyond_random_weights(seed, lean):
    panel = similarity(taught(subject(3.0, seed), net(seed, lean)), Budget())
    control, sentence = panel.numbers["control"], panel.findings[0].sentence
    assert panel.numbers["verdict"] == "beyond" and control["compared"] == control["asked"] == NETWORKS
    assert "That goes beyond what networks with random weights show" in sentence and "clearly below 0.5" in sentence
    assert control["strongest_range"][0] <= control["strongest"] <= control["strongest_range"][1]
    assert control["correlation_range"][0] < control["correlation"] < control["correlation_range"][1]
    assert "5 of 5 compared" in panel.findings[0].control and "groups" in panel.findings[1].figure
    written = json.loads(panel.files["classes.json"])
    assert written["groups"] == panel.numbers["groups"]
    tree = panel.findings[1].figure["text"].splitlines()
    assert len(tree) == 2 * CLASSES - 1 and sum("class" in line for line in tree) == CLASSES


@pytest.mark.parametrize("deep", [True, False])  # one layer alone shows strong pairs, whatever its weights
def test_of_a_network_that_has_learnt_nothing_no_likeness_is_claimed(deep):
    silent = 0
    for seed in range(10):
        torch.manual_seed(1000 + seed)
        module = net(1000 + seed) if deep else nn.Linear(CLASSES, CLASSES)
        panel = similarity(Subject(subject(2.0, seed).data, module, seed=seed), Budget())
        told = " ".join(finding.sentence for finding in panel.findings)
        claims = any(word in told for word in ("goes beyond", "is taught", "families of classes, the same"))
        silent += not claims and any(f"no more than {what}" in told for what in ("chance", "what the", "a bias"))
    assert silent >= 9


class Beside(nn.Linear):
    """Half of its likenesses come from what stands beside its weights."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values) + 0.5 * values


def test_likeness_that_random_weights_show_too_is_not_called_learnt():
    module = Beside(CLASSES, CLASSES)
    with torch.no_grad():
        module.weight.copy_(0.5 * torch.eye(CLASSES))
    panel = similarity(Subject(subject(3.0).data, module), Budget())
    assert panel.numbers["verdict"] == "follows" and panel.numbers["control"]["correlation"] > 0.8
    sentence = panel.findings[0].sentence
    assert "may find the same classes similar (correlation" in sentence and "not clearly below 0.5" in sentence
    assert "taught" not in sentence and "No families" in panel.findings[1].sentence


class Blank(nn.Linear):
    """Begins with the same answer to everything."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def blank() -> Subject:
    module = Blank(CLASSES, CLASSES)
    with torch.no_grad():
        module.weight.copy_(torch.eye(CLASSES))
    return Subject(subject(2.0).data, module)


def test_where_no_control_answers_enough_classes_words_say_so():
    panel = similarity(blank(), Budget())
    control, finding = panel.numbers["control"], panel.findings[0]
    assert control["compared"] == 0 and control["correlation"] is None and panel.numbers["verdict"] == "unknown"
    assert "whether it was learnt is not known: of 5 networks" in finding.sentence
    assert "none answers at least three of these classes" in finding.sentence and "taught" not in finding.sentence
    assert "none can be compared" in finding.control and "None" not in finding.control + finding.sentence
    assert "the same on other draws of the examples:" not in panel.findings[1].sentence


def test_without_time_one_network_is_asked_and_nothing_is_claimed():
    panel = similarity(taught(subject(3.0), net(0)), Budget(0.0))
    assert panel.numbers["control"]["asked"] == 1 and panel.numbers["verdict"] == "unknown"
    assert "only 1 of 5 networks with random weights could be asked" in panel.notes[0]
    assert "there was time for 1 network with random weights" in panel.findings[0].sentence


def test_probabilities_of_nought_are_answers_too():
    made = subject(2.0)
    made.data.columns["inputs"][:, 3][made.data.columns["inputs"][:, 3] < 0] = -torch.inf
    panel = similarity(made, Budget())
    assert panel.numbers["verdict"] == "beyond" and np.isfinite(panel.numbers["levelled"])


def test_an_even_share_is_one_of_all_other_classes_also_where_some_are_never_answered():
    made = subject(0.0)
    made.data.columns["inputs"][:, 5] = -1
    assert similarity(made, Budget()).numbers["even"] == pytest.approx(1 / (CLASSES - 1))


def test_where_one_more_value_is_expected():
    drawn = np.random.default_rng(0).normal(size=(2000, 6))
    ends = [one_more(row[:5]) for row in drawn]
    held = [low < row[5] < high for (low, high), row in zip(ends, drawn, strict=True)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015) and one_more([1.0]) is None


def test_two_classes_leave_nothing_to_compare():
    values = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    data = ArraySource(values, labels=values.argmax(1))
    panel = similarity(Subject(data, answer=lambda inputs: inputs), Budget())
    assert not panel.findings and "two classes" in panel.notes[0]


def test_a_class_that_is_never_answered_is_left_out_and_named():
    made = subject(2.0)
    made.data.columns["inputs"][:, 5] = -9
    panel = similarity(made, Budget())
    assert panel.numbers["left_out"] == ["class 5"] and "class 5" in panel.notes[0]


def test_how_firm_it_is_on_validation_examples_stands_by_itself():
    firm, loose = (similarity(subject(strength), Budget()).numbers["validation"] for strength in (2.0, 0.0))
    assert firm["examples"] == len(subject(2.0).data.splits["validation"])
    assert firm["groups_again"] > 0.8 > 0.65 > loose["groups_again"]
    assert firm["pairs_again"] > 0.5 > loose["pairs_again"], "likeness that is noise is never taken for firm"
    made = subject(2.0)
    made.data.splits = {**made.data.splits, "validation": made.data.splits["validation"][:0]}
    assert similarity(made, Budget()).numbers["validation"] is None


def test_validation_examples_say_nothing_of_test_examples():
    made = subject(2.0)
    inputs, rows = made.data.columns["inputs"], made.data.splits["validation"]
    before = similarity(subject(2.0), Budget()).numbers
    inputs[rows] = torch.randn(len(rows), CLASSES, generator=torch.Generator().manual_seed(0)).to(inputs.dtype)
    after = similarity(made, Budget()).numbers
    assert before["pairs_again"] == after["pairs_again"]
    assert after["validation"]["groups_again"] < before["validation"]["groups_again"]
