"""What Stillroom does not measure, and what does not fit, is refused before anything is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import stillroom
from stillroom.attacks import PGD, under_attack
from stillroom.contracts import Source
from stillroom.data.arrays import ArraySource, as_source
from stillroom.data.splits import by_hash
from stillroom.errors import DataError, ModelError, TrainError, UserError
from stillroom.evaluate import evaluate
from stillroom.learner import Learner
from stillroom.losses import LOSSES
from stillroom.mining import Subject
from stillroom.models.bundle import Deployed
from stillroom.objectives import match
from stillroom.pipeline.checking import check_shapes
from stillroom.pipeline.distill import distill
from stillroom.pipeline.plan import ALONE
from stillroom.pipeline.recipes import experiment_of
from stillroom.recipe import read_recipe
from stillroom.settings import Training
from stillroom.suitability import suitability
from stillroom.tasks import check_names, check_targets, probabilities
from stillroom.teachers import Average, Live
from stillroom.train import fit

X = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
ONLY = "measures classification only"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def squared(student_logits, targets):
    return (student_logits[:, 0] - targets).square().mean()


def refuses(match_, call, kind=UserError):
    with pytest.raises(kind, match=match_) as caught:
        call()
    return str(caught.value)


def untrained(tmp_path):
    """Nothing was trained: no arm has a folder."""
    assert not list(tmp_path.rglob("arms"))


# --- another task -----------------------------------------------------------------------------------------


def test_a_regressor_is_refused_and_told_its_shape_what_is_allowed_and_what_to_do(tmp_path):
    def regress(control=True):
        data = {"inputs": X, "targets": X[:, 0].clone()}
        objectives = [squared, "regression"]
        distill(nn.Linear(6, 1), lambda: nn.Linear(6, 1), data, objectives, steps=2, out=tmp_path, control=control)

    said = refuses(ONLY, regress)
    assert "(4, 1)" in said and "logits (4, classes)" in said and "stillroom.fit" in said
    untrained(tmp_path)


@pytest.mark.parametrize("door", ["evaluate", "average", "mine", "suitability", "attack", "teacher"])
def test_every_door_refuses_a_model_with_one_output(door):
    source, one = ArraySource(X, Y), nn.Linear(6, 1)
    batch = source.batch(torch.tensor([[0, 0], [1, 0]]))
    calls = {
        "evaluate": lambda: evaluate(one, source),
        "average": lambda: Average({"a": Live(one), "b": Live(one)})(batch),
        "mine": lambda: Subject(source, one).logits("test"),
        "suitability": lambda: suitability(nn.Linear(6, 2), {"a": one, "b": one}, source),
        "attack": lambda: under_attack(one, source, PGD(0.1, low=-9, high=9)),
        "teacher": lambda: evaluate(nn.Linear(6, 2), source, teacher=Live(one)),
    }
    assert "1)" in refuses(ONLY, calls[door], ModelError)


def test_an_average_of_teachers_with_other_numbers_of_classes_says_which():
    batch = ArraySource(X, Y).batch(torch.tensor([[0, 0]]))
    average = Average({"two": Live(nn.Linear(6, 2)), "three": Live(nn.Linear(6, 3))})
    refuses("3 from 'three' and 2 from 'two'", lambda: average(batch), ModelError)


def test_a_language_model_is_refused_before_it_is_trained(tmp_path):
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 7)

        def forward(self, tokens):
            return self.table(tokens)

    def tokens_loss(student_logits, teacher_logits):
        return (student_logits - teacher_logits).square().mean()

    data = {"inputs": torch.randint(9, (60, 5))}
    said = refuses(ONLY, lambda: distill(Language(), Language, data, [tokens_loss], steps=2, out=tmp_path), ModelError)
    assert "(4, 5, 7)" in said
    untrained(tmp_path)


def test_several_labels_a_row_are_refused_by_the_column_and_by_the_loss(tmp_path):
    def each(student_logits, targets):
        return nn.functional.binary_cross_entropy_with_logits(student_logits, targets)

    data = {"inputs": X, "targets": (X[:, :4] > 0).float()}

    def call(objectives):
        return lambda: distill(nn.Linear(6, 4), lambda: nn.Linear(6, 4), data, objectives, steps=2, out=tmp_path)

    assert "'targets' of shape (65, 4)" in refuses(ONLY, call([each, "kd"]), DataError)
    assert "several labels a row" in refuses(ONLY, call(["kd_multilabel"]), DataError)
    untrained(tmp_path)


def test_soft_labels_and_class_numbers_are_targets_of_classes():
    check_targets(torch.softmax(torch.randn(5, 3), 1), "soft", "own")
    check_targets(torch.tensor([0, 2, 1]), "numbers", "own")
    check_targets(torch.eye(3, dtype=torch.int64), "one-hot", "own")
    for wrong in (torch.randn(5), torch.randn(5, 1), torch.tensor([[1, 1, 0]]), torch.randn(5, 3)):
        with pytest.raises(DataError, match=ONLY):
            check_targets(wrong, "targets", "own")


def test_the_losses_of_other_tasks_are_called_as_the_doors_know_them():
    from stillroom.tasks.doors import OTHER_TASKS

    assert OTHER_TASKS.keys() <= LOSSES.keys()


def test_labels_that_are_measurements_are_refused_by_evaluate():
    source = ArraySource(X, Y)
    source.columns["labels"] = X[:, 0]
    refuses(ONLY, lambda: evaluate(nn.Linear(6, 2), source), DataError)


def test_without_a_verdict_anything_is_trained_still():
    source = ArraySource(X, columns={"targets": X[:, 0].clone()})
    student = nn.Linear(6, 1)
    last = fit(Learner(student, [squared]), source, None, Training(steps=60, batch=16, lr=0.1))
    assert float(last.losses["loss"]) < 0.05, "the first column is learnt"


def test_data_without_labels_and_students_of_features_alone_are_distilled_still(tmp_path):
    teacher = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    result = distill(teacher, lambda: nn.Linear(6, 3), X, ["kd"], steps=2, out=tmp_path / "free")
    assert "score" in result.metrics["models"]["main"]
    small = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    result = distill(teacher, small, X, [match("hint", "0", "0")], steps=2, out=tmp_path / "features")
    assert result.report().is_file() and "'main'" in result.verdict


# --- classes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [3, 1])
def test_a_model_of_other_classes_than_the_labels_reach_is_refused_before_training(outputs, tmp_path):
    def call():
        distill(nn.Linear(6, outputs), lambda: nn.Linear(6, outputs), (X, Y), ["labels"], steps=2, out=tmp_path)

    said = refuses("2 classes, and the model answers 3" if outputs == 3 else ONLY, call, ModelError)
    assert outputs == 1 or "as_source(data, classes=" in said
    untrained(tmp_path)


def test_naming_all_classes_mends_it(tmp_path):
    data = as_source((X, Y), classes=["low", "high", "never seen"])
    result = distill(nn.Linear(6, 3), lambda: nn.Linear(6, 3), data, ["labels", "kd"], steps=2, out=tmp_path)
    assert result.metrics["models"]["main"]["accuracy"]["mean"] <= 1


def test_minus_one_and_one_are_refused_with_the_remedy():
    said = refuses("tell no classes apart", lambda: as_source((X, torch.where(X[:, 0] > 0, 1, -1))), DataError)
    assert "-1, which stands for an example without a label, and 1 alone" in said
    assert "(labels > 0).long()" in said
    refuses("tell no classes apart", lambda: as_source((["a", "b"] * 9, [-1, 1] * 9)), DataError)
    assert as_source((X, torch.where(X[:, 0] > 1, -1, Y))).classes == ["0", "1"], "a few hidden ones are hidden"


def test_one_class_is_refused_before_training(tmp_path):
    def call():
        distill(nn.Linear(6, 1), lambda: nn.Linear(6, 1), (X, torch.zeros(80).long()), steps=2, out=tmp_path)

    refuses("nothing to tell apart: got one class, '0'", call, DataError)
    two = ArraySource(X, torch.ones(80).long(), classes=["no", "yes"])
    refuses("one class, 'yes'", lambda: distill(nn.Linear(6, 2), nn.Linear(6, 2), two, steps=2), DataError)


def test_class_names_are_held_against_the_data_in_order():
    check_names(["a", "b"], ["a", "b"], "It")
    check_names(["0", "1"], ["a", "b"], "It")  # nobody named them
    check_names(None, ["a", "b"], "It")
    with pytest.raises(DataError) as caught:
        check_names(["b", "a", "c"], ["a", "b", "c"], "It")
    assert "another order" in str(caught.value)
    assert "Its logit 0 is 'b', which is class 1 of the data" in str(caught.value)
    with pytest.raises(DataError, match="2 classes, neg, pos. Allowed: 2 classes, good, terrible"):
        check_names(["neg", "pos"], ["good", "terrible"], "It")
    with pytest.raises(DataError, match="other classes"):
        check_names(["neg", "pos"], ["neg", "pos", "even"], "It")


def test_every_door_of_python_compares_the_names_of_classes(tmp_path):
    source = ArraySource(X, Y, classes=["good", "terrible"])
    model = Deployed(nn.Linear(6, 2), classes=["neg", "pos"])
    for call in (
        lambda: evaluate(model, source),
        lambda: Subject(source, model),
        lambda: suitability(nn.Linear(6, 2), {"a": model, "b": model}, source),
        lambda: distill(model, lambda: nn.Linear(6, 2), source, steps=2, out=tmp_path),
    ):
        refuses("knows other classes than the data", call, DataError)
    untrained(tmp_path)


def test_recipes_and_commands_compare_the_names_of_classes(tmp_path):
    from stillroom.cli.models import _fits
    from stillroom.models.bundle import load, save_bundle
    from stillroom.models.encode import encode_for
    from stillroom.models.zoo import build
    from stillroom.pipeline.making import input_of

    recipe = {**STAGED, "objectives": [LABELS, KD]}
    source = experiment_of(read_recipe(recipe)).data
    names = list(source.classes)
    for wrong, said in ((names[::-1], "in another order"), ([*names[1:], "hat"], "other classes than the data")):
        model = build("net", shape=(1, 28, 28), classes=10, hidden=8)
        about = {"model": {"use": "net", "options": {"hidden": 8}}, "shape": [1, 28, 28], "input": input_of(source)}
        folder = tmp_path / said.replace(" ", "-")
        save_bundle(folder, model, encode=encode_for(source), config={**about, "classes": wrong})
        loaded = {**recipe, "teacher": {"load": str(folder)}}
        refuses(said, lambda: experiment_of(read_recipe(loaded)), DataError)  # noqa: B023
        refuses(said, lambda: _fits(load(folder), source), DataError)  # noqa: B023


# --- stages -----------------------------------------------------------------------------------------------

STAGED = {
    "name": "staged",
    "data": {"use": "fashion-mnist-sample", "labels": 100, "train": 256},
    "teacher": {"model": "net", "hidden": 16, "train": {"steps": 4}},
    "student": {"model": "net", "hidden": 8},
    "train": {"steps": 4, "batch": 16},
    "trials": [1],
    "seeds": [0],
    "export": {"onnx": False},
}
KD, LABELS = {"use": "kd"}, {"use": "labels", "smoothing": 0.25}


@pytest.mark.parametrize(
    "objectives, last", [([KD], [LABELS]), ([LABELS], [KD]), ([LABELS, KD], [{"use": "hint"}])], ids=str
)
def test_labels_in_any_stage_make_a_control_and_trained_logits(objectives, last):
    recipe = {**STAGED, "objectives": objectives, "stages": [{"train": {"steps": 2}}, {"objectives": last}]}
    experiment = experiment_of(read_recipe(recipe))
    control = experiment.arms[ALONE].objectives()
    assert [one.name for one in control] == ["labels"] and control[0].options["smoothing"] == 0.25
    assert experiment.main.answers, "its logits were trained in one of the stages"
    check_shapes(experiment)


def test_the_objectives_of_an_earlier_stage_are_tried_too():
    hint = {"use": "hint", "student": "nowhere"}
    recipe = {**STAGED, "objectives": [LABELS], "stages": [{"objectives": [hint]}, {"objectives": [KD]}]}
    refuses("nowhere", lambda: check_shapes(experiment_of(read_recipe(recipe))))


def test_a_stage_that_reads_a_teacher_needs_one():
    recipe = {**STAGED, "objectives": [LABELS], "stages": [{"objectives": [KD]}, {}]}
    del recipe["teacher"]
    refuses("read a teacher: got none", lambda: check_shapes(experiment_of(read_recipe(recipe))))


def own_targets(student_logits, targets):
    return -(student_logits.log_softmax(1) * targets).sum(1).mean()


@pytest.mark.parametrize(
    "data, objectives, more, why",
    [
        ({"inputs": X, "labels": Y, "targets": torch.eye(2)[Y]}, ["labels", own_targets], {}, "is itself the student"),
        ((X, Y), ["labels", "kd"], {"control": False}, "control: false"),
        ((X, Y), ["kd"], {"labels": 0}, "the student sees no label"),
        (X, ["kd"], {}, "the data has no labels"),
    ],
    ids=["nothing reads the teacher", "control", "labels", "data"],
)
def test_a_run_without_a_control_says_why(data, objectives, more, why, tmp_path):
    result = distill(nn.Linear(6, 2), lambda: nn.Linear(6, 2), data, objectives, steps=2, out=tmp_path, **more)
    assert why in result.metrics["reason"] and why in result.verdict


def test_too_few_test_rows_for_a_graph_are_found_before_training():
    from dataclasses import replace

    experiment = experiment_of(read_recipe({**STAGED, "objectives": [LABELS], "export": {"onnx": True}}))
    source = experiment.data
    source.splits = {**source.splits, "test": source.splits["test"][:2]}
    assert "export: {onnx: false}" in refuses("Too few rows", lambda: check_shapes(experiment))
    check_shapes(replace(experiment, onnx=False))


# --- sources ----------------------------------------------------------------------------------------------


class Six:
    """The six documented members and nothing else."""

    classes = ("no", "yes")
    splits = {"train": torch.arange(60), "validation": torch.arange(60, 70), "test": torch.arange(70, 80)}

    def __init__(self, shift=0.0):
        self.inputs = X + shift

    def __len__(self):
        return 80

    def batch(self, ids):
        return {"id": ids, "inputs": self.inputs[ids[:, 0]], "labels": Y[ids[:, 0]]}

    def hashes(self, examples):
        return (self.inputs[examples].sum(1) * 1e6).long().numpy().view("uint64")

    def show(self, example):
        return str(self.inputs[example].tolist())


def test_the_six_members_are_a_source_with_a_fingerprint_of_its_examples(tmp_path):
    assert not isinstance(Six(), Source) and isinstance(as_source(Six()), Source)
    assert as_source(Six()).fingerprint == as_source(Six()).fingerprint != as_source(Six(1.0)).fingerprint
    result = distill(nn.Linear(6, 2), lambda: nn.Linear(6, 2), Six(), ["labels", "kd"], steps=2, out=tmp_path)
    assert result.metrics["data"] == {"fingerprint": as_source(Six()).fingerprint, "test": 10}


def test_a_source_that_lacks_a_member_is_told_which():
    class Five(Six):
        hashes = property()  # raises AttributeError: as if it were not there

    refuses("a Five without hashes", lambda: as_source(Five()), DataError)


def loader(**options):
    return DataLoader(TensorDataset(X, Y), batch_size=8, **options)


def test_a_loader_gives_the_rows_that_its_sampler_names():
    rows = [3, 17, 50]
    source = as_source(loader(sampler=SubsetRandomSampler(rows)))
    assert torch.equal(source.inputs, X[rows]) and torch.equal(source.labels, Y[rows])
    parts = {"train": SubsetRandomSampler(range(60)), "test": SubsetRandomSampler(range(60, 80))}
    source = as_source({name: loader(sampler=sampler) for name, sampler in parts.items()})
    assert len(source.splits["test"]) == 20 and len(source) == 80
    for same in (loader(), loader(shuffle=True), loader(drop_last=True)):
        assert torch.equal(as_source(same).inputs, X)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"sampler": WeightedRandomSampler([1.0] * 80, 80)}, "sampler=WeightedRandomSampler"),
        ({"sampler": RandomSampler(range(80), replacement=True)}, "replacement=True"),
        ({"sampler": RandomSampler(range(80), num_samples=9)}, "num_samples=9"),
        ({"collate_fn": lambda items: items}, "collate_fn="),
    ],
)
def test_a_loader_that_does_more_than_order_rows_is_refused_by_name(options, named):
    assert named in refuses("DataLoader", lambda: as_source(loader(**options)), DataError)


def test_splits_of_the_same_rows_are_refused_with_the_reason():
    call = lambda: as_source({"train": (X, Y), "test": (X, Y)})  # noqa: E731
    refuses("No row of 'train' is left: got 80 rows, each a copy of one in test", call, DataError)
    hashes = torch.arange(10).numpy().astype("uint64")
    hashes[8:] = hashes[:2]
    official = {"train": range(6), "test": range(2), "validation": [8, 9]}
    refuses("No row of 'validation'", lambda: by_hash(hashes, official=official), DataError)


class Frame:
    """What pandas gives: rows that turn into an array by themselves, and answer [0] with a column's name in mind."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, name):
        raise KeyError(name)

    def __array__(self, dtype=None, copy=None):
        return self.values.numpy()


def test_a_frame_and_its_column_are_inputs_and_labels():
    source = as_source((Frame(X), Frame(Y)))
    assert torch.equal(source.inputs, X) and torch.equal(source.labels, Y)
    assert torch.equal(as_source(Frame(X)).inputs, X)


def test_a_loss_that_is_not_finite_names_the_column_that_is_read():
    source = ArraySource(X, columns={"weights": torch.ones(80), "aside": torch.ones(80)})
    source.columns["weights"][5] = source.columns["aside"][6] = torch.nan

    def weighted(student_logits, weights):
        return (student_logits.square().sum(1) * weights).mean()

    train = source.splits["train"]
    source.splits = {**source.splits, "train": torch.cat([train[train != 5], torch.tensor([5])])}
    learner = Learner(nn.Linear(6, 2), [weighted])
    said = refuses("not finite", lambda: fit(learner, source, None, Training(steps=20, batch=64)), TrainError)
    assert "the column 'weights' is not finite in examples [5]" in said


def test_probabilities_are_told_from_logits():
    logits = torch.randn(20, 4)
    assert probabilities(logits.softmax(1)) and not probabilities(logits) and not probabilities(logits.log_softmax(1))
    assert not probabilities(torch.full((20, 4), 0.5)), "these do not sum to 1"


assert stillroom.fit is fit
