"""What is said of a tree of rules: sentences written from the numbers, true whichever way these fall."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stillroom.contracts import UNLABELLED, Finding
from stillroom.mining.rules.asking import Ground
from stillroom.mining.rules.points import HIGHEST
from stillroom.mining.rules.reading import Feature, Taught
from stillroom.mining.rules.sizes import Grown, agreement
from stillroom.mining.rules.tree import Tree
from stillroom.mining.rules.writing import as_text, held_against, rules_of
from stillroom.mining.wording import percent
from stillroom.statistics import Interval, over_examples

SIDES, WORDS, NAMED = 6, 12, 5  # classes whose words are shown; of each; named in the sentence
SHORT = 40  # letters of a condition
SHOWN, FEWER = 24, 8  # rules in the table, those that cover most; where they only come near the model
USEFUL = 0.5  # of what a constant answer gets wrong: rules that get less of it right are neither shown nor offered


@dataclass(frozen=True)
class Chosen:
    """The tree that was chosen, whether it ``reached`` the fidelity where that was done, and what it is held to."""

    tree: Tree
    reached: bool
    ground: Ground
    grown: Grown
    classes: tuple[str, ...]
    fidelity: float
    most: int
    name: str

    @property
    def size(self) -> int:
        """How many rules there are."""
        return self.tree.size

    @cached_property
    def asked(self) -> list[Feature]:
        """What the rules ask about."""
        numbers = sorted({int(self.tree.feature[node]) for node in self.tree.order})
        return [self.ground.reading.features[number] for number in numbers]

    @cached_property
    def held(self) -> float:
        """Agreement with the model on held-out rows."""
        return agreement(self.tree, self.ground.held)

    @cached_property
    def on_queries(self) -> float:
        """Agreement with the model on queries made of held-out rows."""
        return agreement(self.tree, self.ground.held_queries)

    @property
    def agrees(self) -> str:
        """How often it agrees, in words."""
        ground = self.ground
        rows = f"on {percent(self.held)} of {len(ground.held):,} {ground.split} rows"
        return f"{rows} and on {percent(self.on_queries)} of {len(ground.held_queries):,} queries"

    @property
    def counted(self) -> str:
        """From where places are counted, and what is in brackets."""
        where = "Rows and columns of a picture are counted from 0. " if self.ground.reading.kind == "image" else ""
        return f"{where}In brackets: how sure the model is there, on average."

    @cached_property
    def constant(self) -> tuple[str, float]:
        """The model's commonest answer to training rows, and how often it gives it to held-out ones."""
        top = Counter(self.ground.rows.top.tolist()).most_common(1)[0][0]
        return self.classes[top], float((self.ground.held.top == top).mean())

    @property
    def useful(self) -> bool:
        """Whether the rules reach what was asked for, or get half of what a constant answer misses."""
        constant = self.constant[1]
        beyond = (self.held - constant) / (1 - constant) if constant < 1 else 0.0
        return self.size > 1 and (self.reached or beyond >= USEFUL)

    @cached_property
    def by_chance(self) -> float:
        """How often rules and model would agree if the rules' answers were dealt to held-out rows at random."""
        count = len(self.classes)
        said, wanted = self.tree.answer(self.ground.held.rows), self.ground.held.top
        return float(
            (np.bincount(said, minlength=count) / len(said)) @ np.bincount(wanted, minlength=count) / len(said)
        )

    @cached_property
    def accuracy(self) -> dict[str, float | None]:
        """How often tree and model are right on held-out rows whose label is known."""
        held = self.ground.held
        known = held.labels != UNLABELLED
        if not known.any():
            return {"tree": None, "model": None}
        right = {"tree": self.tree.answer(held.rows), "model": held.top}
        return {who: float((said == held.labels)[known].mean()) for who, said in right.items()}

    @cached_property
    def interval(self) -> Interval:
        """Agreement with the model on held-out rows, with a 95 % interval."""
        same = self.tree.answer(self.ground.held.rows) == self.ground.held.top
        return over_examples(lambda rows: float(same[rows].mean()), len(same), seeds=1)

    @cached_property
    def difference(self) -> Interval | None:
        """Agreement of this tree less that of its size on labels, on held-out rows, paired; None without labels."""
        if self.grown.labels is None:
            return None
        held = self.ground.held
        other = self.grown.labels.largest(self.size)
        own, theirs = (one.answer(held.rows) == held.top for one in (self.tree, other))
        apart = own.astype(float) - theirs
        return over_examples(lambda rows: float(apart[rows].mean()), len(held), seeds=1)

    @cached_property
    def each(self) -> list[dict[str, Any]]:
        """Every rule: its text, answer, coverage and fidelity on held-out rows and on queries."""
        found = []
        for number, rule in enumerate(rules_of(self.tree, self.ground.reading, self.classes), 1):
            covered, same, rows = held_against(self.tree, rule, self.ground.held)
            asked, same_asked, _ = held_against(self.tree, rule, self.ground.held_queries)
            told = {"rule": number, "if": list(rule.conditions), "answer": rule.answer}
            told |= {"shares": [round(float(one), 4) for one in rule.shares]}
            told |= {"coverage": covered, "rows": int(rows.sum()), "fidelity": same}
            found.append(told | {"coverage_queries": asked, "fidelity_queries": same_asked})
        return found


# --- the tree --------------------------------------------------------------------------------------------


def told_of_tree(chosen: Chosen) -> Finding:
    """Return the finding with the tree itself."""
    text = as_text(chosen.tree, chosen.ground.reading, chosen.classes)
    figure: dict[str, Any] = {"kind": "text", "text": text, "title": "The rules as a tree", "note": chosen.counted}
    if not chosen.reached:
        figure |= {"text": f"{chosen.counted}\n\n{text}", "folded": True, "note": ""}
    return Finding(_title(chosen), _sentence(chosen), chosen.held, _control(chosen), figure if chosen.useful else {})


def _title(chosen: Chosen) -> str:
    if chosen.reached and chosen.held >= chosen.fidelity:
        return "Rules that answer like the model"
    near = chosen.reached or chosen.held >= chosen.fidelity
    return "Rules that come near the model" if near else "No short list of rules answers like the model"


def _sentence(chosen: Chosen) -> str:
    asked = f"(asked for: {percent(chosen.fidelity)})"
    rules = "1 rule" if chosen.size == 1 else f"{chosen.size} rules"
    if chosen.reached and chosen.size == 1:
        return (
            f"The model hardly needs rules: always answering '{chosen.constant[0]}' agrees with it {chosen.agrees} "
            f"{asked}. Look at whether the data holds enough of the other classes."
        )
    if chosen.reached and chosen.held >= chosen.fidelity:
        doubt = ""
        if chosen.on_queries < chosen.fidelity:
            doubt = " On made-up queries they agree less often: trust them for examples like the data."
        return f"{rules} say what the model answers: they agree with it {chosen.agrees} {asked}.{doubt}"
    if chosen.reached:
        clear = "so they are a summary, not the model"
        if chosen.interval.high is None or chosen.interval.high >= chosen.fidelity:
            clear = f"which is no clear miss, since {len(chosen.ground.held):,} rows cannot tell the two apart"
        return (
            f"{rules} were enough where their number was chosen; on rows that neither saw they agree with the model "
            f"{chosen.agrees} {asked}, {clear}."
        )
    if chosen.held >= chosen.fidelity:
        least = min(agreement(chosen.tree, told) for told in (chosen.ground.choice, chosen.ground.rows))
        return (
            f"{rules} agree with the model {chosen.agrees} {asked}, but only on {percent(least)} where their number "
            "was chosen: they are at the edge of what was asked for, so read them as a summary."
        )
    none = f"No tree of up to {chosen.most} rules answers like the model"
    return f"{none}: {rules} agree{'s' * (chosen.size == 1)} {chosen.agrees} {asked}. {_more(chosen)}"


def _more(chosen: Chosen) -> str:
    """Say what more rules would do, and what to make of those there are."""
    name, constant = chosen.constant
    if chosen.held <= constant + 0.02:
        told = f"That is no more than always answering '{name}' ({percent(constant)}): these rules do not explain the "
        return f"{told}model, and are not shown."
    sizes, held = chosen.grown.both.curve(chosen.ground.held)
    enough = [size for size, found in zip(sizes, held, strict=True) if found >= chosen.fidelity]
    told = (
        f"About {enough[0]} would be needed" if enough else f"Up to {sizes[-1]} agree on {percent(max(held))} at most"
    )
    if chosen.useful:
        return f"{told}: read these as a summary, not as the model."
    told += f". Always answering '{name}' agrees on {percent(constant)}; of the remaining rows these rules get less "
    return f"{told}than {percent(USEFUL, 0)}, so they are not shown."


def _control(chosen: Chosen) -> str:
    name, constant = chosen.constant
    always = f"always answering '{name}' agrees on {percent(constant)}"
    if chosen.grown.labels is None or chosen.difference is None:
        return f"{always[0].upper()}{always[1:]} (no labels are known, so there is no tree on labels to compare with)."
    same = chosen.grown.labels.largest(chosen.size)
    other, away = agreement(same, chosen.ground.held), agreement(same, chosen.ground.held_queries)
    gap = chosen.difference
    low, high = gap.low or 0.0, gap.high or 0.0
    word = "no clear difference"
    if low > 0 or high < 0:
        word = "the model's answers are better to learn from" if low > 0 else "labels are better to learn from"
    interval = f"{100 * gap.mean:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}: {word}"
    return (
        f"A tree of the same size grown on labels agrees on {percent(other)} ({interval}), on {percent(away)} of the "
        f"queries; {always}."
    )


def worth(chosen: Chosen) -> Finding:
    """Return the finding of what words are worth, where rules ask what they add up to."""
    asked = [one for one in chosen.asked if one.points]
    count = len({word for one in asked for word, _ in one.points})
    reached = {of: by_points(chosen.ground, of) for of in ("answers", "labels", "chance")}
    own = reached["answers"] or 0.0
    text = (
        f"Single words say too little, so {count} words have points, from -{HIGHEST} to {HIGHEST}, which are summed. "
    )
    text += f"The sum of a text gives the model's answer on {percent(own)} of {len(chosen.ground.held):,} "
    text += f"{chosen.ground.split} rows."
    figures, sides = [], []
    for one in asked:
        sides.append((one.name.removeprefix("points for "), sorted(one.points, key=lambda pair: -pair[1])))
        if len(chosen.classes) == 2:
            against = [(word, -points) for word, points in one.points]
            sides.append((f"'{chosen.classes[1 - one.place[0]]}'", sorted(against, key=lambda pair: -pair[1])))
    for name, pairs in sides[:SIDES]:
        most = [(word, points) for word, points in pairs if points > 0][:WORDS]
        text += f" Most for {name}: {', '.join(repr(word) for word, _ in most[:NAMED])}." if most else ""
        series = [{"name": "points", "values": [points for _, points in most]}]
        bars = {"kind": "bars", "labels": [word for word, _ in most], "series": series, "unit": "", "horizontal": True}
        bars["digits"] = 0
        figures += [{**bars, "title": f"For {name}"}] * bool(most)
    control = ""
    if reached["chance"] is not None:
        control = f"The same points dealt to the words at random: {percent(reached['chance'])}"
    if reached["labels"] is not None:
        control += f"; points learnt from labels instead of the model's answers: {percent(reached['labels'])}"
    note = "Among words of equal points, those that separate the texts best. All are in rules.json."
    if len(sides) > SIDES:
        note += f" {SIDES} of {len(sides)} classes are shown."
    figure = {"kind": "panels", "figures": figures, "note": note}
    return Finding("What words are worth", text, own, f"{control}.", figure)


def by_points(ground: Ground, of: Taught) -> float | None:
    """Return how often points alone, from a threshold on that suits the rows, give the model's answer; None without."""
    places = {one.place[0]: at for at, one in enumerate(ground.reading.features) if one.points and one.of == of}
    if not places:
        return None
    rows, held = ground.rows, ground.held
    if rows.answers.shape[1] > 2:
        order = list(places)
        said = held.rows[:, [places[place] for place in order]].argmax(1)
        return float((np.array(order)[said] == held.top).mean())
    column = places[1]
    cuts = np.unique(rows.rows[:, column])
    right = [float(((rows.rows[:, column] >= cut) == rows.top).mean()) for cut in cuts]
    return float(((held.rows[:, column] >= cuts[int(np.argmax(right))]) == held.top).mean())


# --- its size and its parts ------------------------------------------------------------------------------


def sized(chosen: Chosen) -> Finding:
    """Return the finding of fidelity against size."""
    ground, grown = chosen.ground, chosen.grown
    sizes, held = grown.both.curve(ground.held)
    lines: list[dict[str, Any]] = [
        {"name": f"on {ground.split} rows", "x": sizes, "y": [100 * one for one in held]},
        {"name": "on queries", "x": sizes, "y": [100 * one for one in grown.both.curve(ground.held_queries)[1]]},
    ]
    control = ""
    if grown.labels is not None:
        at, same = grown.labels.curve(ground.held)
        lines.append({"name": "tree on labels", "x": at, "y": [100 * one for one in same]})
        control = f"Trees on labels: {percent(same[-1])} with {at[-1]} rules."
    alone = grown.rows.largest(chosen.size)
    control += f" Grown on the model's answers to rows alone, {chosen.size} rules agree on "
    control += f"{percent(agreement(alone, ground.held))}, and on {percent(agreement(alone, ground.held_queries))} of "
    control += "the queries."
    steps = ", ".join(f"{size} rules: {percent(one)}" for size, one in zip(sizes, held, strict=True) if size > 1)
    best = int(np.argmax(held))
    sentence = f"Agreement with the model by number of rules: {steps or percent(held[0])}."
    if sizes[best] > chosen.size:
        gain = 100 * (held[best] - chosen.held)
        sentence += f" {sizes[best]} rules instead of {chosen.size} would gain {gain:.1f} points."
    else:
        sentence += f" More than {chosen.size} gain nothing."
    figure = {"kind": "lines", "series": lines, "x_label": "rules", "y_label": "agreement with the model, %"}
    return Finding("How many rules it takes", sentence, float(held[best]), control.strip(), figure)


def trusted(chosen: Chosen) -> Finding:
    """Return the finding of each rule's coverage and fidelity."""
    ground = chosen.ground
    held = [one for one in chosen.each if one["rows"]]
    good = [one for one in held if one["fidelity"] >= chosen.fidelity]
    share = sum(one["coverage"] for one in good)
    widest = max(held, key=lambda one: one["coverage"])
    asked = f"({percent(chosen.fidelity)})"
    sentence = f"None of {len(chosen.each)} rules agrees with the model as often as asked {asked}. "
    if good:
        sentence = f"{len(good)} of {len(chosen.each)} rules agree with the model as often as asked {asked}; they "
        sentence += f"cover {percent(share)} of the {ground.split} rows. "
    sentence += f"Rule {widest['rule']} covers most rows ({percent(widest['coverage'])})."
    weakest = min(held, key=lambda one: (one["fidelity"], -one["rows"]))
    if weakest["fidelity"] < chosen.fidelity:
        rows = f"{weakest['rows']:,} row{'s' * (weakest['rows'] != 1)}"
        sentence += f" Rule {weakest['rule']} is the weakest: it agrees on {percent(weakest['fidelity'])} of {rows}."
    if unseen := len(chosen.each) - len(held):
        sentence += f" {unseen} cover{'s' * (unseen == 1)} no {ground.split} row."
    shown = sorted(chosen.each, key=lambda one: -one["coverage"])[: SHOWN if chosen.reached else FEWER]
    rows_ = [
        [
            f"{one['rule']}. {one['answer']}",
            100 * one["coverage"],
            None if one["fidelity"] is None else 100 * one["fidelity"],
            None if one["fidelity_queries"] is None else 100 * one["fidelity_queries"],
            " and ".join(one["if"]) or "always",
        ]
        for one in shown
    ]
    columns = [{"name": "rule"}]
    columns += [{"name": one, "unit": "%", "digits": 1} for one in ("covers", "agrees", "agrees on queries")]  # type: ignore[dict-item]
    columns.append({"name": "if"})
    if all(len(row[-1]) <= SHORT for row in rows_):  # else last: it may be longer than the page is wide
        columns.insert(1, columns.pop())
        rows_ = [[row[0], row[-1], *row[1:-1]] for row in rows_]
    figure: dict[str, Any] = {"kind": "table", "columns": columns, "rows": rows_, "title": "Rules, widest first"}
    if len(chosen.each) > len(shown):
        figure["note"] = f"The {len(shown)} widest of {len(chosen.each)}; all are in rules.json."
    control = f"The same answers dealt to the rows at random would agree on {percent(chosen.by_chance)}."
    return Finding("Which rules to trust", sentence, share, control, figure)
