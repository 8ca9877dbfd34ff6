"""What features are worth on tasks they were not made for."""

from stillroom.generality.compare import Read, Task, compare, curve, task_of
from stillroom.generality.findings import findings, headline, summary

__all__ = ["Read", "Task", "compare", "curve", "findings", "headline", "summary", "task_of"]
