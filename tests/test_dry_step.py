"""A step of every training is tried before any training: what a model or a loss would raise later is said now."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from stillroom.contracts import Batch
from stillroom.data.arrays import as_source
from stillroom.errors import ModelError, TapError, UserError
from stillroom.learner import Learner
from stillroom.losses import LOSSES
from stillroom.objectives import match
from stillroom.pipeline.checking import check_shapes
from stillroom.pipeline.distill import distill
from stillroom.pipeline.dry_step import rows_tried, try_step
from stillroom.settings import Training
from stillroom.taps import read
from stillroom.teachers import MovingAverage

X = torch.randn(80, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Own(Exception):
    pass


class Raises(nn.Module):
    """Fine in eval mode; in training mode it raises what no list of exceptions names."""

    def __init__(self, error: Exception | None = None, always: bool = False) -> None:
        super().__init__()
        self.layer, self.error, self.always = nn.Linear(8, 2), error, always

    def forward(self, inputs: Tensor) -> Tensor:
        if self.error is not None and (self.training or self.always):
            raise self.error
        return self.layer(inputs)


def told(tmp_path, teacher=None, student=small, data=None, objectives=("labels", "kd"), **training) -> str:
    """Return what distill says before anything is trained."""
    settings = Training(steps=2, **training)
    teacher, data = teacher or small(), (X, Y) if data is None else data
    with pytest.raises(UserError) as caught:
        distill(teacher, student, data, list(objectives), steps=2, training=settings, out=tmp_path / "run")
    assert not (tmp_path / "run" / "arms").exists(), "nothing was trained"
    return str(caught.value)


# --- sizes and modes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, objectives", [(1, ("labels",)), (8, ("labels", match("kd", part=0.1)))])
def test_a_single_row_under_batchnorm_is_found_before_training(batch, objectives, tmp_path):
    said = told(tmp_path, student=normed, objectives=objectives, batch=batch)
    assert "ValueError: Expected more than 1 value per channel" in said and "train.batch" in said
    assert f"inputs ({batch}, 8)" in said, "as many rows as training has"


def test_rows_that_are_enough_pass_and_leave_models_and_generator_as_they_were():
    from stillroom.pipeline.plan import ArmPlan, Experiment, TeacherPlan

    teacher, student = small().train(), normed()
    before = {name: value.clone() for name, value in (*teacher.state_dict().items(), *student.state_dict().items())}
    arm = ArmPlan(
        "main",
        lambda: [match("labels"), match("kd")],
        Training(steps=2, batch=8),
        None,
        lambda seed: student,
        None,
        {},
        {},
    )
    state = torch.random.get_rng_state()
    check_shapes(Experiment("try", as_source((X, Y)), {"": TeacherPlan({}, lambda: teacher)}, {"main": arm}, [0]))
    assert torch.equal(state, torch.random.get_rng_state())
    assert teacher.training and all(part.training for part in student.modules())
    after = dict((*teacher.state_dict().items(), *student.state_dict().items()))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("batch, part, rows", [(8, 1.0, 8), (1000, 1.0, 128), (1000, 0.002, 1000), (9, 0.5, 9)])
def test_so_many_rows_are_tried_that_a_part_of_them_is_as_small_as_in_training(batch, part, rows):
    learner = Learner(small(), ["labels", match("kd", part=part)])
    assert rows_tried(learner, Training(batch=batch)) == rows


def test_a_step_that_is_tried_is_a_step_of_training():
    seen: list[tuple[int, bool]] = []

    class Sees(nn.Linear):
        def forward(self, inputs):
            seen.append((len(inputs), self.training))
            return super().forward(inputs)

    student = Sees(8, 2)
    weight = student.weight.detach().clone()
    batch: Batch = {"id": torch.zeros(4, 2, dtype=torch.int64), "inputs": X[:4], "labels": Y[:4]}
    try_step(Learner(student, ["labels"]), "it", batch, {}, Training(batch=10, lr=0.1))
    assert seen == [(10, True)] and not torch.equal(weight, student.weight)


# --- whatever a module raises -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, words",
    [
        (Own("my own words"), "'Own: my own words'"),
        (KeyError("missing"), "KeyError"),
        (AssertionError("Torch not compiled with CUDA enabled"), "model.cpu()"),
        (StopIteration(), "StopIteration: no message"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("who", ["teacher", "student"])
def test_what_a_module_raises_is_quoted_with_its_type(who, error, words, tmp_path):
    given = {"teacher": Raises(error, always=True)} if who == "teacher" else {"student": lambda: Raises(error)}
    said = told(tmp_path, **given)
    assert words in said and f"the {who}" in said and "inputs (" in said


def test_a_function_that_fails_to_make_a_student_is_quoted(tmp_path):
    said = told(tmp_path, student=nn.Linear)
    assert "the function that makes the student: got 'TypeError" in said and "in_features" in said


def test_a_student_without_a_gradient_is_found_before_training(tmp_path):
    class Detached(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs).detach()

    assert "a Detached whose answers do not depend on its weights" in told(tmp_path, student=lambda: Detached(8, 2))


@pytest.mark.parametrize(
    "teacher, data, words",
    [
        (small(), ((X * 9).long(), Y), "inputs (4, 8) int64"),
        (small(), (X > 0, Y), "inputs (4, 8) bool"),
        (small(), ((X.abs() * 9).to(torch.uint16), Y), "inputs (4, 8) uint16"),
        (nn.Linear(8, 2).double(), (X, Y), "weights of float64"),
    ],
    ids=["int64", "bool", "uint16", "float64"],
)
def test_where_types_differ_types_are_named_and_not_shapes(teacher, data, words, tmp_path):
    said = told(tmp_path, teacher, data=data)
    assert words in said and "inputs.float()" in said and "shapes" not in said


def test_where_shapes_differ_shapes_are_named(tmp_path):
    said = told(tmp_path, nn.Linear(9, 2))
    assert "4x8 and 9x2" in said and "shapes that it is made for" in said


def test_bfloat16_inputs_are_taken_as_float32(tmp_path):
    source = as_source((X.bfloat16(), Y))
    assert source.inputs.dtype == torch.float32 and torch.equal(source.inputs, X.bfloat16().float())


# --- modules of other kinds -------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_lazy_module_is_told_to_run_once(who, tmp_path):
    given = {"teacher": nn.LazyLinear(2)} if who == "teacher" else {"student": lambda: nn.LazyLinear(2)}
    assert "'weight', of a lazy module" in told(tmp_path, **given)


class Locked(nn.Linear):
    """What copy.deepcopy cannot copy."""

    def __init__(self) -> None:
        super().__init__(8, 2)
        self.lock = threading.Lock()


def test_a_module_that_cannot_be_copied_names_the_way_that_works(tmp_path):
    old = Locked()
    with pytest.raises(ModelError, match="The student cannot be copied.*pass a function"):
        distill(small(), old, (X, Y), ["labels", "kd"], steps=2)
    with pytest.raises(ModelError, match="cannot be copied"):
        MovingAverage(old)
    made = distill(small(), Locked, (X, Y), ["labels", "kd"], steps=2)
    assert made.report().is_file(), "the advice can be followed"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_answers_and_cannot_be_looked_into(tmp_path):
    scripted = torch.jit.script(small())
    batch = {"id": torch.zeros(2, 2, dtype=torch.int64), "inputs": X[:2]}
    assert read(scripted, ["logits"])(batch)["logits"].shape == (2, 2)
    for tap in ("0", "features"):
        with pytest.raises(TapError, match="A TorchScript module cannot be looked into"):
            read(scripted, [tap])


def test_a_tap_inside_a_compiled_part_says_compiled():
    model = nn.Sequential(small(), nn.Linear(2, 2))
    model[0]._compiled_call_impl = lambda inputs: inputs[:, :2]  # what compile() leaves, without the compiler
    batch = {"id": torch.zeros(2, 2, dtype=torch.int64), "inputs": X[:2]}
    with pytest.raises(TapError, match=r"'0.0' saw nothing: got a compiled module \('0'\)"):
        read(model, ["0.0"])(batch)


# --- which part of an answer ------------------------------------------------------------------------------


class Heads(nn.Module):
    def __init__(self, named: bool) -> None:
        super().__init__()
        self.first, self.second, self.named = nn.Linear(8, 2), nn.Linear(8, 3), named

    def forward(self, inputs):
        first, second = self.first(inputs), self.second(inputs)
        return {"logits": first, "other": second} if self.named else (first, second)


def test_two_heads_are_told_a_way_that_works(tmp_path):
    assert "return {'logits': first, 'other': second}" in told(tmp_path, Heads(False))
    objectives = ["labels", "kd", match("mse_logits", "output[other]", "output[other]")]
    result = distill(Heads(True), lambda: Heads(True), (X, Y), objectives, steps=2)
    assert result.metrics["models"]["main"]["agreement"]["mean"] <= 1 and "mse_logits" in LOSSES


@dataclass
class Answer:
    scores: Tensor
    note: str = ""


def test_the_only_tensor_of_a_dataclass_is_the_logits():
    class Says(nn.Linear):
        def forward(self, inputs):
            return Answer(super().forward(inputs))

    batch = {"id": torch.zeros(3, 2, dtype=torch.int64), "inputs": X[:3]}
    assert read(Says(8, 2), ["logits"])(batch)["logits"].shape == (3, 2)


# --- rows -------------------------------------------------------------------------------------------------


class Memory(nn.Module):
    """Reads (B, T, 8) through an LSTM whose first axis is time."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 5), nn.Linear(5, 2)

    def forward(self, inputs):
        steps, _ = self.rnn(inputs.transpose(0, 1))
        return self.head(steps[-1])


@pytest.mark.parametrize("length", [2, 3, 4, 7])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_tap_whose_first_axis_is_time_is_refused_also_where_it_is_as_long_as_the_batch(length, rows):
    batch = {"id": torch.zeros(rows, 2, dtype=torch.int64), "inputs": torch.randn(rows, length, 8)}
    for tap in ("rnn[0]", "rnn:in"):
        with pytest.raises(TapError, match="does not give a row for each example.*batch_first=True.*'rnn@h'"):
            read(Memory(), [tap])(batch)
    assert read(Memory(), ["rnn@h", "features"])(batch)["rnn@h"].shape == (rows, length, 1, 1, 5)


# --- probabilities ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end, said", [(nn.Softmax(1), True), (nn.LogSoftmax(1), False)])
def test_a_teacher_that_answers_probabilities_is_told_in_the_notes(end, said, tmp_path):
    result = distill(nn.Sequential(small(), end), small, (X, Y), ["labels", "kd"], steps=2, out=tmp_path)
    notes = [note for note in result.metrics["notes"] if "the teacher answers probabilities" in note]
    assert len(notes) == said
