"""Stillroom distils trained neural networks; the teacher runs once, and every run says whether it helped."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "ArraySource": "stillroom.data.arrays",
    "Average": "stillroom.teachers",
    "Balance": "stillroom.gradients",
    "Capacity": "stillroom.memory",
    "Deployed": "stillroom.models.bundle",
    "Dot": "stillroom.gradients",
    "FeatureExtractor": "stillroom.features",
    "HuggingFaceEncode": "stillroom.models.text_encode",
    "Learner": "stillroom.learner",
    "Live": "stillroom.teachers",
    "MovingAverage": "stillroom.teachers",
    "PGD": "stillroom.attacks",
    "Previous": "stillroom.teachers",
    "Result": "stillroom.pipeline.distill",
    "Rows": "stillroom.train",
    "StaticEmbeddings": "stillroom.embeddings",
    "StillroomError": "stillroom.errors",
    "Store": "stillroom.store",
    "Suitability": "stillroom.suitability",
    "TextSource": "stillroom.data.texts",
    "TextViews": "stillroom.data.text_views",
    "Together": "stillroom.teachers",
    "Training": "stillroom.settings",
    "UserError": "stillroom.errors",
    "Views": "stillroom.data.views",
    "WordEncode": "stillroom.models.text_encode",
    "as_source": "stillroom.data.arrays",
    "capacity": "stillroom.memory",
    "distil_data": "stillroom.dataset_distillation.door",
    "distill": "stillroom.pipeline.distill",
    "evaluate": "stillroom.evaluate",
    "export": "stillroom.export",
    "fit": "stillroom.train",
    "load": "stillroom.models.bundle",
    "match": "stillroom.objectives",
    "open_source": "stillroom.data.table",
    "read": "stillroom.taps",
    "record": "stillroom.record",
    "robust_accuracy": "stillroom.attacks",
    "state_r2": "stillroom.memory",
    "static_embeddings": "stillroom.embeddings",
    "suitability": "stillroom.suitability",
    "train": "stillroom.train",
    "words_for": "stillroom.models.text_encode",
}

__all__ = [
    "ArraySource",
    "Average",
    "Balance",
    "Capacity",
    "Deployed",
    "Dot",
    "FeatureExtractor",
    "HuggingFaceEncode",
    "Learner",
    "Live",
    "MovingAverage",
    "PGD",
    "Previous",
    "Result",
    "Rows",
    "StaticEmbeddings",
    "StillroomError",
    "Store",
    "Suitability",
    "TextSource",
    "TextViews",
    "Together",
    "Training",
    "UserError",
    "Views",
    "WordEncode",
    "__version__",
    "as_source",
    "capacity",
    "distil_data",
    "distill",
    "evaluate",
    "export",
    "fit",
    "load",
    "match",
    "open_source",
    "read",
    "record",
    "robust_accuracy",
    "state_r2",
    "static_embeddings",
    "suitability",
    "train",
    "words_for",
]

if TYPE_CHECKING:
    from stillroom.attacks import PGD, robust_accuracy
    from stillroom.data.arrays import ArraySource, as_source
    from stillroom.data.table import open_source
    from stillroom.data.text_views import TextViews
    from stillroom.data.texts import TextSource
    from stillroom.data.views import Views
    from stillroom.dataset_distillation.door import distil_data
    from stillroom.embeddings import StaticEmbeddings, static_embeddings
    from stillroom.errors import StillroomError, UserError
    from stillroom.evaluate import evaluate
    from stillroom.export import export
    from stillroom.features import FeatureExtractor
    from stillroom.gradients import Balance, Dot
    from stillroom.learner import Learner
    from stillroom.memory import Capacity, capacity, state_r2
    from stillroom.models.bundle import Deployed, load
    from stillroom.models.text_encode import HuggingFaceEncode, WordEncode, words_for
    from stillroom.objectives import match
    from stillroom.pipeline.distill import Result, distill
    from stillroom.record import record
    from stillroom.settings import Training
    from stillroom.store import Store
    from stillroom.suitability import Suitability, suitability
    from stillroom.taps import read
    from stillroom.teachers import Average, Live, MovingAverage, Previous, Together
    from stillroom.train import Rows, fit, train


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``stillroom --help`` needs no PyTorch."""
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'stillroom' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """A verb keeps its name: Python would put the file ``train.py`` in the place of the function ``train``."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
