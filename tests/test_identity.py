"""Who is this model: nothing that another one answered or learnt is taken for its own, and nothing is trained over."""

from __future__ import annotations

import copy
import json
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import stillroom
from stillroom.data.arrays import as_source
from stillroom.errors import ModelError, UserError
from stillroom.models.bundle import Deployed
from stillroom.pipeline.distill import _Students, distill
from stillroom.record import record
from stillroom.teachers import Live

ROWS = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
LABELS = (ROWS[:, 0] > 0).long()
KNOWS = torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]])  # logits (-x, x): always right


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """All calls of a test share one cache."""
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Scaled(nn.Module):
    """Two of these differ in a Python attribute alone."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2, bias=False)
        self.linear.weight = nn.Parameter(KNOWS.clone())
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scale


class Flipped(nn.Module):
    """An encode without ``describe``: two of these differ in a buffer alone."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.register_buffer("k", torch.tensor(k))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.k


class Session:
    """A black box: what it computes stands in a closure over something that nobody can read."""

    def __init__(self, sign: float) -> None:
        self.lock, self.sign = threading.Lock(), sign

    def run(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            return self.sign * x @ KNOWS.T


class Wrapper(nn.Module):
    """One class around any black box."""

    def __init__(self, box: object) -> None:
        super().__init__()
        self.box = box

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.box.run(x)


class Trees:
    def __init__(self, labels: torch.Tensor) -> None:
        from sklearn.ensemble import RandomForestClassifier

        self.model = RandomForestClassifier(5, random_state=0).fit(ROWS.numpy(), labels.numpy())

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.model.predict_proba(x.numpy()).astype(np.float32))


def linear() -> nn.Module:
    return nn.Linear(4, 2)


def call(teacher, student=linear, **more):
    more = {"steps": 4, "control": False, **more}
    return distill(teacher, student, (ROWS, LABELS), more.pop("objectives", ["kd"]), **more)


def right(module: nn.Module) -> float:
    """The share of test rows that a module answers rightly, counted by hand."""
    test = as_source((ROWS, LABELS)).splits["test"]
    with torch.no_grad():  # all rows at once: that is how they are recorded, and int8 scales hang on it
        return float((module(ROWS).argmax(1) == LABELS)[test].double().mean())


def said(result, who: str = "teacher") -> float:
    return result.metrics["models"][who]["score"]["mean"]


# --- teachers ------------------------------------------------------------------------------------------

OPPOSITES = {
    "attribute": lambda sign: Scaled(sign),
    "encode's buffer": lambda sign: Deployed(Scaled(1.0), Flipped(sign)),
    "black box": lambda sign: Wrapper(Session(sign)),
    "trees": lambda sign: Wrapper(Trees(LABELS if sign > 0 else 1 - LABELS)),
}


@pytest.mark.parametrize("kind", OPPOSITES)
def test_a_teacher_is_never_taken_for_its_opposite(kind, tmp_path):
    for sign, out in ((1.0, "a"), (-1.0, "b"), (1.0, "b")):  # the last one into the folder of the second
        teacher = OPPOSITES[kind](sign)
        assert said(call(teacher, out=tmp_path / out)) == right(teacher)
        assert right(teacher) > 0.9 if sign > 0 else right(teacher) < 0.1


def test_what_a_black_box_showed_stays_in_its_run_and_is_used_there_again(tmp_path, cache):
    call(Wrapper(Session(1.0)), out=tmp_path / "run")
    assert not list(cache.glob("knowledge/*/*")) and not list(cache.glob("teachers/*/*"))
    store = tmp_path / "run" / "knowledge"
    manifest = (store / "manifest.json").read_bytes()
    stamp = next(store.glob("shard-*.parquet")).stat().st_mtime_ns
    again = call(Wrapper(Session(1.0)), out=tmp_path / "run")
    assert (store / "manifest.json").read_bytes() == manifest
    assert next(store.glob("shard-*.parquet")).stat().st_mtime_ns == stamp  # the canary agreed: not asked again
    assert any("the teacher has no fingerprint (model.box.lock" in note for note in again.metrics["notes"])
    changed = call(Wrapper(Session(-1.0)), out=tmp_path / "run")
    assert said(changed) == 0.0 and any("the teacher was asked anew" in note for note in changed.metrics["notes"])


FACTOR = {"hidden": 1.0}


class Elsewhere(nn.Module):
    """What no fingerprint sees: a number that another function of this file reads by a name made at run time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ KNOWS.T * __import__("sys").modules[__name__].__dict__["FACTOR"]["hidden"]


def test_a_known_teacher_that_answers_otherwise_is_asked_anew(tmp_path, monkeypatch):
    assert said(call(Elsewhere(), out=tmp_path / "a")) == 1.0
    monkeypatch.setitem(FACTOR, "hidden", -1.0)
    assert said(call(Elsewhere(), out=tmp_path / "b")) == 0.0
    assert said(call(Elsewhere(), out=tmp_path / "a")) == 0.0
    monkeypatch.setitem(FACTOR, "hidden", 1.0)
    assert said(call(Elsewhere(), out=tmp_path / "c")) == 1.0  # the shared recording is still the first one's


def test_record_sets_aside_what_another_teacher_answered(tmp_path):
    source = as_source((ROWS, LABELS))

    def positive(batch):
        return {"logits": batch["inputs"] @ KNOWS.T}

    def negative(batch):
        return {"logits": -batch["inputs"] @ KNOWS.T}

    first = record(positive, source, tmp_path / "store")
    assert record(positive, source, tmp_path / "store").manifest == first.manifest
    batch = source.batch(torch.tensor([[3, 0]]))
    second = record(negative, source, tmp_path / "store")
    assert torch.equal(second(batch)["logits"], negative(batch)["logits"])
    assert second.manifest.notes[0].startswith("asked anew: 'logits'") and (tmp_path / "old" / "store-1").is_dir()


def test_a_recording_that_was_begun_by_another_teacher_is_not_finished_by_this_one(tmp_path):
    source, sign = as_source((ROWS, LABELS)), [1.0]

    def teacher(batch):
        if sign[0] > 0 and int(batch["id"][:, 0].min()) >= 100:
            raise KeyboardInterrupt
        return {"logits": sign[0] * batch["inputs"] @ KNOWS.T}

    with pytest.raises(KeyboardInterrupt):
        record(teacher, source, tmp_path / "store", rows_per_shard=50, batch=50)
    assert list((tmp_path / "store").glob("shard-*.json"))
    sign[0] = -1.0
    store = record(teacher, source, tmp_path / "store", rows_per_shard=50, batch=50)
    batch = source.batch(torch.tensor([[0, 0], [200, 0]]))
    assert torch.equal(store(batch)["logits"], -batch["inputs"] @ KNOWS.T)


def test_answers_that_hang_on_the_batch_are_not_taken_for_another_teachers(tmp_path):
    source = as_source((ROWS, LABELS))

    def teacher(batch):  # as scales of dynamic int8 do
        return {"logits": batch["inputs"] @ KNOWS.T * len(batch["id"])}

    first = record(teacher, source, tmp_path / "store")
    assert record(teacher, source, tmp_path / "store").manifest == first.manifest
    assert not (tmp_path / "old").exists()


def test_a_live_teacher_is_known_by_what_it_is_and_shows():
    net = Scaled(1.0)
    known = [Live(net, taps).fingerprint for taps in (["logits"], ["logits", "linear"])]
    assert known[0] == Live(copy.deepcopy(net)).fingerprint != known[1]
    assert Live(Wrapper(Session(1.0))).fingerprint is None


# --- students ------------------------------------------------------------------------------------------


def test_a_student_is_never_taken_for_one_with_another_attribute(tmp_path):
    teacher = Scaled(3.0)
    for scale, out in ((1.0, "a"), (0.0, "b"), (-1.0, "c")):
        result = call(teacher, lambda scale=scale: Scaled(scale), out=tmp_path / out)
        assert said(result, "main") == right(result.student)
        assert result.student.model.scale == scale if isinstance(result.student, Deployed) else True


class Guarded(Scaled):
    """A student of which a part cannot be seen."""

    def __init__(self, scale: float) -> None:
        super().__init__(scale)
        self.held = (threading.Lock(), scale)


def test_a_student_with_a_hidden_part_is_trained_anew_each_time(tmp_path, cache):
    first = call(Scaled(3.0), lambda: Guarded(1.0), out=tmp_path / "run")
    done = tmp_path / "run" / "arms" / "main-0" / "done.json"
    before = json.loads(done.read_text())["inputs"]
    assert any("arm 'main' has no fingerprint (student.held[0]" in note for note in first.metrics["notes"])
    second = call(Scaled(3.0), lambda: Guarded(0.0), out=tmp_path / "run")
    assert not list(cache.glob("jobs/*/*")) and json.loads(done.read_text())["inputs"] != before
    assert said(second, "main") == right(second.student)


def test_frozen_students_are_told_from_others(tmp_path):
    def made(frozen: bool) -> nn.Module:
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        net[0].requires_grad_(not frozen)
        return net

    free, frozen = (call(Scaled(3.0), lambda one=one: made(one), out=tmp_path / str(one)) for one in (False, True))
    start = _Students(lambda: made(True), None, (0,))(0)[0].weight
    assert torch.equal(weights(frozen)["0.weight"], start) and not torch.equal(weights(free)["0.weight"], start)


def weights(result) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): value for name, value in result.student.state_dict().items()}


# --- fresh starts --------------------------------------------------------------------------------------


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_function_that_gives_one_module_gives_fresh_starts(tmp_path):
    kept = linear()
    start = copy.deepcopy(kept)
    result = call(Scaled(3.0), lambda: kept, objectives=["labels", "kd"], control=True, steps=8, out=tmp_path / "a")
    fresh = call(
        Scaled(3.0),
        lambda: copy.deepcopy(start),
        objectives=["labels", "kd"],
        control=True,
        steps=8,
        out=tmp_path / "b",
    )
    assert equal(kept, start)
    for arm in ("alone", "main"):
        curves = [json.loads((tmp_path / run / "arms" / f"{arm}-0" / "curve.json").read_text()) for run in ("a", "b")]
        assert curves[0]["terms"] == curves[1]["terms"]
    assert result.metrics["models"] == fresh.metrics["models"]


def test_each_job_begins_with_what_a_fresh_module_has():
    backbone = nn.Linear(4, 4)
    start = copy.deepcopy(backbone)
    students = _Students(lambda: nn.Sequential(backbone, nn.Linear(4, 2)), None, (0, 1))
    for seed in (0, 0, 1):  # trials, then seeds: each is trained before the next is made
        made = students(seed)
        assert equal(made[0], start)
        with torch.no_grad():
            for value in made.parameters():
                value.add_(1)
    assert equal(backbone, start)


def test_a_teacher_is_never_trained(tmp_path):
    teacher = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    before = copy.deepcopy(teacher.state_dict())

    def shares() -> nn.Module:
        return nn.Sequential(teacher[0], teacher[1], nn.Linear(4, 2))

    call(teacher, shares, steps=6, seeds=(0, 1), out=tmp_path / "run")
    call(teacher, teacher, steps=6)  # a module is copied
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    with pytest.raises(ModelError, match="would be trained over the teacher.*copy.deepcopy"):
        call(teacher, lambda: teacher)


def test_one_module_for_several_seeds_is_refused():
    kept = linear()
    with pytest.raises(UserError, match="2 seeds need 2 fresh students: got a function that gives one and the same"):
        call(Scaled(3.0), lambda: kept, seeds=(0, 1))


def test_a_module_that_was_trained_before_is_refused():
    several = [linear() for _ in range(4)]
    turn = iter([0, 1, 2, 2])
    students = _Students(lambda: several[next(turn)], None, (0,))
    students(0), students(0)
    with pytest.raises(ModelError, match="gave what is trained already: got the weights weight, bias"):
        students(0)


# --- frozen parts --------------------------------------------------------------------------------------


def with_norm(frozen: bool = True) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    if frozen:
        net[1].eval().requires_grad_(False)
        net[2].eval()
    return net


def trained(net: nn.Module, **more) -> nn.Module:
    learner, source = stillroom.Learner(net, ["labels"]), as_source((ROWS, LABELS))
    for step in stillroom.train(learner, source, None, stillroom.Training(steps=6, batch=20), **more):
        if step.number == 3:
            stillroom.evaluate(net, source)  # the caller looks at it between two steps
    return net


def test_a_frozen_norm_and_dropout_stay_frozen():
    net, seen = with_norm(), []
    net[1].register_forward_hook(lambda one, given, answer: seen.append((one.training, net[2].training, net.training)))
    trained(net)
    assert net[1].running_mean.tolist() == [0.0] * 4 and net[1].running_var.tolist() == [1.0] * 4
    assert int(net[1].num_batches_tracked) == 0
    in_training = [modes for modes in seen if modes[2]]
    assert len(in_training) == 6 and set(in_training) == {(False, False, True)}
    assert int(trained(with_norm(frozen=False))[1].num_batches_tracked) == 6


def test_a_norm_without_gradients_in_training_mode_goes_on_counting():
    net = with_norm(frozen=False)
    net[1].requires_grad_(False)
    assert int(trained(net)[1].num_batches_tracked) == 6


def test_a_student_that_is_in_evaluation_mode_as_a_whole_is_trained():
    net, seen = with_norm(frozen=False).eval(), []
    net[2].register_forward_hook(lambda part, given, answer: seen.append((part.training, net.training)))
    assert int(trained(net)[1].num_batches_tracked) == 6
    assert {part for part, whole in seen if whole} == {True}


def test_a_frozen_norm_of_a_distilled_student_keeps_its_statistics(tmp_path):
    result = call(Scaled(3.0), with_norm, steps=8, out=tmp_path / "run")
    assert weights(result)["1.running_mean"].tolist() == [0.0] * 4
    assert int(weights(result)["1.num_batches_tracked"]) == 0
    assert not torch.equal(weights(result)["3.weight"], _Students(with_norm, None, (0,))(0)[3].weight)


# --- checkpoints ---------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_student_is_not_gone_on_with(tmp_path):
    def begun(scale: float, steps: int) -> None:
        learner, source = stillroom.Learner(Scaled(scale), ["labels"]), as_source((ROWS, LABELS))
        for step in stillroom.train(learner, source, None, stillroom.Training(steps=8, batch=20), folder=tmp_path):
            if step.number == steps:
                return

    begun(1.0, 5)
    begun(1.0, 7)  # the same one goes on
    with pytest.raises(stillroom.UserError, match="belongs to another training"):
        begun(-1.0, 8)


# --- kinds of modules ----------------------------------------------------------------------------------


def test_a_student_with_normed_weights_is_distilled(tmp_path):
    def made() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 2)))

    for student in (made, made()):
        result = call(Scaled(3.0), student, steps=6)
        assert said(result, "main") == right(result.student)


def test_a_quantised_teacher_teaches_and_a_quantised_student_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        int8 = torch.ao.quantization.quantize_dynamic(nn.Sequential(Scaled(3.0)), {nn.Linear})
    result = call(int8)
    assert said(result) == right(int8) > 0.9
    assert stillroom.record(Live(int8), as_source((ROWS, LABELS)), result.folder / "store").signals == ("logits",)
    with pytest.raises(UserError, match="quantised|trainable parameters"):
        call(Scaled(3.0), int8)
