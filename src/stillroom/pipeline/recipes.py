"""From a recipe to an experiment: names become sources, models and objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stillroom.contracts import Source
from stillroom.data.leaving_out import examples_in, without
from stillroom.data.table import open_source, options_of
from stillroom.dataset_distillation.making import check_source, rows_by_class
from stillroom.errors import ModelError, RecipeError, say
from stillroom.fingerprints import fingerprint_of
from stillroom.models.bundle import load
from stillroom.models.table_encode import check_columns
from stillroom.objectives import Objective, match
from stillroom.paths import expand, is_utf8
from stillroom.pipeline.making import Making
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment, SynthesisPlan, TeacherPlan, control_of
from stillroom.recipe import Data, Own, Recipe, Stage, Teacher, written
from stillroom.recipe import Objective as ObjectiveEntry
from stillroom.settings import Ramp, resolved_precision
from stillroom.tasks import check_names
from stillroom.tensors import state_of


def experiment_of(recipe: Recipe) -> Experiment:
    """Build everything that a recipe names; nothing is trained yet.

    Raises:
        UserError: data, a bundle or a store is not as it must be.
    """
    if recipe.stages and recipe.stages[-1].student is not None:
        raise RecipeError(
            f"The last stage must train the recipe's own student: got 'student: {recipe.stages[-1].student.model}' "
            "there. Allowed: "
            "a 'student' in earlier stages, which makes an assistant of it. Add a last stage without 'student'."
        )
    if recipe.device not in ("auto", "cpu"):
        raise RecipeError(say("A run trains on the processor so far", f"device: {recipe.device}", "auto or cpu"))
    data = open_data(recipe.data, recipe.record.views)
    blocks = {"": recipe.teacher} if recipe.teacher is not None else dict(recipe.teachers)
    making = Making(data, class_count(data))
    teachers = {name: _teacher(block, making) for name, block in blocks.items()}
    arms = {name: _arm(recipe.arm(name), name, making) for name in recipe.arms}
    first = next(iter(arms.values()))
    if recipe.control and teachers and first.reads_labels:
        options = _labels_options(recipe.arm(first.name))
        arms = {ALONE: control_of(first, lambda: match("labels", **options)), **arms}
    trainings = [plan.training for plan in teachers.values() if plan.training is not None]
    trainings += [part.training for arm in arms.values() for part in (*arm.before, arm)]
    for asked in (training.views for training in trainings):
        if asked is not None and asked > recipe.record.views:
            do = "Lower train.views or raise record.views."
            raise RecipeError(
                say("A training uses more views than are recorded", asked, f"1 to {recipe.record.views}", do)
            )
    onnx = recipe.export.onnx
    return Experiment(
        recipe.name,
        data,
        teachers,
        arms,
        recipe.seeds,
        recipe.trials,
        recipe.record.views,
        recipe.record.also,
        onnx is not None,
        bool(onnx and onnx.int8),
        recipe.to_yaml(),
        [(one.use, one.options) for one in recipe.evaluate.on] if recipe.evaluate else (),
        recipe.evaluate.rows if recipe.evaluate else 2000,
        resolved_precision(recipe.record.precision),
    )


def _labels_options(recipe: Recipe) -> dict[str, Any]:
    """Return the options of the last ``labels`` that the student is trained on, in whichever stage; none: defaults."""
    entries = [stage.objectives or recipe.objectives for stage in recipe.stages if stage.student is None]
    found = [one for part in reversed(entries or [recipe.objectives]) for one in part if one.use == "labels"]
    return dict(found[0].options) if found else {}


def open_data(block: Data, views: int = 1) -> Source:
    """Open the source a recipe names, with as many views as are to be recorded, without the examples to leave out."""
    options = dict(block.options)
    if "views" in options_of(block.use):
        options["views"] = views
    elif views > 1:
        raise RecipeError(say(f"Data '{block.use}' has no views", f"record.views: {views}", "1"))
    source = open_source(block.use, **options)
    return source if block.leave_out is None else without(source, examples_in(block.leave_out))


def class_count(data: Source) -> int:
    """Return how many classes the data has.

    Raises:
        ModelError: it has none.
    """
    if not data.classes:
        raise ModelError(
            "A model of the zoo needs the number of classes: got data without labels. Name the column of labels "
            "(data.label), or use stillroom.distill in Python with a network of your own."
        )
    if odd := [name for name in data.classes if not is_utf8(str(name))]:
        do = "Rename it: reports and files cannot hold half a character."
        raise ModelError(
            say("A class has a name that is not text in UTF-8", repr(odd[0]), "names of whole characters", do)
        )
    if len(data.classes) < 2:
        raise ModelError(
            say(
                "There is nothing to tell apart",
                f"one class, '{data.classes[0]}'",
                "at least 2 classes",
                "Check the labels.",
            )
        )
    return len(data.classes)


def _arm(recipe: Recipe, name: str, making: Making) -> ArmPlan:
    student = making.zoo(recipe.student.model, recipe.student.options, recipe.student.encode)
    parts = recipe.parts()
    described = {key: parts[key] for key in ("student", "objectives", "train", "record", "stages")}
    described |= {key: parts[key] for key in ("distilled_data",) if key in parts}
    described |= {} if recipe.data.unlabelled else {"unlabelled": False}
    last = recipe.stages[-1] if recipe.stages else Stage()
    plan = ArmPlan(
        name,
        _objectives(last.objectives or recipe.objectives),
        last.train or recipe.train,
        recipe.data.labels,
        student.make,
        student.encode,
        student.config,
        described,
        unlabelled=recipe.data.unlabelled,
    )
    before = tuple(_stage(number, stage, recipe, plan, making) for number, stage in enumerate(recipe.stages[:-1], 1))
    distilled = None if recipe.distilled_data is None else _synthesis(recipe, plan, making)
    return replace(plan, before=before, distilled=distilled)


def _synthesis(recipe: Recipe, plan: ArmPlan, making: Making) -> SynthesisPlan:
    """Return how the examples of an arm are made; whether they can be is seen before anything else is done.

    Raises:
        DataError: texts, too few classes, or fewer real examples than are to be made.
    """
    block = recipe.distilled_data
    assert block is not None
    check_source(making.data)
    rows_by_class(plan.seen(making.data), block.making.per_class)
    network = block.network or recipe.student
    made = making.zoo(network.model, network.options, network.encode)
    described = {"network": written(network), "making": written(block.making)}
    examples = block.making.per_class * making.classes
    return SynthesisPlan(block.making, made.make, made.encode, examples, described)


def _stage(number: int, stage: Stage, recipe: Recipe, plan: ArmPlan, making: Making) -> ArmPlan:
    """Return an earlier stage: of the arm's own student, or of an assistant."""
    changed = replace(
        plan,
        name=f"stage {number}",
        objectives=_objectives(stage.objectives or recipe.objectives),
        training=stage.train or recipe.train,
    )
    if stage.student is None:
        return changed
    made = making.zoo(stage.student.model, stage.student.options, stage.student.encode)
    return replace(changed, make_student=made.make, encode=made.encode, config=made.config, assistant=True)


def _objectives(entries: tuple[ObjectiveEntry, ...]) -> Callable[[], list[Objective]]:
    return lambda: [_objective(entry, entries) for entry in entries]


def _objective(entry: ObjectiveEntry, among: tuple[ObjectiveEntry, ...]) -> Objective:
    teacher: Any = entry.teacher
    if isinstance(teacher, Own):
        teacher = {"student": teacher.student}
    weight: float | Ramp = entry.weight
    alike = [one for one in among if (one.name or one.use) == (entry.name or entry.use)]
    name = entry.name or entry.use
    if len(alike) > 1:
        name = f"{name}-{next(index for index, one in enumerate(alike) if one is entry) + 1}"
    return match(
        entry.use,
        entry.student,
        teacher,
        weight=weight,
        connector=entry.connector,
        every=entry.every,
        part=entry.part,
        name=name,
        **entry.options,
    )


def _teacher(block: Teacher, making: Making) -> TeacherPlan:
    if block.store is not None:
        store = expand(block.store, "teacher.store", RecipeError)
        return TeacherPlan({"store": str(store.resolve())}, store=str(store))
    if block.load is not None:
        deployed = load(expand(block.load, "teacher.load", RecipeError))
        check_columns(deployed.encode, making.data)
        check_names(deployed.classes, making.data.classes, f"The model in {block.load}")
        config = {key: value for key, value in deployed.config.items() if key in ("model", "shape", "input", "classes")}
        known = fingerprint_of(state_of(deployed), deployed.config["model"], deployed.encode)
        return TeacherPlan({"load": known}, lambda: deployed.model, deployed.encode, None, None, config)
    if block.hf is not None:
        made = making.hugging_face(block.hf, block.options, block.encode)
    else:
        assert block.model is not None
        made = making.zoo(block.model, block.options, block.encode)
    views = getattr(getattr(making.data, "views", None), "count", 1)
    described = {**written(block), "views": views, **made.facts}
    return TeacherPlan(described, lambda: made.make(0), made.encode, block.train, None, made.config)
