from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pydantic import Field, ValidationError

from stillroom.errors import Bug, RecipeError
from stillroom.files import fingerprint
from stillroom.recipe import Recipe, Tables, read_recipe
from stillroom.recipe.models import Own, Teacher
from stillroom.recipe.schema import block_of
from stillroom.settings import Mixed, Ramp, Training

EXAMPLE = """\
# stillroom run recipes/images.yaml
data:    {use: fashion-mnist, labels: 1000}      # the student may see 1,000 labels
teacher: {model: resnet, depth: 8, stem: 2, train: {epochs: 6}}
student: {model: cnn}                            # encode: {...} for its own size
objectives:
  - {use: labels, weight: 0.1}
  - {use: kd, temperature: 2, weight: 0.9}
train:   {steps: 1000, batch: {labelled: 128, transfer: 128}, optimizer: adamw, lr: 2.0e-3, precision: float32}
arms:                                            # what differs from the lines above
  kd: {}
  kd+bank: {add: [{use: bank, student: features, teacher: features, weight: {from: 1, to: 0, until: 0.5}}]}
  smooth: {objectives: [{use: labels, smoothing: 0.1}]}
seeds:   [0, 1, 2]
export:  {onnx: {int8: true}}
"""

BASE = """\
data: {use: fashion-mnist-sample}
teacher: {model: resnet}
student: {model: cnn}
objectives: [{use: labels}, {use: kd}]
"""


def mistakes(text: str | Path | dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_recipe(text, **options)
    return list(caught.value.mistakes)


# --- what is right ---------------------------------------------------------------------------------


def test_the_example_of_the_design_is_read(tmp_path: Path) -> None:
    path = tmp_path / "images.yaml"
    path.write_text(EXAMPLE)
    recipe = read_recipe(path)
    assert recipe.name == "images"
    assert (recipe.data.use, recipe.data.labels, recipe.data.options["train"]) == ("fashion-mnist", 1000, None)
    assert recipe.teacher is not None and recipe.teacher.options == {"depth": 8, "width": 16, "stem": 2}
    assert recipe.teacher.train.epochs == 6
    assert recipe.teachers == {}
    assert [(one.use, one.weight, one.name) for one in recipe.objectives] == [
        ("labels", 0.1, "labels"),
        ("kd", 0.9, "kd"),
    ]
    assert recipe.objectives[1].options == {"temperature": 2.0}
    assert recipe.train.batch == Mixed(labelled=128, transfer=128) and recipe.train.lr == 2e-3
    assert list(recipe.arms) == ["kd", "kd+bank", "smooth"]
    assert recipe.export.onnx is not None and recipe.export.onnx.int8
    assert recipe.control and recipe.seeds == (0, 1, 2) and recipe.trials == (0.3, 1.0, 3.0)


def test_an_arm_is_the_recipe_with_its_differences() -> None:
    recipe = read_recipe(EXAMPLE)
    assert recipe.arm("kd").objectives == recipe.objectives
    bank = recipe.arm("kd+bank")
    assert [one.use for one in bank.objectives] == ["labels", "kd", "bank"]
    assert isinstance(bank.objectives[2].weight, Ramp) and bank.objectives[2].weight.at(0.25) == 0.5
    assert [(one.use, one.options) for one in recipe.arm("smooth").objectives] == [
        ("labels", {"smoothing": 0.1, "class_weights": None})
    ]
    assert list(bank.arms) == ["kd+bank"]
    with pytest.raises(RecipeError, match="Did you mean 'smooth'"):
        recipe.arm("smoth")


def test_arms_merge_blocks_and_a_new_model_starts_afresh() -> None:
    text = (
        BASE
        + """\
train: {steps: 100, lr: 0.01, clip: 1.0}
arms:
  long: {train: {steps: 300}}
  passes: {train: {epochs: 2, clip: null}}
  wide: {student: {width: 32}}
  other: {student: {model: mlp, hidden: [8]}}
  few: {data: {labels: 100}}
"""
    )
    recipe = read_recipe(text)
    assert (recipe.arm("long").train.steps, recipe.arm("long").train.lr) == (300, 0.01)
    assert (recipe.arm("passes").train.steps, recipe.arm("passes").train.epochs, recipe.arm("passes").train.clip) == (
        None,
        2,
        None,
    )
    assert recipe.arm("wide").student.options["width"] == 32
    assert recipe.arm("other").student.options == {"hidden": (8,), "dropout": 0.0}
    assert recipe.arm("few").data.labels == 100 and recipe.data.labels is None
    assert read_recipe(recipe.to_yaml()) == recipe


def test_what_was_resolved_reads_the_same_and_has_the_same_fingerprint() -> None:
    recipe = read_recipe(EXAMPLE, name="images")
    again = read_recipe(recipe.to_yaml())
    assert again == recipe and again.to_yaml() == recipe.to_yaml()
    assert fingerprint(again.parts()) == fingerprint(recipe.parts())
    assert read_recipe(recipe.resolved()) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert "temperature: 2.0" in recipe.to_yaml() and "momentum: 0.9" in recipe.to_yaml()


def test_parts_depend_on_what_matters_alone() -> None:
    recipe = read_recipe(BASE)
    assert fingerprint(
        read_recipe(BASE + "name: other\njobs: 2\ndevice: cpu\nexport: {onnx: false}\n").parts()
    ) == fingerprint(recipe.parts())
    assert fingerprint(read_recipe(BASE + "train: {lr: 0.002}\n").parts()) != fingerprint(recipe.parts())
    assert fingerprint(read_recipe(BASE + "train: {lr: 1.0e-3}\n").parts()) == fingerprint(recipe.parts())


def test_defaults() -> None:
    recipe = read_recipe(BASE)
    assert recipe.name == "recipe" and list(recipe.arms) == ["main"]
    assert recipe.arm("main").objectives == recipe.objectives
    assert recipe.train.epochs == 10 and recipe.train.steps is None
    assert recipe.export.onnx is not None and not recipe.export.onnx.int8
    assert read_recipe(BASE + "export: {onnx: false}\n").export.onnx is None
    assert read_recipe(BASE + "export: {onnx: true}\n").export.onnx is not None
    assert read_recipe(BASE + "jobs: 2\n").jobs == 2


def test_a_recipe_is_frozen_and_names_are_unlike() -> None:
    recipe = read_recipe(
        BASE.replace(
            "{use: kd}",
            "{use: hint, student: block2, teacher: layer2}, "
            "{use: hint, student: block3, teacher: layer3}, {use: l2, weight: 0.1}",
        )
    )
    assert [one.name for one in recipe.objectives] == ["labels", "hint", "hint-2", "l2"]
    with pytest.raises(ValidationError):
        recipe.name = "x"


def test_several_teachers_and_the_students_own_signals() -> None:
    text = """\
data: {use: fashion-mnist-sample}
teachers: {big: {model: resnet, depth: 10}, wide: {load: runs/wide}}
student: {model: cnn}
objectives:
  - {use: kd, teacher: big/logits}
  - {use: kd, teacher: wide/anything}
  - {use: hint, student: block2, teacher: {student: block3}}
"""
    recipe = read_recipe(text)
    assert recipe.teacher is None and recipe.teachers["wide"] == Teacher(load="runs/wide")
    assert recipe.objectives[2].teacher == Own(student="block3")
    assert read_recipe(recipe.to_yaml()) == recipe
    assert list(recipe.parts()["teachers"]) == ["big", "wide"]


def test_a_recipe_without_a_teacher_and_with_stages() -> None:
    text = """\
data: {use: fashion-mnist-sample}
student: {model: net}
objectives: [{use: labels}, {use: l1, weight: 1.0e-5}]
stages: [{train: {steps: 5}}, {objectives: [{use: labels}], train: {steps: 6}}]
"""
    recipe = read_recipe(text)
    assert recipe.teacher is None and recipe.teachers == {}
    assert [stage.train.steps for stage in recipe.stages if stage.train] == [5, 6]
    assert read_recipe(recipe.to_yaml()) == recipe


def test_an_arm_without_a_teacher_may_share_a_batch_with_transfer_rows() -> None:
    assert read_recipe(EXAMPLE.replace(", labels: 1000", "")).data.labels is None


# --- what is wrong -----------------------------------------------------------------------------------

CHANGES: list[tuple[str, str, str]] = [
    (
        "{use: kd}",
        "{use: kd, temprature: 2}",
        "line 4: objectives[1].temprature: unknown key; did you mean 'temperature'?",
    ),
    (
        "{use: kd}",
        "{use: kd, zzz: 2}",
        "objectives[1].zzz: unknown key; allowed: use, student, teacher, weight, connector, every, part, name, "
        "temperature",
    ),
    ("{use: kd}", "{use: hnt}", "line 4: objectives[1].use: unknown objective 'hnt'; did you mean 'hint'?"),
    (
        "{use: kd}",
        "{use: qqqq}",
        "line 4: objectives[1].use: unknown objective 'qqqq'; allowed: attention_relations, attention_transfer, bank",
    ),
    ("{use: kd}", "{uze: kd}", "line 4: objectives[1].uze: unknown key; did you mean 'use'?"),
    (
        "{use: kd}",
        "{weight: 1}",
        "line 4: objectives[1]: 'use' is missing; allowed: attention_relations, attention_transfer",
    ),
    ("{use: kd}", "kd", "line 4: objectives[1]: must be a block of keys such as {use: kd}, got the text 'kd'"),
    ("{use: kd}", "{use: kd, temperature: 0}", "line 4: objectives[1].temperature: must be above 0, got 0"),
    ("{use: kd}", "{use: kd, temperature: hot}", "objectives[1].temperature: must be a number, got the text 'hot'"),
    ("{use: kd}", "{use: kd, weight: -1}", "objectives[1].weight: must be at least 0, got -1"),
    ("{use: kd}", "{use: kd, weight: true}", "objectives[1].weight: must be a number, got true"),
    ("{use: kd}", "{use: kd, weight: [1]}", "objectives[1].weight: must be a number, got a list"),
    ("{use: kd}", "{use: kd, weight: {from: 1, until: 1}}", "objectives[1].weight: 'to' is missing"),
    (
        "{use: kd}",
        "{use: kd, weight: {from: 1, to: 0, until: 2}}",
        "objectives[1].weight.until: must be at most 1, got 2",
    ),
    ("{use: kd}", "{use: kd, weight: {form: 1, to: 0, until: 1}}", "weight.form: unknown key; did you mean 'from'?"),
    (
        "{use: kd}",
        "{use: kd, weight: {from: 1, to: 0, until: 0.2, start: 0.5}}",
        "start (0.5) must lie before until (0.2)",
    ),
    ("{use: kd}", "{use: kd, weight: {from: 0, to: 0, until: 1}}", "the weight is 0 from beginning to end"),
    ("{use: kd}", "{use: kd, every: 0}", "objectives[1].every: must be at least 1, got 0"),
    (
        "{use: kd}",
        "{use: kd, connector: liner}",
        "must be 'auto', 'none' or 'linear', got the text 'liner' (did you mean 'linear'?)",
    ),
    ("{use: kd}", "{use: kd, student: '::'}", "line 4: objectives[1].student: This is not a tap: got '::'"),
    ("{use: kd}", "{use: kd, teacher: []}", "objectives[1].teacher: must not be empty, got an empty list"),
    (
        "{use: kd}",
        "{use: hint, student: [block1, block2], teacher: [layer1, layer2, layer3]}",
        "2 taps of the student cannot be paired with 3 of the teacher",
    ),
    (
        "{use: kd}",
        "{use: hint, student: blok2, teacher: layer2}",
        "the student (cnn) has no submodule 'blok2'; did you mean 'block2'?",
    ),
    (
        "{use: kd}",
        "{use: hint, student: block2, teacher: layer9}",
        "the teacher (resnet) has no submodule 'layer9'; did you mean 'layer",
    ),
    ("{use: kd}", "{use: hint, student: block2, teacher: big/layer2}", "the recipe has a single one; write 'layer2'"),
    ("{use: kd}", "{use: hint, student: big/block2, teacher: layer2}", "'big/block2' names a teacher ('big')"),
    (
        "{use: kd}",
        "{use: attention_transfer, teacher: layer1}",
        "attention_transfer must be told where to read: add 'student:'",
    ),
    (
        "{use: kd}",
        "{use: explanation, teacher: layer3@gradcam}",
        "explanation must be told where to read: add 'student:' with a tap such as layer3@gradcam",
    ),
    (
        "{use: kd}",
        "{use: explanation, student: block3@gradcam, teacher: layer9@gradcam}",
        "the teacher (resnet) has no submodule 'layer9'; did you mean 'layer",
    ),
    (
        "{use: kd}",
        "{use: embedding_gradient}",
        "add 'teacher:' with a tap such as 'logits@gradient(wrt=embed)'",
    ),
    ("{use: kd}", "{use: bank, teacher: {student: features}}", "bank reads other rows of the teacher's store"),
    (
        "{use: kd}",
        "{use: l2, student: head}",
        "objectives[1].student: l2 reads nothing of the student; take 'student' away",
    ),
    ("{use: labels}", "{use: labels, teacher: logits}", "objectives[0].teacher: labels reads nothing of the teacher"),
    ("{use: labels}", "{use: labels, connector: none}", "labels compares with no teacher; take 'connector' away"),
    ("{use: labels}", "{use: labels, smoothing: 1}", "objectives[0].smoothing: must be below 1, got 1"),
    ("{use: labels}", "{use: kd}, {use: kd, name: kd}", "another objective is called 'kd'"),
    ("{use: labels}", "{use: labels, name: loss}", "'loss' is the name of the sum"),
    ("teacher: {model: resnet}", "", "line 4: objectives[1]: kd reads a teacher, and the recipe has none"),
    ("teacher: {model: resnet}", "teacher: resnet", "line 2: teacher: must be a block such as {model: resnet}"),
    (
        "teacher: {model: resnet}",
        "teacher: {model: resnet, load: x}",
        "model and load are given; a teacher comes from one of them",
    ),
    (
        "teacher: {model: resnet}",
        "teacher: {}",
        "line 2: teacher: 'model' is missing; allowed: bigru, bilstm, cnn, convnet, gru, lstm",
    ),
    ("teacher: {model: resnet}", "teacher: {load: x, depth: 3}", "line 2: teacher.depth: unknown key; allowed: load"),
    (
        "teacher: {model: resnet}",
        "teacher: {model: resnet, depth: 9}",
        "line 2: teacher: This depth of a ResNet cannot be built: got 9",
    ),
    (
        "teacher: {model: resnet}",
        "teacher: {model: resnet, train: {epochs: 0}}",
        "teacher.train.epochs: must be above 0, got 0",
    ),
    (
        "teacher: {model: resnet}",
        "teacher: {model: resnet}\nteachers: {a: {load: x}}",
        "'teacher' and 'teachers' are given",
    ),
    (
        "teacher: {model: resnet}",
        "teachers: {a: {load: x}, b: {load: y}}\nrecord: {also: [features]}",
        "say which teacher's 'features' is meant; allowed: a/features, b/features",
    ),
    ("teacher: {model: resnet}", "teachers: {}", "there is no teacher in it"),
    (
        "data: {use: fashion-mnist-sample}",
        "data: {use: fasion-mnist}",
        "line 1: data.use: unknown data 'fasion-mnist'; did you mean",
    ),
    ("data: {use: fashion-mnist-sample}", "data: {use: npz}", "line 1: data: 'path' is missing"),
    (
        "data: {use: fashion-mnist-sample}",
        "data: {use: mnist, labels: some}",
        "data.labels: must be a whole number, got the text 'some'",
    ),
    ("data: {use: fashion-mnist-sample}", "data: {use: mnist, labels: 0}", "labels reads labels, and data.labels is 0"),
    (
        "data: {use: fashion-mnist-sample}",
        "data: {use: mnist, train: 10, labels: 20}",
        "20 labels are more than the 10 rows",
    ),
    (
        "data: {use: fashion-mnist-sample}",
        "data: {use: mnist, views: 4}",
        "views are chosen in one place: record: {views: 4}",
    ),
    (
        "data: {use: fashion-mnist-sample}",
        "",
        "line 1: 'data' is missing; add 'data:' such as {use: fashion-mnist-sample}",
    ),
    ("student: {model: cnn}", "", "'student' is missing; add 'student:' such as {model: cnn}"),
    (
        "student: {model: cnn}",
        "student: {model: cnnn}",
        "line 3: student.model: unknown model 'cnnn'; did you mean 'cnn'?",
    ),
    ("student: {model: cnn}", "student: {model: cnn, width: 1.5}", "student.width: must be a whole number, got 1.5"),
    (
        "student: {model: cnn}",
        "student: {model: cnn, width: 0}",
        "line 3: student: Option 'width' of model 'cnn' does not fit",
    ),
    (
        "student: {model: cnn}",
        "student: {model: cnn, encode: {siz: 3}}",
        "student.encode.siz: unknown key; did you mean 'size'?",
    ),
    ("objectives: [{use: labels}, {use: kd}]", "objectives: []", "line 4: objectives: there are no objectives"),
    ("objectives: [{use: labels}, {use: kd}]", "objectives: kd", "objectives: must be a list of blocks"),
    ("objectives: [{use: labels}, {use: kd}]", "objectives: [{use: l1}]", "there are only penalties on weights"),
    (
        "objectives: [{use: labels}, {use: kd}]",
        "objectives: [{use: labels, weight: 0}]",
        "every weight is 0, so nothing is learnt",
    ),
]

ADDITIONS: list[tuple[str, str]] = [
    ("train: {steps: 10, epochs: 2}", "line 5: train: steps (10) and epochs (2) are both given; keep one of them"),
    ("train: {steps: 1.5}", "line 5: train.steps: must be a whole number, got 1.5"),
    ("train: {steps: 0}", "train.steps: must be at least 1, got 0"),
    ("train: {lr: '1e-3'}", "train.lr: must be a number, got the text '1e-3' (take the quotes away)"),
    ("train: {lr: .nan}", "line 5: train.lr: .nan is not a number that a recipe may hold"),
    ("train: {lr: -.inf}", "line 5: train.lr: -.inf is not a number that a recipe may hold"),
    (
        "train: {optimizer: adam}",
        "train.optimizer: must be 'adamw', 'sgd' or 'dot', got the text 'adam' (did you mean 'adamw'?)",
    ),
    ("train: {batch: {labelled: 3}}", "line 5: train.batch: 'transfer' is missing"),
    ("train: {batch: {labeled: 3, transfer: 3}}", "train.batch.labeled: unknown key; did you mean 'labelled'?"),
    ("train: {batch: many}", "train.batch: must be a whole number, got the text 'many'"),
    ("train: {evaluate_at: [0.5, 0.25]}", "train: evaluate_at must rise from each to the next, got [0.5, 0.25]"),
    ("train: {milestones: 0.5}", "train.milestones: must be a list, got 0.5"),
    ("train: {nesterov: true}", "nesterov needs optimizer: sgd"),
    ("train: fast", "train: must be a block of keys, got the text 'fast'"),
    ("arms: {alone: {}}", "line 5: arms.alone: 'alone' is a name the results use themselves"),
    ("arms: {a/b: {}}", "line 5: arms.a/b: 'a/b' cannot be the name of a folder"),
    ("arms: {a: {}, A: {}}", "arms.A: differs from another name by upper and lower case alone"),
    ("arms: [a]", "arms: must be a block with a name for each arm"),
    ("arms: {a: {seeds: [1]}}", "arms.a.seeds: arms are compared seed by seed"),
    ("arms: {a: {teacher: {model: cnn}}}", "arms.a.teacher: arms share one teacher"),
    (
        "arms: {a: {data: {use: mnist}}}",
        "arms.a.data.use: arms share their data; only 'labels' and 'unlabelled' may differ",
    ),
    ("arms: {a: {ad: [{use: kd}]}}", "arms.a.ad: unknown key; did you mean 'add'?"),
    ("arms: {a: {student: {widht: 2}}}", "arms.a.student.widht: unknown key; did you mean 'width'?"),
    ("arms: {a: {train: {steps: x}}}", "arms.a.train.steps: must be a whole number, got the text 'x'"),
    (
        "arms: {a: {add: [{use: hint, student: blok1, teacher: layer1}]}}",
        "arms.a.add[0].student: the student (cnn) has no submodule",
    ),
    ("arms: {a: {objectives: []}}", "arms.a: there are no objectives"),
    (
        "arms: {a: {student: {model: mlp}, add: [{use: hint, student: block1, teacher: layer1}]}}",
        "the student (mlp) has no submodule",
    ),
    ("arms: {a: 5}", "arms.a: must be a block of what differs, {} for nothing, got 5"),
    ("stages: [{trian: {steps: 3}}]", "stages[0].trian: unknown key; did you mean 'train'?"),
    ("seeds: []", "line 5: seeds: must not be empty, got an empty list"),
    ("seeds: [1, 1]", "seeds: 1 is given twice"),
    ("seeds: [-1]", "seeds[0]: must be at least 0, got -1"),
    ("seeds: 3", "seeds: must be a list, got 3"),
    ("trials: [1, 1.0]", "trials: 1 is given twice"),
    ("trials: [0]", "trials[0]: must be above 0, got 0"),
    ("control: no", "control: must be true or false, got the text 'no' (write false, without quotes)"),
    (
        "export: {onnx: {int8: yes}}",
        "export.onnx.int8: must be true or false, got the text 'yes' (write true, without quotes)",
    ),
    ("export: {onx: true}", "export.onx: unknown key; did you mean 'onnx'?"),
    ("jobs: all", "jobs: must be 'auto' or a whole number, got the text 'all'"),
    ("device: gpu", "device: must be 'auto', 'cpu', 'cuda' or 'mps', got the text 'gpu' (did you mean 'cpu'?)"),
    ("record: {also: ['@']}", "record.also: This is not a tap: got '@'"),
    ("record: {views: 0}", "record.views: must be at least 1, got 0"),
    ("name: ../escape", "line 5: name: '../escape' cannot be the name of a folder"),
    ("name: 5", "name: must be text, got 5 (put it in quotes)"),
    ("objectivs: 3", "line 5: objectivs: unknown key; did you mean 'objectives'? It is given already"),
    ("sedes: [1]", "line 5: sedes: unknown key; did you mean 'seeds'?"),
]


@pytest.mark.parametrize(("old", "new", "message"), CHANGES, ids=[change[2][:60] for change in CHANGES])
def test_one_mistake_in_a_block(old: str, new: str, message: str) -> None:
    assert old in BASE
    found = mistakes(BASE.replace(old, new))
    assert any(message in one for one in found), found


@pytest.mark.parametrize(("line", "message"), ADDITIONS, ids=[addition[0] for addition in ADDITIONS])
def test_one_mistake_in_one_line(line: str, message: str) -> None:
    found = mistakes(BASE + line + "\n")
    assert len(found) == 1 and message in found[0], found


def test_transfer_rows_without_a_teacher_teach_nothing() -> None:
    text = """\
data: {use: mnist, labels: 100}
student: {model: net}
objectives: [{use: labels}]
train: {batch: {labelled: 8, transfer: 8}}
"""
    (found,) = mistakes(text)
    assert found.startswith("line 4: train.batch.transfer: no objective reads a teacher")


def test_an_unknown_teacher_is_named() -> None:
    text = BASE.replace("teacher: {model: resnet}", "teachers: {big: {load: x}, wide: {load: y}}")
    (found,) = mistakes(text.replace("{use: kd}", "{use: kd, teacher: bgi/logits}"))
    assert found == "line 4: objectives[1].teacher: unknown teacher 'bgi'; did you mean 'big'?"


def test_all_mistakes_at_once_in_the_order_of_the_lines() -> None:
    text = """\
data: {use: fasion-mnist, labels: lots}
teacher: {model: resnet, trian: {epochs: "6"}}
student: {modle: cn, widht: 1.5}
objectives:
  - {use: labels, smoothing: 1.0, weight: no}
  - {use: kdd, temprature: 0}
  - {use: zzz}
train:
  bach: {labeled: 128, transfer: 0}
  steps: 1.5
arms:
  a: {train: {lr: x}}
seeds: [0, 0]
foo: 1
"""
    found = mistakes(text)
    assert [one.split(": ", 2)[:2] for one in found] == [
        ["line 1", "data.use"],
        ["line 1", "data.labels"],
        ["line 2", "teacher.trian"],
        ["line 2", "teacher.trian.epochs"],
        ["line 3", "student.modle"],
        ["line 3", "student.modle"],
        ["line 3", "student.widht"],
        ["line 3", "student.widht"],
        ["line 5", "objectives[0].weight"],
        ["line 5", "objectives[0].smoothing"],
        ["line 6", "objectives[1].use"],
        ["line 6", "objectives[1].temprature"],
        ["line 6", "objectives[1].temprature"],
        ["line 7", "objectives[2].use"],
        ["line 9", "train.bach"],
        ["line 9", "train.bach.labeled"],
        ["line 9", "train.bach.transfer"],
        ["line 10", "train.steps"],
        ["line 12", "arms.a.train.lr"],
        ["line 13", "seeds"],
        ["line 14", "foo"],
    ]


def test_a_mistake_that_arms_share_is_told_once_and_the_error_says_how_many(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(EXAMPLE.replace("temperature: 2", "temperature: -2").replace("cnn", "cnm"))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(
        f"The recipe {path} has 2 mistakes:\n  line 4: student.model: unknown model 'cnm'"
    )


def test_many_mistakes_are_cut_but_counted() -> None:
    with pytest.raises(RecipeError, match=r"has 300 mistakes:[\s\S]*\.\.\. and 250 more") as caught:
        read_recipe(BASE + "".join(f"qq{number}xyz: 1\n" for number in range(300)))
    assert len(caught.value.mistakes) == 300


# --- the text itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got nothing"),
        ("# nothing\n", "got nothing"),
        ("- a\n- b\n", "got a list"),
        ("just: [words\n", "line 2: not YAML"),
        ("words\nand words\n", "got a plain value"),
        ("a: &x 1\nb: *x\n", "line 2: anchors and aliases (&x, *x) are not allowed"),
        (
            "a: !!python/object:os.system x\n",
            "line 1: tags (tag:yaml.org,2002:python/object:os.system) are not allowed",
        ),
        ("a: ! 3\n", "line 1: tags (!) are not allowed"),
        ("<<: {a: 1}\n", "line 1: <<: merge keys (<<) are not allowed"),
        ("a: 1\n1: 2\n", "line 2: 1: a key must be text, got 1; put it in quotes"),
        ("true: 2\n", "line 1: true: a key must be text, got true"),
        ("? [a]\n: 1\n", "line 1: a key must be a word, got a list or a block"),
        ("a: 1\nb: 2\na: 3\n", "line 3: a: the key is given twice; it is on line 1 too"),
        ("a: 1\n---\nb: 1\n", "line 2: a second document begins here"),
        ("%YAML 1.1\n---\na: no\n", "line 2: directives (%YAML, %TAG) are not allowed"),
        ("a:\n\t- 1\n", "line 2: a tab cannot indent"),
        ("a: \x00\n", "line 1: not YAML text"),
        ("a: \ud800\n", "line 1: not YAML text"),
        ("a: " + "9" * 5000 + "\n", "line 1: a: 999"),
        ("a: 1e999\n", "line 1: a: 1e999 is not a number"),
        ("a: " + "[" * 41 + "]" * 41 + "\n", "line 1: nested deeper than 40 levels"),
        ("a: '" + "x" * 70_000 + "'\n", "more than 64 KiB"),
        ("a: {b: }}\n", "line 1: not YAML"),
    ],
)
def test_text_that_is_no_recipe(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not UTF-8 at byte 0"),
        ("data: ü".encode("utf-16"), "is not UTF-8"),
        (b"x" * 70_000, "more than 64 KiB"),
        (b"", "got nothing"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        read_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="does not exist"):
        read_recipe("absent.yaml")
    with pytest.raises(RecipeError, match="got a folder"):
        read_recipe(tmp_path)
    with pytest.raises(RecipeError):
        read_recipe("nul\x00.yaml")


def test_bombs_are_refused_quickly() -> None:
    start = time.perf_counter()
    with pytest.raises(RecipeError, match="nested deeper"):
        read_recipe("a: " + "[" * 20_000 + "]" * 20_000 + "\n")
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(RecipeError, match="anchors and aliases"):
        read_recipe(laughs)
    assert time.perf_counter() - start < 3


def test_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a recipe, copied.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert read_recipe(path).name == "a-recipe--copied"
    assert read_recipe("\ufeff" + BASE) == read_recipe(BASE)
    assert read_recipe("---\n" + BASE) == read_recipe(BASE)
    path.write_bytes(BASE.replace("\n", "\r\n").encode() + b"train: {steps: x}\r\n")
    assert mistakes(path)[0].startswith("line 5: train.steps")


def test_numbers_are_those_of_yaml_1_2() -> None:
    recipe = read_recipe(BASE + "train: {steps: 012, lr: 1e-3}\nname: 2024-01-01\n")
    assert (recipe.train.steps, recipe.train.lr, recipe.name) == (12, 1e-3, "2024-01-01")
    assert read_recipe(BASE + "name: no\n").name == "no"
    assert read_recipe(read_recipe(BASE + "name: 'no'\n").to_yaml()).name == "no"
    assert read_recipe(read_recipe(BASE + "name: '012'\n").to_yaml()).name == "012"


def test_a_mapping_is_a_recipe_too() -> None:
    plain = {"data": {"use": "fashion-mnist-sample"}, "student": {"model": "cnn"}, "objectives": ({"use": "labels"},)}
    assert read_recipe(plain, name="mine").name == "mine"
    assert mistakes({**plain, "sedes": [1]}) == ["sedes: unknown key; did you mean 'seeds'?"]
    assert "a key must be text" in mistakes({**plain, 1: 2})[0]
    assert "got a object" in mistakes({**plain, "name": object()})[0]
    assert "not a number" in mistakes({**plain, "trials": [float("nan")]})[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.data())
def test_whatever_is_changed_gives_a_recipe_or_a_recipe_error(data: some.DataObject) -> None:
    lines = EXAMPLE.splitlines()
    text = "\n".join(lines)
    start = data.draw(some.integers(0, len(text)))
    length = data.draw(some.integers(0, 12))
    new = data.draw(some.text("{}[]:,-#'\"\n\t &*!%@|>?aeklnorstuw019.", max_size=6))
    try:
        assert isinstance(read_recipe(text[:start] + new + text[start + length :] + "\n"), Recipe)
    except RecipeError as error:
        assert error.mistakes


Values = some.recursive(
    some.none() | some.booleans() | some.integers(-3, 300) | some.sampled_from([0.5, "x", "kd", "logits", ""]),
    lambda inner: (
        some.lists(inner, max_size=2)
        | some.dictionaries(some.sampled_from(["use", "model", "x", "steps"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    some.sampled_from(
        [
            "data",
            "data.use",
            "data.labels",
            "teacher",
            "teacher.model",
            "teacher.train",
            "teachers",
            "student",
            "student.encode",
            "objectives",
            "objectives.0",
            "objectives.1.use",
            "objectives.1.weight",
            "objectives.1.teacher",
            "train",
            "train.batch",
            "arms",
            "arms.kd",
            "arms.kd+bank.add",
            "arms.smooth.objectives.0",
            "arms.kd.student",
            "arms.kd.data",
            "arms.kd.train",
            "stages",
            "seeds",
            "export",
            "export.onnx",
            "record",
            "record.also",
            "name",
            "jobs",
            "trials",
        ]
    ),
    Values,
)
def test_any_value_in_any_place_gives_a_recipe_or_a_recipe_error(place: str, value: Any) -> None:
    import json

    try:
        recipe = read_recipe(EXAMPLE, set=[f"{place}={json.dumps(value)}"])
    except RecipeError as error:
        assert error.mistakes
    else:
        assert read_recipe(recipe.to_yaml()) == recipe


# --- overrides, tiny -------------------------------------------------------------------------------------


def test_set_changes_values_lists_and_blocks() -> None:
    recipe = read_recipe(
        EXAMPLE,
        set=[
            "train.steps=200",
            "objectives.1.temperature=4",
            "objectives[0].weight=0.5",
            "objectives.kd.weight={from: 1, to: 0, until: 1}",
            "seeds=[5]",
            "arms.kd+bank.add.0.temperature=0.1",
            "export.onnx=false",
            "record.views=2",
            "name=other",
        ],
    )
    assert recipe.train.steps == 200 and recipe.seeds == (5,) and recipe.name == "other"
    assert recipe.objectives[1].options == {"temperature": 4.0} and recipe.objectives[0].weight == 0.5
    assert recipe.objectives[1].weight == Ramp(begin=1, to=0, until=1)
    assert recipe.arm("kd+bank").objectives[2].options["temperature"] == 0.1
    assert recipe.export.onnx is None and recipe.record.views == 2
    assert read_recipe(EXAMPLE, set=["train.epochs=3"]).train.steps is None
    assert read_recipe(EXAMPLE, set=["arms.kd.train.lr=0.1"]).arm("kd").train.lr == 0.1


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.wramup=3", "--set: train.wramup: unknown key; did you mean 'warmup'?"),
        ("tain.steps=3", "--set: tain: unknown key; did you mean 'train'? It is given already"),
        ("train.steps=x", "--set: train.steps: must be a whole number, got the text 'x'"),
        ("train.steps", "--set train.steps: write it as path=value, such as train.steps=200"),
        ("=3", "--set =3: write it as path=value"),
        ("train..steps=3", "--set train..steps=3: write it as path=value"),
        ("objectives.7.weight=1", "--set: objectives.7: no such entry; allowed: a number from 0 to 1"),
        ("objectives.kdd.weight=1", "did you mean 'kd'?"),
        ("train.lr=[1", "--set train.lr=[1: line 1: not YAML"),
        ("train.lr=*x", "--set train.lr=*x: line 1: anchors and aliases"),
    ],
)
def test_set_that_cannot_be(assignment: str, message: str) -> None:
    found = mistakes(EXAMPLE, set=[assignment])
    assert any(message in one for one in found), found


def test_tiny_cuts_the_work_and_nothing_else() -> None:
    recipe = read_recipe(EXAMPLE + "stages: [{train: {steps: 500}}]\n", tiny=True, set=["arms.smooth.train.epochs=9"])
    assert (recipe.data.options["train"], recipe.data.labels) == (256, 128)
    assert recipe.train.steps == 20 and recipe.train.epochs is None and recipe.seeds == (0,)
    assert recipe.teacher is not None and (recipe.teacher.train.steps, recipe.teacher.train.epochs) == (20, None)
    assert recipe.arm("smooth").train.steps == 20
    assert recipe.stages[0].train is not None and recipe.stages[0].train.steps == 20
    assert list(recipe.arms) == ["kd", "kd+bank", "smooth"] and recipe.trials == (0.3, 1.0, 3.0)
    assert read_recipe(recipe.to_yaml()) == recipe
    assert read_recipe(BASE + "train: {steps: 5, batch: 512}\n", tiny=True).train.steps == 5
    assert read_recipe(BASE + "train: {steps: 5, batch: 512}\n", tiny=True).train.batch == 256


# --- settings, schema, imports ---------------------------------------------------------------------------


def test_a_ramp_goes_from_one_value_to_another() -> None:
    ramp = Ramp(begin=1, to=0, until=0.75, start=0.25)
    assert [ramp.at(progress) for progress in (0, 0.25, 0.5, 0.75, 1)] == [1, 1, 0.5, 0, 0]
    assert Ramp.model_validate({"from": 0, "to": 2, "until": 1}).at(0.5) == 1
    with pytest.raises(ValidationError):
        Ramp(begin=1, to=0, until=0.5, start=0.5)


def test_the_length_of_a_training() -> None:
    assert Training().epochs == 10 and Training().total_steps(1000) == 80
    assert Training(epochs=0.5, batch=100).total_steps(1000) == 5
    assert Training(steps=7).total_steps(10**6) == 7 and Training(steps=7).epochs is None
    assert Training(batch=Mixed(labelled=50, transfer=100), epochs=1).total_steps(100) == 2
    assert Training(batch=Mixed(labelled=50, transfer=100)).rows == 150
    assert Training(epochs=0.001).total_steps(10) == 1
    with pytest.raises(ValidationError):
        Training(steps=1, epochs=1)


def test_signatures_are_schemas_and_tables_are_arguments() -> None:
    def twist(
        student_logits: Any,
        teacher_logits: Any,
        *,
        how: Literal["left", "right"] = "left",
        turns: Annotated[int, Field(ge=1)] | None = None,
    ) -> Any: ...

    def rows(*, path: Path) -> Any: ...

    def small(*, shape: Any, classes: int, width: int = 3) -> Any: ...

    tables = Tables({"twist": twist}, {"rows": rows}, {"small": small})
    text = """\
data: {use: rows, path: here}
teacher: {store: there}
student: {model: small}
objectives: [{use: twist, how: right}]
"""
    recipe = read_recipe(text, tables=tables)
    assert recipe.data.options == {"path": Path("here")}
    assert recipe.objectives[0].options == {"how": "right", "turns": None}
    assert recipe.student.options == {"width": 3}
    assert read_recipe(recipe.to_yaml(), tables=tables) == recipe
    assert mistakes(text.replace("right", "rihgt, turns: 0"), tables=tables) == [
        "line 4: objectives[0].how: must be 'left' or 'right', got the text 'rihgt' (did you mean 'right'?)",
        "line 4: objectives[0].turns: must be at least 1, got 0",
    ]


def test_an_option_that_has_the_name_of_a_key_is_our_own_mistake() -> None:
    def bad(student: Any, *, train: int = 1) -> Any: ...

    with pytest.raises(Bug, match="train"):
        block_of(bad, Teacher, ("train",))


def test_recipes_are_imported_without_pytorch() -> None:
    code = "import sys, stillroom.recipe, stillroom.settings; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
