"""Pictures: which pixels an answer hangs on, and which patches it changes without."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.errors import UserError
from stillroom.mining.attribution.expected import Expected, expected
from stillroom.mining.attribution.faithful import curves, faithfulness, rank_correlation
from stillroom.mining.attribution.findings import afford, drawn, halves, spread_out, top_shares, trust
from stillroom.mining.attribution.gradients import centred, error
from stillroom.mining.attribution.outlines import Map, origin, outlines
from stillroom.mining.attribution.removal import Ask, occlusion
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject
from stillroom.mining.wording import percent
from stillroom.randomness import permutation
from stillroom.report.run_sensitivity import map_picture

MOST = 120  # pictures that are explained
CHECKED, CONTROLLED = 60, 30  # of them, whose pixels are taken away; that random weights explain as well
NETWORKS = 3  # with random weights
BACKGROUND = 32  # training pictures that stand in for a pixel
ACROSS = 8  # patches
AVERAGED = 500  # training pictures that make the mean picture
CLASSES, IN_A_ROW, LEAST = 10, 5, 3
ALIKE = 0.5  # correlation of two answers' maps
EDGE = 0.1  # of the answers that change without a patch at the edge, from which on it is a suspect


class Maps(NamedTuple):
    """Pictures (N, C, H, W) that are explained: their answers, what each pixel and patch adds, how it was found."""

    examples: Tensor
    inputs: Tensor
    baseline: Tensor
    classes: Tensor
    shares: Tensor
    pixels: Tensor  # (N, H, W)
    steep: Tensor  # (N, H, W): size of the mean gradient; none where only answers are known
    far: Tensor  # (N, H, W): size of the mean difference from the background; as above
    patches: Tensor  # (N, patches)
    without: Tensor  # (N, patches): the class that is answered without the patch
    cells: Tensor  # (H, W): to which patch a pixel belongs
    ends: Tensor | None  # of expected gradients; None where only answers are known
    background: Tensor  # training pictures (P, C, H, W)


def pictures(subject: Subject, budget: Budget) -> Panel:
    """Return where a model of pictures looks; see :func:`stillroom.mining.attribution.panel.attribution`."""
    notes: list[str] = []
    found = _explained(subject, budget, notes)
    numbers: dict[str, Any] = {"kind": "image", "examples": len(found.examples), "covered_by": "the mean picture"}
    numbers["method"] = "covering patches"
    if found.ends is not None:
        numbers["method"] = f"expected gradients against {len(found.background)} training pictures"
    numbers |= {"completeness": None if found.ends is None else error(found.pixels, found.ends)}
    twins = [] if found.ends is None else _twins(subject, found, budget)
    twin = twins[0].values if twins else None
    if twins:
        own, *others = (Map(one.flatten(1), steep.flatten(1)) for one, steep in [(found.pixels, found.steep), *twins])
        numbers["random_weights"] = origin(own, others, found.far.flatten(1), subject.seed)
    numbers |= _where(found, twin)
    numbers["faithfulness"] = _checked(subject, found, budget)
    findings = [_overall(found, numbers, twin), *_classes(subject, found), _six(subject, found, twin)]
    parts = "patches" if found.ends is None else "pixels"
    findings.append(trust(numbers["faithfulness"], parts, "Expected gradients", numbers["completeness"]))
    if twins:
        findings.append(outlines(numbers["random_weights"], "the maps", "pixel", "picture"))
    if len(found.examples) < min(MOST, len(subject.examples("test"))):
        notes.append(f"{len(found.examples)} pictures were explained, to keep to the time")
    return Panel("attribution", findings, numbers, {"maps.safetensors": _bytes(found)}, notes)


# --- asking --------------------------------------------------------------------------------------------


def _explained(subject: Subject, budget: Budget, notes: list[str]) -> Maps:
    examples = drawn(subject, MOST)
    baseline, background = _mean_picture(subject), _background(subject)
    cells = patches_of(*baseline.shape[1:])
    inputs = subject.inputs(examples)
    classes, shares = top_shares(subject, inputs)
    ends: Tensor | None = None
    values = steep = far = torch.zeros(0)
    if subject.module is None:
        notes.append("only its answers are known: patches were covered, and no gradients taken")
    else:
        try:
            rows = afford(budget, len(examples), 0.4, lambda n: _gradients(subject, inputs[:n], background, classes))
            values, steep, far, ends = _gradients(subject, inputs[:rows], background, classes)
            examples, inputs, classes, shares = (one[:rows] for one in (examples, inputs, classes, shares))
        except (RuntimeError, UserError) as problem:  # a model that asks for whole numbers, or detaches
            notes.append(f"it gives no gradients with respect to pixels ({str(problem).splitlines()[0][:120]})")
    ask = _ask(subject, inputs, baseline, cells)
    counts = torch.full((len(examples),), int(cells.max()) + 1)
    rows = afford(budget, len(examples), 0.4, lambda n: occlusion(ask, counts[:n], classes[:n]))
    patches, without = occlusion(ask, counts[:rows], classes[:rows])
    if ends is None:
        examples, inputs, classes, shares = (one[:rows] for one in (examples, inputs, classes, shares))
        area = torch.bincount(cells.flatten()).double()
        values = (patches / area)[:, cells]
    return Maps(
        examples, inputs, baseline, classes, shares, values, steep, far, patches, without, cells, ends, background
    )


def _mean_picture(subject: Subject) -> Tensor:
    """The mean of training pictures (C, H, W), of their own kind of numbers: what tells nothing apart."""
    train = subject.inputs(subject.examples("train")[:AVERAGED])
    mean = train.double().mean(0)
    return mean.to(train.dtype) if train.dtype.is_floating_point else mean.round().to(train.dtype)


def patches_of(height: int, width: int) -> Tensor:
    """Return the number of the patch (H, W) that each pixel belongs to: squares, eight along the longer side."""
    side = math.ceil(max(height, width) / ACROSS)
    across = math.ceil(width / side)
    return torch.arange(height)[:, None] // side * across + torch.arange(width) // side


def _background(subject: Subject) -> Tensor:
    """Training pictures at random (P, C, H, W): a pixel that is as usual for one is not for another."""
    train = subject.examples("train")
    order = permutation(len(train), subject.seed, "background")[:BACKGROUND].copy()
    return subject.inputs(train[torch.from_numpy(order)])


def _gradients(subject: Subject, inputs: Tensor, background: Tensor, classes: Tensor) -> Expected:
    """What each pixel adds, over all channels; slopes and differences by their sizes."""

    def score(points: Tensor, rows: Tensor) -> Tensor:
        return centred(subject.forward(points), classes[rows])

    found = expected(score, inputs.float(), background.float())
    return Expected(found.values.sum(1), found.slopes.abs().sum(1), found.far.abs().sum(1), found.ends)


def _ask(subject: Subject, inputs: Tensor, baseline: Tensor, cells: Tensor) -> Ask:
    """Pictures of which some patches are kept, the others as in the mean picture."""

    def ask(rows: Tensor, keep: Tensor) -> Tensor:
        kept = keep[:, cells.flatten()].unflatten(1, cells.shape)[:, None]
        return subject.answer(torch.where(kept, inputs[rows], baseline)).double().softmax(1)

    return ask


def _twins(subject: Subject, found: Maps, budget: Budget) -> list[Map]:
    """What networks with random weights would have explained, each (fewer, H, W)."""
    others = [subject.randomised(subject.seed + turn) for turn in range(NETWORKS)]

    def maps(other: Subject, rows: int) -> Map:
        values, slopes, *_ = _gradients(other, found.inputs[:rows], found.background, found.classes)
        return Map(values, slopes)

    most = min(CONTROLLED, len(found.examples))
    rows = afford(budget, most, 0.5 / NETWORKS, lambda n: maps(others[0], n))
    return [maps(other, rows) for other in others]


def _checked(subject: Subject, found: Maps, budget: Budget) -> dict[str, Any]:
    height, width = found.cells.shape
    if found.ends is None:
        cells, values = found.cells, found.patches
    else:
        cells, values = torch.arange(height * width).view(height, width), found.pixels.flatten(1)
    ask = _ask(subject, found.inputs, found.baseline, cells)
    counts = torch.full((len(values),), values.shape[1])

    def work(rows: int) -> dict[str, Any]:
        return faithfulness(curves(ask, values[:rows], counts[:rows], found.classes[:rows], subject.seed))

    return work(afford(budget, min(CHECKED, len(values)), 0.8, work))


# --- saying --------------------------------------------------------------------------------------------


def _where(found: Maps, twin: Tensor | None) -> dict[str, Any]:
    """The patch that holds most of the maps, how much of them, and what covering it changes."""
    size = _by_patch(found.pixels, found.cells)
    shares = size / size.sum().clamp(min=1e-12)
    top = int(shares.argmax())
    places = (found.cells == top).nonzero()
    changed = (found.without != found.classes[: len(found.without), None]).double().mean(0)
    height, width = found.cells.shape
    low, high = places.amin(0).tolist(), places.amax(0).tolist()
    told: dict[str, Any] = {
        "rows": [low[0], high[0]],
        "columns": [low[1], high[1]],
        "share": float(shares[top]),
        "area": len(places) / (height * width),
        "changed": float(changed[top]),
        "edge": low[0] == 0 or low[1] == 0 or high[0] == height - 1 or high[1] == width - 1,
    }
    if twin is not None:
        other = _by_patch(twin, found.cells)
        told["random_weights_share"] = float(other[top] / other.sum().clamp(min=1e-12))
    return {"patches": shares.tolist(), "half": halves(shares), "changed_without": changed.tolist(), "top_patch": told}


def _by_patch(maps: Tensor, cells: Tensor) -> Tensor:
    """How much lies in each patch, of the mean of absolute values."""
    mean = maps.double().abs().mean(0).flatten()
    return torch.zeros(int(cells.max()) + 1, dtype=torch.float64).index_add_(0, cells.flatten(), mean)


def _overall(found: Maps, numbers: dict[str, Any], twin: Tensor | None) -> Finding:
    top = numbers["top_patch"]
    rows, columns = top["rows"], top["columns"]
    place = f"{_from_to('row', rows)}, {_from_to('column', columns)} (from the top left, from 0)"
    times = top["share"] / top["area"]
    sentence = f"Half of the attribution lies in {numbers['half']} of {len(numbers['patches'])} patches. The strongest "
    sentence += f"patch is {place}: {percent(top['share'])} of the attribution on "
    sentence += f"{percent(top['area'])} of the picture, {times:.1f} times an even share. Covering it changes "
    sentence += f"{percent(top['changed'])} of the answers."
    if top["edge"] and top["changed"] >= EDGE:
        sentence += " It lies at the edge: unless the things to be told apart are there, it has learnt a shortcut."
    elif top["changed"] < 0.02:
        sentence += " No single place decides."
    pixels = found.pixels.double()
    cells = [
        {"pixels": shown(found.baseline), "text": "mean of training", "about": "the mean training picture"},
        {
            "pixels": map_picture(pixels.abs().mean(0).tolist()),
            "text": "size, on average",
            "about": "mean size of maps",
        },
    ]
    names = ["picture", "attribution"]
    changed = torch.tensor(numbers["changed_without"])[found.cells]
    cells.append(
        {
            "pixels": map_picture(changed.tolist()),
            "text": f"up to {percent(max(numbers['changed_without']))}",
            "about": "share of answers that change when a patch is covered",
        }
    )
    names.append("answers changed when covered")
    if twin is not None:
        text = "the same, untrained"
        cells.append({"pixels": map_picture(twin.double().abs().mean(0).tolist()), "text": text, "about": text})
        names.append("random weights")
    note = f"{numbers['method'].capitalize()}, of the first answer's logit (less the mean of all logits); "
    note += f"{len(found.examples)} test pictures. What is covered is as in the mean training picture. "
    note += "Each map has a scale of its own."
    figure = {"kind": "sheet", "columns": names, "rows": [cells], "note": note, "width": 160}
    control = f"an even share: {percent(top['area'])}"
    control += f"; random weights: {percent(top['random_weights_share'])} in this patch." if twin is not None else "."
    return Finding("What it looks at", sentence, top["share"], control, figure)


def _classes(subject: Subject, found: Maps) -> list[Finding]:
    counts = torch.bincount(found.classes, minlength=len(subject.classes))
    chosen = [one for one in counts.argsort(descending=True, stable=True).tolist() if counts[one] >= LEAST][:CLASSES]
    if len(chosen) < 2:
        return []
    rows: list[list[dict[str, Any] | None]] = []
    for start in range(0, len(chosen), IN_A_ROW):
        part = chosen[start : start + IN_A_ROW]
        above: list[dict[str, Any] | None] = []
        below: list[dict[str, Any] | None] = []
        for one in part:
            mine, name = found.classes == one, subject.classes[one]
            mean = found.inputs[mine].double().mean(0)
            above.append({"pixels": shown(mean), "text": "", "about": f"mean picture answered {name}"})
            values = found.pixels[mine].double().mean(0).tolist()
            about = f"what speaks for {name}"
            below.append({"pixels": map_picture(values), "text": f"{name} ({int(counts[one])})", "about": about})
        missing = [None] * (min(IN_A_ROW, len(chosen)) - len(part))
        rows += [[*above, *missing], [*below, *missing]]
    middle = torch.stack([found.pixels[found.classes == one].double().mean(0) for one in chosen])
    apart = torch.corrcoef(middle.flatten(1))
    apart = apart - torch.eye(len(chosen))
    one, other = divmod(int(apart.argmax()), len(chosen))
    names = [subject.classes[chosen[place]] for place in sorted((one, other))]
    sentence = "Red speaks for the class, blue against it, compared with training pictures. "
    if float(apart.max()) >= ALIKE:
        sentence += (
            f"'{names[0]}' and '{names[1]}' depend on much the same places (correlation {float(apart.max()):.2f})."
        )
    else:
        sentence += "Each answer depends on places of its own: no two maps correlate by more than "
        sentence += f"{float(apart.max()):.2f}."
    figure = {
        "kind": "sheet",
        "columns": [""] * min(IN_A_ROW, len(chosen)),
        "rows": rows,
        "note": "Above: the mean of the pictures with this answer. Below: the mean of their maps (number of pictures). "
        + _left_out(subject, chosen, counts),
        "width": 128,
    }
    control = "the mean picture of the same answers, above each map."
    return [Finding("What speaks for each answer", sentence, float(apart.max()), control, figure)]


def _left_out(subject: Subject, chosen: list[int], counts: Tensor) -> str:
    """Say which classes are not shown, and why."""
    count, seen = len(subject.classes), int((counts >= LEAST).sum())
    if len(chosen) == count:
        return ""
    told = f"Shown are {len(chosen)} of {count:,} classes: those answered at least {LEAST} times in the "
    told += f"{int(counts.sum())} explained pictures"
    return f"{told}; {seen - len(chosen):,} more are not drawn." if seen > len(chosen) else f"{told}."


def _six(subject: Subject, found: Maps, twin: Tensor | None) -> Finding:
    usable = min(len(found.patches), len(found.examples) if twin is None else len(twin))
    rows = []
    for row in spread_out(found.shares[:usable]):
        name = subject.classes[int(found.classes[row])]
        cells = [
            {
                "pixels": shown(found.inputs[row]),
                "text": f"{name} {100 * float(found.shares[row]):.0f} %",
                "about": f"a test picture, answered {name}",
            }
        ]
        if found.ends is not None:
            cells.append({"pixels": map_picture(found.pixels[row].tolist()), "text": "", "about": "each pixel"})
        values = found.patches[row][found.cells].tolist()
        cells.append({"pixels": map_picture(values), "text": "", "about": "each patch, covered"})
        if twin is not None:
            cells.append({"pixels": map_picture(twin[row].tolist()), "text": "", "about": "random weights"})
        rows.append(cells)
    names = ["picture"] + (["pixels"] if found.ends is not None else []) + ["patches"]
    names += ["random weights"] if twin is not None else []
    note = "Not chosen by hand: the two surest answers, two in the middle, the two least sure."
    sentence = "Red pixels speak for the answer, blue ones against it. Two methods stand side by side, gradients and "
    sentence += "covering patches: trust what both show, and what random weights do not."
    alike = None
    if found.ends is not None:
        summed = torch.zeros(len(found.patches), int(found.cells.max()) + 1, dtype=torch.float64)
        summed.index_add_(1, found.cells.flatten(), found.pixels[: len(found.patches)].double().flatten(1))
        alike = rank_correlation(summed, found.patches)
        sentence += f" Their rank correlation is {alike:.2f}." if alike is not None else ""
    else:
        sentence = "Red: covering this patch makes the answer less sure; blue: surer."
    control = "random weights, at the same pictures." if twin is not None else "the picture itself."
    figure = {"kind": "sheet", "columns": names, "rows": rows, "note": note}
    return Finding("Six answers, and what they depend on", sentence, alike, control, figure)


def _from_to(what: str, ends: list[int]) -> str:
    return f"{what} {ends[0]}" if ends[0] == ends[1] else f"{what}s {ends[0]} to {ends[1]}"


def shown(picture: Tensor) -> list[Any]:
    """Return a picture (C, H, W) as (H, W) or (H, W, 3) of 0..255; numbers of another kind are brought to scale."""
    pixels = picture.double()
    if picture.dtype != torch.uint8 and not (float(pixels.min()) >= 0 and 1 < float(pixels.max()) <= 255):
        low, high = float(pixels.min()), float(pixels.max())
        pixels = (pixels - low) * (255 / max(high - low, 1e-12))
    whole: list[Any] = (pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels[0]).round().long().tolist()
    return whole


def _bytes(found: Maps) -> bytes:
    from safetensors.torch import save

    kept = {"examples": found.examples, "classes": found.classes, "pixels": found.pixels.float()}
    held: bytes = save({name: value.contiguous() for name, value in kept.items()} | {"cells": found.cells.contiguous()})
    return held
