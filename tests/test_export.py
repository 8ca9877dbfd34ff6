"""Graphs answer like the network, are equal for equal weights, and hold nothing of the author's machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from stillroom.errors import ExportError, MissingPart
from stillroom.export import AGREEMENT, FLOAT32, INT8, export, measure, write_int8, write_onnx
from stillroom.models.bundle import CONFIG, WEIGHTS, Deployed, load
from stillroom.models.encode import ImageEncode
from stillroom.models.zoo import build

SHAPE = (1, 12, 12)
CLASSES = ["dark", "light", "left", "right"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four kinds of picture that differ in brightness or in their brighter side."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (rows,), generator=generator)
    pixels = torch.full((rows, *SHAPE), 110.0)
    pixels += torch.tensor([-60.0, 60.0, 0.0, 0.0])[labels].view(-1, 1, 1, 1)
    side = torch.tensor([0.0, 0.0, 60.0, -60.0])[labels].view(-1, 1, 1, 1)
    pixels += side * torch.linspace(1, -1, 12)
    pixels += 12 * torch.randn(pixels.shape, generator=generator)
    return pixels.clamp(0, 255).to(torch.uint8), labels


def trained(name: str, **options) -> Deployed:
    torch.manual_seed(2)
    encode = ImageEncode([0.43], [0.2])
    model = build(name, shape=SHAPE, classes=4, **options).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(40):
        inputs, labels = pictures(64, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(encode(inputs)), labels).backward()
        optimizer.step()
    return Deployed(
        model,
        encode,
        config={
            "model": {"use": name, "options": options},
            "shape": list(SHAPE),
            "input": {"dtype": "uint8", "shape": list(SHAPE)},
            "classes": CLASSES,
        },
    )


def hashes(folder) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


ROWS = pictures(150, 1001)
EXAMPLES = pictures(128, 1000)[0]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cnn")
    deployed, told = trained("cnn", width=4), []
    result = export(
        deployed, folder, examples=EXAMPLES, check=ROWS, int8=True, progress=lambda *step: told.append(step)
    )
    return deployed, folder, result, told


def test_every_file_is_measured_on_real_rows(cnn):
    deployed, folder, result, told = cnn
    assert sorted(os.listdir(folder)) == sorted([WEIGHTS, CONFIG, FLOAT32, INT8])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert set(result["files"]) == {WEIGHTS, CONFIG, FLOAT32, INT8}
    for name, facts in result["files"].items():
        assert facts["bytes"] == (folder / name).stat().st_size
    assert result["torch"]["accuracy"] > 0.9, "the fixture did not learn; the rest would prove little"
    exact, coarse = result["files"][FLOAT32], result["files"][INT8]
    assert exact["max_abs_difference"] < 1e-4 and exact["agreement"] == 1
    assert exact["accuracy"] == result["torch"]["accuracy"] and result["rows"] == 150
    assert coarse["method"] == "static, per channel" and coarse["accepted"] and coarse["agreement"] >= 0.98
    assert coarse["max_abs_difference"] > exact["max_abs_difference"]
    assert all(facts["latency_ms"] > 0 and facts["throughput_per_s"] > 0 for facts in (exact, coarse))
    assert result["warnings"] == []
    assert told == [(0, 3, "bundle"), (1, 3, FLOAT32), (2, 3, INT8), (3, 3, "exported")]
    assert deployed.model.training, "export changed the mode of the caller's model"


def test_the_graph_takes_raw_pixels_at_any_batch_size(cnn):
    import onnx
    import onnxruntime

    deployed, folder, _, _ = cnn
    session = onnxruntime.InferenceSession(str(folder / FLOAT32), providers=["CPUExecutionProvider"])
    entering, leaving = session.get_inputs()[0], session.get_outputs()[0]
    assert (entering.name, entering.type, entering.shape[1:]) == ("inputs", "tensor(uint8)", list(SHAPE))
    assert (leaving.name, leaving.shape[1:]) == ("logits", [4]) and isinstance(entering.shape[0], str)
    loaded = load(folder)
    for size in (1, 2, 7):
        answer = session.run(None, {"inputs": ROWS[0][:size].numpy()})[0]
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(answer), loaded(ROWS[0][:size]), atol=1e-4)
    onnx.checker.check_model(str(folder / FLOAT32), full_check=True)


def test_an_int8_graph_has_a_scale_for_each_channel(cnn):
    import onnx

    _, folder, _, _ = cnn
    graph = onnx.load(str(folder / INT8)).graph
    held = {one.name: one for one in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in held]
    shapes = [(list(held[node.input[0]].dims), list(held[node.input[1]].dims)) for node in weights]
    kernels = [(weight[0], scale) for weight, scale in shapes if weight[2:] == [3, 3]]
    assert len(kernels) == 3 and all(scale == [channels] for channels, scale in kernels), shapes


def test_no_path_or_trace_of_the_machine_is_in_any_file(cnn):
    _, folder, _, _ = cnn
    for file in folder.iterdir():
        content = file.read_bytes()
        for trace in (
            os.getcwd(),
            str(folder),
            os.path.expanduser("~") + "/",
            sys.prefix,
            "site-packages",
            'File "',
            '.py"',
        ):
            assert trace.encode() not in content, f"{trace} in {file.name}"
        assert not re.search(rb"/(?:home|root|tmp|usr|work|Users)/", content), file.name


def test_equal_weights_give_equal_bytes_and_old_graphs_do_not_stay(cnn, tmp_path):
    deployed, folder, _, _ = cnn
    (tmp_path / ".model.onnx.abc.part").write_bytes(b"left by a kill")
    export(deployed, tmp_path, examples=EXAMPLES, check=ROWS, int8=True)
    assert hashes(tmp_path) == hashes(folder)
    result = export(load(tmp_path), tmp_path, examples=EXAMPLES, check=ROWS)
    assert sorted(result["files"]) == sorted(os.listdir(tmp_path)) == sorted([WEIGHTS, CONFIG, FLOAT32])
    assert hashes(tmp_path).items() <= hashes(folder).items(), "what was loaded exports otherwise"


def test_an_int8_graph_below_the_bound_is_written_but_not_accepted(cnn, tmp_path):
    deployed, folder, _, _ = cnn
    dark = torch.zeros_like(EXAMPLES)  # ranges seen here say nothing about real pictures
    result = export(deployed, tmp_path, examples=dark, check=ROWS, int8=True)
    coarse = result["files"][INT8]
    assert not coarse["accepted"] and coarse["agreement"] < 0.98 and (tmp_path / INT8).is_file()
    assert len(result["warnings"]) == 1 and "not to be trusted" in result["warnings"][0]
    assert result["files"][FLOAT32]["agreement"] == 1


def test_without_a_convolution_weights_alone_are_quantised(tmp_path):
    deployed = trained("net", hidden=64)
    labels = ROWS[1].clone()
    labels[10:] = -1
    result = export(deployed, tmp_path, examples=EXAMPLES, check=(ROWS[0], labels), int8=True)
    coarse = result["files"][INT8]
    assert coarse["method"] == "dynamic" and coarse["accepted"]
    assert coarse["bytes"] < 0.5 * result["files"][FLOAT32]["bytes"]
    assert round(result["torch"]["accuracy"] * 10, 6).is_integer(), "rows without a label were counted"
    no_labels = write_onnx(deployed, tmp_path / "teacher.onnx", examples=EXAMPLES)
    assert no_labels["accuracy"] is None and no_labels["agreement"] == 1
    facts = measure(tmp_path / "teacher.onnx", EXAMPLES[:1], calls=5)
    assert set(facts) == {"bytes", "latency_ms", "throughput_per_s"}


class Memory(nn.Module):
    """Words, a two-way LSTM, the highest of its answers over time."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, ids):
        return self.head(self.lstm(self.words(ids))[0].amax(1))


def test_a_memory_is_exported_twice_with_its_length_free(tmp_path, capfd):
    torch.manual_seed(0)
    deployed, ids = Deployed(Memory()), torch.randint(0, 20, (12, 10))
    shapes = {0: "batch", 1: "time"}
    for name in ("first", "second"):
        facts = write_onnx(deployed, tmp_path / name, examples=ids, dynamic=shapes)
        assert facts["max_abs_difference"] < 1e-5
    # not byte by byte: torch numbers the free lengths of a memory anew, now and then, which changes names alone
    assert measure(tmp_path / "second", ids[:, :4])["latency_ms"] > 0
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""


class Fickle(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act, self.head = act, nn.Linear(4, 2)

    def forward(self, inputs):
        return self.act(self.head(inputs))


@pytest.mark.parametrize(
    "act, words",
    [
        (lambda logits: logits if logits.sum() > 0 else -logits, "cannot be written as an ONNX graph"),
        (lambda logits: logits + torch.rand_like(logits), "does not answer like the network"),
    ],
)
def test_a_graph_that_would_lie_does_not_take_its_name(tmp_path, act, words):
    rows = torch.randn(8, 4)
    (tmp_path / FLOAT32).write_bytes(b"of earlier weights")
    with pytest.raises(ExportError, match=words):
        export(Deployed(Fickle(act)), tmp_path, examples=rows, check=(rows, None))
    assert sorted(os.listdir(tmp_path)) == [CONFIG, WEIGHTS]


def test_wrong_rows_and_files_are_refused(tmp_path):
    deployed, rows = Deployed(nn.Linear(4, 2)), torch.randn(8, 4)
    for examples, check, words in [
        (rows[:1], rows, "Too few rows"),
        (rows, rows[:2], "Too few rows"),
        (rows, rows.double(), "float64"),
        (rows.half(), rows.half(), "float16"),
    ]:
        with pytest.raises(ExportError, match=words):
            export(deployed, tmp_path / "out", examples=examples, check=(check, None))
    assert not (tmp_path / "out").exists()
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="cannot be run"):
        measure(tmp_path / "x.onnx", rows)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_part_names_what_to_install(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    rows = torch.randn(8, 4)
    with pytest.raises(MissingPart, match=rf"'{package}'.*stillroom\[export\]"):
        export(Deployed(nn.Linear(4, 2)), tmp_path / "out", examples=rows, check=(rows, None))
    if package == "onnxruntime":
        with pytest.raises(MissingPart, match="onnxruntime"):
            measure(tmp_path / "x.onnx", rows)
    assert not (tmp_path / "out").exists()


SCRIPT = """
import sys, torch
from torch import nn
from stillroom.export import export
from stillroom.models.bundle import Deployed
torch.manual_seed(0)
torch.set_num_threads(1)
rows = torch.randn(8, 4)
export(Deployed(nn.Linear(4, 2)), sys.argv[1], examples=rows, check=(rows, None), int8=True)
"""


@pytest.mark.parametrize(
    "fault, left", [("file:flushed:3", [CONFIG, WEIGHTS]), ("export:onnx", [CONFIG, WEIGHTS, FLOAT32])]
)
def test_killed_at_any_moment_only_whole_files_stand(tmp_path, fault, left):
    environment = os.environ | {"STILLROOM_FAULT": fault, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == -signal.SIGKILL
    assert sorted(name for name in os.listdir(tmp_path) if not name.startswith(".")) == sorted(left)
    rows = torch.randn(8, 4)
    assert load(tmp_path, model=nn.Linear(4, 2))(rows).shape == (8, 2)
    if FLOAT32 in left:
        assert measure(tmp_path / FLOAT32, rows, calls=2)["bytes"] > 0


def test_importing_export_loads_no_optional_part():
    code = "import sys, stillroom.export; sys.exit(any(name.startswith('onnx') for name in sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode == 0


def test_write_int8_refuses_what_is_no_graph(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph at all")
    with pytest.raises(ExportError, match="cannot be"):
        write_int8(tmp_path / "x.onnx", tmp_path / "y.onnx", examples=EXAMPLES)
    assert os.listdir(tmp_path) == ["x.onnx"]
    assert AGREEMENT == 0.98


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ExportError, match="An export is a folder"):
        write_to = tmp_path / "taken"
        export(Deployed(nn.Linear(2, 2)), write_to, examples=torch.rand(4, 2), check=(torch.rand(4, 2), None))
    assert (tmp_path / "taken").read_text() == "mine"
