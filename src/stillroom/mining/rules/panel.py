"""Rules: the smallest decision tree that answers like the model, to read, to run, and to be held against it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from stillroom.errors import DataError, say
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.rules.asking import Ground, ask
from stillroom.mining.rules.sizes import Grown, agreement, grow_all
from stillroom.mining.rules.soft import soft
from stillroom.mining.rules.telling import Chosen, sized, told_of_tree, trusted, worth
from stillroom.mining.rules.writing import as_plain, as_python, as_text, rules_of
from stillroom.mining.subject import Subject

LEAVES = (2, 64)
NEAR = 0.01  # of agreement where the size is chosen: no more than chance


def rules(subject: Subject, budget: Budget, *, fidelity: float = 0.95, leaves: int = 16) -> Panel:
    """Find the smallest tree of at most ``leaves`` rules that answers as the model does in ``fidelity`` of all cases.

    It is grown on the model's answers (probabilities) to training rows and to queries made of them; its size is chosen
    on validation and training rows, and what is said of it is measured on test rows and on queries made of those.
    Beside it stand the same tree on labels, and always giving the commonest answer. Pictures get a soft tree too, with
    its filters; of texts, where single words say too little, rules may ask what points for words add up to. Only
    answers are needed. Rules that miss the fidelity, and get less than half of what a constant answer misses, are told
    in one sentence and not given as files.

    Raises:
        DataError: a fidelity not above 0 or over 1, or a number of leaves that nobody would read.
    """
    if not 0 < fidelity <= 1:
        raise DataError(say("The fidelity that is asked of rules does not fit", fidelity, "above 0, at most 1"))
    if not LEAVES[0] <= leaves <= LEAVES[1]:
        raise DataError(say("So many rules are not for reading", leaves, f"{LEAVES[0]} to {LEAVES[1]}"))
    ground = ask(subject, budget)
    if not ground.reading.features:
        return Panel("rules", notes=["There is nothing that rules could speak of: no word is in enough of the texts."])
    budget.progress(0, 1, "trees")
    grown, notes = grow_all(ground, seed=subject.seed)
    chosen = choose(subject, ground, grown, fidelity, leaves)
    if not chosen.reached and any(one.points for one in ground.reading.features):
        chosen = _by_points(subject, chosen)
    findings = [told_of_tree(chosen), *([sized(chosen), trusted(chosen)] if chosen.useful else [])]
    if any(one.points for one in chosen.asked) and chosen.useful:
        findings.insert(1, worth(chosen))
    numbers, files = _numbers(chosen), _files(chosen) if chosen.useful else {}
    notes = [*ground.notes, *notes]
    if subject.kind == "image":
        finding, of_soft, more, said = soft(subject, ground, budget)
        findings += finding
        numbers["soft_tree"] = of_soft
        files |= more
        notes += said
    return Panel("rules", findings, numbers, files, notes)


def choose(subject: Subject, ground: Ground, grown: Grown, fidelity: float, leaves: int) -> Chosen:
    """Return the smallest tree that agrees often enough, else the largest.

    Enough is asked on rows kept for choosing and on those learnt from too: of the former there may be few.
    """
    found = grown.both.smallest([ground.choice, ground.rows], fidelity, leaves)
    tree = grown.both.largest(leaves) if found is None else found
    classes = tuple(str(one) for one in subject.classes)
    return Chosen(tree, found is not None, ground, grown, classes, fidelity, leaves, subject.name)


def _by_points(subject: Subject, chosen: Chosen) -> Chosen:
    """Return the tree that may ask what words add up to, where it agrees more often than one that may not.

    Of its sizes the smallest that agrees about as often as any: more learn the points' own errors by heart.
    """
    ground, most = chosen.ground, chosen.most
    grown, _ = grow_all(ground, points=True, seed=subject.seed)
    fitting = [tree for tree in grown.both.trees if tree.size <= most]
    best = max(agreement(tree, ground.choice) for tree in fitting)
    tree = next(tree for tree in fitting if agreement(tree, ground.choice) >= best - NEAR)
    if best < agreement(chosen.tree, ground.choice) + NEAR:
        return chosen
    reached = grown.both.smallest([ground.choice, ground.rows], chosen.fidelity, most)
    return replace(chosen, tree=tree if reached is None else reached, reached=reached is not None, grown=grown)


def _numbers(chosen: Chosen) -> dict[str, Any]:
    ground, grown = chosen.ground, chosen.grown
    size = chosen.tree.size
    same = None if grown.labels is None else grown.labels.largest(size)
    sizes, held = grown.both.curve(ground.held)
    return {
        "asked": chosen.fidelity,
        "most_rules": chosen.most,
        "rules": size,
        "useful": chosen.useful,
        "reached_on_choice": chosen.reached,
        "fidelity": agreement(chosen.tree, ground.held),
        "fidelity_interval": chosen.interval.plain(),
        "fidelity_queries": agreement(chosen.tree, ground.held_queries),
        "fidelity_choice": agreement(chosen.tree, ground.choice),
        "labels_same_size": None if same is None else agreement(same, ground.held),
        "labels_same_size_queries": None if same is None else agreement(same, ground.held_queries),
        "difference_to_labels": None if chosen.difference is None else chosen.difference.plain(),
        "without_queries_same_size": agreement(grown.rows.largest(size), ground.held),
        "commonest_answer": chosen.constant[1],
        "by_chance": chosen.by_chance,
        "accuracy": chosen.accuracy,
        "curve": {
            "rules": sizes,
            "fidelity": held,
            "fidelity_queries": grown.both.curve(ground.held_queries)[1],
            "labels": None if grown.labels is None else [list(part) for part in grown.labels.curve(ground.held)],
        },
        "rows": {"learnt": len(ground.rows), "queries": len(ground.queries), "chosen_on": len(ground.choice)}
        | {"held_out": len(ground.held), "held_out_queries": len(ground.held_queries), "held_out_split": ground.split},
        "each": chosen.each,
        "points": [one.plain() for one in chosen.asked if one.points],
    }


def _files(chosen: Chosen) -> dict[str, bytes]:
    reading, classes, tree = chosen.ground.reading, chosen.classes, chosen.tree
    about = f"{tree.size} rules that answer like {chosen.name}: the same class {chosen.agrees}."
    each = [f"{number}. {rule.sentence}" for number, rule in enumerate(rules_of(tree, reading, classes), 1)]
    text = "\n".join([about, chosen.counted, "", as_text(tree, reading, classes), "", *each, ""])
    plain = as_plain(tree, reading, classes) | {"rules": chosen.each, "about": about}
    return {
        "rules.txt": text.encode(),
        "rules.json": json.dumps(plain, indent=1, ensure_ascii=False).encode(),
        "rules.py": as_python(tree, reading, classes, about).encode(),
    }
