"""What a task measures of a model."""

from stillroom.tasks.classification import (
    accuracy,
    agreement,
    correct,
    divergence,
    measure,
    recall_by_class,
    reliability,
)

__all__ = ["accuracy", "agreement", "correct", "divergence", "measure", "recall_by_class", "reliability"]
