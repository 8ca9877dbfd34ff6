"""Options of panels, written as ``rules.fidelity=0.9``: read from the signatures of the panels themselves."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from stillroom.errors import UserError, say
from stillroom.mining.panels import chosen, panel_called


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a panel with what holds without them."""
    found = inspect.signature(panel_called(name)).parameters.values()
    return {one.name: one.default for one in found if one.kind is one.KEYWORD_ONLY}


def read_options(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return options by panel from texts such as ``rules.fidelity=0.9`` and ``concepts.tap=layer3``.

    Raises:
        UserError: no such panel or option, or a value of another kind than the option's.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in assignments:
        place, _, value = text.partition("=")
        panel, _, option = place.strip().partition(".")
        if not (option and value):
            allowed = "panel.option=value, such as rules.fidelity=0.9"
            raise UserError(say("An option of a panel is not written so", f"'{text}'", allowed))
        known = options_of(panel)
        if option not in known:
            every = [f"{one}.{key}" for one in chosen((), True) for key in options_of(one)]
            raise UserError(say("There is no such option of a panel", f"'{panel}.{option}'", every))
        found.setdefault(panel, {})[option] = _value(text, value.strip(), type(known[option]))
    return found


def _value(text: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        allowed = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise UserError(say("The value of an option does not fit", f"'{text}'", allowed)) from None
