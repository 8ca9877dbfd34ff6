"""Why the students of a run answer as they do: their gradients and explanation maps beside the teacher's.

Asked on test examples, after training, of every student whether or not it learnt from derivatives. Each number has a
control: the same student's gradient against the teacher's at *another* example of the same class. A student that has
only learnt what a class looks like is as near to that as to its own example's. How near two gradients of the teacher
in one class are to each other says how much there is beyond the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stillroom.contracts import Batch, Finding, GradCam, Gradient, Signals, Tap, Teacher
from stillroom.errors import StoreError, TapError
from stillroom.evaluate import plain_ids
from stillroom.files import begin, commit, committed, fingerprint, write_bytes
from stillroom.fingerprints import code_print
from stillroom.models.bundle import load
from stillroom.paths import is_file
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment, Told
from stillroom.pipeline.teaching import open_store, trained
from stillroom.randomness import permutation
from stillroom.report import run_sensitivity
from stillroom.statistics import paired
from stillroom.taps import read
from stillroom.teachers import Live
from stillroom.tensors import pack, unpack

ROWS = 500
NUMBERS = 5_000_000  # of one model's gradients, held at once
BATCH = 50
RANDOM = run_sensitivity.RANDOM
INPUT, EXPLANATION = "input", "explanation"
MAPS = "maps.safetensors"
EACH = 2  # rows of pictures for each of: leads most, in the middle, leads least
SIDE = 64  # a map that is kept has no more pixels a side
TINY = 1e-12
MEMBERS = 5  # examples of a class from which its mean gradient may be taken away
PARTICULAR = 1e-3  # of a gradient's length: what is left below this is rounding
Values = NDArray[np.float64]
Sight = tuple[GradCam, GradCam]


def sensitivity_of_run(experiment: Experiment, run: Path, told: Told) -> dict[str, Any] | None:
    """Return how alike the teacher and every arm's students are in what their answers depend on.

    None where no arm reads a derivative of its student, where inputs are texts, and where the teacher cannot be asked:
    there are several, or it is a store without gradients of test examples. What was found is kept in ``sensitivity/``
    and not asked again.
    """
    if "" not in experiment.teachers or not experiment.main.answers or not _derives(experiment):
        return None
    notes = {
        name: [(run / "arms" / f"{name}-{seed}" / "done.json").read_text(encoding="utf-8") for seed in experiment.seeds]
        for name in experiment.arms
    }
    teacher = run / "teacher" / "done.json"
    noted = teacher.read_text(encoding="utf-8") if is_file(teacher) else ""
    asking = code_print(("taps", "pipeline/sensitivity.py"))
    inputs = fingerprint({"asking": asking, "students": notes, "teacher": noted})
    folder = run / "sensitivity"
    if (found := committed(folder, inputs)) is not None:
        return found["result"] or None
    begin(folder, inputs)
    try:
        result = _asked(experiment, run, folder, told)
    except (StoreError, TapError):  # nothing to ask: texts, rows that were not recorded, a teacher without derivatives
        result = None
    commit(folder, inputs, result=result)
    return result


def sensitivity_metrics(found: Mapping[str, Any], main: str) -> dict[str, Any]:
    """Return what metrics.json says of it: without what is only shown, with a sentence."""
    kept = {key: value for key, value in found.items() if key != "shown"}
    return kept | {"sentence": run_sensitivity.headline(found, main)}


def sensitivity_findings(experiment: Experiment, run: Path, found: Mapping[str, Any] | None) -> list[Finding]:
    """Return what the report shows: the numbers, and where inputs are pictures the maps of a few of them."""
    if found is None:
        return []
    main = experiment.main.name
    findings = [run_sensitivity.likeness(found, main)]
    shown = found.get("shown")
    if shown:
        maps, _ = unpack(run / "sensitivity" / MAPS)
        names = experiment.data.classes or ()
        items = [
            {
                "pixels": experiment.data.show(example),
                "class": str(names[top]) if top < len(names) else str(top),
                "maps": {name: maps[name][place].tolist() for name in ("teacher", *shown["models"])},
                "cosines": {name: values[place] for name, values in shown["cosines"].items()},
            }
            for place, (example, top) in enumerate(zip(shown["examples"], shown["classes"], strict=True))
        ]
        findings.append(run_sensitivity.pictures(items, shown["models"], main))
    return findings


class Alike(NamedTuple):
    """The cosines of one student with the teacher, an entry an example: at it, at another of its class, and beyond it.

    ``particular`` is that of what is left when each model's mean gradient over the class is taken away.
    """

    own: Values
    others: Values
    particular: Values


class Resemblance:
    """The teacher's gradients or maps at some examples, to which students' are compared by their cosine.

    ``theirs``: (rows, ...); ``classes``: (rows), the class they are of. Rows where the teacher's are all zero count for
    nothing. Each row's control is the next row of its class.
    """

    def __init__(self, theirs: Tensor, classes: Tensor) -> None:
        self.theirs = theirs
        self.rows = (theirs.flatten(1).double().norm(dim=1) > TINY).nonzero()[:, 0]
        self.members = [self.rows[classes[self.rows] == one] for one in classes.unique().tolist()]
        self.partners = torch.full((len(theirs),), -1)
        for members in self.members:
            if len(members) > 1:
                self.partners[members] = members.roll(1)
        self.partnered = (self.partners[self.rows] >= 0).numpy()
        flat = theirs.flatten(1).double()
        far = self._beyond(flat).norm(dim=1) > PARTICULAR * flat.norm(dim=1)
        self.particular = self.rows[far[self.rows]]
        self.within = _mean(self.of(theirs).others)

    def of(self, ours: Tensor) -> Alike:
        """Return how alike a student's (rows, ...) are; one that is flat at a row has a cosine of 0 there.

        Controls have an entry only for the rows that have one: their class has other examples, and gradients that vary.
        """
        one, other = _flat(ours, self.theirs)
        rows = self.rows[torch.from_numpy(self.partnered)]
        beyond = [self._beyond(values)[self.particular] for values in (one, other)]
        return Alike(
            _cosine(one[self.rows], other[self.rows]),
            _cosine(one[rows], other[self.partners[rows]]),
            _cosine(*beyond),
        )

    def _beyond(self, values: Tensor) -> Tensor:
        """Return (rows, numbers) less the mean over their class; 0 in classes of few examples."""
        left = torch.zeros_like(values)
        for members in self.members:
            if len(members) >= MEMBERS:
                left[members] = values[members] - values[members].mean(0)
        return left

    def compared(self, found: Mapping[str, Sequence[Alike]]) -> dict[str, dict[str, Any]]:
        """Return each model's cosines by seed, and how far it is above its control ``others`` and above ``alone``."""
        held = {name: np.stack([one.own for one in seeds]) for name, seeds in found.items()}
        models: dict[str, dict[str, Any]] = {}
        for name, seeds in found.items():
            own, others = held[name], np.stack([one.others for one in seeds])
            entry: dict[str, Any] = {"cosine": _value(own), "others": _value(others)}
            entry["particular"] = _value(np.stack([one.particular for one in seeds]))
            entry["above_others"] = paired(own[:, self.partnered], others).plain() if others.size else None
            if ALONE in held and name not in (ALONE, RANDOM):
                entry["above_alone"] = paired(own, held[ALONE]).plain()
            models[name] = entry
        return models


def _value(by_seed: Values) -> dict[str, Any] | None:
    return {"mean": float(by_seed.mean()), "per_seed": by_seed.mean(1).tolist()} if by_seed.size else None


def _mean(values: Values) -> float | None:
    return float(values.mean()) if values.size else None


def _flat(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as (rows, numbers); the larger of two maps is pooled to the smaller one's size."""
    if ours.shape != theirs.shape:
        size = (min(ours.shape[1], theirs.shape[1]), min(ours.shape[2], theirs.shape[2]))
        ours, theirs = (F.adaptive_avg_pool2d(maps[:, None], size)[:, 0] for maps in (ours, theirs))
    return ours.flatten(1).double(), theirs.flatten(1).double()


def _cosine(one: Tensor, other: Tensor) -> Values:
    lengths = one.norm(dim=1) * other.norm(dim=1)
    found: Values = ((one * other).sum(1) / lengths.clamp(min=TINY * TINY)).numpy()
    return found


# --- asking ----------------------------------------------------------------------------------------------------------


def _asked(experiment: Experiment, run: Path, folder: Path, told: Told) -> dict[str, Any] | None:
    sight = _sight(experiment)
    teacher = _teacher(experiment, run, sight)
    if teacher is None:
        return None
    batches = [experiment.data.batch(plain_ids(part)) for part in _rows(experiment).split(BATCH)]
    given = [teacher(batch) for batch in batches]
    theirs = {name: torch.cat([one[name].float() for one in given]) for name in given[0]}
    classes = theirs["logits"].argmax(1)
    sides = {INPUT: Resemblance(theirs[str(Gradient())], classes)}
    if sight is not None and str(sight[1]) in theirs:
        sides[EXPLANATION] = Resemblance(theirs[str(sight[1])], classes)
    sides = {kind: one for kind, one in sides.items() if len(one.rows)}
    if INPUT not in sides:
        return None
    alike: dict[str, dict[str, list[Alike]]] = {kind: {} for kind in sides}
    members = [(name, seed) for name in (*_asked_arms(experiment), RANDOM) for seed in experiment.seeds]
    for done, (name, seed) in enumerate(members):
        told(done, len(members), "why they answer")
        shown = _shown(*_student(experiment, run, name, seed), batches, given, sight)
        for kind, ours in shown.items():
            if kind in sides:
                alike[kind].setdefault(name, []).append(sides[kind].of(ours))
    sides = {kind: one for kind, one in sides.items() if alike[kind]}
    images = batches[0]["inputs"].dim() == 4 and batches[0]["inputs"].shape[1] in (1, 3)
    result: dict[str, Any] = {
        "examples": len(sides[INPUT].rows),
        "inputs": "pictures" if images else "numbers",
        **{kind: {"teacher": one.within, "models": one.compared(alike[kind])} for kind, one in sides.items()},
    }
    if EXPLANATION in sides and sight is not None:
        result[EXPLANATION] |= {"student": str(sight[0]), "teacher": str(sight[1])}
    if images:
        result["shown"] = _pictures(experiment, run, folder, sides[INPUT], alike[INPUT], (batches, given))
    return result


def _derives(experiment: Experiment) -> bool:
    """Whether some arm reads a derivative of its student, in whichever stage."""
    parts = [part for arm in experiment.arms.values() for part in (*arm.before, arm)]
    places = [one for part in parts for objective in part.objectives() for one in objective.places("student")]
    return any(isinstance(one.tap, Gradient | GradCam) for one in places)


def _sight(experiment: Experiment) -> Sight | None:
    """Return the first explanation maps that an objective compares: the student's tap and the teacher's."""
    for arm in experiment.arms.values():
        for objective in (one for part in (*arm.before, arm) for one in part.objectives()):
            ours, theirs = ([one.tap for one in objective.places(side)] for side in ("student", "teacher"))  # type: ignore[arg-type]
            pair = [next((tap for tap in taps if isinstance(tap, GradCam)), None) for taps in (ours, theirs)]
            if pair[0] is not None and pair[1] is not None:
                return pair[0], pair[1]
    return None


def _rows(experiment: Experiment) -> Tensor:
    """Return the test examples that are asked: fewer where they are large."""
    test = experiment.data.splits["test"]
    numbers = experiment.data.batch(plain_ids(test[:1]))["inputs"].numel()
    count = min(ROWS, max(BATCH, NUMBERS // max(1, numbers)))
    return test[torch.from_numpy(permutation(len(test), 0, "sensitivity")[:count].copy())]


def _teacher(experiment: Experiment, run: Path, sight: Sight | None) -> Teacher | None:
    plan = experiment.teachers[""]
    if plan.make is not None:
        module, encode = trained(experiment, "", run)
        return Live(module, ["logits", Gradient(), *([] if sight is None else [sight[1]])], encode=encode)
    if plan.store is None:
        return None
    store = open_store(experiment, "", Path(plan.store))
    if str(Gradient()) not in store.signals:
        return None
    wanted = ["logits", str(Gradient()), *([] if sight is None else [str(sight[1])])]
    return store.use([name for name in wanted if name in store.signals])


def _asked_arms(experiment: Experiment) -> list[str]:
    return [name for name, arm in experiment.arms.items() if arm.answers]


def _student(experiment: Experiment, run: Path, name: str, seed: int) -> tuple[nn.Module, nn.Module | None]:
    arm: ArmPlan = experiment.main if name == RANDOM else experiment.arms[name]
    if name == RANDOM:
        return arm.make_student(seed).eval(), arm.encode
    found = load(run / "arms" / f"{name}-{seed}", model=arm.make_student(seed), encode=arm.encode)
    return found.model, found.encode


def _shown(
    module: nn.Module,
    encode: nn.Module | None,
    batches: Sequence[Batch],
    given: Sequence[Signals],
    sight: Sight | None = None,
) -> dict[str, Tensor]:
    """Return a student's gradients along the teacher's classes, and its maps where it has that place."""
    wanted: dict[str, Tap] = {INPUT: Gradient()}
    if sight is not None and sight[0].path in dict(module.named_modules()):
        wanted[EXPLANATION] = sight[0]
    reader = read(module, ["logits", *wanted.values()], encode)
    with torch.no_grad():
        parts = [reader(batch, told) for batch, told in zip(batches, given, strict=True)]
    return {kind: torch.cat([part[str(tap)].float() for part in parts]) for kind, tap in wanted.items()}


# --- pictures --------------------------------------------------------------------------------------------------------


def picked(cosines: Values, against: Values | None, each: int = EACH) -> list[int]:
    """Return which rows to show: where the lead on ``against`` is greatest, in the middle, and least.

    Ties are broken by place, and each row comes once. Without ``against`` the cosine itself decides.
    """
    order = np.argsort(-(cosines if against is None else cosines - against), kind="stable").tolist()
    middle = max(0, len(order) // 2 - each // 2)
    return list(dict.fromkeys([*order[:each], *order[middle : middle + each], *order[-each:]]))


def _pictures(
    experiment: Experiment,
    run: Path,
    folder: Path,
    side: Resemblance,
    alike: Mapping[str, Sequence[Alike]],
    asked: tuple[Sequence[Batch], Sequence[Signals]],
) -> dict[str, Any]:
    """Keep the maps of a few examples in ``folder`` and return which they are; all of the first seed."""
    names = _drawn(experiment, alike)
    first = {name: alike[name][0].own for name in names}
    rows = picked(first[experiment.main.name], first.get(ALONE))
    places = side.rows[rows]
    batch = {name: torch.cat([one[name] for one in asked[0]])[places] for name in ("id", "inputs")}
    logits = torch.cat([one["logits"] for one in asked[1]])[places]
    maps = {"teacher": _map(side.theirs[places])}
    for name in names:
        student = _student(experiment, run, name, experiment.seeds[0])
        maps[name] = _map(_shown(*student, [batch], [{"logits": logits}])[INPUT])
    write_bytes(folder / MAPS, pack(maps))
    return {
        "examples": batch["id"][:, 0].tolist(),
        "classes": logits.argmax(1).tolist(),
        "models": names,
        "cosines": {name: values[rows].tolist() for name, values in first.items()},
    }


def _drawn(experiment: Experiment, alike: Mapping[str, Sequence[Alike]]) -> list[str]:
    """Return whose maps are drawn: alone's, the first arm's, and those of the most alike of the others."""
    main = experiment.main.name
    means = {name: float(np.mean([one.own for one in seeds])) for name, seeds in alike.items()}
    others = [name for name in means if name not in (ALONE, RANDOM, main)]
    best = max(others, key=lambda name: means[name], default=None)
    return [name for name in (ALONE, main, best) if name in means]


def _map(gradients: Tensor) -> Tensor:
    """Return gradients (rows, channels, height, width) as signed maps: the channels' sum, and no more than 64 wide."""
    maps = gradients.float().sum(1)
    size = (min(SIDE, maps.shape[1]), min(SIDE, maps.shape[2]))
    return F.adaptive_avg_pool2d(maps[:, None], size)[:, 0].contiguous()


__all__ = ["Resemblance", "picked", "sensitivity_findings", "sensitivity_metrics", "sensitivity_of_run"]
