"""Gradients in two parts, the task's and the teacher's: looked at, given a momentum each, or balanced."""

from stillroom.gradients.balance import Balance
from stillroom.gradients.dot import Dot
from stillroom.gradients.filling import Gradients, fill, filler
from stillroom.gradients.looking import Looked, Looking
from stillroom.gradients.room import room_for
from stillroom.gradients.sides import Pull, Sided, Sides, pull_of, sides_of

__all__ = [
    "Balance",
    "Dot",
    "Gradients",
    "Looked",
    "Looking",
    "Pull",
    "Sided",
    "Sides",
    "fill",
    "filler",
    "pull_of",
    "room_for",
    "sides_of",
]
