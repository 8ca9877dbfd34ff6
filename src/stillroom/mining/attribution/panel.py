"""What the model looks at: which pixels, words or columns its answers hang on, and whether that can be trusted."""

from __future__ import annotations

from stillroom.mining.attribution.columns import rows_of_a_table
from stillroom.mining.attribution.pixels import pictures
from stillroom.mining.attribution.words import texts
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject


def attribution(subject: Subject, budget: Budget) -> Panel:
    """Return what answers hang on, overall and in six examples, with what would expose nonsense.

    Pictures: expected gradients (Erion et al. 2021, https://arxiv.org/abs/1906.10670) against training pictures, which
    are what the model knows, as their mean is not; and patches covered by their mean. Tables: sampled Shapley values
    (Strumbelj and Kononenko 2014) against training rows. Texts: integrated gradients (Sundararajan et al. 2017,
    https://arxiv.org/abs/1703.01365) at the first embedding, from the mean token, summed over the tokens of a word. Of
    a model that shows answers only, what needs answers only. What is explained is the logit of the first answer less
    the mean of all logits. Controls: parts taken away in random order, and the same architecture with random weights.
    """
    if subject.kind == "table":
        return rows_of_a_table(subject, budget)
    return texts(subject, budget) if subject.kind == "text" else pictures(subject, budget)
