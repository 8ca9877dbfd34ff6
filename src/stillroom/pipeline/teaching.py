"""The teacher's part of a run: trained once if need be, asked once, and then only read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.cache import cached, from_cache, private, publish, untrusted
from stillroom.contracts import Named, Teacher, tap
from stillroom.data.leaving_out import rows_print
from stillroom.data.splits import labelled_rows, labels_print
from stillroom.errors import StoreError
from stillroom.evaluate import evaluate
from stillroom.files import (
    begin,
    commit,
    committed,
    fingerprint,
    heal,
    refused,
    set_aside,
    sweep,
    write_json,
)
from stillroom.fingerprints import code_print, fingerprint_of, unseen_in
from stillroom.learner import Learner
from stillroom.models.bundle import load, save_bundle
from stillroom.paths import exists
from stillroom.pipeline.plan import Experiment, TeacherPlan, Told, combined
from stillroom.record import ANEW, SPLITS, record, still_shows
from stillroom.store import Store
from stillroom.store.manifest import is_whole, read_manifest
from stillroom.taps import read
from stillroom.teachers import Live
from stillroom.tensors import holds_tensors
from stillroom.train import Rows, train


def teacher_folder(run: Path, name: str) -> Path:
    """Return where a run keeps a teacher."""
    return run / "teacher" / name if name else run / "teacher"


def knowledge_folder(run: Path, name: str) -> Path:
    """Return where a run keeps what a teacher showed."""
    return run / "knowledge" / name if name else run / "knowledge"


def teacher_inputs(experiment: Experiment, plan: TeacherPlan) -> str:
    """Return the fingerprint of what a trained teacher depends on."""
    data = experiment.data
    return fingerprint(
        {
            "teacher": dict(plan.described),
            "code": code_print(),
            "data": data.fingerprint,
            "labels": labels_print(data),
            "train": rows_print(data)["train"],
            "torch": torch.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
    )


def prepare_teacher(experiment: Experiment, name: str, run: Path, told: Told) -> None:
    """Train the teacher on all labels and keep it in the run folder, unless that is done or in the cache."""
    plan, folder = experiment.teachers[name], teacher_folder(run, name)
    if plan.store is not None or plan.make is None:
        return
    inputs = teacher_inputs(experiment, plan)
    if committed(folder, inputs) is not None:
        return
    begin(folder, inputs)
    if plan.shared and from_cache("teachers", folder, inputs):
        return
    module = plan.make()
    if plan.training is not None:
        _train(experiment, plan, module, folder, told)
    _keep(experiment, plan, module, folder)
    commit(folder, inputs)
    if plan.shared:
        publish(folder, cached("teachers", inputs), inputs)


def teacher_is_ready(experiment: Experiment, name: str, run: Path) -> bool:
    """Whether there is nothing to train: the teacher is given, or stands in the run folder."""
    plan = experiment.teachers[name]
    if plan.store is not None or plan.make is None:
        return True
    return committed(teacher_folder(run, name), teacher_inputs(experiment, plan)) is not None


def _keep(experiment: Experiment, plan: TeacherPlan, module: nn.Module, folder: Path) -> None:
    if plan.training is not None:
        module.eval()
    if plan.training is not None or holds_tensors(module):  # a quantised one teaches, and is kept by whoever gave it
        save_bundle(folder, module, encode=plan.encode, config=dict(plan.config))
    validation = experiment.data.splits["validation"]
    scores = evaluate(module, experiment.data, split="validation", encode=plan.encode) if len(validation) else {}
    write_json(folder / "scores.json", {"validation": scores, "fingerprint": fingerprint_of(module)})


def _train(experiment: Experiment, plan: TeacherPlan, module: nn.Module, folder: Path, told: Told) -> None:
    settings = plan.training
    assert settings is not None
    learner = Learner(module, ["labels"], encode=plan.encode, precision=settings.precision)
    data, rows = experiment.data, Rows(labelled_rows(experiment.data))
    for step in train(learner, data, None, settings, rows=rows, seed=0, folder=folder, views=experiment.views):
        if step.number % 5 == 0 or step.number in (1, step.steps):
            told(step.number, step.steps, f"steps, loss {float(step.losses['loss']):.3f}")
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def trained(experiment: Experiment, name: str, run: Path) -> tuple[nn.Module, nn.Module | None]:
    """Return the teacher's module and encode: as given, or as trained into the run folder."""
    plan = experiment.teachers[name]
    assert plan.make is not None
    if plan.training is None:
        return plan.make(), plan.encode
    deployed = load(teacher_folder(run, name), model=plan.make(), encode=plan.encode)
    return deployed.model, deployed.encode


def record_teacher(experiment: Experiment, name: str, run: Path, told: Told) -> None:
    """Ask the teacher about every training row under every view, and about the other splits; once for all runs.

    What it showed is kept in the cache that all runs share, and the run folder links to it. Where the teacher has no
    fingerprint, or does not answer as the one whose answers are there, it is kept in the run folder.
    """
    plan = experiment.teachers[name]
    if plan.store is not None:
        return
    module, encode = trained(experiment, name, run)
    live, prints = _live(experiment, name, module, encode), _fingerprints(experiment, module, encode)
    kept = _knowledge_place(experiment, name, run, prints, live)
    if why := untrusted(kept):
        heal(kept, f"{kept} is not trusted ({why})")
    try:
        private(kept)
    except OSError as error:
        raise refused(kept, error) from error
    sweep(kept, older_than=3600)  # another run may be at work there
    record(live, experiment.data, kept, **recorded(experiment, name), fingerprints=prints, progress=told)
    _link(knowledge_folder(run, name), kept)


def recorded(experiment: Experiment, name: str) -> dict[str, Any]:
    """Return what is recorded of a teacher, as options of record and of estimate: a plan foresees what is then done."""
    return {
        "ids": experiment.rows_asked(),
        "views": experiment.views,
        "order_by": getattr(experiment.data, "lengths", None),  # rows of like length are asked together
        "taps": experiment.taps(name),
        "classes": experiment.data.classes,
    }


def rows_recorded(experiment: Experiment) -> int:
    """Return how many rows a recording has: an example counts once for each view that is asked of it."""
    asked, count = experiment.rows_asked(), 0
    for split, examples in experiment.data.splits.items():
        if split in SPLITS:
            rows = examples if asked is None else examples[torch.isin(examples, asked)]
            count += len(rows) * (experiment.views if split == "train" else 1)
    return count


def knowledge_is_whole(experiment: Experiment, name: str, run: Path) -> bool:
    """Whether the run folder links to a whole recording of this very teacher, data, taps and views.

    It is asked about a few rows: its answers must be those of then.
    """
    if experiment.teachers[name].store is not None:
        return True
    module, encode = trained(experiment, name, run)
    live, prints = _live(experiment, name, module, encode), _fingerprints(experiment, module, encode)
    kept = _knowledge_place(experiment, name, run, prints, live)
    if untrusted(kept) or not is_whole(kept) or knowledge_folder(run, name).resolve() != kept.resolve():
        return False
    return still_shows(live, experiment.data, kept, **recorded(experiment, name))


def identity_notes(experiment: Experiment, run: Path) -> list[str]:
    """Return why a model is not known by a fingerprint, and why a teacher was asked anew."""
    notes = []
    for name, plan in experiment.teachers.items():
        if plan.store is not None or plan.make is None:
            continue
        who, manifest = f"the teacher {name}".strip(), read_manifest(knowledge_folder(run, name))
        if manifest.fingerprints["teacher"] is None:
            hidden = unseen_in(model=plan.make(), encode=plan.encode)
            notes.append(f"{who} has no fingerprint ({hidden} cannot be seen): nothing of it is shared with other runs")
        notes += [f"{who} was {note}" for note in manifest.notes if note.startswith(ANEW)]
    for name, arm in experiment.arms.items():
        if not arm.shared:
            losses = {one.name: [one.loss, dict(one.options)] for one in arm.objectives()}
            hidden = unseen_in(student=arm.make_student(experiment.seeds[0]), encode=arm.encode, losses=losses)
            notes.append(f"arm '{name}' has no fingerprint ({hidden} cannot be seen): it is trained anew in each run")
    return notes


def _live(experiment: Experiment, name: str, module: nn.Module, encode: nn.Module | None) -> Live:
    return Live(module, experiment.taps(name), encode=encode, precision=experiment.precision)


def _knowledge_place(
    experiment: Experiment, name: str, run: Path, prints: Mapping[str, str | None], live: Teacher
) -> Path:
    """Return where what a teacher showed on this data through these taps is kept: in the cache, or in the run."""
    taps, asked = sorted(experiment.taps(name)), experiment.rows_asked()
    inputs = fingerprint(
        {
            **({} if asked is None else {"asked": fingerprint(asked.tolist())}),
            "code": code_print(),
            "prints": prints,
            "taps": taps,
            "views": experiment.views,
            "rows": rows_print(experiment.data),
            "precision": experiment.precision,
        }
    )
    shared, own = cached("knowledge", inputs), run / "recorded" / inputs[:16]
    if prints["teacher"] is None:
        return own
    there = not untrusted(shared) and is_whole(shared)
    if there and not still_shows(live, experiment.data, shared, **recorded(experiment, name)):
        return own
    return shared


def _link(place: Path, target: Path) -> None:
    """Make ``place`` a link to ``target``; whatever else is there is set aside, not lost."""
    if place.is_symlink():
        if place.resolve() == target.resolve():
            return
        place.unlink()
    elif exists(place):
        set_aside(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        inside = target.resolve().is_relative_to(place.parent.resolve())  # a run folder may be moved
        to = target.resolve().relative_to(place.parent.resolve()) if inside else target.resolve()
        place.symlink_to(to, target_is_directory=True)
    except OSError as error:
        raise refused(place, error) from error


def _fingerprints(experiment: Experiment, module: nn.Module, encode: nn.Module | None) -> dict[str, str | None]:
    views = getattr(experiment.data, "views", None)
    return {
        "teacher": fingerprint_of(module, encode),
        "data": str(experiment.data.fingerprint),  # type: ignore[attr-defined]
        "transform": str(getattr(views, "fingerprint", "")),
    }


def open_knowledge(experiment: Experiment, run: Path) -> dict[str, Store]:
    """Open what every teacher showed, after checking that it belongs to this data.

    Raises:
        StoreError: a store was recorded from other data, holds fewer taps than the arms read, or is damaged.
    """
    stores = {}
    for name, plan in experiment.teachers.items():
        stores[name] = open_store(
            experiment, name, Path(plan.store) if plan.store is not None else knowledge_folder(run, name)
        )
    return stores


def open_store(experiment: Experiment, name: str, folder: Path) -> Store:
    """Open one store, each of its bytes checked, and see that this experiment can learn from it.

    Raises:
        StoreError: it was recorded from other data or other views, holds fewer taps than the arms read, or is damaged.
    """
    store = Store.open(folder)
    views = getattr(experiment.data, "views", None)
    store.check(experiment.data, transform_fingerprint=views.fingerprint if views and experiment.views > 1 else None)
    for text in experiment.taps(name):
        shown = [signal for signal in store.signals if signal == text or signal.startswith(f"{text.split('@')[0]}@")]
        if not shown:
            raise StoreError(
                f"The store {store.folder} does not hold '{text}', which this recipe reads: got "
                f"{', '.join(store.signals)}. "
                "Record that tap too (record: {also: [...]}), or take the objective out."
            )
        store.use(text)
    if store.views < experiment.views:
        raise StoreError(
            f"The store {store.folder} holds {store.views} views of each example: got record.views: "
            f"{experiment.views}. "
            "Lower it, or record again with as many."
        )
    return store


def knowledge_print(stores: Mapping[str, Store]) -> str:
    """Return a fingerprint of what the teachers showed: of every shard's content."""
    return fingerprint({name: store.fingerprint for name, store in stores.items()})


def teacher_of(stores: Mapping[str, Store]) -> Teacher | None:
    """Return the one teacher that the arms read."""
    return combined(stores)


def taps_are_known(experiment: Experiment, name: str, module: nn.Module, encode: nn.Module | None) -> None:
    """See that every tap exists in the teacher before anything is recorded.

    Raises:
        TapError: one does not; names the nearest.
    """
    read(module, [one for one in map(tap, experiment.taps(name)) if not isinstance(one, Named)], encode)


__all__ = [
    "identity_notes",
    "knowledge_folder",
    "knowledge_print",
    "open_knowledge",
    "open_store",
    "prepare_teacher",
    "record_teacher",
    "recorded",
    "rows_recorded",
    "taps_are_known",
    "teacher_folder",
    "teacher_of",
    "trained",
]
