"""How far two sets of parameter gradients point apart: what dataset distillation makes small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.errors import ModelError, say

TINY = 1e-6
FAILURES = (RuntimeError, TypeError, IndexError, NotImplementedError)


def gradient_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return the sum, over all layers and the rows of each that lead to one output, of 1 - cos(ours, theirs).

    Dataset condensation (Zhao, Mopuri, Bilen, ICLR 2021, https://arxiv.org/abs/2006.05929, equation 9). ``ours`` and
    ``theirs``: gradients of the same parameters, in one order, (outputs, ...) each. Where paper and code differ, as in
    the authors' code (VICO-UoE/DatasetCondensation, ``match_loss``): biases and the gains of norms, which have one
    axis, count nothing, and 1e-6 is added to the product of the lengths. Returns one number, 0 where all point alike.

    Raises:
        ModelError: nothing with two axes or more is among them, so there is nothing to match.
    """
    pairs = [(one.flatten(1), other.flatten(1)) for one, other in zip(ours, theirs, strict=True) if one.ndim > 1]
    if not pairs:
        raise ModelError(
            say("This network has no layer whose gradients could be matched", "no weights with rows", "linear, conv")
        )
    rows = [1 - (one * other).sum(1) / (_length(one) * _length(other) + TINY) for one, other in pairs]
    return torch.cat(rows).sum()


def _length(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1)


def loss_gradients(
    network: nn.Module, encode: nn.Module | None, inputs: Tensor, labels: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Return the gradient of the mean cross-entropy with respect to every trainable parameter of ``network``.

    ``inputs`` are raw, (B, ...), before ``encode``; ``labels`` int64 (B,). With ``create_graph`` the gradients can be
    differentiated again, with respect to the inputs.

    Raises:
        ModelError: the network cannot be differentiated (twice), or does not use one of its parameters.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        logits = network(inputs if encode is None else encode(inputs))
        loss = functional.cross_entropy(logits, labels)
        return torch.autograd.grad(loss, parameters, create_graph=create_graph)
    except FAILURES as error:
        raise _refused(network, error) from error


def input_gradient(distance: Tensor, inputs: Tensor, network: nn.Module) -> Tensor:
    """Return the gradient of a distance of gradients of ``network`` with respect to ``inputs``, in their shape.

    Raises:
        ModelError: the network cannot be differentiated twice.
    """
    try:
        return torch.autograd.grad(distance, inputs)[0]
    except FAILURES as error:
        raise _refused(network, error) from error


def _refused(network: nn.Module, error: Exception) -> ModelError:
    reason = str(error).strip().split("\n")[0].rstrip(".")
    return ModelError(
        f"The gradients of {type(network).__name__} cannot be matched: got '{reason}'. Allowed: a network that answers "
        "raw examples with logits, uses all of its parameters, and can be differentiated twice. "
        "Take a network of convolutions or linear layers, such as convnet, cnn, net or mlp."
    )
