"""A recipe: one YAML file that says everything a run needs, checked before data or weights load."""

from stillroom.recipe.models import (
    Arm,
    Data,
    DistilledData,
    Encode,
    Evaluate,
    Export,
    Objective,
    Onnx,
    Own,
    Recipe,
    Record,
    Stage,
    Student,
    Teacher,
    written,
)
from stillroom.recipe.reading import KEYS, read_recipe
from stillroom.recipe.schema import Tables, shipped

__all__ = [
    "KEYS",
    "Arm",
    "Data",
    "DistilledData",
    "Encode",
    "Evaluate",
    "Export",
    "Objective",
    "Onnx",
    "Own",
    "Recipe",
    "Record",
    "Stage",
    "Student",
    "Tables",
    "Teacher",
    "read_recipe",
    "shipped",
    "written",
]
