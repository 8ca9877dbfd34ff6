"""Is there room? Memory for a model, disk for what a teacher shows: estimated before anything is built or trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.cache import cached, check_cache
from stillroom.errors import ModelError, RecipeError, StoreError, TrainError, out_of_memory, say
from stillroom.files import CACHE, cache_folder, committed
from stillroom.fingerprints import fingerprint_of
from stillroom.models.zoo import empty, parameters
from stillroom.paths import exists
from stillroom.pipeline.plan import Experiment
from stillroom.pipeline.tasks import Task
from stillroom.pipeline.teaching import recorded, rows_recorded, teacher_inputs
from stillroom.record import estimate
from stillroom.system import size_text, whole_memory
from stillroom.teachers import Live

WEIGHT = 8  # bytes: a float32 and its gradient
KEY = 21  # bytes of example, view, hash and split of a recorded row
IN_MEMORY = 32  # bytes that a recorded row's numbers take while it is planned
FEW = 1024  # rows: a batch up to this size may repeat a few rows as often as it likes
SMALLER = "Make it smaller: fewer or narrower layers."
AGAIN = 16  # times that a larger batch may repeat its rows


def check_model(name: str, shape: Sequence[int], classes: int, options: Mapping[str, Any]) -> None:
    """See that a model of the zoo can be built and trained in this machine's memory, without building it.

    Raises:
        ModelError: its weights and their gradients alone need more.
    """
    limit = whole_memory()
    try:
        count = parameters(empty(name, shape=tuple(shape), classes=classes, **options))
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        count = None
    if limit is None or (count is not None and WEIGHT * count <= limit):
        return
    given = "more weights than can be counted" if count is None else f"{count:,} weights, {size_text(WEIGHT * count)}"
    allowed = f"{limit // WEIGHT:,} weights, {size_text(limit)} with a gradient for each, all memory there is"
    raise ModelError(say(f"The model '{name}' does not fit into memory", given, allowed, SMALLER))


def check_recording(experiment: Experiment) -> None:
    """See that as many rows can be recorded as the views of a recipe make of its examples, at a few bytes a row.

    Raises:
        RecipeError: the disk of the cache or the memory is smaller than that, were it empty.
    """
    if experiment.views == 1 or all(plan.store is not None for plan in experiment.teachers.values()):
        return
    rows = rows_recorded(experiment)
    least = KEY + 2 * len(experiment.data.classes or ())  # logits are kept in two bytes each
    disk, memory = shutil.disk_usage(_there(cache_folder())).total, whole_memory()
    limits = [disk // least, *([] if memory is None else [memory // IN_MEMORY])]
    most = min(limit for limit in limits if limit > 0)
    if rows <= most:
        return
    once = max(1, len(experiment.data.splits["train"]))
    raise RecipeError(
        say(
            "So many views do not fit on this machine",
            f"record.views: {experiment.views:,}, which makes {rows:,} rows of at least {least} bytes, "
            f"{size_text(rows * least)}",
            f"about {max(1, most // once):,} views of {once:,} training rows",
            "Lower record.views.",
        )
    )


def check_batch(name: str, batch: int, rows: int) -> None:
    """See that a batch is not many times larger than the rows it is drawn from.

    Raises:
        TrainError: it is.
    """
    if batch > max(FEW, AGAIN * rows):
        given = f"train.batch: {batch:,} from {rows:,} rows"
        allowed = f"up to {max(FEW, AGAIN * rows):,}"
        raise TrainError(say(f"A batch of '{name}' would repeat its rows many times", given, allowed, "Lower it."))


def check_place(experiment: Experiment, run: Path, left: Iterable[Task]) -> None:
    """See that what the teachers show can be kept in the shared cache, before one of them is trained for it.

    Raises:
        UserError: the cache cannot be written.
        StoreError: its disk is too full.
    """
    tasks = list(left)
    owners = [task.owner for task in tasks if task.kind == "record" and _is_shared(experiment, task.owner)]
    if not owners:
        return
    folder, need = check_cache(), 0
    for name in (name for name in owners if _is_new(experiment, name, run)):
        plan = experiment.teachers[name]
        assert plan.make is not None
        live = Live(plan.make(), experiment.taps(name), encode=plan.encode, precision=experiment.precision)
        need += estimate(live, experiment.data, **recorded(experiment, name)).bytes
    free = shutil.disk_usage(folder).free
    if need > free:
        given = f"{size_text(need)} for what the teacher shows, and {size_text(free)} free in {folder}"
        do = f"Record fewer views or taps, free some space, or set {CACHE} to a folder on a larger disk."
        raise StoreError(say("The shared cache has too little room", given, "enough for the whole recording", do))


def _is_shared(experiment: Experiment, name: str) -> bool:
    """Whether a teacher has a fingerprint: what it shows is kept in the cache then, and else in the run folder."""
    plan = experiment.teachers[name]
    return plan.make is not None and fingerprint_of(plan.make(), plan.encode) is not None


def _is_new(experiment: Experiment, name: str, run: Path) -> bool:
    """Whether a teacher is yet to be trained: then nothing that it shows can have been recorded."""
    plan = experiment.teachers[name]
    if plan.training is None or plan.make is None:
        return False
    inputs = teacher_inputs(experiment, plan)
    places = (run / "teacher" / name if name else run / "teacher", cached("teachers", inputs))
    return all(committed(place, inputs) is None for place in places)


def _there(folder: Path) -> Path:
    """Return the first folder on the way up that exists."""
    return next((one for one in (folder.absolute(), *folder.absolute().parents) if exists(one)), Path("/"))
