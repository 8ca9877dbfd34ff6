"""Why students answer as they do: planted likenesses are found, controls expose the rest, nothing is asked twice."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import stillroom
from stillroom.data.texts import TextSource
from stillroom.files import read_json
from stillroom.models.bundle import Deployed
from stillroom.models.text_encode import words_for
from stillroom.models.zoo import build
from stillroom.pipeline import sensitivity
from stillroom.pipeline.recipes import experiment_of
from stillroom.pipeline.run import perform
from stillroom.pipeline.sensitivity import ALONE, RANDOM, Resemblance, picked, sensitivity_of_run
from stillroom.recipe import read_recipe
from stillroom.tensors import unpack

RECIPE = {
    "name": "reasons",
    "data": {"use": "fashion-mnist-sample", "labels": 60, "train": 300, "pad": 0},
    "teacher": {"model": "mlp", "hidden": [32], "train": {"steps": 60, "lr": 3e-3}},
    "student": {"model": "net", "hidden": 16},
    "objectives": [{"use": "labels", "weight": 0.1}, {"use": "kd"}],
    "train": {"steps": 20, "batch": 32, "lr": 3e-3},
    "arms": {"gradient": {"add": [{"use": "input_gradient", "weight": 3}]}, "kd": {}},
    "trials": [1],
    "seeds": [0, 1],
    "export": {"onnx": False},
}
SILENT = lambda done, of, what: None  # noqa: E731


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One run that the tests here read, with a cache of its own."""
    root = tmp_path_factory.mktemp("sensitivity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(root / "cache"))
        yield root, perform(experiment_of(read_recipe(RECIPE)), root / "run")


@pytest.fixture
def cache(ran, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(ran[0] / "cache"))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def planted(spread, classes=4, rows=200):
    """Gradients that are their class's direction and ``spread`` of their own."""
    kinds = torch.arange(rows) % classes
    return noise(classes, 1, 6, 6)[kinds] + spread * noise(rows, 1, 6, 6, seed=1), kinds


# --- planted ------------------------------------------------------------------------------------------------


def test_a_student_equal_to_its_teacher_has_cosine_one_and_a_lower_control():
    theirs, kinds = planted(1.0)
    found = Resemblance(theirs, kinds).of(theirs * torch.rand(200, 1, 1, 1).add(0.1))
    np.testing.assert_allclose(found.own, 1.0, atol=1e-6)
    assert 0.3 < found.others.mean() < 0.7, "half of each gradient is its class's"
    assert found.others.shape == found.own.shape


def test_a_student_that_knows_only_the_class_is_exposed_by_both_controls():
    theirs, kinds = planted(1.0)
    template = torch.stack([theirs[kinds == one].mean(0) for one in range(4)])[kinds]
    found = Resemblance(theirs, kinds).of(template + 1e-3 * noise(200, 1, 6, 6, seed=7))
    assert found.own.mean() > 0.6 and found.own.mean() - found.others.mean() < 0.1
    assert abs(found.particular.mean()) < 0.05
    particular = Resemblance(theirs, kinds).of(theirs - template).particular
    np.testing.assert_allclose(particular, 1.0, atol=1e-6)


def test_random_gradients_are_like_nothing():
    theirs, kinds = planted(1.0)
    found = Resemblance(theirs, kinds).of(noise(200, 1, 6, 6, seed=9))
    assert all(abs(part.mean()) < 0.05 for part in found)


def test_rows_without_a_gradient_or_a_partner_do_not_count():
    theirs, kinds = planted(1.0, rows=20)
    theirs[3] = 0
    kinds[5] = 9  # alone in its class
    side = Resemblance(theirs, kinds)
    assert 3 not in side.rows.tolist() and len(side.rows) == 19
    ours = theirs.clone()
    ours[7] = 0
    found = side.of(ours)
    assert len(found.own) == 19 and len(found.others) == 18
    assert found.own[side.rows.tolist().index(7)] == 0 and np.isfinite(found.own).all()
    pairs = [(row, int(side.partners[row])) for row in side.rows.tolist() if side.partners[row] >= 0]
    assert all(row != other and kinds[row] == kinds[other] and other != 3 for row, other in pairs)


def test_gradients_that_are_equal_in_a_class_have_nothing_particular():
    theirs, kinds = planted(0.0)
    side = Resemblance(theirs, kinds)
    assert side.within == pytest.approx(1.0) and len(side.particular) == 0
    entry = side.compared({"kd": [side.of(theirs)]})["kd"]
    assert entry["particular"] is None and entry["cosine"]["mean"] == pytest.approx(1.0)


def test_maps_of_two_sizes_are_compared_at_the_smaller():
    maps = torch.rand(30, 4, 4, generator=torch.Generator().manual_seed(0))
    large = maps.repeat_interleave(2, 1).repeat_interleave(2, 2)
    side = Resemblance(large, torch.arange(30) % 3)
    np.testing.assert_allclose(side.of(maps).own, 1.0, atol=1e-6)


def test_differences_are_paired_by_seed_and_example():
    theirs, kinds = planted(1.0)
    side = Resemblance(theirs, kinds)

    def seeds(amount):
        return [side.of(theirs + amount * noise(200, 1, 6, 6, seed=seed)) for seed in (3, 4, 5)]

    models = side.compared({ALONE: seeds(3.0), "kd": seeds(0.5), RANDOM: seeds(90.0)})
    lead = models["kd"]["above_alone"]
    assert lead["n"] == 3 and 0 < lead["low"] < lead["mean"] < lead["high"]
    own = [models[name]["cosine"]["per_seed"] for name in ("kd", ALONE)]
    assert lead["mean"] == pytest.approx(np.mean(own[0]) - np.mean(own[1]))
    assert "above_alone" not in models[ALONE] and "above_alone" not in models[RANDOM]


def test_rows_are_picked_by_rule():
    lead = np.asarray([0.1, 0.9, 0.2, 0.8, 0.3, 0.4, 0.0])
    assert picked(lead, np.zeros(7)) == [1, 3, 5, 4, 0, 6]
    assert picked(lead, None) == picked(lead, np.zeros(7))
    assert picked(lead[:2], lead[:2]) == [0, 1]


# --- in a run -----------------------------------------------------------------------------------------------


def test_a_run_with_derivatives_says_how_alike_they_are(ran):
    root, outcome = ran
    found = outcome.metrics["gradients"]
    assert json.loads((root / "run" / "metrics.json").read_text())["gradients"] == json.loads(json.dumps(found))
    assert found["examples"] == sensitivity.ROWS and found["inputs"] == "pictures" and "shown" not in found
    models = found["input"]["models"]
    assert set(models) == {"gradient", "kd", ALONE, RANDOM}
    for entry in models.values():
        assert len(entry["cosine"]["per_seed"]) == len(entry["others"]["per_seed"]) == 2
    assert models["gradient"]["cosine"]["mean"] > models[ALONE]["cosine"]["mean"] > 0.05
    assert abs(models[RANDOM]["cosine"]["mean"]) < 0.05
    assert "'gradient'" in found["sentence"] and "2 seeds" in found["sentence"]


def test_the_report_shows_the_numbers_and_the_maps(ran):
    root, outcome = ran
    held = {one.title: one for one in outcome.findings}
    numbers, pictures = held["Do its gradients resemble the teacher's?"], held["What the answers depend on"]
    assert numbers.number == pytest.approx(
        outcome.metrics["gradients"]["input"]["models"]["gradient"]["cosine"]["mean"]
    )
    assert pictures.figure["columns"] == ["picture", "teacher", ALONE, "gradient", "kd"]
    assert len(pictures.figure["rows"]) == 6
    page = (root / "run" / "report.html").read_text()
    assert page.count('alt="gradient of teacher') == 6


def test_the_pictures_are_of_the_students_in_the_run(ran, cache):
    root, _ = ran
    shown = read_json(root / "run" / "sensitivity" / "done.json")["result"]["shown"]
    maps, _ = unpack(root / "run" / "sensitivity" / "maps.safetensors")
    assert set(maps) == {"teacher", ALONE, "gradient", "kd"}
    for name in shown["models"]:  # one channel, so a map is the whole gradient
        cosines = nn.functional.cosine_similarity(maps[name].flatten(1), maps["teacher"].flatten(1), dim=1)
        np.testing.assert_allclose(cosines, shown["cosines"][name], atol=1e-5)
    leads = [one - two for one, two in zip(shown["cosines"]["gradient"], shown["cosines"][ALONE], strict=True)]
    assert leads == sorted(leads, reverse=True)


def test_what_was_found_is_not_asked_again(ran, cache, tmp_path, monkeypatch):
    root, outcome = ran
    run = shutil.copytree(root / "run", tmp_path / "run", symlinks=True)
    experiment = experiment_of(read_recipe(RECIPE))

    def refuse(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(sensitivity, "_asked", refuse)
    kept = sensitivity_of_run(experiment, run, SILENT)
    assert kept is not None
    assert sensitivity.sensitivity_metrics(kept, "gradient") == outcome.metrics["gradients"]
    done = run / "arms" / "kd-1" / "done.json"
    done.write_text(done.read_text().replace('"inputs": "', '"inputs": "0'))
    with pytest.raises(AssertionError, match="asked again"):
        sensitivity_of_run(experiment, run, SILENT)


def test_a_run_without_derivatives_asks_nothing(ran, cache, monkeypatch):
    monkeypatch.setattr(sensitivity, "begin", lambda *_: pytest.fail("a folder was made"))
    recipe = {**RECIPE, "arms": {"kd": {}}}
    assert sensitivity_of_run(experiment_of(read_recipe(recipe)), ran[0] / "run", SILENT) is None


def test_a_store_is_asked_where_it_holds_gradients_of_test_examples(ran, cache, tmp_path):
    root, outcome = ran
    recipe = {**RECIPE, "teacher": {"store": str((root / "run" / "knowledge").resolve())}}
    found = perform(experiment_of(read_recipe(recipe)), tmp_path / "run").metrics["gradients"]
    for name, entry in outcome.metrics["gradients"]["input"]["models"].items():
        assert found["input"]["models"][name]["cosine"]["mean"] == pytest.approx(entry["cosine"]["mean"], abs=2e-3)


def test_a_store_without_gradients_of_the_whole_input_gives_none(ran, cache, tmp_path):
    taps = {"student": "logits@gradient(random=2)", "teacher": "logits@gradient(random=2)"}
    arms = {"ways": {"add": [{"use": "directional_derivative", **taps}]}}
    first = {**RECIPE, "arms": arms, "seeds": [0], "control": False}
    live = perform(experiment_of(read_recipe(first)), tmp_path / "first")
    assert "random weights" in live.metrics["gradients"]["sentence"]
    assert "alone" not in live.metrics["gradients"]["sentence"]
    second = {**first, "teacher": {"store": str((tmp_path / "first" / "knowledge").resolve())}}
    outcome = perform(experiment_of(read_recipe(second)), tmp_path / "second")
    assert "gradients" not in outcome.metrics
    assert "Do its gradients resemble the teacher's?" not in {one.title for one in outcome.findings}


def test_explanation_maps_are_compared_where_an_arm_reads_them(cache, tmp_path):
    recipe = {
        **RECIPE,
        "data": {"use": "fashion-mnist-sample", "labels": 60, "train": 120},
        "teacher": {"model": "cnn", "width": 4, "train": {"steps": 4}},
        "student": {"model": "cnn", "width": 2},
        "arms": {
            "kd": {},
            "seen": {"add": [{"use": "explanation", "student": "block2@gradcam", "teacher": "block3@gradcam"}]},
        },
        "train": {"steps": 3, "batch": 16},
        "seeds": [0],
    }
    outcome = perform(experiment_of(read_recipe(recipe)), tmp_path / "run")
    found = outcome.metrics["gradients"]
    assert set(found["explanation"]["models"]) == set(found["input"]["models"]) == {"kd", "seen", ALONE, RANDOM}
    assert (found["explanation"]["student"], found["explanation"]["teacher"]) == ("block2@gradcam", "block3@gradcam")
    finding = next(one for one in outcome.findings if "gradients resemble" in one.title)
    assert "Grad-CAM" in finding.sentence and len(finding.figure["figures"]) >= 2


def test_rows_of_numbers_have_the_numbers_and_no_pictures(cache, tmp_path):
    inputs = torch.rand(400, 6, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, :3].sum(1) > inputs[:, 3:].sum(1)).long()
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    source = stillroom.as_source((inputs, labels))
    stillroom.fit(stillroom.Learner(teacher, ["labels"]), source, None, stillroom.Training(steps=60, lr=1e-2))
    result = stillroom.distill(
        teacher,
        lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)),
        source,
        ["labels", "kd", "input_gradient"],
        steps=30,
        labels=40,
        out=tmp_path / "run",
    )
    found = result.metrics["gradients"]
    assert found["inputs"] == "numbers" and found["examples"] == len(source.splits["test"])
    titles = [one.title for one in result.findings]
    assert "Do its gradients resemble the teacher's?" in titles and "What the answers depend on" not in titles
    assert "picture" not in next(one.sentence for one in result.findings if "gradients resemble" in one.title)


def test_texts_have_no_gradient_by_their_letters(cache, tmp_path):
    texts = [f"{'a good' if number % 2 else 'a bad'} film, number {number}" for number in range(120)]
    data = TextSource(texts, [number % 2 for number in range(120)], classes=["bad", "good"])
    words, where = words_for(data), "logits@gradient(wrt=embed)"
    torch.manual_seed(0)
    vectors = build("bigru", shape=(words.size,), classes=2, embedding=6, hidden=5)

    def reader() -> Deployed:
        made = build("bigru", shape=(words.size,), classes=2, embedding=6, hidden=5)
        made.embed.load_state_dict(vectors.embed.state_dict())
        made.embed.weight.requires_grad_(False)
        return Deployed(made, words)

    objectives = ["labels", "kd", stillroom.match("embedding_gradient", where, where)]
    result = stillroom.distill(reader(), reader, data, objectives, steps=4, labels=40, out=tmp_path / "run")
    assert "gradients" not in result.metrics
    assert read_json(tmp_path / "run" / "sensitivity" / "done.json")["result"] is None
