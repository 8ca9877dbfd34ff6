"""The settings of a training run and the ramp of a weight: plain values, checked once, needed on many floors.

They live below everything that computes, so that a recipe can be checked without loading PyTorch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from stillroom.errors import TrainError, say

Resolved = Literal["float32", "bf16"]
Precision = Literal["auto", "float32", "bf16"]
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # how Linux names the instructions of x86 and of Arm


@cache
def has_bf16() -> bool:
    """Tell whether this processor multiplies bfloat16 in hardware; without, PyTorch imitates it several times slower.

    Linux lists the flags of the processor. Elsewhere PyTorch is asked, which is imported only then.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = [set(line.partition(":")[2].split()) for line in lines if line.lower().startswith(("flags", "features"))]
    if flags:
        return bool(BF16_FLAGS & flags[0])
    import torch

    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def resolved_precision(asked: str) -> Resolved:
    """Return the precision that is computed in: ``auto`` is bf16 where the processor has it, else float32.

    Raises:
        TrainError: there is no such precision.
    """
    if asked not in get_args(Precision):
        raise TrainError(say("Unknown precision", f"'{asked}'", get_args(Precision)))
    if asked == "auto":
        return "bf16" if has_bf16() else "float32"
    return "float32" if asked == "float32" else "bf16"


PrecisionSetting = Annotated[Precision, AfterValidator(resolved_precision)]
"""As a setting: ``auto`` is resolved when it is read, so that fingerprints hold what was really computed in."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
# Bounds that no sensible recipe meets: a number beyond them is a slip of the pen, and would fill a disk or a memory.
MOST_STEPS, MOST_VIEWS, MOST_ROWS, MOST_SEEDS = 10**9, 10**6, 2**20, 1000
BatchRows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseModel):
    """A group of settings: it never changes, knows no other key, and holds no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


def plain_or_block(value: object) -> str:
    """Tell pydantic which of "a plain value" and "a block of keys" was written, so that one mistake stays one."""
    return "block" if isinstance(value, dict | BaseModel) else "plain"


class Mixed(Settings):
    """A batch of two parts: rows with a label, and rows of the transfer set, which may have none."""

    labelled: BatchRows
    transfer: BatchRows

    @property
    def rows(self) -> int:
        """All rows of a batch."""
        return self.labelled + self.transfer


class Training(Settings):
    """How a model is trained; ``warmup``, ``milestones`` and ``evaluate_at`` are fractions of the steps.

    Exactly one of ``steps`` and ``epochs`` may be given; without either, 10 epochs are run. An epoch is
    one passing of the rows that have a label. ``views``: how many of the recorded views are used, by default all.
    """

    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    epochs: Annotated[float, Field(gt=0, le=MOST_VIEWS)] | None = Field(default=None, validate_default=True)
    batch: Annotated[
        Annotated[BatchRows, Tag("plain")] | Annotated[Mixed, Tag("block")],
        Discriminator(plain_or_block),
    ] = 128
    optimizer: Literal["adamw", "sgd", "dot"] = "adamw"
    lr: Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    delta: Annotated[float, Field(ge=0, lt=1)] = 0.075
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    decay: Share = 0.1
    warmup: Fraction = 0.0
    clip: Positive | None = None
    balance: Positive | None = None
    precision: PrecisionSetting = "float32"
    channels_last: bool = False
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    gradient_norms_every: Annotated[int, Field(ge=0)] = 100
    evaluate_at: tuple[Share, ...] = (0.25, 0.5, 1.0)
    views: Annotated[int, Field(ge=1, le=MOST_VIEWS)] | None = None

    @field_validator("epochs")
    @classmethod
    def _length(cls, epochs: float | None, info: ValidationInfo) -> float | None:
        """Fill the default length, so that what was resolved always says how long."""
        return 10.0 if epochs is None and not info.data.get("steps") else epochs

    @model_validator(mode="after")
    def _fits(self) -> Training:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps ({self.steps}) and epochs ({self.epochs:g}) are both given; keep one of them")
        for key, points in (("milestones", self.milestones), ("evaluate_at", self.evaluate_at)):
            if list(points) != sorted(set(points)):
                raise ValueError(f"{key} must rise from each to the next, got {list(points)}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer: sgd with a momentum above 0")
        if self.balance is not None and self.optimizer == "dot":
            raise ValueError("balance and optimizer: dot both fill the gradients; keep one of them")
        return self

    @property
    def rows(self) -> int:
        """Rows of a batch, both parts together."""
        return self.batch if isinstance(self.batch, int) else self.batch.rows

    def total_steps(self, labelled: int) -> int:
        """Return the number of steps when ``labelled`` rows carry a label."""
        if self.steps is not None:
            return self.steps
        part = self.batch if isinstance(self.batch, int) else self.batch.labelled
        per_epoch = -(-labelled // part)
        return max(1, round((self.epochs or 10.0) * per_epoch))


class Ramp(Settings):
    """A weight that goes linearly ``from`` one value ``to`` another between two fractions of the training.

    Example:
        >>> Ramp(**{"from": 1, "to": 0, "until": 0.5}).at(0.25)
        0.5
    """

    begin: Annotated[float, Field(ge=0, alias="from")]
    to: Annotated[float, Field(ge=0)]
    until: Share
    start: Fraction = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> Ramp:
        if self.start >= self.until:
            raise ValueError(f"start ({self.start:g}) must lie before until ({self.until:g})")
        return self

    def at(self, progress: float) -> float:
        """Return the weight when ``progress`` (0 to 1) of the steps are done."""
        passed = (progress - self.start) / (self.until - self.start)
        return self.begin + (self.to - self.begin) * min(1.0, max(0.0, passed))


class Synthesis(Settings):
    """How a few synthetic examples of each class are made from many real ones, by matching gradients.

    ``steps`` change the examples, each by ``lr`` (in standard deviations of the data's values) along gradients of
    ``batch`` real examples a class. A fresh network is taken every ``renew`` steps; in between it is trained for
    ``between`` steps on the examples made so far. ``augment`` is how far both sides are moved, turned and stretched.
    """

    per_class: BatchRows = 10
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 100
    lr: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch: BatchRows = 64
    start: Literal["real", "noise"] = "real"
    renew: Annotated[int, Field(ge=1)] = 1
    between: Annotated[int, Field(ge=0)] = 0
    augment: Fraction = 0.0
    seed: Seed = 0

    @model_validator(mode="after")
    def _used(self) -> Synthesis:
        if self.between and self.renew == 1:
            raise ValueError(
                f"between ({self.between}) trains a network that is used once (renew: 1); raise renew, or leave it out"
            )
        return self
