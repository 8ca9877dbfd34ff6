"""Students: what each arm kept of the model and what it lost, in answers, reasons, layers, classes and subgroups."""

from stillroom.mining.students.panel import students

__all__ = ["students"]
