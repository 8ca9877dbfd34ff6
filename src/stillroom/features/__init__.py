"""A student's features as a product: for scikit-learn, for other data of any size, for other runtimes."""

from stillroom.features.extractor import FeatureExtractor
from stillroom.features.table import write_features

__all__ = ["FeatureExtractor", "write_features"]
