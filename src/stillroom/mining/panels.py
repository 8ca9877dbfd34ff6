"""The table of panels, in reading order, as text, so that none is imported before it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from stillroom.errors import UserError, say

PANELS: dict[str, str] = {
    "answers": "stillroom.mining.answers:answers",
    "similarity": "stillroom.mining.similarity:similarity",
    "rules": "stillroom.mining.rules:rules",
    "attribution": "stillroom.mining.attribution:attribution",
    "concepts": "stillroom.mining.concepts:concepts",
    "examples": "stillroom.mining.examples:examples",
    "layers": "stillroom.mining.layers:layers",
    "students": "stillroom.mining.students:students",
}

TITLES: dict[str, str] = {
    "answers": "Answers",
    "similarity": "Similar classes",
    "rules": "Rules",
    "attribution": "Attribution",
    "concepts": "Concepts",
    "examples": "Training examples",
    "layers": "Layers",
    "students": "Students",
    "recipe": "Recipe",
}
"""What a panel is called in the contents of a report."""

OF_STUDENTS = ("students",)
"""Panels that compare the model with its students; each takes them as its third argument."""


ASK_THEMSELVES = ("attribution", "layers")
"""Panels that ask what no other one wants to know; for them alone not every split is asked about."""


def panel_called(name: str) -> Callable[..., Any]:
    """Return the function of a panel.

    Raises:
        UserError: there is no such panel.
    """
    if name not in PANELS:
        raise UserError(say("There is no such panel", f"'{name}'", PANELS))
    module, _, function = PANELS[name].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def chosen(only: Sequence[str], students: bool) -> list[str]:
    """Return the panels to do, in reading order: those asked for, else all; without students none of students.

    Raises:
        UserError: one that is asked for does not exist.
    """
    for name in only:
        panel_called(name)
    return [name for name in PANELS if (not only or name in only) and (students or name not in OF_STUDENTS)]
