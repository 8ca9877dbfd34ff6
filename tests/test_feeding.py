"""A text model's graph takes what its tokenizer makes of a text, at any length, and answers like the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stillroom import utf8
from stillroom.errors import ExportError
from stillroom.export import FLOAT32, INT8, export, measure, write_int8, write_onnx
from stillroom.export.feeding import feed, to_trace
from stillroom.models.bundle import CONFIG, Deployed, load
from stillroom.models.text_encode import WordEncode
from stillroom.models.zoo import build

WORDS = ["a", "film", "fine", "dull", "the", "actor", "plot", "was", "and", "really", "never", "good", "bad"]
GOOD, BAD = {"fine", "good"}, {"dull", "bad"}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Reader(nn.Module):
    def __init__(self, kind="LSTM"):
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS) + 2, 16)
        self.memory = getattr(nn, kind)(16, 24, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, 2)

    def forward(self, ids, mask):
        states = self.memory(self.embedding(ids))[0]
        return self.head(states.masked_fill(~mask.unsqueeze(2), -1e4).amax(1))


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS) + 2, 16)
        self.convolution = nn.Conv1d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 2)

    def forward(self, ids, mask):
        seen = (self.embedding(ids) * mask.unsqueeze(2)).transpose(1, 2)
        maps = torch.relu(self.convolution(seen)) * mask.unsqueeze(1)
        return self.head(maps.amax(2))


def reviews(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    neutral = [word for word in WORDS if word not in GOOD | BAD]
    texts, labels = [], []
    for _ in range(rows):
        label = int(torch.randint(0, 2, (), generator=generator))
        length = int(torch.randint(0, 9, (), generator=generator))
        words = [neutral[int(torch.randint(0, len(neutral), (), generator=generator))] for _ in range(length)]
        place = int(torch.randint(0, length + 1, (), generator=generator))
        texts.append(" ".join([*words[:place], sorted(GOOD if label else BAD)[length % 2], *words[place:]]))
        labels.append(label)
    return texts, torch.tensor(labels)


def trained(model):
    torch.manual_seed(3)
    for part in model.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    optimizer, encode = torch.optim.Adam(model.parameters(), 1e-2), WordEncode(WORDS, longest=400)
    for step in range(60):
        texts, labels = reviews(32, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(**encode(utf8.pack(texts))), labels).backward()
        optimizer.step()
    return Deployed(
        model, encode, config={"shape": [15], "input": {"dtype": "text", "shape": []}, "classes": ["bad", "good"]}
    )


EXAMPLES = utf8.pack(reviews(90, 1000)[0])
TEXTS, LABELS = reviews(130, 1001)
ROWS = (utf8.pack(TEXTS), LABELS)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    deployed = trained(Reader())
    return deployed, folder, export(deployed, folder, examples=EXAMPLES, check=ROWS, int8=True)


def test_both_graphs_are_checked_and_measured_on_raw_texts(reader):
    deployed, _, result = reader
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    exact, coarse = result["files"][FLOAT32], result["files"][INT8]
    assert result["rows"] == 130 and result["torch"]["accuracy"] > 0.95, "the fixture did not learn"
    assert exact["agreement"] == 1 and exact["max_abs_difference"] < 1e-5
    assert exact["accuracy"] == result["torch"]["accuracy"]
    assert coarse["method"] == "dynamic" and coarse["accepted"] and "note" not in coarse
    assert coarse["bytes"] < 0.6 * exact["bytes"]
    assert all(facts["latency_ms"] > 0 and facts["throughput_per_s"] > 0 for facts in (exact, coarse))
    assert 0 < exact["encode_ms"] < 50
    assert deployed.training, "export changed the mode of the caller's model"


@pytest.mark.parametrize("name", [FLOAT32, INT8])
def test_a_graph_takes_ids_and_mask_of_any_batch_and_length(reader, name):
    import onnxruntime

    deployed, folder, _ = reader
    session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
    entering = {one.name: (one.type, one.shape) for one in session.get_inputs()}
    assert {key: kind for key, (kind, _) in entering.items()} == {"ids": "tensor(int64)", "mask": "tensor(bool)"}
    assert all(isinstance(axis, str) for _, shape in entering.values() for axis in shape)
    assert session.get_outputs()[0].name == "logits"
    for texts in (["fine"], ["dull", "the plot was good"], TEXTS[:7], ["the " * 300 + "good"]):
        feeds = {key: value.numpy() for key, value in deployed.encode(utf8.pack(texts)).items()}
        with torch.no_grad():
            expected = deployed.eval()(texts).numpy()
        answer = session.run(None, feeds)[0]
        assert answer.shape == (len(texts), 2)
        assert np.abs(answer - expected).max() < (1e-4 if name == FLOAT32 else 1.0)  # int8 saturates without VNNI


def test_the_bundle_says_what_its_graph_takes_and_answers_strings(reader):
    deployed, folder, _ = reader
    config = json.loads((folder / CONFIG).read_text())
    assert config["notes"]["graph"]["takes"] == {"ids": "int64 (batch, time)", "mask": "bool (batch, time)"}
    assert config["input"] == {"dtype": "text", "shape": []} and config["shape"] == [15]
    loaded = load(folder, model=Reader())
    with torch.no_grad():
        assert torch.equal(loaded(TEXTS[:5]), loaded(utf8.pack(TEXTS[:5])))
        assert torch.equal(loaded("a fine film"), loaded(["a fine film"]))
        assert torch.equal(loaded(TEXTS[:5]), deployed.eval()(TEXTS[:5]))


@pytest.mark.parametrize(
    "name, options, method",
    [
        ("bilstm", {"hidden": 12, "layers": 2}, "dynamic"),  # turns rows by their lengths between two LSTMs
        ("bigru", {"hidden": 12, "pool": "last"}, "dynamic"),
        ("textcnn", {"filters": 16}, "static, per channel"),
        ("textmlp", {"hidden": 16}, "dynamic"),
    ],
)
def test_every_text_model_of_the_zoo_leaves_and_comes_back(tmp_path, name, options, method):
    options |= {"embedding": 16}
    model = build(name, shape=(15,), classes=2, **options)
    deployed = trained(model)
    deployed.config["model"] = {"use": name, "options": options}
    result = export(deployed, tmp_path, examples=EXAMPLES, check=ROWS, int8=True)
    assert result["torch"]["accuracy"] > 0.9, "it did not learn"
    exact, coarse = result["files"][FLOAT32], result["files"][INT8]
    assert exact["agreement"] == 1 and exact["max_abs_difference"] < 1e-4
    assert coarse["method"] == method and coarse["accepted"]
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(TEXTS[:9]), deployed.eval()(TEXTS[:9]))


def test_what_is_not_said_of_a_text_model_is_taken_from_its_tokenizer(tmp_path):
    bare = Deployed(Reader(), WordEncode(WORDS), config={})
    export(bare, tmp_path, examples=EXAMPLES, check=ROWS)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["shape"] == [15] and config["input"] == {"dtype": "text", "shape": []}


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch.export on any LSTM
def test_what_an_export_found_is_not_kept_by_torch(tmp_path):
    torch.manual_seed(0)
    model = nn.LSTM(4, 3, batch_first=True)
    values = torch.randn(2, 5, 4)
    before = model(values)[0]
    write_onnx(trained(Reader()), tmp_path / "x.onnx", examples=EXAMPLES, check=ROWS)
    after = model(values)[0]
    assert torch.equal(before, after) and after.requires_grad
    after.sum().backward()
    fixed = torch.export.export(model, (values,)).module()
    assert torch.allclose(fixed(values)[0], before)


def test_a_graph_is_used_without_pytorch_as_the_example_shows(reader):
    deployed, folder, _ = reader
    script = Path(__file__).parent.parent / "examples" / "predict_text_onnx.py"
    code = (
        f"import runpy, sys; sys.argv = ['x', {str(folder)!r}, 'the plot was good', 'Dull!', '']\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__'); sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = deployed.eval()(["the plot was good", "Dull!", ""]).softmax(1)
    for line, row in zip(done.stdout.splitlines(), expected, strict=True):
        assert line.split()[:2] == [["bad", "good"][int(row.argmax())], f"{float(row.max()):.4f}"]


def test_a_network_of_convolutions_is_quantised_on_texts(tmp_path):
    deployed = trained(Windows())
    result = export(deployed, tmp_path, examples=EXAMPLES, check=ROWS, int8=True)
    coarse = result["files"][INT8]
    assert coarse["method"] == "static, per channel" and coarse["accepted"], coarse
    assert result["files"][FLOAT32]["agreement"] == 1


def test_the_weights_of_a_gru_are_said_to_stay(tmp_path):
    facts = write_onnx(trained(Reader("GRU")), tmp_path / "gru.onnx", examples=EXAMPLES, check=ROWS)
    assert facts["agreement"] == 1
    coarse = write_int8(tmp_path / "gru.onnx", tmp_path / "int8.onnx", examples=EXAMPLES, encode=WordEncode(WORDS))
    assert "GRU" in coarse["note"]
    assert measure(tmp_path / "int8.onnx", EXAMPLES, encode=WordEncode(WORDS), calls=3)["latency_ms"] > 0


def test_texts_of_one_word_do_not_fix_the_length(tmp_path):
    from stillroom.export.feeding import serve

    single = utf8.pack(["fine", "dull", "good"])
    served = serve(trained(Reader()), single)
    assert to_trace(single, served)["ids"].shape == (2, 2)
    assert write_onnx(trained(Reader()), tmp_path / "x.onnx", examples=single, check=ROWS)["agreement"] == 1


class Fixed(Reader):
    def forward(self, ids, mask):
        return super().forward(ids, mask) + (0.0 if ids.shape[1] > 1 else 1.0)


def test_a_graph_that_fixes_its_length_is_refused(tmp_path):
    with pytest.raises(ExportError, match="cannot be written|does not answer"):
        write_onnx(trained(Fixed()), tmp_path / "x.onnx", examples=EXAMPLES, check=ROWS)
    assert not os.listdir(tmp_path)


class Bare(WordEncode):
    def forward(self, inputs):
        return super().forward(inputs)["ids"]


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(ExportError, match="dictionary of tensors"):
        feed(EXAMPLES, Bare(WORDS))
    with pytest.raises(ExportError, match="texts as uint8"):
        write_onnx(trained(Reader()), tmp_path / "x.onnx", examples=torch.zeros(4, 5))
