"""distil_data(): the one-call door for Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from stillroom.contracts import Progress
from stillroom.data.arrays import ArraySource, as_source
from stillroom.dataset_distillation.making import check_source, make_examples
from stillroom.dataset_distillation.synthetic import real_inputs, save_synthetic, with_synthetic
from stillroom.errors import ModelError, UserError, say
from stillroom.models.encode import encode_for
from stillroom.models.zoo import build
from stillroom.randomness import forked
from stillroom.settings import Synthesis


def distil_data(
    data: Any,
    model: str | Callable[[], nn.Module] = "convnet",
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> ArraySource:
    """Make a few synthetic examples of each class that teach a network nearly what all of ``data`` would.

    Dataset condensation (Zhao, Mopuri, Bilen, ICLR 2021, https://arxiv.org/abs/2006.05929). ``data``: a source,
    ``(inputs, labels)`` or whatever else :func:`stillroom.as_source` takes. ``model``: a name of the zoo, or a function
    that makes a fresh network each time; uint8 images are normalised for it. ``settings`` are those of the recipe's key
    ``distilled_data``: ``per_class`` (10), ``steps`` (100), ``lr``, ``batch``, ``start``, ``renew``, ``between``,
    ``augment``, ``seed``. With ``out`` the result is written as an archive that the source ``npz`` reads.

    Returns a source: its training rows are the synthetic examples, its validation and test rows the real ones.

    Raises:
        UserError: of the kind that says what is wrong: data, model or settings.

    Example:
        >>> few = stillroom.distil_data((images, labels), "net", per_class=1, steps=50)
        >>> few.batch(few.splits["train"])["inputs"]
    """
    try:
        chosen = Synthesis(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        given = f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}"
        raise UserError(say("These settings cannot be used", given, list(Synthesis.model_fields))) from None
    source = as_source(data)
    check_source(source)
    made = make_examples(source, _maker(model, source), chosen, encode=encode_for(source), progress=progress)
    few = with_synthetic(source, made.inputs, made.labels)
    if out is not None:
        save_synthetic(few, Path(out))
    return few


def _maker(model: str | Callable[[], nn.Module], source: Any) -> Callable[[int], nn.Module]:
    if isinstance(model, nn.Module) or not (isinstance(model, str) or callable(model)):
        allowed = "a name of the zoo, or a function that makes a fresh network each time"
        raise ModelError(say("This cannot be matched on", type(model).__name__, allowed, "Pass lambda: Net()."))
    shape = tuple(real_inputs(source, source.splits["train"][:1]).shape[1:])
    classes = len(source.classes or ())

    def make(seed: int) -> nn.Module:
        with forked(seed, "weights"):
            return build(model, shape=shape, classes=classes) if isinstance(model, str) else model()

    return make


__all__ = ["distil_data"]
