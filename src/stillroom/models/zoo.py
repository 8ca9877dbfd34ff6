"""Small networks, one screen each: ``net``, ``mlp``, ``cnn``, ``convnet``, ``resnet``; sequences' lie beside them.

Inputs are floats, normalised by an encode of their own, or ``ids`` and ``mask`` of texts; the answer is logits
(B, classes). Weights come from PyTorch's global generator, which the caller seeds. The last layer is always called
``head``, a recurrent one ``memory``.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.errors import ModelError, say
from stillroom.models.hugging_face import HuggingFaceClassifier
from stillroom.models.recurrent import SequenceGRU, SequenceLSTM
from stillroom.models.text_zoo import BiGRU, BiLSTM, TextCNN, TextMLP

Shape = Sequence[int]
LAYERS, WIDEST = 256, 10**9  # what an option may ask for at most


class Net(nn.Module):
    """Flatten, one hidden layer with ReLU, logits: 784-256-10 has 203,530 parameters."""

    def __init__(self, *, shape: Shape, classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(math.prod(shape), hidden)
        self.relu = nn.ReLU()
        self.head = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        logits: Tensor = self.head(self.relu(self.hidden(self.flatten(inputs))))
        return logits


class MLP(nn.Module):
    """Any number of hidden layers with ReLU, each followed by dropout."""

    def __init__(self, *, shape: Shape, classes: int, hidden: Sequence[int] = (256, 128), dropout: float = 0.0) -> None:
        super().__init__()
        widths = [math.prod(shape), *hidden]
        self.flatten = nn.Flatten()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths[:-1], widths[1:], strict=True))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        hidden = self.flatten(inputs)
        for layer in self.layers:
            hidden = functional.relu(layer(hidden))
            if self.dropout.p:
                hidden = self.dropout(hidden)
        logits: Tensor = self.head(hidden)
        return logits


class CNN(nn.Module):
    """Three convolutions with BatchNorm, each at half the size of the one before, a 1x1 one, the mean over space.

    The image is halved by the very first layer, which makes a step cheap; 28,282 parameters at width 16 on 28 x 28.
    """

    def __init__(self, *, shape: Shape, classes: int, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.block1 = _block(shape[0], width, stride=2)
        self.block2 = _block(width, 2 * width, pool=True)
        self.block3 = _block(2 * width, 4 * width, pool=True)
        self.mix = _block(4 * width, 4 * width, kernel=1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        maps = self.mix(self.block3(self.block2(self.block1(inputs))))
        features = maps.mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(features) if self.dropout.p else features)
        return logits


def _block(entering: int, leaving: int, *, kernel: int = 3, stride: int = 1, pool: bool = False) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU, and max pooling by 2 where asked (the odd row and column count too)."""
    convolution = nn.Conv2d(entering, leaving, kernel, stride, kernel // 2, bias=False)
    layers = [convolution, nn.BatchNorm2d(leaving), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2, ceil_mode=True)] if pool else []))


class ConvNet(nn.Module):
    """Blocks of convolution, norm over each image's own map, ReLU and mean pooling by 2; what is left is flattened.

    The network of dataset distillation (Zhao, Mopuri, Bilen 2021, https://arxiv.org/abs/2006.05929, section 3.1): no
    example's answer depends on the others in its batch. Theirs has ``width`` 128 and three blocks.
    """

    def __init__(self, *, shape: Shape, classes: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        height, across = int(shape[1]) >> depth, int(shape[2]) >> depth
        if not height or not across:
            side = min(int(shape[1]), int(shape[2]))
            raise ModelError(
                say(
                    "The image is too small to be halved that often",
                    f"depth={depth} on {shape[1]} x {shape[2]} pixels",
                    f"a depth from 1 to {side.bit_length() - 1}",
                )
            )
        widths = [int(shape[0])] + depth * [width]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(*pair, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2))
                for pair in zip(widths[:-1], widths[1:], strict=True)
            )
        )
        self.flatten = nn.Flatten()
        self.head = nn.Linear(width * height * across, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        logits: Tensor = self.head(self.flatten(self.blocks(inputs)))
        return logits


class ResNet(nn.Module):
    """A residual network in CIFAR style (He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2).

    Three groups of basic blocks, ``width``, 2 and 4 times as wide; depth = 6n + 2 gives n blocks a group, another even
    depth puts its spare blocks into the later groups (10 is 1, 1, 2). ``stem`` is the stride of the first convolution.
    Shortcuts that change the shape are the paper's option A: every second pixel, new channels zero, no parameters.
    """

    def __init__(self, *, shape: Shape, classes: int, depth: int = 8, width: int = 16, stem: int = 1) -> None:
        super().__init__()
        if depth < 8 or depth % 2:
            raise ModelError(say("This depth of a ResNet cannot be built", depth, "8, 10, 12, 14, 20, ... (even)"))
        if stem not in (1, 2):
            raise ModelError(say("This stem of a ResNet cannot be built", stem, "1 or 2 (the first stride)"))
        blocks = (depth - 2) // 2
        counts = [(blocks + place) // 3 for place in range(3)]
        self.stem = nn.Sequential(nn.Conv2d(shape[0], width, 3, stem, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = _group(width, width, counts[0], 1)
        self.layer2 = _group(width, 2 * width, counts[1], 2)
        self.layer3 = _group(2 * width, 4 * width, counts[2], 2)
        self.head = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        maps = self.layer3(self.layer2(self.layer1(self.stem(inputs))))
        logits: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits


def _group(entering: int, leaving: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *(BasicBlock(leaving if place else entering, leaving, 1 if place else stride) for place in range(blocks))
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.added = leaving - entering
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(leaving)
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, leaving, H / stride, W / stride)."""
        shortcut = maps if self.stride == 1 else maps[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        hidden = functional.relu(self.norm1(self.conv1(maps)))
        leaving: Tensor = self.relu(self.norm2(self.conv2(hidden)) + shortcut)
        return leaving


ZOO: dict[str, Callable[..., nn.Module]] = {
    "net": Net,
    "mlp": MLP,
    "cnn": CNN,
    "convnet": ConvNet,
    "resnet": ResNet,
    "lstm": SequenceLSTM,
    "gru": SequenceGRU,
    "bilstm": BiLSTM,
    "bigru": BiGRU,
    "textcnn": TextCNN,
    "textmlp": TextMLP,
    "hugging-face": HuggingFaceClassifier,
}

OPTIONS: dict[str, str] = {
    "bidirectional": "a second memory reads from the end to the beginning",
    "depth": "layers with weights: of a `resnet` 8, 10, 12, 14, 20, ...; of a `convnet` its blocks",
    "dropout": "the share of numbers left out before the last layer, from 0 up to 1",
    "embedding": "numbers of a word vector",
    "filters": "filters of each window",
    "frozen": "word vectors are not learnt",
    "hidden": "units of the hidden layer; of an `mlp` a list, a layer each",
    "kernels": "widths of the windows, in tokens",
    "layers": "memories on top of each other",
    "pool": "what stands for a whole row: its `last` step, the `mean` or the `max` of all; `cls`, the first token",
    "stem": "the stride of the first convolution, 1 or 2",
    "trainable": "`all`, or how many of the upper layers are learnt",
    "width": "channels of the first layer; the others follow from it",
}
"""What each option of a model means."""

_BUILT = "_stillroom_built"
TEXTS = ("bilstm", "bigru", "textcnn", "textmlp")
"""The models that read texts: tokens and their mask."""


def build(name: str, *, shape: Shape, classes: int, **options: Any) -> nn.Module:
    """Build the zoo's model ``name`` for inputs of ``shape`` without the batch axis.

    ``shape`` is (C, H, W) or (F,); (T, F) or (1, H, W) for ``lstm`` and ``gru``; (vocabulary size,) for texts.

    Raises:
        ModelError: an unknown model or option, a value that does not fit, or inputs of another shape than it reads.
    """
    if name not in ZOO:
        raise ModelError(say("Unknown model", f"'{name}'", sorted(ZOO), "Or give your own nn.Module in Python."))
    allowed = [option for option in inspect.signature(ZOO[name]).parameters if option not in ("shape", "classes")]
    hints = typing.get_type_hints(ZOO[name].__init__)  # type: ignore[misc]
    for option, value in options.items():
        if option not in allowed:
            raise ModelError(say(f"Unknown option of model '{name}'", f"'{option}'", allowed))
        if name != "hugging-face":  # checks its own options
            _check_option(name, option, value, hints[option])
    _check_shape(name, tuple(shape))
    if classes < 1:
        raise ModelError(say("A model needs classes", classes, "at least 1", "Give the data class names or labels."))
    model = ZOO[name](shape=tuple(int(size) for size in shape), classes=int(classes), **options)
    vars(model)[_BUILT] = {"use": name, "options": dict(options)}  # what a bundle notes, so that it can be built again
    return model


def built(model: nn.Module, shape: Shape, classes: int) -> dict[str, Any] | None:
    """Return ``use`` and ``options`` with which :func:`build` makes this model again; None where it would not.

    None for a module that the zoo did not make, for inputs of another shape, and where its parts were changed.
    """
    noted = vars(model).get(_BUILT)
    if noted is None or type(model) is not ZOO[noted["use"]] or noted["use"] == "hugging-face":
        return None
    try:
        again = empty(noted["use"], shape=shape, classes=classes, **noted["options"])
    except (ModelError, TypeError, ValueError, RuntimeError):
        return None
    return dict(noted) if repr(again) == repr(model) and _sizes(again) == _sizes(model) else None


def _sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def example_shape(name: str) -> Shape:
    """Return a shape of inputs that the model ``name`` reads, for a look at it before the data are known."""
    return (1000,) if name in TEXTS else (32, 8) if name in ("lstm", "gru") else (3, 32, 32)


def _check_shape(name: str, shape: Shape) -> None:
    if name in ("cnn", "convnet", "resnet"):
        kind, fits, allowed = "images", len(shape) == 3, "(channels, height, width)"
        do = "Use net or mlp for vectors."
    elif name in ("lstm", "gru"):
        kind, fits = "sequences", len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
        allowed, do = (
            "(steps, features) or (1, height, width)",
            "Use net or mlp for vectors, bilstm or bigru for texts.",
        )
    elif name in TEXTS:
        kind, fits, allowed = "texts", len(shape) == 1, "(vocabulary size,)"
        do = "Give data with a text column, or use another model."
    else:
        return
    if not fits:
        raise ModelError(say(f"Model '{name}' reads {kind}", f"inputs of shape {tuple(shape)}", allowed, do))


def _check_option(name: str, option: str, value: Any, hint: Any) -> None:
    if hint is bool:
        fits, allowed = isinstance(value, bool), "true or false"
    elif typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        fits, allowed = value in choices, ", ".join(choices)
    elif hint is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
        allowed = "a number from 0 up to 1"
    elif hint is int:
        most = LAYERS if option in ("layers", "depth") else WIDEST
        fits, allowed = _is_whole(value) and value <= most, f"a whole number above 0, up to {most:,}"
    else:
        fits = isinstance(value, (list, tuple)) and all(map(_is_whole, value))
        fits = (
            fits and (name == "mlp" or len(value) > 0) and len(value) <= LAYERS and all(one <= WIDEST for one in value)
        )
        allowed = f"a list of whole numbers above 0, up to {LAYERS} of them"
    if not fits:
        raise ModelError(say(f"Option '{option}' of model '{name}' does not fit", repr(value), allowed))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def parameters(model: nn.Module) -> int:
    """Return how many numbers ``model`` learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def empty(name: str, *, shape: Shape, classes: int, **options: Any) -> nn.Module:
    """Build as :func:`build` does, on ``device="meta"``: shapes without memory or random numbers."""
    with torch.device("meta"):
        return build(name, shape=shape, classes=classes, **options)
