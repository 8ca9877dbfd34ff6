"""What a recurrent network remembers of its past input, and whether a student was handed its teacher's memory."""

from stillroom.memory.capacity import Capacity, Remembers, capacity, memory_of, recalled, recurrent_path
from stillroom.memory.findings import findings, headline
from stillroom.memory.states import StateFit, state_r2

__all__ = [
    "Capacity",
    "Remembers",
    "StateFit",
    "capacity",
    "findings",
    "headline",
    "memory_of",
    "recalled",
    "recurrent_path",
    "state_r2",
]
