"""match(): binds a pure loss to places in the student and the teacher."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from stillroom.contracts import Batch, Gradient, Place, Role, Segments, Signals
from stillroom.errors import LossError, say
from stillroom.fingerprints import fingerprint_of
from stillroom.losses import LOSSES, PREPARED
from stillroom.objectives.binding import Where, mask_keys, owner_slot, pairs_of
from stillroom.objectives.connectors import STATE, Connector, pool
from stillroom.objectives.following import classes_of, follows, refuse_columns
from stillroom.objectives.points import Points
from stillroom.objectives.signature import Signature, Slot, signature
from stillroom.objectives.stretches import at_borders, starts
from stillroom.objectives.timing import align, rows_of
from stillroom.randomness import forked
from stillroom.settings import Ramp

Weight = float | Ramp


class Objective(nn.Module):
    """A loss bound to places: ``(student, teacher, batch) -> Tensor``. Made by :func:`match`.

    It may own a connector per pair, trained with the student, sized once by :meth:`size`.
    """

    def __init__(
        self,
        name: str,
        loss: Callable[..., Tensor],
        options: Mapping[str, Any],
        pairs: Sequence[Mapping[str, Place]],
        *,
        own: bool,
        weight: Weight,
        connect: str,
        every: int,
        role: Role,
        part: float = 1.0,
    ) -> None:
        super().__init__()
        self.name, self.loss, self.options, self.pairs = name, loss, dict(options), list(pairs)
        self.own, self.weight, self.connect, self.every, self.role = own, weight, connect, every, role
        self.part = part
        self.reads: Signature = signature(loss)
        self.connectors = nn.ModuleDict()
        self.meeting = self._connected()
        self.sized = self.meeting is None
        self.equals = self._equals()
        self.starts = self._starts()
        self.follows = [one for pair in self.pairs for one in follows(self.reads, pair, own=own)]
        self.points = Points(name, self.reads, self.pairs)
        self.parameters_read: Mapping[str, Tensor] = {}
        self.folded = False  # an l2 that the optimizer applies as weight decay
        alone = not own and role == "distil" and len(self.pairs) == 1
        self.prepared = PREPARED.get(loss) if alone else None
        self.prepared_name = self._prepared_name()

    # --- what it needs ------------------------------------------------------------------------------

    def places(self, side: Literal["student", "teacher"]) -> list[Place]:
        """Return what must be read of one side; a teacher side that is the student's own counts as the student's.

        Behind the places of the teacher come the logits whose top class the student's derivatives follow.
        """
        wanted = []
        for pair in self.pairs:
            for slot in self.reads.slots:
                if slot.name in pair and not slot.mask:
                    theirs = "student" if slot.side == "student" or (self.own and slot.side == "teacher") else "teacher"
                    if slot.side in ("student", "teacher") and theirs == side:
                        wanted.append(pair[slot.name])
        led = [one.logits for one in self.follows if one.logits is not None] if side == "teacher" else []
        return wanted + [one for one in dict.fromkeys(led) if one not in wanted]

    @property
    def banks(self) -> list[str]:
        """Return the names of the teacher's signals whose bank is read."""
        return [pair[slot.name].key for pair in self.pairs for slot in self.reads.sides("bank")]

    @property
    def gives(self) -> bool:
        """Whether the student's reader is to be given something beside the teacher's signals."""
        return bool(self.starts or self.follows)

    def _starts(self) -> list[tuple[int, Place, Place]]:
        """The pairs whose student's stretches start from the teacher's states: index, and both places."""
        ours, theirs = self.reads.sides("student"), self.reads.sides("teacher")
        if not ours or not theirs or self.own:
            return []
        found = [(index, pair[ours[0].name], pair[theirs[0].name]) for index, pair in enumerate(self.pairs)]
        return [one for one in found if isinstance(one[1].tap, Segments)]

    def give(self, teacher: Signals) -> Signals:
        """Return what the student's reader is to be given beside the teacher's signals.

        That is where stretches start, and the class that a derivative is of.

        Raises:
            LossError: derivatives follow the top class of a teacher who shows no logits, or their points are trained.
        """
        self.points.frozen()
        given = classes_of(self.name, self.follows, teacher)
        for index, ours, theirs in self.starts if self.sized else []:
            states, mask = _floats(_entry(teacher, theirs.key, self)), teacher.get(f"{theirs.key}.mask")
            connector = self.connectors[str(index)] if str(index) in self.connectors else None
            given[f"{ours.key}.start"] = starts(at_borders(self.name, ours, theirs, states, mask)[0], connector)
        return given

    def _prepared_name(self) -> str:
        """Return the name under which targets made beforehand come with the teacher's signals."""
        options = ",".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.pairs[0]['teacher_logits'].key}~{self.loss.__name__}({options})" if self.prepared else ""

    def described(self) -> dict[str, Any]:
        """Return what this objective computes, as plain JSON values."""
        places = [{name: str(one.key) + f" ({one.tap})" for name, one in pair.items()} for pair in self.pairs]
        return {
            "name": self.name,
            "loss": f"{self.loss.__module__}.{self.loss.__qualname__}",
            "code": fingerprint_of(self.loss, dict(self.options)),
            "places": places,
            "options": {key: repr(value) for key, value in self.options.items()},
            "weight": repr(self.weight),
            "every": self.every,
            **({} if self.part == 1.0 else {"part": self.part}),
            "own": self.own,
            "connector": self.connect,
        }

    def weight_at(self, progress: float) -> float:
        """Return the weight when ``progress`` (0 to 1) of the steps are done."""
        return self.weight.at(progress) if isinstance(self.weight, Ramp) else self.weight

    def active(self, step: int) -> bool:
        """Whether this objective is computed at ``step`` (counted from 0)."""
        return step % self.every == 0

    def bind(self, student: nn.Module) -> None:
        """Give a penalty the student's weights (named parameters with two or more axes), and see what is trained."""
        self.points.bind(student)
        if self.role == "penalty":
            self.parameters_read = {name: value for name, value in student.named_parameters() if value.dim() >= 2}

    # --- computing ----------------------------------------------------------------------------------

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the unweighted loss, in float32 whatever the surrounding precision."""
        if not self.sized:
            raise LossError(
                f"The objective '{self.name}' has not seen the shapes it connects. "
                "Call learner.size(batch, teacher(batch)) once, before the optimizer is made."
            )
        device = next(iter(student.values())).device.type if student else "cpu"
        if not torch.is_autocast_enabled(device):
            return self._total(student, teacher, batch)
        with torch.autocast(device, enabled=False):
            return self._total(student, teacher, batch)

    def _total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        if self.prepared and (name := self.prepared_name) in teacher:
            pair = self.pairs[0]
            logits = _floats(_entry(student, pair["student_logits"].key, self))
            self._must_be_equal(pair["student_logits"], logits, pair["teacher_logits"], teacher[name])
            return self.prepared.loss(logits, teacher[name], **self.options)
        if any(slot.several for slot in self.reads.slots):
            return self._scalar(self.loss(*self._lists(student, teacher, batch), **self.options))
        total: Tensor | None = None
        for index, pair in enumerate(self.pairs):
            value = self._scalar(self.loss(*self._arguments(index, pair, student, teacher, batch), **self.options))
            total = value if total is None else total + value
        assert total is not None
        return total

    def _scalar(self, value: Tensor) -> Tensor:
        if not isinstance(value, Tensor) or value.dim():
            given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise LossError(
                say(f"The loss '{self.name}' must return one number", given, "a tensor without axes", "Take its mean.")
            )
        return value

    def _lists(self, student: Signals, teacher: Signals, batch: Batch) -> list[Any]:
        """Arguments of a loss over lists: a slot annotated ``list[...]`` gets the tensors of all pairs at once."""
        rows = [self._arguments(index, pair, student, teacher, batch) for index, pair in enumerate(self.pairs)]
        columns = zip(self.reads.slots, zip(*rows, strict=True), strict=True)
        return [list(values) if slot.several else values[0] for slot, values in columns]

    def _arguments(
        self, index: int, pair: Mapping[str, Place], student: Signals, teacher: Signals, batch: Batch
    ) -> list[Any]:
        values = self._together(pair, student, teacher, batch)
        self.points.check(values)
        refuse_columns(self.name, self.reads, pair, batch)
        if self.equals is not None:
            ours, theirs = self.equals
            self._must_be_equal(pair[ours], values[ours], pair[theirs], values[theirs])
        self._meet(index, pair, values)
        return [values[slot.name] for slot in self.reads.slots]

    def _together(self, pair: Mapping[str, Place], student: Signals, teacher: Signals, batch: Batch) -> dict[str, Any]:
        """Return the value of each slot, at the same steps and places on both sides where the loss wants that."""
        if self.own:
            teacher = {name: value.detach() for name, value in student.items()}
        values = {slot.name: self._value(slot, pair, student, teacher, batch) for slot in self.reads.slots}
        steps = None if self.own else align(self.name, self.reads, pair, values, student, teacher)
        if self.meeting is None or (self.meeting[0].kind and self.meeting[0].kind.name == "states"):
            return values
        ours, theirs = (slot.name for slot in self.meeting)
        if steps is not None:
            values[ours], values[theirs] = rows_of(values[ours], steps), rows_of(values[theirs], steps)
        elif self.connect != "none":
            masked = bool({"student_mask", "teacher_mask"} & values.keys())
            masks = [
                None if masked else signals.get(f"{pair[name].key}.mask")
                for name, signals in ((ours, student), (theirs, teacher))
            ]
            values[ours], values[theirs] = pool(values[ours], values[theirs], *masks)
        return values

    def _value(self, slot: Slot, pair: Mapping[str, Place], student: Signals, teacher: Signals, batch: Batch) -> Any:
        if slot.side == "parameters":
            return self.parameters_read
        if slot.side == "column":
            return _column(batch, slot.name, self.name)
        place = pair[owner_slot(slot, pair)]
        signals = student if slot.side == "student" else teacher
        if slot.side == "bank":
            return (
                signals.get(f"{place.key}.bank.mask")
                if slot.mask
                else _floats(_entry(signals, f"{place.key}.bank", self))
            )
        if slot.mask:
            return next((signals[key] for key in mask_keys(slot, pair) if key in signals), None)
        return _floats(_entry(signals, place.key, self))

    def _meet(self, index: int, pair: Mapping[str, Place], values: dict[str, Any]) -> None:
        """Connect the pair's tensors where the loss wants equal shapes."""
        if self.meeting is None:
            return
        ours, theirs = self.meeting
        mine, target = values[ours.name], values[theirs.name]
        if str(index) in self.connectors:
            mine = self.connectors[str(index)](mine)
        states = ours.kind is not None and ours.kind.name == "states"  # whose loss says what else must be equal
        fits = mine.shape[-1] == target.shape[-1] if states else mine.shape == target.shape
        if not fits:
            raise LossError(
                f"The objective '{self.name}' compares the student's '{pair[ours.name].key}' {tuple(mine.shape)} "
                "with the "
                f"teacher's '{pair[theirs.name].key}' {tuple(target.shape)}. Allowed: equal shapes"
                + (
                    ". Leave 'connector: none' out, and one is put between them."
                    if self.connect == "none"
                    else ", as they were when the connectors were sized. Size the learner again on such a batch."
                )
            )
        values[ours.name], values[theirs.name] = mine, target
        for slot in self.reads.sides("bank"):
            if values[slot.name].dim() > 2 and target.dim() == 2:
                values[slot.name] = pool(values[slot.name], values[slot.name].flatten(1)[:, :1])[0]

    # --- sizing -------------------------------------------------------------------------------------

    def _connected(self) -> tuple[Slot, Slot] | None:
        ours, theirs = self.reads.sides("student"), self.reads.sides("teacher")
        if not ours or not theirs or (ours[0].kind is not None and ours[0].kind.fit != "connect"):
            return None
        if ours[0].kind is None and self.connect == "none":  # a function of one's own that compares by itself
            return None
        return ours[0], theirs[0]

    def size(self, student: Signals, teacher: Signals, batch: Batch, *, seed: int = 0) -> None:
        """Look at real shapes once: make the connectors that are needed and try the loss.

        Raises:
            LossError: the shapes do not fit; names both.
        """
        if self.meeting is not None and self.connect != "none":
            with forked(seed, "connector", self.name):
                for index, pair in enumerate(self.pairs):
                    self._size_pair(index, pair, student, teacher, batch)
        self.sized = True
        with torch.no_grad():
            self(student, teacher, batch)

    def _size_pair(
        self, index: int, pair: Mapping[str, Place], student: Signals, teacher: Signals, batch: Batch
    ) -> None:
        assert self.meeting is not None
        values = self._together(pair, student, teacher, batch)
        mine, target = (values[slot.name] for slot in self.meeting)
        axis = 1 if mine.dim() == 4 else -1
        apart = mine.dim() != target.dim() and mine.dim() != STATE
        if (apart or mine.shape[axis] != target.shape[axis] or self.connect == "linear") and (
            str(index) not in self.connectors
        ):
            self.connectors[str(index)] = Connector(mine, target).to(mine.device)

    # --- refusing -----------------------------------------------------------------------------------

    def _equals(self) -> tuple[str, str] | None:
        """The slots of both sides whose shapes must be equal as they come: logits."""
        ours, theirs = (
            [slot.name for slot in self.reads.sides(side) if slot.kind is not None and slot.kind.fit == "equal"]
            for side in ("student", "teacher")
        )
        return (ours[0], theirs[0]) if ours and theirs else None

    def _must_be_equal(self, ours: Place, mine: Tensor, theirs: Place, target: Tensor) -> None:
        if mine.shape != target.shape:
            do = "Give both models the same classes in the same order, or compare features instead (hint, bank)."
            if isinstance(ours.tap, Gradient) or isinstance(theirs.tap, Gradient):
                do = "Read both with the same 'wrt' and as many directions, of models with the same classes and, at "
                do += "word embeddings, one tokenizer and one width."
            raise LossError(
                f"The objective '{self.name}' needs equal shapes: got the student's '{ours.key}' {tuple(mine.shape)} "
                f"and the teacher's '{theirs.key}' {tuple(target.shape)}. {do}"
            )


def match(
    loss: str | Callable[..., Tensor],
    student: Where = None,
    teacher: Where = None,
    *,
    weight: Weight | Mapping[str, float] = 1.0,
    connector: Literal["auto", "none", "linear"] = "auto",
    every: int = 1,
    part: float = 1.0,
    name: str | None = None,
    **options: Any,
) -> Objective:
    """Bind a loss to places in the student and the teacher.

    ``loss`` is a name from :data:`stillroom.losses.LOSSES` or a function: positional parameters are tensors (named
    student..., teacher..., bank, or after a column of the batch), keyword-only parameters are options, given here as
    keywords. ``student`` and ``teacher`` are taps; lists of equal length give a sum over pairs, a mapping names a tap
    for each parameter, and ``teacher={"student": tap}`` compares the student with its own signals, detached.
    ``weight`` is a number or a ramp ``{"from": 1, "to": 0, "until": 0.5}``; ``every`` computes it at every k-th
    step only, ``part`` on that share of the batch's rows, in a pass of their own.

    Raises:
        LossError: an unknown loss or option, an option out of its range, or a place that must be named.
        TapError: a place that is not a tap.

    Example:
        >>> match("hint", student="layer2", teacher="layer3", weight=0.5)
    """
    function = _function(loss)
    reads = signature(function)
    title = name or (loss if isinstance(loss, str) else function.__name__)
    for option in options:
        if option not in reads.options:
            raise LossError(say(f"The loss '{title}' has no such option", f"'{option}'", reads.options))
    own = isinstance(teacher, Mapping) and set(teacher) == {"student"}
    theirs: Where = teacher["student"] if own and isinstance(teacher, Mapping) else teacher
    pairs = pairs_of(title, reads, student, theirs)
    if own and any(isinstance(one.tap, Segments) for pair in pairs for one in pair.values()):
        allowed = "a teacher: the student's own states are known only once it has been read"
        raise LossError(say(f"The stretches of '{title}' start from states of", "the student itself", allowed))
    role: Role = "penalty" if reads.sides("parameters") else "distil" if reads.sides("teacher") else "task"
    options = _checked(title, function, options)
    ramp = _ramp(title, weight) if isinstance(weight, Mapping) else weight
    if every < 1:
        raise LossError(say(f"The objective '{title}' is to be computed every so many steps", every, "1 or more"))
    if not 0 < part <= 1:
        raise LossError(say(f"The objective '{title}' is to be computed on a part of the batch", part, "above 0, to 1"))
    return Objective(
        title, function, options, pairs, own=own, weight=ramp, connect=connector, every=every, role=role, part=part
    )


Given = str | Objective | Callable[..., Any]


def objectives_of(given: str | Objective | Callable[..., Any] | Sequence[Given]) -> list[Objective]:
    """Return fresh objectives from what a person gives: names, losses of their own, objectives, or makers of them.

    A function without parameters to fill makes an objective; any other is a loss, bound where its parameters say.
    An objective is copied, so that each training begins with its own.

    Raises:
        LossError: there is none, or one is something else.
    """
    listed = [given] if isinstance(given, str | Objective) or callable(given) else list(given)
    if not listed:
        raise LossError("A student needs at least one objective: got none. Add one, for example 'labels' or 'kd'.")
    return [_objective(one) for one in listed]


def _objective(one: Given) -> Objective:
    if isinstance(one, Objective):
        return copy.deepcopy(one)
    if isinstance(one, str):
        return match(one)
    if not callable(one):
        raise LossError(
            say(
                "This is no objective",
                repr(one),
                "a loss's name, a loss function, match(...), or a function that makes one",
            )
        )
    wanted = [
        part
        for part in inspect.signature(one).parameters.values()
        if part.default is part.empty and part.kind in (part.POSITIONAL_ONLY, part.POSITIONAL_OR_KEYWORD)
    ]
    made = match(one) if wanted else one()
    if not isinstance(made, Objective):
        raise LossError(
            say("A function that makes an objective made something else", type(made).__name__, "match(...)")
        )
    return made


def _function(loss: str | Callable[..., Tensor]) -> Callable[..., Tensor]:
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise LossError(say("There is no such loss", f"'{loss}'", LOSSES, "Or pass your own function."))
    return LOSSES[loss]


def _checked(title: str, function: Callable[..., Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as the loss's annotations have them."""
    hints, checked = get_type_hints(function, include_extras=True), dict(options)
    for option in options.keys() & hints.keys():
        try:
            adapter = TypeAdapter(hints[option], config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
            checked[option] = adapter.validate_python(options[option])
        except ValidationError as error:
            allowed = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise LossError(
                say(f"The option '{option}' of the loss '{title}' is out of its range", repr(options[option]), allowed)
            ) from None
    return checked


def _ramp(title: str, weight: Mapping[str, float]) -> Ramp:
    try:
        return Ramp(**weight)
    except ValidationError as error:
        found = error.errors()[0]
        wrong = f"{dict(weight)} ({'.'.join(map(str, found['loc'])) or 'together'}: {found['msg']})"
        raise LossError(
            say(
                f"The weight of the objective '{title}' is no ramp",
                wrong,
                "from, to (0 or more), until, start (0 to 1)",
                'Write {"from": 1, "to": 0, "until": 0.5}, or a number.',
            )
        ) from None


def _entry(signals: Signals, key: str, objective: Objective) -> Tensor:
    try:
        return signals[key]
    except KeyError:
        raise LossError(
            say(
                f"The objective '{objective.name}' reads a signal that was not shown",
                f"'{key}'",
                signals,
                "A GRU has no cell: read '@h'." if key.endswith("@c") else "Read or record that tap too.",
            )
        ) from None


def _column(batch: Batch, name: str, objective: str) -> Tensor:
    try:
        return batch[name]
    except KeyError:
        raise LossError(
            say(
                f"The objective '{objective}' reads a column that the batch does not have",
                f"'{name}'",
                batch,
                "Give the source that column, or leave the objective out.",
            )
        ) from None


def _floats(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values
