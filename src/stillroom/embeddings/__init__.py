"""Static text embeddings: what a transformer knows of each word, in a table that NumPy alone reads."""

from stillroom.embeddings.make import static_embeddings
from stillroom.embeddings.static import StaticEmbeddings

__all__ = ["StaticEmbeddings", "static_embeddings"]
