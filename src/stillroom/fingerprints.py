"""Who a model is: one fingerprint of all that its answers depend on, or None where a part of it cannot be seen.

Whatever is kept (recordings, students, features, findings) is found again by such a fingerprint. So it must change with
everything that can change an answer, and where something is hidden in a C object nothing may be found at all.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import dis
import enum
import fractions
import functools
import hashlib
import logging
import pathlib
import re
import sys
import types
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stillroom.errors import ModelError, say
from stillroom.paths import is_file

MAKERS = (
    "data", "gradients", "losses", "models", "objectives", "store", "taps", "tasks",
    "checkpoint.py", "evaluate.py", "fingerprints.py", "learner.py", "order.py", "randomness.py", "record.py",
    "settings.py", "teachers.py", "tensors.py", "train.py", "utf8.py",
)  # fmt: skip
KNOWN = {"builtins", "numpy", "stillroom", "torch", *sys.stdlib_module_names}  # code that has versions of its own
IGNORES = "fingerprint_ignores"  # a class may name attributes that change no answer: counters, caches, loggers
PLAIN = (bool, int, float, complex, str, type(None), type(...), type(NotImplemented))
BY_TEXT: tuple[type, ...] = (
    torch.dtype, torch.device, torch.layout, torch.memory_format, torch.qscheme, torch.finfo, torch.iinfo,
    torch._ops.OpOverload, torch._ops.OpOverloadPacket, np.dtype, np.ufunc, pathlib.PurePath, decimal.Decimal,
    fractions.Fraction, range, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, uuid.UUID,
    types.GenericAlias, types.UnionType, types.MemberDescriptorType, types.GetSetDescriptorType,
)  # fmt: skip
BUILT_IN = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType,
    types.ClassMethodDescriptorType,
)  # fmt: skip
EQUAL_IS_SAME = (tuple, frozenset, bytes, np.generic, re.Pattern, types.MethodType, *BUILT_IN)  # Python may merge two
SETTINGS = (*PLAIN, bytes, tuple, list, dict, set, frozenset, Tensor, np.ndarray)  # what counts of a module's globals
CACHES = {  # of nn.Module: what says nothing of its answers, or says it twice
    "training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook",
    "_compiled_call_impl", "_is_torch_compile", "_flat_weights", "_flat_weight_refs", "_stillroom_built",
}  # fmt: skip
PLACES = {"_name_or_path", "name_or_path", "_commit_hash"}  # where a library loaded a model from


def fingerprint_of(*things: Any, trained: bool = False, weights: bool = True) -> str | None:
    """Return a SHA-256 (64 hexadecimal digits) of modules, functions and values, or None if a part cannot be seen.

    Of a module: its structure, every parameter and buffer, hooks, the code of classes that are not PyTorch's or
    Stillroom's, and the attributes of each submodule, whatever they hold: numbers, texts, containers, tensors, arrays,
    functions with what they close over, and objects made of such. Equal for equal models whatever their memory layout,
    mode, compilation and whether gradients are wanted; ``trained`` counts modes and gradients, since a training depends
    on them. Without ``weights`` what a training changes is left out: weights, and what lists and dictionaries hold.

    What cannot be seen (sessions, handles, generators, objects of C) makes it None: then nothing that was kept may be
    taken for this model's. A class may name attributes that change no answer: ``fingerprint_ignores = ("calls",)``.

    Raises:
        ModelError: a module holds no data.
    """
    return _walked([("", thing) for thing in things], trained, weights)[0]


def fingerprint_or_new(*things: Any, trained: bool = False) -> str:
    """Return :func:`fingerprint_of`, or where there is none a text that no other call gives: nothing is found by it."""
    return fingerprint_of(*things, trained=trained) or never_again()


def never_again() -> str:
    """Return a text in a fingerprint's place by which nothing is ever found."""
    return f"unseen {uuid.uuid4().hex}"


def unseen_in(**things: Any) -> str:
    """Return the first part that cannot be seen, as ``model.session (onnxruntime.InferenceSession)``; "" for none."""
    return _walked(things.items(), False, True)[1]


@functools.cache
def code_print(makers: tuple[str, ...] = MAKERS) -> str:
    """Return a SHA-256 of the source of everything that computes: a changed loss or model must not find old results."""
    root = pathlib.Path(__file__).parent
    digest = hashlib.sha256()
    for place in (root / name for name in makers):
        for file in sorted(place.rglob("*.py")) or [place]:
            digest.update(f"{file.relative_to(root)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _walked(things: Iterable[tuple[str, Any]], trained: bool, weights: bool) -> tuple[str | None, str]:
    walk = _Walk(trained, weights)
    try:
        for name, thing in things:
            walk.look(thing, name)
    except _Unseen as error:
        place = ".".join(filter(None, walk.path)).replace(".[", "[")
        return None, f"{place} ({error})" if place else str(error)
    except RecursionError:
        return None, "values that are nested too deep"
    return walk.digest.hexdigest(), ""


class _Unseen(Exception):
    """What a value holds cannot be read; the text names its class."""


class _Walk:
    """One reading of values into a digest; each object is read once and then named by its number."""

    def __init__(self, trained: bool, weights: bool) -> None:
        self.trained, self.weights = trained, weights
        self.digest = hashlib.sha256()
        self.met: dict[int, tuple[int, Any]] = {}  # the object is kept, so that its id stays its own
        self.path: list[str] = []

    def put(self, *words: object) -> None:
        self.digest.update(f"{words!r}\n".encode("utf-8", "backslashreplace"))

    def raw(self, values: Any) -> None:
        self.put(memoryview(values).nbytes)
        self.digest.update(values)

    def look(self, thing: Any, name: str = "") -> None:
        """Add one value and all that it leads to."""
        self.path.append(name)
        while isinstance(thing, nn.Module) and "_orig_mod" in vars(thing).get("_modules", {}):
            thing = vars(thing)["_modules"]["_orig_mod"]  # compiled: it answers as the one within
        if not self.weights and isinstance(thing, list | dict | set | collections.deque):
            self.put(_name(type(thing)))
        elif type(thing) in PLAIN:
            self.put(type(thing).__name__, thing)
        elif isinstance(thing, BY_TEXT) or type(thing).__module__ == "typing":
            self.put(_name(type(thing)), str(thing))
        elif isinstance(thing, EQUAL_IS_SAME) or not self._again(thing):
            next(read for kinds, read in _READS if isinstance(thing, kinds))(self, thing)
        self.path.pop()

    def _again(self, thing: Any) -> bool:
        if id(thing) in self.met:
            self.put("again", self.met[id(thing)][0])
            return True
        self.met[id(thing)] = (len(self.met), thing)
        return False

    # --- values -----------------------------------------------------------------------------------------

    def sequence(self, thing: Sequence[Any]) -> None:
        self.put(_name(type(thing)), len(thing))
        for number, value in enumerate(thing):
            self.look(value, f"[{number}]")
        self._more(thing)

    def mapping(self, thing: dict[Any, Any]) -> None:
        self.put(_name(type(thing)), len(thing))
        for key, value in thing.items():
            self.look(key)
            self.look(value, f"[{key!r}]" if isinstance(key, str | int) else "[]")
        self._more(thing)
        if isinstance(thing, collections.defaultdict):
            self.look(thing.default_factory)

    def unordered(self, thing: frozenset[Any]) -> None:
        found = []
        for value in thing:  # in no order: each is read by itself
            part = _Walk(self.trained, self.weights)
            part.met, part.path = dict(self.met), self.path
            part.look(value)
            found.append(part.digest.hexdigest())
        self.put(_name(type(thing)), sorted(found))
        self._more(thing)

    def buffer(self, thing: Any) -> None:
        self.put(_name(type(thing)))
        self.raw(bytes(thing))
        self._more(thing)

    def text_or_number(self, thing: Any) -> None:
        base = next(kind for kind in PLAIN if isinstance(thing, kind))
        self.put(_name(type(thing)), base.__repr__(thing))  # type: ignore[call-arg]
        self._more(thing)

    def member(self, thing: enum.Enum) -> None:
        self.put(_name(type(thing)), thing._name_)
        self._kind_once(type(thing))
        self.look(thing._value_)

    def array(self, thing: Any) -> None:
        self.put(_name(type(thing)), thing.dtype.str, str(thing.dtype), thing.shape)
        if thing.dtype.hasobject:
            self.sequence(thing.reshape(-1).tolist())
        else:
            self.raw(np.ascontiguousarray(thing).reshape(-1).view(np.uint8) if thing.size else b"")
        if isinstance(thing, np.ndarray) and not isinstance(thing, np.memmap):
            self._more(thing)

    def tensor(self, value: Tensor, *, numbers: bool = True) -> None:
        if nn.parameter.is_lazy(value) or value.is_meta:
            what = "of a lazy module that has not run yet" if not value.is_meta else "without data (device meta)"
            given = f"'{'.'.join(filter(None, self.path))}', {what}"
            do = "Load its weights first, or run it once on a batch."
            raise ModelError(say("This model has no fingerprint", given, "a module whose weights are there", do))
        self.put("tensor", str(value.dtype), tuple(value.shape), self.trained and value.requires_grad)
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
            self.put(_name(type(value)))
            if hasattr(value, "__tensor_flatten__"):
                names, about = value.__tensor_flatten__()
                self.look([names, about, [getattr(value, name) for name in names]])
                return
        if numbers:
            try:
                for part in _dense(value.detach()):
                    self.raw(part)
            except (RuntimeError, NotImplementedError, TypeError) as error:
                raise _Unseen(f"{_name(type(value))} of {value.dtype}") from error

    # --- modules and objects ----------------------------------------------------------------------------

    def module(self, module: nn.Module) -> None:
        held = vars(module)
        if isinstance(module, torch.jit.ScriptModule):
            raise _Unseen(_name(type(module)))
        self.put("module", _name(type(module)), self.trained and module.training)
        graph = isinstance(module, torch.fx.GraphModule)
        if graph:  # its class is made for it alone, and its code stands in a text
            self.put(module.code)
            self.function(type(module).forward)  # type: ignore[arg-type]
        else:
            self._kind_once(type(module))
        hooks = [value for name, value in held.items() if name.endswith("hooks") and isinstance(value, dict)]
        left_out = CACHES | _ignored(type(module)) | {_remade(hook) for found in hooks for hook in found.values()}
        left_out |= {"meta", *(name for name in held if name.startswith("_"))} if graph else set()
        for hook in [hook for found in hooks for hook in found.values()]:
            self.look(hook.hook if type(hook).__name__ == "_WrappedHook" else hook, "hook")
        for name, value in sorted(held.items()):
            if name not in left_out and not any(value is found for found in hooks) and "_hooks_" not in name:
                self.put(name)
                self.look(value, name)
        for table in ("_parameters", "_buffers"):
            for name, value in held.get(table, {}).items():
                self.put(table, name, value is None)
                if value is not None and not self._again(value):
                    self.path.append(name)
                    self.tensor(value, numbers=self.weights)
                    self.path.pop()
        for name, part in held.get("_modules", {}).items():
            self.put("_modules", name)
            self.look(part, name)

    def instance(self, thing: Any) -> None:
        kind = type(thing)
        if kind.__module__ == "tokenizers" and hasattr(thing, "to_str"):
            self.put(_name(kind), thing.to_str())
            return
        if not _visible(kind):
            raise _Unseen(_name(kind))
        self.put("object", _name(kind))
        self._kind_once(kind)
        self._more(thing)

    def _more(self, thing: Any) -> None:
        """Add the attributes of an instance: what stands in its ``__dict__`` and its slots."""
        held = dict(getattr(thing, "__dict__", {}))
        for parent in type(thing).__mro__:
            for name in _slots(parent):
                try:
                    held[name] = getattr(thing, name)
                except AttributeError:
                    continue
        left_out = _ignored(type(thing)) | (PLACES if _origin(type(thing).__module__) == "library" else set())
        for name, value in sorted(held.items()):
            if name not in left_out:
                self.put(name)
                self.look(value, name)

    def named(self, thing: Any) -> None:
        """Add only what a thing is called: it changes no answer."""
        self.put(_name(type(thing)), getattr(thing, "name", ""))

    # --- code -------------------------------------------------------------------------------------------

    def _kind_once(self, kind: type) -> None:
        if not self._again(kind):
            self.kind(kind)

    def kind(self, kind: type) -> None:
        """Add a class: its name, and the code of all parts of it that are neither PyTorch's nor Stillroom's."""
        self.put("class", [_name(parent) for parent in kind.__mro__])
        for parent in kind.__mro__:
            origin = _origin(parent.__module__)
            if origin == "known" or (parent is not kind and self._again(parent)):
                continue
            self.put(_version(parent.__module__) if origin == "library" else "")
            for name, value in sorted(vars(parent).items()):
                code = isinstance(value, _CODE)
                hidden = name.startswith("__") or name == "_abc_impl" or isinstance(parent, enum.EnumMeta)
                if code or (not hidden and name != IGNORES and (origin == "own" or type(value) in PLAIN)):
                    self.put(name)
                    self.look(value, name)

    def function(self, thing: types.FunctionType) -> None:
        original = vars(thing).get("_torchdynamo_orig_callable")
        if original is not None:
            self.look(original)
            return
        module = str(thing.__globals__.get("__name__"))
        origin, code = _origin(module), thing.__code__
        self.put("function", "" if origin == "own" else f"{module}.{thing.__qualname__}")
        if origin == "known" and _importable(thing):
            return
        for value in (thing.__defaults__, sorted((thing.__kwdefaults__ or {}).items()), sorted(vars(thing).items())):
            self.sequence(value or ())
        for name, cell in zip(code.co_freevars, thing.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # a name that is bound later
                continue
            self.look(value, name)
        if origin == "known":
            return
        self.code(code)
        for name in _globals_read(code):
            if name in thing.__globals__:
                value = thing.__globals__[name]
                beside = isinstance(value, _CODE) and getattr(value, "__module__", None) == module
                if origin == "own" or beside or type(value) in PLAIN:
                    self.put(name)
                    self.look(value, name)

    def code(self, code: types.CodeType) -> None:
        self.put(code.co_argcount, code.co_kwonlyargcount, code.co_flags, code.co_names, code.co_varnames)
        self.raw(code.co_code)
        self.raw(code.co_exceptiontable)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.code(constant)
            else:
                self.look(constant)

    def method(self, thing: types.MethodType) -> None:
        self.put("method")
        self.look(thing.__func__)
        self.look(thing.__self__, "__self__")

    def built_in(self, thing: Any) -> None:
        self.put("built in", getattr(thing, "__module__", ""), thing.__qualname__)
        owner = getattr(thing, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType | type):
            self.look(owner, "__self__")

    def partial(self, thing: functools.partial[Any]) -> None:
        self.put("partial")
        self.look(thing.func)
        self.sequence(thing.args)
        self.sequence(sorted(thing.keywords.items()))

    def wrapper(self, thing: Any) -> None:
        """Add what a decorator of Python itself stands before."""
        self.put(_name(type(thing)))
        for name in ("__func__", "fget", "fset", "fdel", "func", "__wrapped__"):
            if (found := getattr(thing, name, None)) is not None:
                self.look(found, name)
                if name in ("__func__", "func"):
                    return

    def python_module(self, thing: types.ModuleType) -> None:
        self.put("package", thing.__name__, _version(thing.__name__))
        file = pathlib.Path(getattr(thing, "__file__", None) or "")
        if _origin(thing.__name__) == "own":
            self.raw(file.read_bytes() if is_file(file) else b"")
            self.sequence(sorted(i for i in vars(thing).items() if isinstance(i[1], SETTINGS) and i[0][:2] != "__"))


_WRAPPERS = (staticmethod, classmethod, property, functools.cached_property, type(functools.lru_cache(len)))
_FIELD = type(collections.namedtuple("_FIELD", "name").name)  # type: ignore[attr-defined]
_CODE = (types.FunctionType, *_WRAPPERS)
_READS: tuple[tuple[Any, Any], ...] = (
    (nn.Module, _Walk.module),
    (Tensor, _Walk.tensor),
    ((np.ndarray, np.generic), _Walk.array),
    (enum.Enum, _Walk.member),
    (PLAIN, _Walk.text_or_number),
    ((bytes, bytearray, memoryview), _Walk.buffer),
    ((tuple, list, collections.deque), _Walk.sequence),
    ((dict, types.MappingProxyType), _Walk.mapping),
    ((set, frozenset), _Walk.unordered),
    (slice, lambda walk, thing: walk.sequence((thing.start, thing.stop, thing.step))),
    (re.Pattern, lambda walk, thing: walk.put("pattern", thing.pattern, thing.flags)),
    (type, _Walk.kind),
    (types.FunctionType, _Walk.function),
    (types.MethodType, _Walk.method),
    (BUILT_IN, _Walk.built_in),
    (functools.partial, _Walk.partial),
    (_WRAPPERS, _Walk.wrapper),
    (types.CodeType, _Walk.code),
    (types.ModuleType, _Walk.python_module),
    ((logging.Logger, logging.LoggerAdapter, RemovableHandle, _FIELD), _Walk.named),
    (torch.ScriptObject, lambda walk, thing: walk.look(thing.__getstate__())),  # packed weights, quantised
    (object, _Walk.instance),
)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@functools.cache
def _origin(module: str | None) -> str:
    """Return whether a module is "known" (named is enough), of a "library" that is installed, or somebody's "own"."""
    top = str(module or "").split(".")[0]
    if top in KNOWN:
        return "known"
    file = getattr(sys.modules.get(str(module)), "__file__", None) or ""
    return "library" if {"site-packages", "dist-packages"} & set(pathlib.Path(file).parts) else "own"


def _version(module: str) -> str:
    return str(getattr(sys.modules.get(module.split(".")[0]), "__version__", ""))


def _importable(thing: types.FunctionType) -> bool:
    """Whether a function's name is enough to find it again: it is none that another one made."""
    if _origin(thing.__module__) != "known":  # a decorator gave it the name of what it stands before
        return False
    found: Any = sys.modules.get(thing.__module__)
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is thing


def _ignored(kind: type) -> set[str]:
    made = {"gen"} if kind.__name__ == "_GeneratorContextManager" else set()  # a decorator makes it from func and args
    return made.union(*(vars(parent).get(IGNORES, ()) for parent in kind.__mro__))


def _remade(hook: Any) -> str:
    """Return the attribute that a hook of PyTorch's makes anew before each call (a normed or pruned weight)."""
    known = _origin(type(hook).__module__) == "known"
    return str(getattr(hook, "name", getattr(hook, "_tensor_name", ""))) if known else ""


def _slots(kind: type) -> list[str]:
    held = vars(kind).get("__slots__", ())
    names = [held] if isinstance(held, str) else list(held)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _visible(kind: type) -> bool:
    """Whether instances hold nothing but a dictionary and slots: an object of C has room for more."""
    if kind is types.SimpleNamespace:
        return True
    words = sum(len(_slots(parent)) for parent in kind.__mro__) + (kind.__dictoffset__ > 0)
    words += kind.__weakrefoffset__ > 0
    return bool(kind.__basicsize__ <= object.__basicsize__ + 8 * words and kind.__itemsize__ == 0)


def _dense(value: Tensor) -> Iterator[Any]:
    """Yield the numbers of a tensor in their logical order, little-endian as the machines PyTorch runs on."""
    if value.is_quantized:
        per_tensor = value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        scales = (value.q_scale(), value.q_zero_point()) if per_tensor else ()
        yield f"{value.qscheme()} {scales}".encode()
        parts = () if per_tensor else (value.q_per_channel_scales(), value.q_per_channel_zero_points())
        for part in (value.int_repr(), *parts):
            yield from _dense(part)
        return
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
        for part in (value.indices(), value.values()):
            yield from _dense(part)
        return
    if value.layout != torch.strided:
        value = value.to_dense()
    # Through uint8, since NumPy knows neither bfloat16 nor float8; not copied where it lies in order already.
    yield value.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()


@functools.lru_cache(4096)
def _globals_read(code: types.CodeType) -> tuple[str, ...]:
    """Return the global names that code reads, that of functions within too, in their order."""
    found = [one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found += _globals_read(constant)
    return tuple(dict.fromkeys(found))
