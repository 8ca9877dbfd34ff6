"""Derivatives of a model's logits: by backward mode, by forward mode, or by differences and no derivative at all.

Both models differentiate the same variable, a column of the Batch before either ``encode``; or the output of a
submodule. All is done in float32 or better, outside autocast, without dropout and with attention that has a second
derivative. Batch normalisation stays as it is: a student in training is differentiated as it is trained, so that its
rows are not alone: backward mode then gives what a row does to the whole batch, the others what all rows do to it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from stillroom.contracts import UNLABELLED, Batch, GradCam, Gradient, Signals, Tap
from stillroom.errors import TapError, nearest, say
from stillroom.taps.directions import by_classes, by_coordinates, differences, directions, steps, usual
from stillroom.taps.following import classes, followed
from stillroom.taps.missing import moves, no_dependence, no_gradient, stepwise, wide_enough
from stillroom.taps.places import find_logits, submodule

COORDINATES = 4096  # a whole gradient of more numbers is found by differences only where that is asked for by name
JUMPY = 0.5  # relative to what differences over four times the step say
LACKS = ("forward AD", "forward mode", "not implemented", "must implement")  # of an operation without a derivative
BACKWARD = ("vjp", "classes")  # modes that need a graph: of one number, or of every class
Pass = Callable[[Mapping[str, Tensor]], Any]
Wanted = Gradient | GradCam


@dataclass
class _Moment:
    """One reading: what is known while it goes on. ``columns`` are differentiated, ``seen`` left their submodules."""

    batch: Batch
    given: Signals
    aside: Pass
    modes: dict[Wanted, str]
    columns: dict[str, Tensor]
    keep: bool
    seen: dict[str, Tensor] = field(default_factory=dict)
    tangents: list[Tensor | None] = field(default_factory=list)  # of the clean pass: none, or one that may be missing

    @property
    def teaches(self) -> bool:
        """Whether the model is read for its own sake: it is not trained, and follows nobody."""
        return not self.keep and not self.given

    @property
    def forward(self) -> Gradient | None:
        """The derivative by forward mode that comes along with the clean pass."""
        return next((one for one, mode in self.modes.items() if mode == "jvp" and isinstance(one, Gradient)), None)


class Derivatives:
    """Reads the derivatives that are wanted of one model; ``notes`` say by which mode, and why.

    ``texts``: whether the Batch's inputs are texts, which have no derivative.
    """

    def __init__(self, module: nn.Module, *, texts: bool) -> None:
        self.module, self.texts = module, texts
        self.notes: list[str] = []
        self._alive: set[Wanted] = set()  # was not zero everywhere, once
        self._fallen: dict[Wanted, float | None] = {}  # left backward mode for differences, over that step
        self._recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())

    def read(
        self, wanted: Sequence[Wanted], batch: Batch, given: Signals, clean: Pass, aside: Pass
    ) -> tuple[Any, Signals]:
        """Return the output of one pass, and the derivatives by the names of their taps.

        ``clean`` runs the model with columns of the Batch replaced; ``aside`` does so without leaving a trace and
        returns the logits; ``given`` is what the teacher showed.

        Raises:
            TapError: there is no such derivative, or it cannot be had by the mode that is asked for.
        """
        keep = torch.is_grad_enabled()
        names = {_of(one) for one in wanted}
        columns = {name: self._column(name, batch) for name in names if name in batch}
        now = _Moment(batch, given, aside, {}, columns, keep)
        now.modes |= {one: self._mode(one, now) for one in wanted}
        with self._still(now):
            output = self._pass(clean, now)
            logits = self._logits(output)
            with torch.set_grad_enabled(keep or any(mode in BACKWARD for mode in now.modes.values())):
                found = {
                    name: self._value(one, told, logits, now)
                    for one in wanted
                    for name, told in followed(one, given).items()
                }
        return output, found if keep else {name: value.detach() for name, value in found.items()}

    # --- how ----------------------------------------------------------------------------------------

    def _mode(self, one: Wanted, now: _Moment) -> str:
        """Return how ``one`` is read: a mode, ``classes`` for directions by vjp, ``coordinates`` for no directions."""
        if isinstance(one, GradCam):
            return "vjp"
        if one.wrt not in now.columns and (one.directional or one.mode not in ("auto", "vjp")):
            given = "directions" if one.directional else one.mode
            raise TapError(say(f"'{one}': what a submodule gives is not moved by hand", given, "a gradient by vjp"))
        if one.directional:
            why = "all logits along few directions: one more pass each, and no derivative"
            mode = self._say(one, "finite_difference", why) if one.mode == "auto" else one.mode
            return "classes" if mode == "vjp" else mode
        if now.keep:
            refuse_for_training(one)
        if one in self._fallen and not now.keep:
            return "coordinates"
        if one.mode == "auto":
            return self._say(one, "vjp", "a whole gradient of one number: one backward pass")
        return "coordinates" if one.mode == "finite_difference" else one.mode

    def _say(self, one: Wanted, mode: str, why: str) -> str:
        self._note(f"{one} is read by {mode} ({why})")
        return mode

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _column(self, name: str, batch: Batch) -> Tensor:
        """Return the column that is differentiated with respect to, as floats.

        Raises:
            TapError: it holds whole numbers that stand for something, as texts and tokens do.
        """
        values = batch[name]
        if values.is_floating_point():
            return _wide(values.detach())
        if values.dtype != torch.uint8 or (self.texts and name == "inputs"):
            words = [path for path, part in self.module.named_modules() if isinstance(part, nn.Embedding)]
            kind = "texts" if self.texts else str(values.dtype).removeprefix("torch.")
            do = f"Write 'logits@gradient(wrt={words[0]})'." if words else "Name the path of the model's embedding."
            allowed = "wrt=path, the output of an embedding" + (f": {', '.join(words[:5])}" if words else "")
            raise TapError(say("There is no derivative by whole numbers", f"'{name}' ({kind})", allowed, do))
        return values.detach().float()

    @contextmanager
    def _still(self, now: _Moment) -> Iterator[None]:
        """Float32, no dropout, attention that can be differentiated twice; statistics of batches stay."""
        parts = list(self.module.modules())
        noisy = [part for part in parts if part.training and not isinstance(part, nn.modules.batchnorm._NormBase)]
        device = now.batch["id"].device.type
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if now.forward is not None:
                stack.enter_context(_without_fused_parts(self._recurrent))
            try:
                for part in noisy:
                    part.training = False
                yield
            finally:
                for part in noisy:
                    part.training = True

    # --- the pass -----------------------------------------------------------------------------------

    def _pass(self, clean: Pass, now: _Moment) -> Any:
        """Run the model once, so that what is wanted can be read of it; where it has no graph, modes change."""
        leaves = [_of(one) for one, mode in now.modes.items() if mode in BACKWARD and _of(one) in now.columns]
        with torch.enable_grad():  # clones, since hooks of torch's counter of operations cannot stand at leaves
            now.columns |= {name: now.columns[name].requires_grad_().clone() for name in leaves}
        with ExitStack() as stack:
            for path, one in {_of(one): one for one in now.modes if _of(one) not in now.columns}.items():
                stack.callback(self._listen(path, one, now))
            if not any(mode in BACKWARD for mode in now.modes.values()):
                return self._dual(clean, now)
            try:
                with torch.enable_grad():
                    output = self._dual(clean, now)
                    broken = "" if self._logits(output).requires_grad else "its answers have no graph"
            except (RuntimeError, NotImplementedError) as error:
                broken = str(error).splitlines()[0][:120]
            if not broken:
                return output
            now.seen.clear()
            now.columns |= {name: now.columns[name].detach() for name in leaves}
            output = self._dual(clean, now)  # what is wrong beside gradients shows itself here
            self._without_backward(now, broken)
            return output

    def _without_backward(self, now: _Moment, broken: str) -> None:
        """Leave backward mode, which this model does not have, where ``auto`` allows it."""
        for one, mode in now.modes.items():
            if mode not in BACKWARD:
                continue
            numbers = _numbers(one, now)
            if isinstance(one, GradCam) or one.mode == "vjp" or not 0 < numbers <= COORDINATES:
                raise TapError(
                    f"'{one}' cannot be read by vjp: got a {type(self.module).__name__} that cannot be differentiated "
                    f"({broken}). Allowed: mode=finite_difference, which takes two passes for each number of the "
                    f"input, or one a direction: 'logits@gradient(random=4,mode=finite_difference)'. Write that."
                )
            self._fall(one, now, f"the model cannot be differentiated, {broken}")

    def _fall(self, one: Wanted, now: _Moment, why: str, step: float | None = None) -> None:
        """Read a whole gradient by differences from now on."""
        over = "" if step is None else f", moved by {step:g} of the example's length"
        self._say(one, "finite_difference", f"{why}: two passes for each of {_numbers(one, now)} numbers{over}")
        self._fallen[one] = step
        now.modes[one] = "coordinates"

    def _dual(self, clean: Pass, now: _Moment) -> Any:
        """Run the clean pass; the first derivative by forward mode comes along with it."""
        one = now.forward
        if one is None:
            return clean(now.columns)
        value = now.columns[one.wrt]
        with forward_ad.dual_level():
            moving = forward_ad.make_dual(value, self._ways(one, value, now.batch)[:, 0])
            try:
                output = clean({**now.columns, one.wrt: moving})
            except RuntimeError as error:
                if not any(sign in str(error) for sign in LACKS):
                    raise
                raise self._missing(one, now) from error
            now.tangents = [_tangent(self._logits(output))]
        return output

    def _listen(self, path: str, one: Wanted, now: _Moment) -> Callable[[], None]:
        """Make what leaves a submodule something to differentiate with respect to; return what ends that."""
        paths = [name for name, _ in self.module.named_modules() if name]
        if path not in paths:
            close = nearest(path, [*now.batch, *paths])
            do = f"Did you mean '{close}'?" if close else f"The model has {', '.join(paths[:8])}."
            allowed = f"a column of the batch ({', '.join(now.batch)}) or the path of a submodule"
            raise TapError(say(f"'{one}' is with respect to nothing that is there", f"'{path}'", allowed, do))

        def leaving(part: nn.Module, _: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor) or path in now.seen:
                what = "a second call" if path in now.seen else f"{type(output).__name__} of {type(part).__name__}"
                raise TapError(say(f"'{one}' needs one tensor from one call of '{path}'", what, "a tensor, once"))
            loose = torch.is_grad_enabled() and not output.requires_grad
            now.seen[path] = output.detach().requires_grad_() if loose else output
            return now.seen[path].clone()  # a later layer may work in place

        return submodule(self.module, path).register_forward_hook(leaving).remove

    # --- the values ---------------------------------------------------------------------------------

    def _value(self, one: Wanted, told: Tensor | None, logits: Tensor, now: _Moment) -> Tensor:
        """Return the derivative, by differences where there is none and ``auto`` allows that.

        Raises:
            TapError: there is none.
        """
        try:
            found = self._found(one, told, logits, now)
        except RuntimeError as error:
            if not any(sign in str(error) for sign in LACKS):
                raise
            found = None
        if found is None:
            if _of(one) in now.columns and self._moves(one, logits, now) is None:
                raise no_dependence(one, _of(one))
            if not _may_fall(one, now):
                raise self._missing(one, now)
            self._fall(one, now, f"the model gives no gradient by '{_of(one)}'")
            found = self._found(one, told, logits, now)
            assert found is not None
        if not now.teaches or one in self._alive or isinstance(one, GradCam):
            return found
        if not bool(found.any()):
            found = self._zero(one, told, found, logits, now)
        if bool(found.any()):
            self._smooth(one, found, logits, now)
            self._alive.add(one)
        return found

    def _missing(self, one: Wanted, now: _Moment) -> TapError:
        model = type(self.module).__name__
        return no_gradient(one, _of(one), model, column=_of(one) in now.columns, training=now.keep)

    def _moves(self, one: Wanted, logits: Tensor, now: _Moment) -> float | None:
        """Return how far the column must be moved until the answers change, as a share of its length."""
        value = now.columns[_of(one)]
        return moves(value, now.batch["id"], logits, lambda moved: _wide(now.aside({_of(one): moved})))

    def _zero(self, one: Gradient, told: Tensor | None, found: Tensor, logits: Tensor, now: _Moment) -> Tensor:
        """Return what is read in the place of a teacher's derivative that is exactly zero for every row.

        Raises:
            TapError: the answers change all the same.
        """
        if one.along in ("label", "loss") and not bool((classes(one, logits, told, now.batch) >= 0).any()):
            return found
        far = None
        if _of(one) in now.columns and (not one.directional or one.along == "random"):
            far = self._moves(one, logits, now)
        if far is None:
            self._note(f"{one} is exactly zero for every row of a batch: nothing can be learnt from it there")
            return found
        step = None
        if _may_fall(one, now) and now.modes[one] == "vjp":
            step = wide_enough(lambda wide: self._by_hand(one, told, logits, now, wide))
        if step is None:
            raise stepwise(one, type(self.module).__name__, far)
        self._fall(one, now, "the gradient is exactly zero for every row, though the answers change", step)
        return self._by_hand(one, told, logits, now, step)

    def _by_hand(
        self, one: Gradient, told: Tensor | None, logits: Tensor, now: _Moment, step: float | None = None
    ) -> Tensor:
        """Return a whole gradient by differences of each number."""
        chosen, value = classes(one, logits, told, now.batch), now.columns[one.wrt].detach()

        def number(moved: Tensor) -> Tensor:
            return _number(one, _wide(now.aside({one.wrt: moved})), chosen)

        with torch.set_grad_enabled(now.keep):
            return by_coordinates(value, usual(value, logits, central=True) if step is None else step, number)

    def _found(self, one: Wanted, told: Tensor | None, logits: Tensor, now: _Moment) -> Tensor | None:
        """Return the derivative by the mode that is chosen; None where it was cut off."""
        mode = now.modes[one]
        if mode in ("vjp", "coordinates"):
            return self._gradient(one, told, logits, now)
        assert isinstance(one, Gradient)
        value = now.columns[one.wrt]
        if mode == "classes":
            return by_classes(logits, value, self._ways(one, value, now.batch), keep=now.keep)
        if mode == "jvp":
            return self._forward(one, value.detach(), self._ways(one, value, now.batch), now)
        return self._differences(one, logits, now)

    def _differences(self, one: Gradient, logits: Tensor, now: _Moment, wider: float = 1.0) -> Tensor:
        """Return differences along directions, over so many times the step."""
        value, relative = now.columns[one.wrt].detach(), one.along == "random"
        step = one.step if one.step is not None else usual(value, logits) if relative else 1.0
        ways, far = self._ways(one, value, now.batch), steps(value, wider * step, relative=relative)
        return differences(logits, value, ways, far, lambda moved: _wide(now.aside({one.wrt: moved})))

    def _smooth(self, one: Gradient, found: Tensor, logits: Tensor, now: _Moment) -> None:
        """Note it where differences over another step have little in common with ``found``."""
        if now.modes[one] == "finite_difference" and one.along == "random" and one.step is None:
            with torch.no_grad():
                wide = self._differences(one, logits, now, wider=4.0)
                jumps = float((found - wide).norm()) > JUMPY * float(wide.norm())
            if jumps:
                self._note(
                    f"{one} depends on the step: four times as far, differences say something else, as where a model "
                    "rounds (quantised). Name a wider step on both sides, for example step=0.01"
                )

    def _gradient(self, one: Wanted, told: Tensor | None, logits: Tensor, now: _Moment) -> Tensor | None:
        """Return the gradient of one number a row, or the map that is made of it; None where it was cut off."""
        if now.modes[one] == "coordinates":
            assert isinstance(one, Gradient)
            return self._by_hand(one, told, logits, now, one.step if one.step is not None else self._fallen.get(one))
        chosen = classes(one, logits, told, now.batch)
        if _of(one) not in now.columns and _of(one) not in now.seen:
            what = f"a pass in which '{_of(one)}' was never called"
            raise TapError(say(f"'{one}' saw nothing", what, "a submodule whose forward runs"))
        value = now.columns[_of(one)] if _of(one) in now.columns else now.seen[_of(one)]
        if not value.requires_grad:
            return None
        total = _number(one, logits, chosen).sum()
        found = torch.autograd.grad(total, value, create_graph=now.keep, retain_graph=True, allow_unused=True)[0]
        return found if found is None or isinstance(one, Gradient) else _gradcam(one, value, found)

    def _forward(self, one: Gradient, value: Tensor, ways: Tensor, now: _Moment) -> Tensor | None:
        """Return the derivatives along ``ways`` by forward mode; the first may be known from the clean pass."""
        found = list(now.tangents) if one is now.forward else []
        for number in range(len(found), ways.shape[1]):
            with forward_ad.dual_level():
                found.append(_tangent(now.aside({one.wrt: forward_ad.make_dual(value, ways[:, number])})))
        known = [tangent for tangent in found if tangent is not None]
        return torch.stack(known, 1) if len(known) == len(found) else None

    def _ways(self, one: Gradient, value: Tensor, batch: Batch) -> Tensor:
        """Return the directions: (B, ways, *shape of the column)."""
        if one.along == "random":
            return directions(batch["id"], value.shape[1:], one.count, one.seed).to(value)
        if one.along not in batch:
            do = "Give the source that column, or make it in prepare=."
            raise TapError(say(f"'{one}': there is no column to go along", f"'{one.along}'", list(batch), do))
        if batch[one.along].shape != value.shape:
            allowed = f"the shape of '{one.wrt}', {tuple(value.shape)}"
            raise TapError(say(f"'{one}' cannot go along its column", tuple(batch[one.along].shape), allowed))
        return batch[one.along].detach().to(value)[:, None]

    def _logits(self, output: Any) -> Tensor:
        return _wide(find_logits(output, type(self.module).__name__))


@contextmanager
def _without_fused_parts(recurrent: bool) -> Iterator[None]:
    """Leave out what has no forward mode: oneDNN's LSTM and the fast path of transformer layers.

    oneDNN's convolutions stay: others round otherwise, and a maximum of equal numbers would then be another one's.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32")  # torch's switch warns of a precision nobody asked for
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            with torch.backends.mkldnn.flags(enabled=False) if recurrent else nullcontext():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def refuse_for_training(one: Tap) -> None:
    """Refuse what would take a pass for every number of the input at each step.

    Raises:
        TapError: a whole gradient by forward mode or by finite differences.
    """
    if isinstance(one, Gradient) and not one.directional and one.mode in ("jvp", "finite_difference"):
        passes = "a pass" if one.mode == "jvp" else "two passes"
        raise TapError(
            f"A whole gradient by {one.mode} takes {passes} for each number of the input: got '{one}' of a model in "
            "training. Allowed: vjp for whole gradients; finite_difference and jvp along directions, for example "
            "'logits@gradient(random=4)'. Write mode=vjp, or directions on both sides."
        )


@contextmanager
def trained_through(taps: Iterable[Tap]) -> Iterator[None]:
    """Say what to do where a backward pass fails because an operation has no derivative of its derivative.

    Raises:
        TapError: in the place of PyTorch's own error, where derivatives are among ``taps``.
    """
    try:
        yield
    except RuntimeError as error:
        names = ", ".join(f"'{one}'" for one in taps if isinstance(one, Gradient | GradCam))
        told = str(error).splitlines()[0][:160] if str(error) else ""
        if not names or not any(sign in told for sign in ("twice", "not implemented", "inplace", "forward AD")):
            raise
        raise TapError(
            f"The derivatives {names} cannot be trained through: got an operation without a derivative of that kind "
            f"({told}). Allowed: directions by finite differences, which need none. "
            "Write 'logits@gradient(random=4,mode=finite_difference)' on both sides."
        ) from error


def _of(one: Wanted) -> str:
    return one.path if isinstance(one, GradCam) else one.wrt


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _tangent(logits: Tensor) -> Tensor | None:
    """Return how the logits move; None where nothing that enters them does."""
    tangent: Tensor | None = forward_ad.unpack_dual(logits).tangent
    return tangent


def _numbers(one: Wanted, now: _Moment) -> int:
    """How many numbers of a row there are; 0 where they are not moved by hand."""
    return math.prod(now.columns[_of(one)].shape[1:]) if _of(one) in now.columns else 0


def _may_fall(one: Wanted, now: _Moment) -> bool:
    """Whether differences of each number may stand for a gradient that the model does not give."""
    whole = isinstance(one, Gradient) and not one.directional and one.mode == "auto"
    return whole and not now.keep and 0 < _numbers(one, now) <= COORDINATES


def _number(one: Wanted, logits: Tensor, chosen: Tensor) -> Tensor:
    """Return the number of each row that is differentiated: (B); 0 for a row without a class."""
    if one.along == "loss":
        return F.cross_entropy(logits, chosen, ignore_index=UNLABELLED, reduction="none")
    found = logits.gather(1, chosen.clamp(min=0)[:, None])[:, 0]
    return torch.where(chosen >= 0, found, torch.zeros_like(found))


def _gradcam(one: GradCam, maps: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM, Selvaraju et al. 2017 (https://arxiv.org/abs/1610.02391): (B, C, H, W) twice -> (B, H, W).

    With average pooling and one linear layer behind the maps it is the class activation map over the number of places,
    less what speaks against the class.
    """
    if maps.dim() != 4:
        raise TapError(say(f"'{one}' reads maps", f"shape {tuple(maps.shape)}", "(batch, channels, height, width)"))
    return F.relu((gradient.mean((2, 3), keepdim=True) * maps).sum(1))


__all__ = ["Derivatives", "refuse_for_training", "trained_through"]
