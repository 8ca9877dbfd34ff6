"""Dataset distillation: the distance of gradients, the making, the source it gives, its recipe key and its door."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import stillroom
from stillroom import Training, as_source, open_source
from stillroom.data.arrays import ArraySource
from stillroom.data.splits import few_labels
from stillroom.dataset_distillation import making
from stillroom.dataset_distillation.making import make_examples
from stillroom.dataset_distillation.matching import gradient_distance, loss_gradients
from stillroom.dataset_distillation.moving import moved
from stillroom.dataset_distillation.synthetic import load_synthetic, save_synthetic, synthetic_rows, with_synthetic
from stillroom.errors import DataError, ModelError, RecipeError, TrainError
from stillroom.models.encode import encode_for
from stillroom.models.zoo import build
from stillroom.randomness import forked
from stillroom.recipe import read_recipe
from stillroom.settings import Synthesis
from stillroom.train import Rows

RECIPE = """
data: {use: digits, size: 8}
teacher: {model: mlp, hidden: [32], train: {epochs: 3, lr: 1.0e-2}}
student: {model: mlp, hidden: [16]}
objectives: [{use: labels}]
train: {steps: 60, batch: 32, lr: 1.0e-2}
arms:
  made: {distilled_data: {per_class: 2, steps: 4, batch: 16}}
  again:
    student: {hidden: [8]}
    distilled_data: {per_class: 2, steps: 4, batch: 16, network: {model: mlp, hidden: [16]}}
  real: {data: {labels: 20}}
trials: [1]
seeds: [0, 1]
export: {onnx: false}
"""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def planted(rows: int = 600, sides: int = 6, seed: int = 0) -> ArraySource:
    """Two classes: a bright upper or lower half under heavy noise, so that one real image says little."""
    noise = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 2
    images = torch.randn(rows, 1, sides, sides, generator=noise) * 60 + 128
    images[labels == 0, :, : sides // 2] += 25
    images[labels == 1, :, sides // 2 :] += 25
    return ArraySource(images.clamp(0, 255).round().to(torch.uint8), labels, classes=["up", "down"], name="planted")


def maker(name: str = "mlp", **options: object):
    def make(seed: int) -> nn.Module:
        with forked(seed, "weights"):
            return build(name, shape=(1, 6, 6), classes=2, **options)

    return make


# --- the distance ------------------------------------------------------------------------------------------


def test_equal_gradients_are_no_distance_apart_and_opposite_ones_two_a_row():
    one = [torch.randn(4, 3, 2, 2), torch.randn(4), torch.randn(5, 7)]
    assert float(gradient_distance(one, [3 * part for part in one])) == pytest.approx(0, abs=1e-4)
    assert float(gradient_distance(one, [-part for part in one])) == pytest.approx(2 * 9, abs=1e-4)


def test_the_distance_is_the_formula_layer_by_layer_and_row_by_row():
    ours, theirs = [torch.randn(3, 2, 2), torch.randn(2, 5)], [torch.randn(3, 2, 2), torch.randn(2, 5)]
    expected = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for row in range(len(a)):
            expected += 1 - float(functional.cosine_similarity(a[row].flatten(), b[row].flatten(), dim=0))
    assert float(gradient_distance(ours, theirs)) == pytest.approx(expected, abs=1e-4)


def test_biases_count_nothing_and_a_network_of_nothing_else_is_refused():
    weight, bias = torch.randn(3, 4), torch.randn(3)
    assert float(gradient_distance([weight, bias], [weight, -bias])) == pytest.approx(0, abs=1e-4)
    with pytest.raises(ModelError, match="no layer whose gradients could be matched"):
        gradient_distance([bias], [bias])


def test_its_gradient_moves_the_images_towards_the_same_gradient():
    network, real = maker(hidden=(8,))(0), planted()
    inputs, labels = synthetic_rows(real)
    chosen = labels == 0
    theirs = loss_gradients(network, None, inputs[chosen][:64].float() / 255, torch.zeros(64, dtype=torch.int64))
    image = torch.rand(1, 1, 6, 6, requires_grad=True)
    distances = []
    for _ in range(60):
        ours = loss_gradients(network, None, image, torch.tensor([0]), create_graph=True)
        distance = gradient_distance(ours, theirs)
        distances.append(float(distance.detach()))
        (change,) = torch.autograd.grad(distance, image)
        assert float(change.abs().sum()) > 0
        image = (image - 0.5 * change).detach().requires_grad_()
    assert distances[-1] < 0.85 * distances[0]


@pytest.mark.parametrize("name", ["net", "cnn", "resnet", "lstm"])
def test_networks_of_every_kind_can_be_matched(name: str):
    made = make_examples(planted(), maker(name), Synthesis(per_class=1, steps=1, batch=8))
    assert len(made.inputs) == 2 and not torch.equal(made.inputs, made.start)


def test_a_network_that_cannot_be_matched_is_refused_in_words():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.unused = nn.Linear(36, 2), nn.Linear(2, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(inputs.flatten(1))

    class Severed(Idle):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.unused(self.head(inputs.flatten(1).detach()))

    for network, reason in ((Idle, "not have been used"), (Severed, "")):
        with pytest.raises(ModelError, match=f"(?s)cannot be matched.*{reason}.*differentiated twice"):
            make_examples(planted(), lambda seed, network=network: network(), Synthesis(per_class=1, steps=1))


# --- moves -------------------------------------------------------------------------------------------------


def test_moves_are_shared_by_a_batch_replayed_by_their_position_and_nothing_at_strength_0():
    images = torch.rand(1, 1, 8, 8).expand(3, 1, 8, 8)
    once, again, other = (moved(images, 1.0, 0, *place) for place in ((5, 1), (5, 1), (6, 1)))
    assert torch.equal(once, again) and torch.allclose(once[0], once[2], atol=1e-6)
    assert not torch.allclose(once, other) and not torch.allclose(once, images)
    assert moved(images, 0.0, 0, 5) is images
    assert float(moved(torch.ones(1, 1, 8, 8), 1.0, 0, 3).min()) > 0.999, "the border is repeated"


# --- the making --------------------------------------------------------------------------------------------


def accuracy(source: ArraySource, rows: Tensor | None, seed: int = 0) -> float:
    """Test accuracy of a small network that learnt from these training rows (None: all)."""
    network = maker(hidden=(16,))(100 + seed)
    encode = encode_for(planted())
    learner = stillroom.Learner(network, ["labels"], encode=encode)
    training = Training(steps=60, lr=1e-2, batch=16)
    stillroom.fit(learner, source, None, training, rows=None if rows is None else Rows(rows), seed=seed)
    return stillroom.evaluate(network, source, encode=encode)["accuracy"]


def test_one_made_image_a_class_teaches_more_than_one_real_image_a_class():
    data = planted()
    settings = Synthesis(per_class=1, steps=30, lr=0.5, batch=200)
    made = make_examples(data, maker(hidden=(16,)), settings, encode=encode_for(data))
    source = with_synthetic(data, made.inputs, made.labels)
    ours = np.mean([accuracy(source, None, seed) for seed in range(3)])
    theirs = np.mean(
        [accuracy(data, few_labels(data.labels, data.splits["train"], 2, seed), seed) for seed in range(3)]
    )
    assert ours > theirs + 0.05, (ours, theirs)
    distance = made.curve["distance"]
    assert np.mean(distance[-5:]) < np.mean(distance[:5])


@pytest.mark.parametrize(
    "more", [{}, {"renew": 3, "between": 2}, {"start": "noise", "augment": 0.5}], ids=["plain", "trained", "noise"]
)
def test_a_killed_making_goes_on_to_the_same_images_bit_for_bit(tmp_path: Path, more: dict):
    settings = Synthesis(per_class=2, steps=12, batch=16, **more)
    network = maker("convnet", width=4, depth=1)
    whole = make_examples(planted(), network, settings)

    class Killed(Exception):
        pass

    def stop(done: int, of: int, what: str) -> None:
        if done == 8:
            raise Killed

    with pytest.raises(Killed):
        make_examples(planted(), network, settings, folder=tmp_path, progress=stop)
    assert (tmp_path / making.CHECKPOINT).is_file()
    seen: list[int] = []
    rest = make_examples(planted(), network, settings, folder=tmp_path, progress=lambda done, *_: seen.append(done))
    assert seen[0] > 1 and seen[-1] == 12, "it began in the middle"
    assert torch.equal(rest.inputs, whole.inputs) and torch.equal(rest.labels, whole.labels)
    assert rest.curve == whole.curve


def test_another_making_does_not_go_on_from_a_strange_state(tmp_path: Path):
    settings = Synthesis(per_class=1, steps=2, batch=8)
    make_examples(planted(), maker(), settings, folder=tmp_path)
    with pytest.raises(TrainError, match="another making"):
        make_examples(planted(), maker(), settings.model_copy(update={"seed": 1}), folder=tmp_path)


def test_the_result_depends_on_the_seed_alone_and_leaves_the_generator_as_it_was():
    settings = Synthesis(per_class=1, steps=2, batch=8)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = make_examples(planted(), maker(), settings)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    assert torch.equal(one.inputs, make_examples(planted(), maker(), settings).inputs)
    other = make_examples(planted(), maker(), settings.model_copy(update={"seed": 1}))
    assert not torch.equal(one.inputs, other.inputs)


def test_images_stay_whole_numbers_in_their_range_and_measurements_floats():
    made = make_examples(planted(), maker(), Synthesis(per_class=2, steps=3, lr=50.0, batch=8))
    assert made.inputs.dtype == torch.uint8 and tuple(made.inputs.shape) == (4, 1, 6, 6)
    assert made.labels.tolist() == [0, 0, 1, 1]
    vectors = as_source((torch.randn(200, 5), torch.arange(200) % 2))
    made = make_examples(
        vectors, lambda seed: build("mlp", shape=(5,), classes=2), Synthesis(per_class=2, steps=3, lr=50.0, batch=8)
    )
    real = vectors.inputs[vectors.splits["train"]]
    assert made.inputs.dtype == torch.float32
    assert float(made.inputs.max()) <= float(real.max()) and float(made.inputs.min()) >= float(real.min())


def test_a_norm_over_the_batch_reads_all_classes_whatever_one_class_looks_like():
    network = maker("cnn", width=4)
    made = make_examples(planted(), network, Synthesis(per_class=1, steps=3, batch=16))
    assert len(made.curve["distance"]) == 3 and all(np.isfinite(made.curve["distance"]))


# --- the source --------------------------------------------------------------------------------------------


def test_a_synthetic_source_has_new_numbers_and_the_real_validation_and_test(tmp_path: Path):
    data = planted()
    images = torch.zeros(4, 1, 6, 6, dtype=torch.uint8)
    source = with_synthetic(data, images, torch.tensor([0, 0, 1, 1]))
    assert source.splits["train"].tolist() == [600, 601, 602, 603]
    for split in ("validation", "test"):
        assert torch.equal(source.splits[split], data.splits[split])
    assert source.classes == data.classes and source.fingerprint != data.fingerprint
    batch = source.batch(torch.tensor([[602, 0], [3, 0]]))
    assert torch.equal(batch["inputs"][0], images[2]) and torch.equal(batch["inputs"][1], data.inputs[3])
    save_synthetic(source, tmp_path / "made.npz")
    again = load_synthetic(data, tmp_path / "made.npz")
    assert torch.equal(synthetic_rows(again)[0], images) and again.fingerprint == source.fingerprint
    opened = open_source("npz", path=tmp_path / "made.npz")
    assert list(opened.classes or ()) == ["up", "down"] and len(opened.splits["test"]) == len(data.splits["test"])
    (tmp_path / "made.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="Unreadable synthetic examples"):
        load_synthetic(data, tmp_path / "made.npz")


def test_examples_of_another_kind_are_refused():
    with pytest.raises(DataError, match="differ in kind"):
        with_synthetic(planted(), torch.zeros(2, 1, 5, 5, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="differ in kind"):
        with_synthetic(planted(), torch.zeros(2, 1, 6, 6), torch.tensor([0, 1]))


def wrong_sources() -> dict[str, tuple[object, str]]:
    images = torch.zeros(40, 1, 6, 6, dtype=torch.uint8)
    return {
        "texts": ((["good film", "bad film"] * 30, [0, 1] * 30), "Texts cannot be distilled"),
        "one class": ((images + torch.arange(40).view(-1, 1, 1, 1).to(torch.uint8), torch.zeros(40)), "1 class"),
        "no labels": (images + torch.arange(40).view(-1, 1, 1, 1).to(torch.uint8), "0 classes"),
        "whole numbers": ((torch.arange(80).view(40, 2), torch.arange(40) % 2), "inputs of type int64"),
        "another column": (
            {"inputs": torch.randn(40, 3), "labels": torch.arange(40) % 2, "boxes": torch.randn(40, 4)},
            "columns boxes",
        ),
    }


@pytest.mark.parametrize("name", wrong_sources())
def test_data_that_cannot_be_distilled_are_refused(name: str):
    given, message = wrong_sources()[name]
    if isinstance(given, tuple) and isinstance(given[1], Tensor):
        given = (given[0], given[1].to(torch.int64))
    with pytest.raises(DataError, match=message):
        make_examples(as_source(given), maker(), Synthesis(per_class=1, steps=1))


def test_more_examples_than_there_are_real_ones_are_refused_with_the_class_and_its_number():
    with pytest.raises(DataError, match=r"per_class=1000; class '(up|down)' has \d+ labelled.*Lower per_class"):
        make_examples(planted(), maker(), Synthesis(per_class=1000, steps=1))


def test_moves_of_what_is_no_image_are_refused():
    data = as_source((torch.randn(60, 5), torch.arange(60) % 2))
    with pytest.raises(DataError, match="Only images can be moved"):
        make_examples(
            data, lambda seed: build("mlp", shape=(5,), classes=2), Synthesis(steps=1, per_class=1, augment=1)
        )


# --- the door in Python ------------------------------------------------------------------------------------


def test_distil_data_gives_a_source_that_trains_and_saves(tmp_path: Path):
    source = stillroom.distil_data(planted(), "mlp", per_class=1, steps=2, batch=8, out=tmp_path / "made.npz")
    assert len(source.splits["train"]) == 2 and len(source.splits["test"]) > 0
    assert len(open_source("npz", path=tmp_path / "made.npz").splits["train"]) == 2
    network = maker()(0)
    learner = stillroom.Learner(network, ["labels"], encode=encode_for(source))
    assert stillroom.fit(learner, source, None, Training(steps=2, batch=2)).number == 2
    with pytest.raises(ModelError, match="a function that makes"):
        stillroom.distil_data(planted(), network, per_class=1)
    with pytest.raises(ModelError, match="Unknown model"):
        stillroom.distil_data(planted(), "mpl", per_class=1)
    with pytest.raises(stillroom.UserError, match="per_clas"):
        stillroom.distil_data(planted(), "mlp", per_clas=1)
    with pytest.raises(stillroom.UserError, match="steps"):
        stillroom.distil_data(planted(), "mlp", steps=0)


# --- the recipe --------------------------------------------------------------------------------------------


def test_a_recipe_with_distilled_data_is_written_as_it_is_read():
    recipe = read_recipe(RECIPE)
    assert read_recipe(recipe.to_yaml()) == recipe
    made = recipe.arms["made"].distilled_data
    assert made is not None and made.making == Synthesis(per_class=2, steps=4, batch=16) and made.network is None
    whole = read_recipe(RECIPE, set=["distilled_data={per_class: 3}"])
    assert whole.arm("real").distilled_data.making.per_class == 3
    laid = whole.arm("made").distilled_data.making
    assert (laid.per_class, laid.steps) == (2, 4)
    tiny = read_recipe(RECIPE, set=["arms.made.distilled_data.per_class=9"], tiny=True)
    assert tiny.arms["made"].distilled_data.making.steps == 3 and tiny.arms["made"].distilled_data.making.per_class == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("arms.made.distilled_data=3", r"must be a block such as \{per_class: 10\}"),
        ("arms.made.distilled_data.per_clas=3", "did you mean 'per_class'"),
        ("arms.made.distilled_data.per_class=0", "per_class: must be"),
        ("arms.made.distilled_data.start=middle", "real"),
        ("arms.made.distilled_data.network.model=foo", "unknown model 'foo'"),
        ("arms.made.distilled_data.network={model: resnet, depth: 7}", "depth of a ResNet"),
        ("arms.made.distilled_data.between=2", "between.*renew"),
        ("arms.made.add=[{use: kd}]", "kd reads a teacher.*not recorded"),
        ("arms.made.objectives=[{use: kd}]", "nothing reads the labels"),
        ("data.labels=0", "without labels no data can be distilled"),
        ("stages=[{train: {steps: 3}}, {}]", "several stages"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(change: str, message: str):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        read_recipe(RECIPE, set=[change])


def test_data_that_cannot_be_distilled_are_refused_before_anything_is_trained(tmp_path: Path):
    from stillroom.pipeline.recipes import experiment_of

    with pytest.raises(DataError, match="per_class=900"):
        experiment_of(read_recipe(RECIPE, set=["arms.made.distilled_data.per_class=900"]))
    with pytest.raises(DataError, match="per_class=2; class"):
        experiment_of(read_recipe(RECIPE, set=["data.labels=12"]))
    words = read_recipe(
        {
            "data": {"use": "movie-reviews-sample"},
            "student": {"model": "textmlp"},
            "objectives": [{"use": "labels"}],
            "distilled_data": {"per_class": 1},
        }
    )
    with pytest.raises(DataError, match="Texts cannot be distilled"):
        experiment_of(words)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    from stillroom.pipeline.recipes import experiment_of
    from stillroom.pipeline.run import perform

    place = tmp_path_factory.mktemp("distilled")
    patch = pytest.MonkeyPatch()
    patch.setenv("STILLROOM_CACHE", str(place / "cache"))
    recipe = read_recipe(RECIPE)
    outcome = perform(experiment_of(recipe), place / "run")
    patch.undo()
    return place, outcome.metrics


def test_a_run_learns_from_what_it_made_and_compares_with_as_many_real_images(ran: tuple[Path, dict]):
    place, metrics = ran
    facts = metrics["distilled_data"]["made"]
    assert facts["examples"] == 20 and facts["per_class"] == 2 and facts["made_from"] == 970
    assert metrics["models"]["alone"]["score"] == metrics["models"]["real"]["score"], "20 random real images each"
    assert metrics["models"]["made"]["score"] != metrics["models"]["alone"]["score"]
    assert metrics["main"] == "made" and metrics["score_gain"] is not None
    assert sorted(metrics["gaps"]) == ["made", "real"], "another student has no control here"
    assert len(open_source("npz", path=place / "run" / facts["file"]).splits["train"]) == 20
    assert metrics["distilled_data"]["again"]["file"] == facts["file"], "made once for both"
    assert [path.name for path in (place / "run" / "distilled-data").iterdir()] == ["made"]


def test_the_report_shows_the_images_and_how_to_use_them(ran: tuple[Path, dict]):
    text = (ran[0] / "run" / "report.html").read_text(encoding="utf-8")
    assert "The synthetic examples: made" in text and "The synthetic examples: again" not in text
    assert (
        "learnt from 20 synthetic examples, 2 a class, made so that "
        "networks get nearly the same gradient from them as from 970 real ones" in text
    )
    assert "use: npz, path:" in text and text.count("<img") >= 10


def test_a_second_run_does_nothing_and_other_settings_make_other_examples(
    ran: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch
):
    from stillroom.pipeline.recipes import experiment_of
    from stillroom.pipeline.run import pending, perform

    place, metrics = ran
    monkeypatch.setenv("STILLROOM_CACHE", str(place / "cache"))
    experiment = experiment_of(read_recipe(RECIPE))
    assert all(done for _, done in pending(experiment, place / "run"))
    changed = experiment_of(read_recipe(RECIPE, set=["arms.made.distilled_data.steps=5"]))
    left = [task.name for task, done in pending(changed, place / "run") if not done]
    assert "examples made" in left and "arm made-0" in left and "arm alone-0" not in left and "arm real-0" not in left
    monkeypatch.setattr("stillroom.pipeline.synthesis.make_examples", None)  # from the cache of all runs, or not at all
    again = perform(experiment, place / "elsewhere").metrics
    assert again["models"]["made"]["score"] == metrics["models"]["made"]["score"]


def test_a_run_killed_while_it_makes_examples_goes_on(ran: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch):
    from stillroom.pipeline import synthesis
    from stillroom.pipeline.recipes import experiment_of

    place, _ = ran
    monkeypatch.setenv("STILLROOM_CACHE", str(place / "other-cache"))
    experiment, run = experiment_of(read_recipe(RECIPE)), place / "killed"

    def stop(done: int, of: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesis.make_arm_examples(experiment, "made", run, stop)
    assert not synthesis.examples_are_ready(experiment, "made", run)
    seen: list[int] = []
    synthesis.make_arm_examples(experiment, "made", run, lambda done, of, what: seen.append(done))
    assert seen[0] > 1
    first, second = (
        synthetic_rows(load_synthetic(experiment.data, place / name / "distilled-data" / "made" / synthesis.FILE))[0]
        for name in ("run", "killed")
    )
    assert torch.equal(first, second)
    assert not (run / "distilled-data" / "made" / making.CHECKPOINT).exists()
    assert json.loads((run / "distilled-data" / "made" / "done.json").read_text())["inputs"]


def test_a_run_whose_images_did_not_help_says_what_to_try(ran: tuple[Path, dict]):
    from stillroom.pipeline.reasons import why_not
    from stillroom.pipeline.recipes import experiment_of

    experiment = experiment_of(read_recipe(RECIPE))
    scores = {"teacher": 0.9, "alone": 0.8, "distilled": 0.79}
    models = {name: {"score": {"mean": score}} for name, score in scores.items()}
    metrics = {"score_gain": {"low": -0.02, "high": 0.01}, "models": models}
    found = why_not(experiment, metrics, torch.randn(50, 10))
    assert found is not None and "worth no more than as many real ones" in found.figure["text"]
    assert "renew: 10, between: 10" in found.figure["text"] and "sees all" not in found.figure["text"]


def test_a_plan_tells_the_time_of_the_making(monkeypatch: pytest.MonkeyPatch):
    from stillroom.pipeline.checking import check_shapes
    from stillroom.pipeline.costing import estimated
    from stillroom.pipeline.recipes import experiment_of
    from stillroom.pipeline.tasks import Task

    experiment = experiment_of(read_recipe(RECIPE, set=["arms.made.distilled_data.steps=100000"]))
    assert estimated(experiment, [Task("examples", "made")], 1).seconds > 100
    assert "batch 32, 20 synthetic examples" in check_shapes(experiment)["made"]
    assert "batch 32, 20 labelled rows" in check_shapes(experiment)["alone"]
