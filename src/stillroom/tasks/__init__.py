"""What a task measures of a model, and what is refused because it is another task."""

from stillroom.tasks.classification import (
    accuracy,
    agreement,
    by_rows,
    class_counts,
    confusions,
    correct,
    divergence,
    measure,
    recall_by_class,
    reliability,
    share_of,
    top_share,
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
    "by_rows",
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
    "share_of",
    "softened_twice",
    "top_share",
]
