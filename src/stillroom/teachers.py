"""Teachers made of models: one live model, several at once, their average, and one with a past."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.contracts import UNLABELLED, Batch, Signals, Tap, Teacher
from stillroom.errors import ModelError, say
from stillroom.fingerprints import fingerprint_of
from stillroom.settings import Precision, resolved_precision
from stillroom.taps import Takes, read
from stillroom.tasks import check_answers
from stillroom.tensors import check_precision, copy_of


class Live:
    """A model that answers while training runs: in eval mode, detached, never trained.

    ``precision`` "bf16" lets matrix products run in bfloat16, which large teachers answer up to twice as fast in where
    the processor has instructions for it, and several times slower where not; "auto" looks. What they show is given
    back as float32.

    Example:
        >>> teacher = Live(network, ["logits", "layer3"])
    """

    def __init__(
        self,
        module: nn.Module,
        taps: Iterable[str | Tap] = ("logits",),
        *,
        encode: Callable[..., Any] | None = None,
        takes: Takes = ("inputs",),
        precision: Precision = "float32",
    ) -> None:
        self.module, self.precision = module, resolved_precision(precision)
        check_precision(module, self.precision)
        self.reader = read(module, taps, encode, takes=takes)

    @property
    def fingerprint(self) -> str | None:
        """Who answers, and to what; None where a part of the module cannot be seen."""
        how = [self.precision, [str(one) for one in self.reader.taps], self.reader.takes]
        return fingerprint_of(self.module, self.reader.encode, how)

    @property
    def notes(self) -> list[str]:
        """How its derivatives were read, and why so, as far as it was asked."""
        return self.reader.notes

    def __call__(self, batch: Batch) -> Signals:
        """Return what the model shows on ``batch``, detached."""
        modes = [part for part in self.module.modules() if part.training]
        try:
            self.module.eval()
            with torch.no_grad():
                if self.precision == "float32":
                    return {name: value.detach() for name, value in self.reader(batch).items()}
                with torch.autocast(batch["id"].device.type, dtype=torch.bfloat16):
                    shown = self.reader(batch)
                return {
                    name: value.float() if value.dtype == torch.bfloat16 else value for name, value in shown.items()
                }
        finally:
            for part in modes:
                part.training = True


class Together:
    """Several teachers by name: their signals come prefixed, ``big/logits``."""

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)

    @property
    def notes(self) -> list[str]:
        """What each has to say of how it was read, under its name."""
        return [f"{name}: {note}" for name, one in self.teachers.items() for note in getattr(one, "notes", ())]

    def __call__(self, batch: Batch) -> Signals:
        """Return every teacher's signals under ``<teacher>/<signal>``."""
        return {
            f"{name}/{signal}": value
            for name, teacher in self.teachers.items()
            for signal, value in teacher(batch).items()
        }


class Average:
    """Several teachers as one: the weighted mean of their probabilities, given back as ``logits``.

    The logarithm of the mean probability is returned, so that every loss on logits sees the mixture. ``weights`` is a
    number for each teacher (equal when left out), or ``"confidence"``: a weight for each example by how well each
    teacher knows its label, w_k = (1 - exp(CE_k) / sum_j exp(CE_j)) / (K - 1), as in CA-MKD (Zhang, Chen and Wang 2022,
    https://arxiv.org/abs/2201.00007); examples without a label weigh the teachers equally.

    Raises:
        ModelError: no teacher, or weights that do not fit; when asked, teachers that do not answer logits of as many
            classes each.
    """

    def __init__(
        self, teachers: Mapping[str, Teacher], weights: Mapping[str, float] | Literal["confidence"] | None = None
    ) -> None:
        self.together = Together(teachers)
        self.names = list(teachers)
        self.weights: Mapping[str, float] | None = None
        if weights == "confidence":
            fits = len(self.names) > 1
        else:
            given = dict(weights) if weights is not None else dict.fromkeys(teachers, 1.0)
            fits = bool(given) and set(given) == set(teachers) and min(given.values()) >= 0 and sum(given.values()) > 0
            self.weights = given
        if not fits:
            raise ModelError(
                f"An average needs a weight for each of its teachers: got weights {weights} and teachers "
                f"{sorted(teachers)}. "
                "Allowed: the same names with numbers that sum to more than 0, or 'confidence' for two teachers or "
                "more. "
                "Name them alike."
            )

    def __call__(self, batch: Batch) -> Signals:
        """Return every teacher's signals, prefixed, and their combination as ``logits``."""
        signals = self.together(batch)
        logits = torch.stack([self._answers(signals, name, len(batch["id"])) for name in self.names])
        weights = self._confidence(logits, batch) if self.weights is None else self._fixed(logits)
        mixture = (weights[..., None] * logits.softmax(2)).sum(0)
        return signals | {"logits": mixture.clamp(min=torch.finfo(mixture.dtype).tiny).log()}

    def _answers(self, signals: Signals, name: str, rows: int) -> Tensor:
        """Return one teacher's logits: only of classes, and as many of them as the first teacher's, is there a mean."""
        logits = check_answers(signals[f"{name}/logits"], f"the teacher '{name}'", rows)
        first = signals[f"{self.names[0]}/logits"]
        if logits.shape != first.shape:
            given = f"{logits.shape[1]} from '{name}' and {first.shape[1]} from '{self.names[0]}'"
            do = "Leave one of them out, or read them by name ('big/logits') without an average."
            raise ModelError(say("An average is of teachers with as many classes", given, "as many of each", do))
        return logits.float()

    def _fixed(self, logits: Tensor) -> Tensor:
        assert self.weights is not None
        values = logits.new_tensor([self.weights[name] for name in self.names])
        return (values / values.sum())[:, None].expand(logits.shape[:2])

    def _confidence(self, logits: Tensor, batch: Batch) -> Tensor:
        """One weight for each teacher and example: (teachers, B)."""
        count = len(logits)
        if "labels" not in batch:
            return logits.new_full(logits.shape[:2], 1 / count)
        labels = batch["labels"]
        known = labels != UNLABELLED
        places = labels.clamp(min=0)[None, :, None].expand(count, -1, 1)
        surprise = -logits.log_softmax(2).gather(2, places)[..., 0]
        weights = (1 - surprise.softmax(0)) / (count - 1)
        return torch.where(known, weights, torch.full_like(weights, 1 / count))


class _Follower:
    """A copy of a student that follows it at its own pace: what the teachers with a past have in common."""

    def __init__(
        self, student: nn.Module, taps: Iterable[str | Tap], encode: Callable[..., Any] | None, takes: Takes
    ) -> None:
        self.student = student
        self.copy = copy_of(student, "A student that is to teach itself").eval().requires_grad_(False)
        self.live = Live(self.copy, taps, encode=encode, takes=takes)

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move the copy's weights by ``share`` of the way to the student's; buffers are taken over."""
        for mine, theirs in zip(self.copy.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, share)
        for kept, moved in zip(self.copy.buffers(), self.student.buffers(), strict=True):
            kept.copy_(moved)


class MovingAverage:
    """A teacher with a past: the exponential moving average of a student's weights (mean teacher).

    Tarvainen and Valpola 2017 (https://arxiv.org/abs/1703.01780). Buffers are copied, not averaged. Its weights are
    part of the checkpoint, so that a resumed run goes on bit for bit.
    """

    def __init__(
        self,
        student: nn.Module,
        taps: Iterable[str | Tap] = ("logits",),
        *,
        decay: float = 0.99,
        encode: Callable[..., Any] | None = None,
        takes: Takes = ("inputs",),
    ) -> None:
        self.decay = decay
        self.follower = _Follower(student, taps, encode, takes)

    def __call__(self, batch: Batch) -> Signals:
        """Return what the averaged student shows."""
        return self.follower.live(batch)

    def advance(self, step: int) -> None:
        """Move the average towards the student, after the optimizer's step."""
        self.follower.move(1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights."""
        return dict(self.follower.copy.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take averaged weights back."""
        self.follower.copy.load_state_dict(dict(state))


class Previous:
    """A teacher with a past: the student as it was at the end of the last epoch, of ``every`` steps.

    The self-teacher of PS-KD (Kim et al. 2021, https://arxiv.org/abs/2006.12000): with ``labels`` weighted from 1
    down and
    ``kd`` at temperature 1 from 0 up to 0.8, both as ramps over the whole training, the two terms have the gradient of
    its loss (cross-entropy with a mixture of the label and the last epoch's prediction). The paper raises the weight
    once an epoch, a ramp every step. During the first epoch it answers as the untrained student.
    """

    def __init__(
        self,
        student: nn.Module,
        taps: Iterable[str | Tap] = ("logits",),
        *,
        every: int,
        encode: Callable[..., Any] | None = None,
        takes: Takes = ("inputs",),
    ) -> None:
        if every < 1:
            raise ModelError(
                say("A previous-epoch teacher needs the length of an epoch", f"every={every}", "1 or more")
            )
        self.every = every
        self.follower = _Follower(student, taps, encode, takes)

    def __call__(self, batch: Batch) -> Signals:
        """Return what the student showed at the end of the last epoch."""
        return self.follower.live(batch)

    def advance(self, step: int) -> None:
        """Take the student's weights over at the end of an epoch."""
        if (step + 1) % self.every == 0:
            self.follower.move(1.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights of the last epoch's end."""
        return dict(self.follower.copy.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take such weights back."""
        self.follower.copy.load_state_dict(dict(state))
