"""Concepts: planted directions are found, noise has none, and what is taken away is what the class needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.data.images import digits
from stillroom.mining import Budget, Subject
from stillroom.mining.concepts import concepts
from stillroom.mining.concepts.sparse import by_chance, explained, fit, principal


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def planted(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(12, 32), dim=1)
    used = torch.rand(rows, 12).argsort(1) < 2
    return truth, (used * (1 + torch.rand(rows, 12))) @ truth


def test_planted_directions_are_found_and_noise_has_none():
    truth, rows = planted(2000)
    found = fit(rows, 24, 4)
    best = (truth @ found.directions.T).amax(1)
    assert float((best >= 0.9).double().mean()) >= 0.9, best
    _, others = planted(3000)
    held = explained(others[2000:], found.rebuilt(others[2000:]), found.middle)
    assert held > 0.9 and held - by_chance(rows, 24, 4) > 0.15 and held - principal(rows, others[2000:], 4) > 0.15
    noise = torch.randn(4000, 32)
    own = fit(noise[:2000], 24, 4)
    ahead = explained(noise[2000:], own.rebuilt(noise[2000:]), own.middle) - by_chance(noise[:2000], 24, 4)
    assert abs(ahead) < 0.02, "choosing a unit for each row explains something of noise too, and no more than that"


def test_the_concepts_of_a_network_of_digits():
    source = digits()
    torch.manual_seed(0)
    batch = source.batch(torch.stack([source.splits["train"], torch.zeros_like(source.splits["train"])], 1))
    width = batch["inputs"][0].numel()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(width, 64), nn.Linear(64, 10)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(inputs.flatten(1).float() / 255).relu())

    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        loss = nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    numbers = concepts(Subject(source, model), Budget()).numbers
    assert numbers["explained"] >= 0.9 and numbers["dead"] <= 0.05, numbers
    for name in {entry["class"] for entry in numbers["concepts"]}:
        top = next(entry for entry in numbers["concepts"] if entry["class"] == name)
        print(name, top["effect"] / top["random"])
    assert numbers["concepts"][0]["effect"] >= 3 * numbers["concepts"][0]["random"]
    assert concepts(Subject(source, answer=lambda rows: torch.zeros(len(rows), 10)), Budget()).notes
