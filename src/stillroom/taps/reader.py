"""read(module, taps): one model's Batch -> Signals, leaving no hook behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts import (
    SPANS,
    Attention,
    Batch,
    GradCam,
    Gradient,
    HasSteps,
    Hidden,
    Named,
    Output,
    Segments,
    Signals,
    State,
    Tap,
    tap,
)
from stillroom.errors import ModelError, TapError, say
from stillroom.randomness import forked
from stillroom.taps.derivatives import Derivatives
from stillroom.taps.following import without_owner
from stillroom.taps.options import refuse_options
from stillroom.taps.places import (
    as_signals,
    find_logits,
    leaves,
    never_ran,
    pick,
    refuse_other_rows,
    refuse_script,
    submodule,
)
from stillroom.taps.recurrent import StateReading, refuse_cells
from stillroom.taps.segments import refuse_segments, segments
from stillroom.taps.timing import Timing, timing

Encode = Callable[..., Any]
Takes = Sequence[str] | Mapping[str, str]


@contextmanager
def sizing(module: nn.Module, *, seed: int = 0) -> Iterator[None]:
    """A dry pass: eval mode, no gradients, a generator of its own; every module's mode comes back."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad(), forked(seed, "sizing"):
            yield
    finally:
        for part, mode in modes:
            part.training = mode


class Reader:
    """Reads one model: knows which Batch columns it takes, how they are encoded, and where to look.

    Made by :func:`read`. As a context manager it keeps its hooks open for a whole loop.
    """

    def __init__(self, module: nn.Module, taps: Sequence[Tap], encode: Encode | None, takes: Takes) -> None:
        self.module = getattr(module, "_orig_mod", module)
        self.run: Callable[..., Any] = self._peers if isinstance(self.module, nn.ModuleDict) else self.module
        self.encode, self.takes = encode, takes
        self.taps = tuple(dict.fromkeys(taps))
        self._inner = [one for one in self.taps if isinstance(one, Hidden | Attention | State | Segments)]
        self._gradients = [one for one in self.taps if isinstance(one, Gradient | GradCam)]
        self._keeps_time = isinstance(encode, HasSteps)
        self.derivatives = Derivatives(self.module, texts=self._keeps_time)
        paths = {path for path, _ in self.module.named_modules() if path}
        self._inside = {str(one) for one in self._gradients if isinstance(one, Gradient) and one.wrt in paths}
        self._features: Hidden | None = None
        self._wants_features = Named("features") in self.taps
        self._fragile: set[str] = set()
        self._ready = not (self._inner or self._wants_features)
        self._seen: dict[str, list[tuple[Any, int]]] = {}
        self._states: Signals = {}
        self._given: Signals = {}
        self._stand_ins: list[StateReading] = []
        self._time: Timing | None = None
        self._untimed: set[str] = set()
        self._open: ExitStack | None = None
        self._listens = False
        if self._wants_features:
            refuse_script(self.module, "features")
        for one in self._inner:
            target = submodule(self.module, one.path)
            if isinstance(one, State) and one.part == "c":
                refuse_cells(target, str(one))
            if isinstance(one, Segments):
                refuse_segments(target, one)
        for seen in self._gradients:
            refuse_options(seen)
            if isinstance(seen, GradCam):
                submodule(self.module, seen.path)
        _one_reading_a_memory([one for one in self._inner if isinstance(one, State)])

    @property
    def derives(self) -> bool:
        """Whether derivatives are read."""
        return bool(self._gradients)

    @property
    def notes(self) -> list[str]:
        """By which mode derivatives are read, and why; known after the first pass."""
        return self.derivatives.notes

    @property
    def names(self) -> list[str]:
        """The taps as text, in the order asked for."""
        return [str(one) for one in self.taps]

    def __enter__(self) -> Reader:
        self.__exit__()  # entered twice: the hooks of the first time must not be forgotten
        self._open = self._hooks()
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def __call__(self, batch: Batch, given: Signals | None = None, *, skip: Iterable[Tap] = ()) -> Signals:
        """Read the model on ``batch``.

        ``given`` is what the teacher showed: gradients along the teacher's class need its ``logits`` (or the classes
        alone, as ``<tap>.top``), and are named ``big/<tap>`` after ``big/logits``; stretches of a memory need the
        states that they start from. ``skip`` leaves out taps that are not wanted this time.

        Raises:
            TapError: a tapped module did not run, ran several times, or its tensor was overwritten later.
        """
        if not self._ready:
            self.prepare(batch)
        skipped, self._time, self._given = frozenset(skip), None, given or {}
        gradients = [one for one in self._gradients if one not in skipped]
        if not (self._inner or self._wants_features or gradients):
            return self._collect(self._run(batch), batch, {}, skipped)
        with nullcontext() if self._open is not None else self._hooks(), self._listening(skipped):
            if gradients:
                return self._with_derivatives(batch, gradients, skipped)
            return self._collect(self._run(batch), batch, {}, skipped)

    @contextmanager
    def _listening(self, skipped: frozenset[Tap] = frozenset()) -> Iterator[None]:
        """Take note of what passes the hooks for one pass; at other times they let everything go by."""
        states = [one for one in self._inner if isinstance(one, State | Segments) and one not in skipped]
        spacings = {one.path: one.every for one in states if isinstance(one, State) and one.part != "h"}
        with ExitStack() as stack:
            for path in dict.fromkeys(one.path for one in states):
                parts = {one.every: one for one in states if isinstance(one, Segments) and one.path == path}
                stack.enter_context(self._standing_in(path, spacings.get(path), list(parts.values())))
            self._listens = True
            try:
                yield
            finally:
                self._listens = False
                self._seen, self._states, self._time, self._given = {}, {}, None, {}

    # --- one pass ---------------------------------------------------------------------------------

    def _arguments(self, batch: Batch, replaced: Mapping[str, Tensor]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        takes = self.takes
        names = list(takes.values()) if isinstance(takes, Mapping) else list(takes)
        try:
            values = [replaced[name] if name in replaced else batch[name] for name in names]
        except KeyError as error:
            raise ModelError(
                say(
                    f"{type(self.module).__name__} takes a column that the batch does not have",
                    error.args[0],
                    list(batch),
                    "Name the columns with takes=, or make the source give it.",
                )
            ) from error
        if self.encode is not None:
            encoded = self.encode(*values)
            if isinstance(encoded, Mapping):
                return (), encoded
            if isinstance(encoded, tuple):
                return encoded, {}
            values[0] = encoded
        if isinstance(takes, Mapping):
            return (), dict(zip(takes, values, strict=True))
        return values, {}

    def _run(self, batch: Batch, replaced: Mapping[str, Tensor] | None = None) -> Any:
        positional, keyword = self._arguments(batch, replaced or {})
        for stand_in in self._stand_ins:
            stand_in.lengths = self._timing(batch).of
        return self.run(*positional, **keyword)

    def _peers(self, *positional: Any, **keyword: Any) -> dict[str, Any]:
        """A dictionary of models answers with a dictionary of answers: ``output[a]``, ``a.layer3``."""
        return {name: peer(*positional, **keyword) for name, peer in self.module.named_children()}

    def _collect(self, output: Any, batch: Batch, extra: Signals, skipped: frozenset[Tap]) -> Signals:
        rows, signals = len(batch["id"]), {}
        for one in self.taps:
            if one in skipped or isinstance(one, Gradient | GradCam):
                continue
            if isinstance(one, State | Segments):
                signals.update(self._memory(one))
            elif isinstance(one, Named) and one.name == "logits":
                signals["logits"] = find_logits(output, type(self.module).__name__)
            elif isinstance(one, Output):
                signals.update(as_signals(pick(output, one.pick, "output"), str(one), rows))
            else:
                place = self._features if isinstance(one, Named) else one
                assert isinstance(place, Hidden | Attention)
                signals.update(as_signals(self._captured(place), str(one), rows))
        return self._timed(signals | extra, batch)

    def _memory(self, one: State | Segments) -> Signals:
        if f"{one.path}@h" not in self._states:
            raise never_ran(self.module, str(one), one.path)
        parts = ("h", "c") if one.part == "state" else (one.part,)
        names = [f"{one.path}@{part}" for part in parts] if isinstance(one, State) else [str(one)]
        return {key: self._states[key] for name in names for key in (name, f"{name}.mask") if key in self._states}

    def _timing(self, batch: Batch) -> Timing:
        """What is known of this batch's steps, found out once a pass and only when it matters."""
        if self._time is None:
            names = list(self.takes.values()) if isinstance(self.takes, Mapping) else list(self.takes)
            self._time = timing(batch, names[0] if names else None, self.encode)
        return self._time

    def _timed(self, signals: Signals, batch: Batch) -> Signals:
        """Give what runs along the model's steps (B, T, ...) its mask, and say once what the steps stand for.

        A tap that was ever seen with another second axis than T does not run along time, however long that axis
        happens to be this time.
        """
        if not (self._keeps_time or "lengths" in batch):
            return signals
        memories = any(
            "@" in name and name.rsplit("@", 1)[1].split(".")[0] in ("h", "c", "segments") for name in signals
        )
        masks: Signals = {}
        for name, value in signals.items():
            known = name.endswith(".mask") or f"{name}.mask" in signals
            if known or value.dim() < 3 or ("@" in name and without_owner(name) not in self._inside):
                continue
            mask = None if name in self._untimed else self._timing(batch).mask(value.shape[1])
            if mask is None:
                self._untimed.add(name)
            else:
                masks[f"{name}.mask"] = mask
        if not (masks or memories):
            return signals
        spans = self._timing(batch).spans
        if spans is not None:
            mask = self._timing(batch).mask(spans.shape[1])
            assert mask is not None
            masks |= {SPANS: spans.to(torch.int32), f"{SPANS}.mask": mask}
        return signals | masks

    def _captured(self, place: Hidden | Attention) -> Any:
        key = _key(place)
        calls = self._seen.get(key, [])
        if not calls:
            raise never_ran(self.module, str(place), place.path)
        call = place.call if isinstance(place, Hidden) else None
        if call is None and len(calls) > 1:
            raise TapError(
                f"The module at '{place.path}' runs {len(calls)} times in one pass: got a tap that does not say which. "
                f"Allowed: {', '.join(f'{place.path}#{index}' for index in range(len(calls)))}. Say which call."
            )
        if call is not None and call >= len(calls):
            raise TapError(
                say(
                    f"The module at '{place.path}' runs {len(calls)} times in one pass",
                    f"call {call}",
                    f"0 to {len(calls) - 1}",
                )
            )
        value, version = calls[call or 0]
        if isinstance(value, Tensor) and not value.is_inference() and value._version != version:
            raise TapError(
                f"What the tap '{place}' saw was overwritten in place by a later layer in training mode only. "
                "Make that layer out of place (inplace=False)."
            )
        return value

    def _with_derivatives(self, batch: Batch, wanted: Sequence[Gradient | GradCam], skipped: frozenset[Tap]) -> Signals:
        keep = torch.is_grad_enabled()
        output, found = self.derivatives.read(
            wanted, batch, self._given, lambda replaced: self._run(batch, replaced), partial(self._aside, batch)
        )
        signals = self._collect(output, batch, found, skipped)
        return signals if keep else {name: value.detach() for name, value in signals.items()}

    def _aside(self, batch: Batch, replaced: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of one more pass, of which nothing else is kept: no reading, no statistics of a batch."""
        normalising = [part for part in self.module.modules() if getattr(part, "track_running_stats", False)]
        kept, self._states, self._listens = self._states, {}, False
        try:
            for part in normalising:
                part.track_running_stats = False  # type: ignore[assignment]
            return find_logits(self._run(batch, replaced), type(self.module).__name__)
        finally:
            for part in normalising:
                part.track_running_stats = True  # type: ignore[assignment]
            self._states, self._listens = kept, True

    # --- hooks ------------------------------------------------------------------------------------

    def _hooks(self) -> ExitStack:
        stack = ExitStack()
        try:
            places = [one for one in self._inner if not isinstance(one, State | Segments)]
            places += [self._features] if self._features is not None else []
            for place in {_key(one): one for one in places}.values():
                self._hook(stack, place)
        except BaseException:
            stack.close()
            raise
        return stack

    def _hook(self, stack: ExitStack, place: Hidden | Attention) -> None:
        target, key = submodule(self.module, place.path), _key(place)
        if isinstance(place, Attention):
            stack.callback(target.register_forward_pre_hook(_ask_for_weights, with_kwargs=True).remove)
        if isinstance(place, Hidden) and place.side == "in":

            def entering(_: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]) -> None:
                entered = positional[0] if len(positional) == 1 and not keyword else (positional or keyword)
                self._note(key, pick(entered, place.pick, str(place)))

            stack.callback(target.register_forward_pre_hook(entering, with_kwargs=True).remove)
            return

        part = 1 if isinstance(place, Attention) else place.pick

        def leaving(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Any) -> None:
            self._note(key, pick(output, part, str(place)))

        stack.callback(target.register_forward_hook(leaving, with_kwargs=True).remove)

    def _note(self, key: str, value: Any) -> None:
        if not self._listens:
            return
        if isinstance(value, Tensor):
            if key in self._fragile:
                value = value.clone()
            self._seen.setdefault(key, []).append((value, 0 if value.is_inference() else value._version))
        else:
            self._seen.setdefault(key, []).append((value, 0))

    @contextmanager
    def _standing_in(self, path: str, every: int | None, parts: Sequence[Segments]) -> Iterator[None]:
        target = submodule(self.module, path)
        before = target.__dict__.get("forward")
        reading = StateReading(target, path, every, lambda seen: self._states.update(seen))  # type: ignore[arg-type]
        reading.also = [partial(segments, target, one, self._given) for one in parts]  # type: ignore[arg-type]
        target.forward = reading  # type: ignore[method-assign]
        self._stand_ins.append(reading)
        try:
            yield
        finally:
            self._stand_ins.remove(reading)
            del target.forward
            if before is not None:
                target.forward = before  # type: ignore[method-assign]

    # --- the first look ---------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> None:
        """Find what can only be found by running once: what makes the logits, and which places are overwritten."""
        was_open, self._time = self._open is not None, None
        self.__exit__()
        with sizing(self.module):
            if self._wants_features and self._features is None:
                self._features = self._find_features(batch)
            with self._hooks():
                with self._listening():
                    self._run(batch)
                    self._fragile |= {
                        key
                        for key, calls in self._seen.items()
                        for value, version in calls
                        if isinstance(value, Tensor) and not value.is_inference() and value._version != version
                    }
                self._rows_come_first(batch)
        self._ready = True
        if was_open:
            self.__enter__()

    def _rows_come_first(self, batch: Batch) -> None:
        """Read other numbers of rows: an axis that is as long as the batch by chance is as long then too.

        Raises:
            TapError: a tap does not give a row for each example.
        """
        taps = {str(one): one.path for one in self._inner if isinstance(one, Hidden | Attention)}
        if self._features is not None:
            taps["features"] = self._features.path
        skipped = frozenset(one for one in self.taps if str(one) not in taps)
        for rows in (2, 3) if taps else ():
            chosen = torch.arange(rows) % len(batch["id"])
            some, self._time = {name: value[chosen.to(value.device)] for name, value in batch.items()}, None
            with self._listening(skipped):
                try:
                    output = self._run(some)
                except Exception:  # a model for batches of one size: its rows cannot be told apart
                    return
                refuse_other_rows(self.module, self._collect(output, some, {}, skipped), rows, taps)

    def place_of_features(self, batch: Batch) -> Hidden:
        """Return the place that ``features`` stands for: what enters the layer that makes the logits.

        Raises:
            TapError: it cannot be told which layer makes them.
        """
        if self._features is not None:
            return self._features
        with sizing(self.module):
            return self._find_features(batch)

    def _find_features(self, batch: Batch) -> Hidden:
        made: list[tuple[str, Any]] = []
        with ExitStack() as stack:
            for path, part in leaves(self.module).items():

                def leaving(_: nn.Module, __: tuple[Any, ...], output: Any, path: str = path) -> None:
                    made.append((path, output))

                stack.callback(part.register_forward_hook(leaving).remove)
            logits = find_logits(self._run(batch), type(self.module).__name__)
        makers = [path for path, output in made if output is logits]
        if len(makers) != 1:
            raise TapError(
                f"Cannot tell which layer of {type(self.module).__name__} makes the logits, so 'features' has no "
                "meaning: "
                f"got {len(makers)} candidates. Name the place, for example '<last layer>:in', one of: "
                f"{', '.join(list(leaves(self.module))[-5:])}."
            )
        calls = sum(1 for path, _ in made if path == makers[0])
        return Hidden(makers[0], "in", call=calls - 1 if calls > 1 else None)


def read(
    module: nn.Module, taps: Iterable[str | Tap], encode: Encode | None = None, *, takes: Takes = ("inputs",)
) -> Reader:
    """Return a reader of ``module``: ``(batch, given={}) -> Signals``, with an entry for each tap.

    ``encode`` turns the taken columns into what the model's forward takes: a tensor, a tuple (positional) or a
    dictionary (keyword arguments). ``takes`` names the Batch columns, in order, or as {argument: column}.
    ``logits`` is the output if it is a tensor, its ``.logits``, or its only floating 2-D tensor; ``features`` is what
    enters the layer that made them.

    Raises:
        TapError: a tap is not one, or its path is not in the module.

    Example:
        >>> reader = read(model, ["logits", "layer3", "fc:in"])
        >>> reader({"id": ids, "inputs": images})["layer3"].shape
    """
    return Reader(module, [tap(one) for one in taps], encode, takes)


def _key(place: Hidden | Attention) -> str:
    return str(Hidden(place.path, place.side, None, place.pick)) if isinstance(place, Hidden) else str(place)


def _ask_for_weights(
    module: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(module, nn.MultiheadAttention):
        raise TapError(
            f"An attention tap reads an nn.MultiheadAttention: got {type(module).__name__}. "
            "Tap the module that returns the weights, for example 'attention[1]'."
        )
    return positional[:4], {**keyword, "need_weights": True, "average_attn_weights": False}


def _one_reading_a_memory(states: Sequence[State]) -> None:
    """One memory is read at one spacing: its entries have no other name."""
    cells = [one for one in states if one.part != "h"]
    for one in cells:
        others = [str(other) for other in cells if other.path == one.path and other.every != one.every]
        if others:
            raise TapError(
                f"The memory of '{one.path}' is read at two spacings: got '{one}' and '{others[0]}'. "
                "Allowed: one. Write the same number behind every '/'."
            )


__all__ = ["Encode", "Reader", "Takes", "read", "sizing"]
