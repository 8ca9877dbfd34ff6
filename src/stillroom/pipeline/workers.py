"""Performing tasks: one after the other here, or in as many processes as there are cores, one thread each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stillroom.errors import StillroomError, TrainError, UserError
from stillroom.files import note, take_notes
from stillroom.pipeline import tether
from stillroom.pipeline.tasks import Task, Workshop

Told = Callable[[str, int, int, str], None]
"""Told (task name, done, of, what); of = 0 means begun, done = of means finished."""

# glibc otherwise gives a network's maps back to the system and fetches them again at each step: a tenth of the time.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_THRESHOLD_": str(2**31)}
_worker: dict[str, Any] = {}


def perform_here(workshop: Workshop, tasks: Sequence[Task], told: Told) -> None:
    """Perform tasks in this process, one thread, in an order in which each finds what it needs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        waiting = list(tasks)
        while waiting:
            names = {one.name for one in waiting}
            task = next(one for one in waiting if not names & set(one.needs))
            told(task.name, 0, 0, "")
            workshop.perform(task, lambda at, of, what, task=task: told(task.name, at, of, what))  # type: ignore[misc]
            told(task.name, 1, 1, "")
            waiting.remove(task)
    finally:
        torch.set_num_threads(threads)


def perform_apart(run: Path, tasks: Sequence[Task], processes: int, told: Told) -> None:
    """Perform tasks in ``processes`` processes; each reads the resolved recipe in the run folder."""
    with _environment(ALLOCATOR):
        _perform_apart(run, tasks, processes, told)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Give processes begun meanwhile these variables, unless the person has set them."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _perform_apart(run: Path, tasks: Sequence[Task], processes: int, told: Told) -> None:
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    pool = ProcessPoolExecutor(processes, context, initializer=tether.tie, initargs=(str(run), os.getpid(), reports))
    running: dict[Future[list[str]], Task] = {}
    waiting = list(tasks)
    try:
        while waiting or running:
            unready = {one.name for one in [*waiting, *running.values()]}
            for task in [one for one in waiting if not unready & set(one.needs)]:
                if len(running) >= processes:
                    break
                waiting.remove(task)
                told(task.name, 0, 0, "")
                running[pool.submit(_perform, task)] = task
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            _pass_on(reports, told)
            for future in finished:
                task = running.pop(future)
                for text in future.result():
                    note(text)
                told(task.name, 1, 1, "")
    except BrokenProcessPool as error:
        raise TrainError(
            "A worker process ended without a word (often: not enough memory). What was finished is kept. "
            "Run the same again, with fewer at once: --set jobs=1."
        ) from error
    finally:
        _stop(pool)


def _pass_on(reports: Any, told: Told) -> None:
    while True:
        try:
            told(*reports.get_nowait())
        except queue.Empty:
            return


def _stop(pool: ProcessPoolExecutor) -> None:
    workers = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(5)


# --- in the worker ---------------------------------------------------------------------------------------


def _perform(task: Task) -> list[str]:
    """Do one task; return the notes to be told by the process that asked."""
    from stillroom.pipeline.recipes import experiment_of
    from stillroom.recipe import read_recipe

    logging.getLogger("stillroom").disabled = True
    if "workshop" not in _worker:
        torch.set_num_threads(1)
        run = Path(tether.given["run"])
        _worker["workshop"] = Workshop(experiment_of(read_recipe(run / "recipe.yaml")), run)
    last = 0.0

    def told(done: int, of: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.2 or done == of:
            last = now
            tether.given["reports"].put((task.name, done, of, what))

    try:
        _worker["workshop"].perform(task, told)
    except UserError as error:
        raise _portable(error) from None
    return take_notes()


def _portable(error: StillroomError) -> StillroomError:
    """An error that survives the way to the parent process: same class, same message."""
    try:
        return type(error)(str(error))
    except TypeError:
        return UserError(str(error))
