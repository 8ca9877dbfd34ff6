"""The words of the house: what is passed between its parts, and nothing that acts.

Batch and Signals are plain dictionaries of tensors, so that anybody's code can make or read one.
A tap says where to read in a model. Teacher and Objective are shapes of callables, not classes to inherit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from stillroom.errors import TapError

Batch = dict[str, Tensor]
"""``id`` (int64, B x 2: example, view) and the source's columns; ``labels = -1`` means unlabelled."""

Signals = dict[str, Tensor]
"""What a model showed on a batch: the first axis is the example. Three suffixes are reserved:
``<name>.mask`` (bool, B x length) beside a padded tensor, and ``<name>.bank`` (rows x ...) with
``<name>.bank.mask`` (bool, B x rows; False where a bank row is the example itself). ``spans`` (int32, B x T x 2, with
``spans.mask``) says which bytes of its text each of a model's steps stands for: [first, end), equal for none."""

SPANS = "spans"

UNLABELLED = -1


# --- where to read -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """What the model returns, or the part of it called ``pick`` (a key, an attribute or a position)."""

    pick: str | int | None = None

    def __str__(self) -> str:
        return "output" if self.pick is None else f"output[{self.pick}]"


@dataclass(frozen=True)
class Named:
    """``logits`` or ``features``, found by rule: see :func:`stillroom.taps.read`."""

    name: Literal["logits", "features"]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Hidden:
    """What leaves (``side="out"``) or enters (``"in"``) the submodule at ``path``.

    ``call`` is needed where the module runs several times in a pass; ``pick`` chooses a part of a
    tuple, list or dictionary.
    """

    path: str
    side: Literal["out", "in"] = "out"
    call: int | None = None
    pick: str | int | None = None

    def __str__(self) -> str:
        picked = "" if self.pick is None else f"[{self.pick}]"
        called = "" if self.call is None else f"#{self.call}"
        side = ":in" if self.side == "in" else (":out" if self.path in RESERVED else "")
        return f"{self.path}{side}{picked}{called}"


@dataclass(frozen=True)
class Attention:
    """Attention weights of the ``nn.MultiheadAttention`` at ``path``: (B, heads, queries, keys)."""

    path: str

    def __str__(self) -> str:
        return f"{self.path}@attention"


@dataclass(frozen=True)
class State:
    """Memory of the ``nn.LSTM`` or ``nn.GRU`` at ``path``.

    Gives ``<path>@h`` (B, T, layers, directions, hidden) at every step, both directions at the step they stand at, and,
    for an LSTM, ``<path>@c`` (B, ceil(T / every), layers, directions, hidden) after each ``every`` steps and after the
    row's own last one, counted in the order of reading: the reverse direction begins at the row's end. Each has its
    mask. ``part`` is the one of the two that is wanted; ``every`` says nothing about ``h``.
    """

    path: str
    every: int = 1
    part: Literal["state", "h", "c"] = "state"

    def __str__(self) -> str:
        return f"{self.path}@{self.part}" + ("" if self.every == 1 else f"/{self.every}")


@dataclass(frozen=True)
class Segments:
    """Where the one-directional ``nn.LSTM`` or ``nn.GRU`` at ``path`` gets to in each stretch of ``every`` steps.

    Each stretch starts from a state that is given (``<this tap>.start``), not from where the last one ended, so that
    all are read side by side. Gives ``<path>@segments.<part>/<every>`` (B, ceil(T / every), layers, 1, hidden), with
    its mask.
    """

    path: str
    every: int
    part: Literal["h", "c"] = "c"

    def __str__(self) -> str:
        return f"{self.path}@segments.{self.part}/{self.every}"


@dataclass(frozen=True)
class Gradient:
    """What the logits do when something that enters the model changes: a gradient, or derivatives along directions.

    ``along`` says of what, or which way:

    * ``top``, ``label``: the gradient of one logit, of the teacher's top class (the student follows the teacher's) or
      of the true class; ``loss``: of the cross-entropy with the true class. Gives the shape of ``wrt``; rows without a
      label give zeros.
    * ``random``: derivatives of all logits along ``count`` random directions of length 1, which belong to (``seed``,
      example, view), so that both models and a store see the same ones: (B, count, classes).
    * any other word: the derivative along the column of the Batch with that name, as long as it is: (B, 1, classes).

    ``wrt`` is a column of the Batch, before the model's ``encode``, or the path of a submodule, whose output it is
    then: word embeddings, for texts. ``mode``: ``vjp`` (backward mode), ``jvp`` (forward mode), ``finite_difference``
    (a pass or two beside the first and no derivative at all, ``step`` apart, relative to the length of the example), or
    ``auto``.
    """

    of: Literal["logits"] = "logits"
    along: str = "top"
    count: int = 0
    wrt: str = "inputs"
    mode: Literal["auto", "vjp", "jvp", "finite_difference"] = "auto"
    step: float | None = None
    seed: int = 0

    @property
    def directional(self) -> bool:
        """Whether it is the derivative of all logits along directions, not the gradient of one number."""
        return self.along not in SCALARS

    def __str__(self) -> str:
        parts: list[str] = [] if self.along == "top" else [self.along]
        if self.along == "random":
            parts = [f"random={self.count}"]
        elif self.directional:
            parts = [f"along={self.along}"]
        parts += [] if self.wrt == "inputs" else [f"wrt={self.wrt}"]
        parts += [] if self.mode == "auto" else [f"mode={self.mode}"]
        parts += [] if self.step is None else [f"step={self.step:g}"]
        parts += [] if not self.seed else [f"seed={self.seed}"]
        return f"{self.of}@gradient" + (f"({','.join(parts)})" if parts else "")


@dataclass(frozen=True)
class GradCam:
    """Where in its picture a convolutional model sees a class: Grad-CAM at the maps that leave ``path``, (B, H, W).

    The maps, each weighted by the mean of the logit's gradient with respect to it, summed, and only what speaks for the
    class. ``along``: the teacher's ``top`` class, or the ``label``.
    """

    path: str
    along: Literal["top", "label"] = "top"

    def __str__(self) -> str:
        return f"{self.path}@gradcam" + ("" if self.along == "top" else f"({self.along})")


Tap = Output | Named | Hidden | Attention | State | Segments | Gradient | GradCam

RESERVED = ("logits", "features", "output")
SCALARS = ("top", "label", "loss")
_PLACE = re.compile(r"^(?P<path>[^\[\]#@:]*)(?P<side>:in|:out)?(?:\[(?P<pick>[^\]]+)\])?(?:#(?P<call>\d+))?$")
_STATE = re.compile(r"^(?P<path>[^@]+)@(?P<part>state|h|c)(?:/(?P<every>[1-9]\d*))?$")
_SEGMENTS = re.compile(r"^(?P<path>[^@]+)@segments\.(?P<part>h|c)/(?P<every>[1-9]\d*)$")
_GRADIENT = re.compile(r"^logits@gradient(?:\((?P<options>[^)]*)\))?$")
_GRADCAM = re.compile(r"^(?P<path>[^@]+)@gradcam(?:\((?P<along>top|label)\))?$")
_OPTION = re.compile(
    r"^(?:(?P<scalar>top|label|loss)|random=(?P<count>[1-9]\d*)|along=(?P<along>[A-Za-z_]\w*)|wrt=(?P<wrt>[\w.]+)"
    r"|mode=(?P<mode>auto|vjp|jvp|finite_difference)|step=(?P<step>\d*\.?\d+(?:e-?\d+)?)|seed=(?P<seed>\d+))$"
)


def tap(text: str | Tap) -> Tap:
    """Read a tap from its text: ``layer3``, ``fc:in``, ``encoder.layer.3[0]``, ``shared#1``, ``lstm@state``.

    Raises:
        TapError: the text is not a tap.
    """
    if not isinstance(text, str):
        return text
    if text in ("logits", "features"):
        return Named(text)  # type: ignore[arg-type]
    if found := _GRADIENT.match(text):
        if (gradient := _gradient(found["options"] or "")) is not None:
            return gradient
    elif found := _GRADCAM.match(text):
        return GradCam(found["path"], found["along"] or "top")  # type: ignore[arg-type]
    elif text.endswith("@attention"):
        return Attention(text.removesuffix("@attention"))
    elif found := _SEGMENTS.match(text):
        return Segments(found["path"], int(found["every"]), found["part"])  # type: ignore[arg-type]
    elif found := _STATE.match(text):
        every = 1 if found["part"] == "h" else int(found["every"] or 1)
        return State(found["path"], every, found["part"])  # type: ignore[arg-type]
    elif (found := _PLACE.match(text)) and text:
        part: str | None = found["pick"]
        pick = int(part) if part is not None and part.isdigit() else part
        if found["path"] == "output" and not found["side"]:
            return Output(pick)
        side: Literal["in", "out"] = "in" if found["side"] == ":in" else "out"
        return Hidden(found["path"], side, None if found["call"] is None else int(found["call"]), pick)
    raise TapError(
        f"This is not a tap: got '{text}'. Allowed: logits, features, output, output[part], layer3, fc:in, "
        "encoder.layer.3[0], shared#1 (its second call), lstm@state/8, lstm@h, lstm@c/8, lstm@segments.c/8, "
        "mha@attention, layer3@gradcam, logits@gradient, logits@gradient(label), logits@gradient(loss,wrt=embeddings), "
        "logits@gradient(random=4,mode=jvp), logits@gradient(along=direction,step=1). Write one of these forms."
    )


def _gradient(options: str) -> Gradient | None:
    """Read what stands in the parentheses of a gradient's tap; None where it cannot be read, or is said twice."""
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in options.split(","))):
        found = _OPTION.match(part)
        if found is None:
            return None
        key, value = next((key, value) for key, value in found.groupdict().items() if value is not None)
        new: dict[str, Any] = {key: value}
        if key in ("scalar", "count", "along"):
            new = {"along": "random", "count": int(value)} if key == "count" else {"along": value}
        elif key in ("step", "seed"):
            new = {key: float(value) if key == "step" else int(value)}
        if given.keys() & new.keys():
            return None
        given |= new
    return None if given.get("along") in (*SCALARS, "random") and "along=" in options else Gradient(**given)


class Place(NamedTuple):
    """One entry of Signals as an objective names it: whose it is, how to read it, and under which name it comes."""

    owner: str
    tap: Tap
    key: str


def place(text: str | Tap) -> Place:
    """Read ``layer3``, ``lstm@c/8`` (one entry of the tap ``lstm@state/8``) or, of several teachers, ``big/layer3``.

    Raises:
        TapError: the text is not a tap.
    """
    owner, rest = "", text
    if isinstance(text, str) and "/" in text.split("@")[0]:
        owner, _, rest = text.partition("/")
    found = tap(rest)
    key = str(found)
    if isinstance(found, State) and found.part != "state":
        key = f"{found.path}@{found.part}"
    return Place(owner, found, f"{owner}/{key}" if owner else key)


# --- who answers, who compares -------------------------------------------------------------------


@runtime_checkable
class Teacher(Protocol):
    """Any ``Batch -> Signals``, detached. One with a past also has :class:`HasPast`'s methods."""

    def __call__(self, batch: Batch) -> Signals: ...


@runtime_checkable
class Kept(Protocol):
    """Something that takes part in training and has a state, which the checkpoint saves."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Any: ...


@runtime_checkable
class HasPast(Kept, Protocol):
    """A teacher that changes as training goes on."""

    def advance(self, step: int) -> None: ...


@runtime_checkable
class HasBank(Protocol):
    """A teacher that can show other rows than the batch's: a Store."""

    def bank(self, names: Sequence[str], batch: Batch, *, rows: int, seed: int, step: int) -> Signals: ...


@runtime_checkable
class Recorded(Protocol):
    """A teacher that answers from a store: it can be asked for less, and can prepare targets once."""

    def __call__(self, batch: Batch) -> Signals: ...

    def use(self, names: Sequence[str]) -> Recorded: ...

    def derive(self, key: str, of: str, function: Callable[[Tensor], Tensor]) -> Recorded: ...


class Objective(Protocol):
    """Compares what the student and the teacher showed on a batch."""

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor: ...


@runtime_checkable
class Source(Protocol):
    """Where examples come from. Examples are numbered 0 .. len - 1; view 0 is the plain example."""

    @property
    def classes(self) -> Sequence[str] | None: ...

    @property
    def splits(self) -> Mapping[str, Tensor]: ...

    @property
    def fingerprint(self) -> str:
        """A name for the raw examples: equal for equal examples. ``as_source`` derives it for a source without one."""
        ...

    def __len__(self) -> int: ...

    def batch(self, ids: Tensor) -> Batch:
        """Return the columns of ``ids`` (int64, B x 2: example, view), ``id`` among them."""
        ...

    def hashes(self, examples: Tensor) -> np.ndarray:
        """Return a 64-bit hash (uint64, B) of each raw example, before any view."""
        ...

    def show(self, example: int) -> Any:
        """Return something a person can look at: a uint8 array (height, width[, 3]) or a text."""
        ...


@runtime_checkable
class HasSteps(Protocol):
    """An ``encode`` of texts or sequences that says which of the steps it makes are real, and what they stand for."""

    def steps(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the mask (bool, B x T; real steps first) and the spans (int32, B x T x 2, in bytes) or None."""
        ...


# --- what a loss accepts: the annotation of its tensors --------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What a loss parameter stands for: its name, its axes, the tap it reads when none is named.

    ``fit`` says what happens when student and teacher differ in shape: a connector is put in between
    (``connect``), it is an error (``equal``), or the loss does not mind (``free``).
    """

    name: str
    axes: tuple[str, ...]
    default: str | None = None
    fit: Literal["connect", "equal", "free"] = "connect"

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.axes)})"


Logits = Annotated[Tensor, Kind("logits", ("example", "class"), "logits", "equal")]
TokenLogits = Annotated[Tensor, Kind("logits", ("example", "time", "class"), "logits", "equal")]
Vectors = Annotated[Tensor, Kind("vectors", ("example", "feature"), "features")]
Maps = Annotated[Tensor, Kind("maps", ("example", "channel", "height", "width"))]
FreeMaps = Annotated[Tensor, Kind("maps", ("example", "channel", "height", "width"), fit="free")]
FreeVectors = Annotated[Tensor, Kind("vectors", ("example", "feature"), "features", "free")]
Tokens = Annotated[Tensor, Kind("tokens", ("example", "time", "feature"))]
FreeTokens = Annotated[Tensor, Kind("tokens", ("example", "time", "feature"), fit="free")]
States = Annotated[Tensor, Kind("states", ("example", "time", "layer", "direction", "feature"))]
FreeStates = Annotated[Tensor, Kind("states", ("example", "time", "layer", "direction", "feature"), fit="free")]
Gradients = Annotated[Tensor, Kind("gradients", ("example", "..."), "logits@gradient", "equal")]
Derivatives = Annotated[Tensor, Kind("derivatives", ("example", "way", "class"), "logits@gradient(random=4)", "equal")]
Explanations = Annotated[Tensor, Kind("explanations", ("example", "height", "width"), fit="free")]
Features = Annotated[Tensor, Kind("features", ("example", "..."), "features")]
Labels = Annotated[Tensor, Kind("labels", ("example",))]

Parameters = Annotated[Mapping[str, Tensor], Kind("parameters", ())]
"""The student's named parameters: what a weight penalty reads."""

LossFunction = Callable[..., Tensor]
Role = Literal["task", "distil", "penalty"]


# --- what evaluation and mining return -------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One thing found out: a sentence a person can act on, its number, its control, and what to draw."""

    title: str
    sentence: str
    number: float | None = None
    control: str = ""
    figure: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Step:
    """One step of training: its number (from 1), named losses (tensors until somebody asks) and the rate.

    Where gradients were looked at: each weighted term's norm, and the teacher's gradient beside the task's, over the
    student's parameters: the cosine between them (-1 to 1) and its norm as a multiple of the task's.
    """

    number: int
    steps: int
    losses: Mapping[str, Tensor]
    learning_rate: float
    gradient_norms: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    gradient_cosine: float | None = None
    gradient_ratio: float | None = None


Progress = Callable[[int, int, str], None]
"""Told (done, of, what) as long work goes on."""


def columns(signals: Signals) -> Iterator[str]:
    """Yield the names in ``signals`` that are readings themselves, not masks or banks."""
    return (name for name in signals if not name.endswith((".mask", ".bank")))
