"""What is said of a graph beside its network: differences, agreement, accuracy and times, each by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.errors import ExportError
from stillroom.export import measure, running
from stillroom.export.feeding import Served, in_batches, serve
from stillroom.export.running import accuracy, compare, must_agree

NETWORK = torch.tensor([[3.0, 1.0], [0.0, 2.0], [1.0, 1.5], [2.0, 0.0]])
GRAPH = torch.tensor([[3.0, 1.0], [0.0, 2.0], [1.0, 0.5], [2.0, 0.25]])  # answers row 2 otherwise
LABELS = torch.tensor([0, 0, 1, -1])


@pytest.fixture
def graph(monkeypatch):
    """A graph that gives the rows of ``GRAPH``."""
    monkeypatch.setattr(running, "open_session", lambda path: None)
    monkeypatch.setattr(running, "_run", lambda session, feeds: GRAPH[: len(feeds["inputs"])])


def test_a_graph_is_compared_row_by_row(graph, tmp_path):
    found = compare(tmp_path, (torch.zeros(4, 1), LABELS), NETWORK, None)
    assert found == {"max_abs_difference": 1.0, "agreement": 0.75, "accuracy": pytest.approx(1 / 3)}
    assert accuracy(NETWORK, LABELS) == pytest.approx(2 / 3) and accuracy(NETWORK, None) is None
    assert accuracy(NETWORK, torch.full((4,), -1)) is None


def test_one_logit_stands_for_two_classes():
    assert accuracy(torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([1, 0, 0])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("difference", "elsewhere", "refused"), [(0.002, 0.0, False), (0.004, 0.0, True),
                                                                  (0.0, 0.004, True)])  # fmt: skip
def test_a_graph_may_differ_by_a_thousandth_of_the_largest_logit(monkeypatch, tmp_path, difference, elsewhere, refused):
    """The largest is 3, so the bound is 0.003, also at shapes that the graph was not traced with."""
    monkeypatch.setattr(running, "open_session", lambda path: None)
    monkeypatch.setattr(running, "_run", lambda session, feeds: feeds["inputs"] + elsewhere)
    served = Served(nn.Identity(), None, {0: "batch"})
    call = lambda: must_agree(served, tmp_path, NETWORK, {"max_abs_difference": difference}, NETWORK)  # noqa: E731
    if not refused:
        assert call() is None
        below = {"max_abs_difference": difference}
        return must_agree(served, tmp_path, NETWORK, below, -NETWORK)  # as large, on the other side of nought
    with pytest.raises(ExportError, match="does not answer like the network"):
        call()


def test_latency_is_of_one_row_in_milliseconds_and_throughput_of_sixty_four(monkeypatch, tmp_path):
    asked = []

    def seconds(session, batches, calls):
        rows = {len(feeds["inputs"]) for feeds in batches}
        asked.append((rows, calls))
        return 0.002 * max(rows) ** 0.5  # 2 ms for a row, 16 ms for 64

    monkeypatch.setattr(running, "open_session", lambda path: None)
    monkeypatch.setattr(running, "_median_seconds", seconds)
    (tmp_path / "graph").write_bytes(b"12345")
    found = measure(tmp_path / "graph", torch.zeros(5, 3), calls=30)
    assert found == {"bytes": 5, "latency_ms": pytest.approx(2.0), "throughput_per_s": pytest.approx(4000.0)}
    assert asked == [({1}, 30), ({64}, 20)]


def test_a_network_is_served_in_evaluation_mode_on_every_row():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.9)).train()
    rows = torch.randn(130, 3)
    with torch.no_grad():
        assert torch.allclose(serve(model, rows).answers(rows), model[0](rows))
    assert model.training and [len(feeds["inputs"]) for feeds in in_batches(rows)] == [64, 64, 2]
