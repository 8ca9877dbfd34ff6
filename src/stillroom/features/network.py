"""The network that gives features: raw inputs in, one vector an example out, head included, to be exported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.contracts import Hidden, Named, Output, Tap
from stillroom.errors import ExportError, say
from stillroom.models.bundle import Deployed
from stillroom.objectives.connectors import masked_mean
from stillroom.taps import read
from stillroom.taps.places import find_logits, pick, submodule


def pooled(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return one vector an example (B, D): the mean over space of maps, over (unmasked) time of sequences."""
    if values.dim() == 4 and mask is None:
        return values.mean((2, 3))
    if values.dim() >= 3:
        values = masked_mean(values, mask)
    return values.flatten(1)


class Head(nn.Module):
    """What is done to pooled features: ``(features - mean) @ basis``; without a basis they stay as they are.

    ``mean`` (D), ``basis`` (D, K): K dimensions, the most telling first.
    """

    mean: Tensor | None
    basis: Tensor | None

    def __init__(self, mean: Tensor | None = None, basis: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features (B, K)."""
        if self.mean is None or self.basis is None:
            return features
        return (features - self.mean) @ self.basis


class FeatureNetwork(nn.Module):
    """Raw inputs to finished features in one graph: the model up to a tap, pooling, head, prefix, unit length."""

    def __init__(
        self, deployed: Deployed, tap: Tap, head: Head, dimensions: int, *, normalise: bool, example: Tensor
    ) -> None:
        super().__init__()
        self.deployed, self.head = deployed, head
        self.dimensions, self.normalise = dimensions, normalise
        self.place = _place_of(deployed, tap, example)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features (B, dimensions) of raw inputs (B, ...)."""
        values = self.head(pooled(self._read(inputs)))[:, : self.dimensions]
        return functional.normalize(values, dim=1) if self.normalise else values

    def _read(self, inputs: Tensor) -> Tensor:
        """Run the model and note what passes the tap; with hooks of its own, which an exporter can follow."""
        seen: list[Any] = []
        place, model = self.place, self.deployed.model
        if not isinstance(place, Hidden):
            answer = self.deployed(inputs) if place is None else pick(self._answer(inputs), place.pick, str(place))
            found: Tensor = answer
            return found
        target = submodule(model, place.path)
        if place.side == "in":
            hook = target.register_forward_pre_hook(lambda _, entering: seen.append(entering[0]))
        else:
            hook = target.register_forward_hook(lambda _, __, leaving: seen.append(leaving))
        try:
            self._answer(inputs)
        finally:
            hook.remove()
        noted: Tensor = pick(seen[place.call or 0], place.pick, str(place))
        return noted

    def _answer(self, inputs: Tensor) -> Any:
        encoded = inputs if self.deployed.encode is None else self.deployed.encode(inputs)
        return self.deployed.model(**encoded) if isinstance(encoded, dict) else self.deployed.model(encoded)


def _place_of(deployed: Deployed, tap: Tap, example: Tensor) -> Hidden | Output | None:
    """Return where the tap is; None stands for the logits.

    Raises:
        ExportError: the tap is of a kind that no graph holds.
    """
    if isinstance(tap, Hidden | Output):
        return tap
    if isinstance(tap, Named) and tap.name == "logits":
        return None
    if not isinstance(tap, Named):
        raise ExportError(
            say("This tap cannot stand in a graph", f"'{tap}'", "features, logits, output or a layer's path")
        )
    # The layer that makes the logits is found by running once, as a reader finds it.
    made: list[tuple[str, Any]] = []
    hooks = []
    for path, part in deployed.model.named_modules():
        if path and not any(part.children()):
            hooks.append(part.register_forward_hook(lambda _, __, leaving, path=path: made.append((path, leaving))))
    try:
        with torch.no_grad():
            encoded = example if deployed.encode is None else deployed.encode(example)
            output = deployed.model(**encoded) if isinstance(encoded, dict) else deployed.model(encoded)
    finally:
        for hook in hooks:
            hook.remove()
    logits = find_logits(output, type(deployed.model).__name__)
    makers = [path for path, leaving in made if leaving is logits]
    if len(makers) != 1:
        read(deployed.model, ["features"], deployed.encode)(
            {"id": torch.zeros(1, 2).long(), "inputs": example}
        )  # says why
    return Hidden(makers[0], "in", call=sum(path == makers[0] for path, _ in made) - 1)
