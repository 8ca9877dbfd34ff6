"""What an export takes, and what it says of a graph that takes other rows; no graph is traced here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stillroom.errors import ExportError
from stillroom.export import running, writing
from stillroom.files import read_json
from stillroom.models.bundle import load

ROWS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def test_a_bare_network_is_exported_with_a_configuration_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "need", lambda: None)
    monkeypatch.setattr(writing, "_write_float32", lambda *given: {"agreement": 1.0})
    network = nn.Linear(6, 2)
    writing.export(network, tmp_path / "out", examples=ROWS, check=(ROWS, None))
    config = read_json(tmp_path / "out" / "config.json")
    assert config["input"] == {"dtype": "float32", "shape": [6]} and config["shape"] == [6]
    assert config["model"] == {"class": "torch.nn.modules.linear.Linear"}
    again = load(tmp_path / "out", model=nn.Linear(6, 2))
    assert torch.equal(again(ROWS), network(ROWS))


def test_a_graph_of_a_fixed_number_of_rows_is_told_what_fixes_it():
    class Session:
        def get_inputs(self):
            return [SimpleNamespace(name="inputs", type="tensor(float)", shape=[2, 6])]

        def run(self, names, feeds):
            raise RuntimeError("Got invalid dimensions for input")

    with pytest.raises(ExportError, match=r"does not take these rows.*len\(x\).*x\.size\(0\)"):
        running._run(Session(), {"inputs": ROWS})
