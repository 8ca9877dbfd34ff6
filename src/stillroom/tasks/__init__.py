"""What a task measures of a model, and what is refused because it is another task."""

from stillroom.tasks.classification import (
    accuracy,
    agreement,
    class_counts,
    confusions,
    correct,
    divergence,
    measure,
    recall_by_class,
    reliability,
)
from stillroom.tasks.doors import (
    check_answers,
    check_known,
    check_labels,
    check_names,
    check_objective,
    check_targets,
    probabilities,
    softened_twice,
)

__all__ = [
    "accuracy",
    "agreement",
    "check_answers",
    "check_known",
    "check_labels",
    "check_names",
    "check_objective",
    "check_targets",
    "class_counts",
    "confusions",
    "correct",
    "divergence",
    "measure",
    "probabilities",
    "recall_by_class",
    "reliability",
    "softened_twice",
]
