"""FeatureExtractor: a trained network as a scikit-learn transformer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor, nn
from torch.nn import functional

from stillroom import files, tensors
from stillroom.contracts import Batch, Source, place
from stillroom.data.columns import as_images, as_tensor
from stillroom.errors import DataError, ModelError, UserError, say
from stillroom.features.network import FeatureNetwork, Head, pooled
from stillroom.fingerprints import fingerprint_of
from stillroom.models.bundle import CONFIG, WEIGHTS, Deployed, load, save_bundle
from stillroom.paths import expand, is_file
from stillroom.teachers import Live
from stillroom.tensors import count_parameters

HEADS = ("identity", "pca")
DTYPES = ("float32", "float16", "int8", "binary")
HEAD, FEATURES, CARD, GRAPH = "head.safetensors", "features.json", "card.json", "features.onnx"
DType = Literal["float32", "float16", "int8", "binary"]


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A trained network that turns inputs into vectors; works in scikit-learn's pipelines and searches.

    ``model``: a bundle's folder, a loaded bundle, or any module. ``tap``: where to read; maps are averaged over space,
    sequences over their own steps. ``head``: "identity", or "pca", learnt by ``fit`` without labels, which orders the
    dimensions so that the first ones tell most and any prefix can be used; ``whiten`` gives each the variance 1.
    ``dimensions`` (None: all), ``dtype`` and ``normalise`` are what ``transform`` does by default.

    Inputs are a tensor, an array, a source, or (source, examples); images of another size or number of channels
    than the model's are resized and averaged or repeated.

    Example:
        >>> features = FeatureExtractor("runs/features/export/student", head="pca", dimensions=32).fit(images)
        >>> features.transform(images, dtype="int8").shape
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        tap: str = "features",
        head: str = "identity",
        *,
        whiten: bool = False,
        dimensions: int | None = None,
        dtype: DType = "float32",
        normalise: bool = False,
        batch: int = 256,
    ) -> None:
        self.model, self.tap, self.head = model, tap, head
        self.whiten, self.dimensions, self.dtype, self.normalise, self.batch = (
            whiten,
            dimensions,
            dtype,
            normalise,
            batch,
        )

    # --- learning -------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803 - scikit-learn's names
        """Learn the head, and the range of each dimension that int8 and binary need; labels are not read.

        Raises:
            UserError: an option or the inputs do not fit.
        """
        if self.head not in HEADS:
            raise UserError(say("There is no such head", f"'{self.head}'", HEADS))
        values = np.concatenate([part.numpy() for part in self._read(X)])
        if not np.isfinite(values).all():
            raise DataError(
                "The features are not finite: got NaN or infinity. Look at the inputs, or train with a lower rate."
            )
        self.head_ = self._learn(values)
        with torch.no_grad():
            finished = self.head_(torch.from_numpy(values)).numpy()
        self.center_ = np.median(finished, axis=0).astype(np.float32)
        reach = np.abs(finished - self.center_).max(axis=0)
        self.scale_ = (np.where(reach > 0, reach, 1) / 127).astype(np.float32)
        self.width_ = finished.shape[1]
        return self

    def _learn(self, values: NDArray[np.float32]) -> Head:
        if self.head == "identity":
            return Head()
        from sklearn.decomposition import PCA

        if len(values) < 2:
            raise DataError(
                say("A PCA cannot be learnt", f"{len(values)} examples", "at least 2; several hundred are better")
            )
        found = PCA(svd_solver="full").fit(values.astype(np.float64))
        variances = found.explained_variance_
        # Directions that carry nothing but rounding would become the loudest of all when whitened.
        kept = variances > variances[0] * 1e-10
        basis = found.components_[kept].T
        if self.whiten:
            basis = basis / np.sqrt(variances[kept])
        self.explained_ = (found.explained_variance_ratio_[kept]).astype(np.float64)
        return Head(torch.from_numpy(found.mean_).float(), torch.from_numpy(basis.copy()).float())

    def __sklearn_is_fitted__(self) -> bool:
        """Whether ``transform`` can answer: features as they are need no fit."""
        return self.head == "identity" or hasattr(self, "head_")

    # --- answering ------------------------------------------------------------------------------------

    def transform(
        self,
        X: Any,
        dimensions: int | None = None,
        dtype: DType | None = None,
        normalise: bool | None = None,  # noqa: N803
    ) -> NDArray[Any]:
        """Return one row an example: (N, dimensions), or for ``binary`` packed bits (N, ceil(dimensions / 8)).

        ``int8``: each dimension in steps learnt by ``fit``; with ``normalise`` each row in steps of its own, which
        keeps its direction. ``binary``: above the dimension's median or not. :meth:`decode` gives numbers back.

        Raises:
            UserError: an option or the inputs do not fit, or ``fit`` is needed first.
        """
        parts = list(self.stream(X, dimensions, dtype, normalise))
        return np.concatenate(parts) if parts else np.zeros((0, dimensions or self.dimensions or 0), np.float32)

    def stream(
        self,
        X: Any,
        dimensions: int | None = None,
        dtype: DType | None = None,
        normalise: bool | None = None,  # noqa: N803
    ) -> Iterator[NDArray[Any]]:
        """Yield what :meth:`transform` returns, ``batch`` rows at a time: memory does not grow with the data."""
        dimensions, dtype = self.dimensions if dimensions is None else dimensions, dtype or self.dtype
        normalise = self.normalise if normalise is None else normalise
        self._check(dtype, normalise)
        head = self._head()
        with torch.no_grad():
            for part in self._read(X):
                values = head(part)
                values = values[:, : self._prefix(values.shape[1], dimensions)]
                yield self._stored(values, dtype, normalise)

    def decode(
        self,
        rows: NDArray[Any],
        dtype: DType | None = None,
        *,
        dimensions: int | None = None,
        normalise: bool | None = None,
    ) -> NDArray[np.float32]:
        """Return what :meth:`transform` stored as float32 numbers (N, dimensions); bits become -1 and 1."""
        dtype, normalise = dtype or self.dtype, self.normalise if normalise is None else normalise
        if dtype in ("float32", "float16"):
            return rows.astype(np.float32)
        if dtype == "binary":
            bits = np.unpackbits(rows, axis=1)[:, : dimensions or self.dimensions or self.width_]
            return bits.astype(np.float32) * 2 - 1
        if normalise:
            values = rows.astype(np.float32)
            return values / np.linalg.norm(values, axis=1, keepdims=True).clip(min=1e-12)
        return rows.astype(np.float32) * self.scale_[: rows.shape[1]] + self.center_[: rows.shape[1]]

    def _check(self, dtype: str, normalise: bool) -> None:
        if dtype not in DTYPES:
            raise UserError(say("Features cannot be stored so", f"dtype='{dtype}'", DTYPES))
        if not self.__sklearn_is_fitted__():
            raise UserError(
                f"The head '{self.head}' has learnt nothing yet: got transform before fit. Call fit(inputs) first."
            )
        if not hasattr(self, "center_") and (dtype == "binary" or (dtype == "int8" and not normalise)):
            raise UserError(
                f"dtype='{dtype}' needs the range of each dimension: got transform before fit. Call fit(inputs) first"
                + (", or use normalise=True." if dtype == "int8" else ".")
            )

    def _head(self) -> Head:
        found: Head = getattr(self, "head_", None) or Head()
        return found

    def _prefix(self, width: int, dimensions: int | None) -> int:
        if dimensions is None:
            return width
        if not 1 <= dimensions <= width:
            raise UserError(say("There are not that many dimensions", dimensions, f"1 to {width}"))
        if dimensions < width and self.head == "identity":
            raise UserError(
                f"Features as they are have no order, so {dimensions} of {width} cannot be chosen: got "
                "head='identity'. "
                "Use head='pca' and fit it: the first dimensions then tell most."
            )
        return dimensions

    def _stored(self, values: Tensor, dtype: str, normalise: bool) -> NDArray[Any]:
        width = values.shape[1]
        if dtype == "binary":
            bits: NDArray[np.uint8] = np.packbits(values.numpy() > self.center_[:width], axis=1)
            return bits
        if normalise:
            values = functional.normalize(values, dim=1)
        if dtype == "float16":
            return values.clamp(-65504, 65504).half().numpy()
        if dtype == "float32":
            return values.numpy()
        if normalise:
            steps = values / values.abs().amax(1, keepdim=True).clamp(min=1e-12) * 127
            return steps.round().to(torch.int8).numpy()
        steps = (values - torch.from_numpy(self.center_[:width])) / torch.from_numpy(self.scale_[:width])
        return steps.round().clamp(-127, 127).to(torch.int8).numpy()

    # --- reading --------------------------------------------------------------------------------------

    def deployed(self) -> Deployed:
        """Return the model with its encode; a folder is loaded once."""
        if isinstance(self.model, str | Path):
            if getattr(self, "_loaded", (None, None))[0] != str(self.model):
                self._loaded = (str(self.model), load(self.model))
            found: Deployed = self._loaded[1]
            return found
        if not isinstance(self.model, nn.Module):
            raise ModelError(
                say("Features are read from a model", type(self.model).__name__, "a bundle's folder or a module")
            )
        return self.model if isinstance(self.model, Deployed) else Deployed(self.model)

    def _read(self, inputs: Any) -> Iterator[Tensor]:
        """Yield pooled features (B, D) of batches."""
        deployed = self.deployed()
        where = place(self.tap)
        live = Live(deployed.model, [where.tap], encode=deployed.encode)
        for batch in _batches(inputs, self.batch):
            batch["inputs"] = fitted(batch["inputs"], deployed.config.get("input"))
            signals = live(batch)
            key = where.key if where.key in signals else next(iter(signals))
            yield pooled(signals[key].float(), signals.get(f"{key}.mask"))

    # --- keeping --------------------------------------------------------------------------------------

    def fingerprint(self) -> str | None:
        """Return what the features depend on: network, tap, head and ranges, as SHA-256; None where it is hidden."""
        ranges = [getattr(self, name, None) for name in ("center_", "scale_")]
        deployed = self.deployed()
        return fingerprint_of(deployed.model, deployed.encode, self.tap, self._head(), ranges)

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write a bundle, the head and a card of what this is (``card.json``) to ``folder``; return the card.

        Raises:
            UserError: the head is not fitted, or the folder cannot be written.
        """
        folder, deployed = Path(folder), self.deployed()
        self._check("float32", False)
        config = {
            key: value
            for key, value in deployed.config.items()
            if key in ("model", "shape", "input", "classes", "outputs")
        }
        if "input" not in config:
            raise ModelError(
                "The shape of the inputs is not known: got a module without a bundle's configuration. "
                "Save it first with stillroom.export, or give Deployed(model, encode, config=...)."
            )
        save_bundle(folder, deployed, config=config)
        kept = {name: value for name, value in self._head().named_buffers() if value is not None}
        kept |= {name: torch.from_numpy(getattr(self, name)) for name in ("center_", "scale_") if hasattr(self, name)}
        files.write_bytes(folder / HEAD, tensors.pack(kept))
        about = {
            name: getattr(self, name) for name in ("tap", "head", "whiten", "dimensions", "dtype", "normalise", "batch")
        }
        about |= {"format": 1, "sha256": {name: files.checksum(folder / name) for name in (HEAD, WEIGHTS)}}
        files.write_json(folder / FEATURES, about)
        card = self._card(folder)
        files.write_json(folder / CARD, card)
        return card

    @classmethod
    def load(cls, folder: str | Path, *, model: nn.Module | None = None) -> FeatureExtractor:
        """Return the extractor that :meth:`save` wrote; ``model`` is an instance to fill where it is not Stillroom's.

        Raises:
            UserError: the folder holds no extractor, or it is damaged.
        """
        folder = expand(folder, "The folder of an extractor", ModelError)
        if not is_file(folder / FEATURES):
            raise ModelError(
                say(
                    f"{folder} holds no feature extractor",
                    f"no {FEATURES}",
                    f"{CONFIG}, {HEAD} and {FEATURES}",
                    "Give a folder that FeatureExtractor.save wrote.",
                )
            )
        about = files.read_json(folder / FEATURES)
        keys = ("tap", "head", "whiten", "dimensions", "dtype", "normalise", "batch")
        if (
            not isinstance(about, dict)
            or not {*keys, "sha256"} <= about.keys()
            or not isinstance(about["sha256"], dict)
        ):
            allowed = f"sha256, {', '.join(keys)}"
            raise ModelError(say(f"{folder / FEATURES} does not describe an extractor", "other content", allowed))
        for name, digest in about["sha256"].items():
            if not is_file(folder / name) or files.checksum(folder / name) != digest:
                raise ModelError(
                    f"{folder / name} is not the file that {FEATURES} was written for: got another checksum. "
                    "Copy the folder again, or save the extractor again."
                )
        options = {name: about[name] for name in keys}
        made = cls(load(folder, model=model), **options)
        kept, _ = tensors.unpack(folder / HEAD)
        made.head_ = Head(kept.get("mean"), kept.get("basis"))
        if "center_" in kept:
            made.center_, made.scale_ = kept["center_"].numpy(), kept["scale_"].numpy()
            made.width_ = len(made.center_)
        return made

    def export(self, folder: str | Path, *, examples: Any, check: Any = None) -> dict[str, Any]:
        """Write :meth:`save`'s files and ``features.onnx``, head included, checked on real rows; return the card.

        ``examples`` are raw inputs (tensor or array, at least 3) of which the graph takes its shape; ``check`` (by
        default the same) are those on which its answers are compared with :meth:`transform`'s.

        Raises:
            ExportError: the network cannot be written as a graph, or the graph answers otherwise.
            MissingPart: onnx, onnxscript or onnxruntime is not installed.
        """
        from stillroom.export import write_onnx

        card = self.save(folder)
        rows = as_images(as_tensor(examples, "inputs"))
        compared = rows if check is None else as_images(as_tensor(check, "inputs"))
        answers = torch.from_numpy(self.transform(compared, dtype="float32"))
        network = FeatureNetwork(
            self.deployed(),
            place(self.tap).tap,
            self._head(),
            answers.shape[1],
            normalise=self.normalise,
            example=rows[:1],
        ).eval()
        facts = write_onnx(network, Path(folder) / GRAPH, examples=rows, check=(compared, None), answers=answers)
        card["graph"] = {key: facts[key] for key in ("bytes", "latency_ms", "throughput_per_s", "max_abs_difference")}
        files.write_json(Path(folder) / CARD, card)
        return card

    def _card(self, folder: Path) -> dict[str, Any]:
        raw = self.deployed().config["input"]
        example = torch.zeros(1, *raw["shape"], dtype=getattr(torch, raw["dtype"]))
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            row = self.transform(example, dtype="float32")
            seconds.append(time.perf_counter() - start)
        width = row.shape[1]
        return {
            "what": "features",
            "tap": self.tap,
            "head": self.head,
            "whitened": self.whiten,
            "unit_length": self.normalise,
            "dimensions": width,
            "input": raw,
            "parameters": count_parameters(self.deployed()),
            "bytes": (folder / WEIGHTS).stat().st_size + (folder / HEAD).stat().st_size,
            "bytes_a_row": {"float32": 4 * width, "float16": 2 * width, "int8": width, "binary": -(-width // 8)},
            "latency_ms": statistics.median(seconds) * 1e3,
            "threads": torch.get_num_threads(),
        }


# --- what is given ----------------------------------------------------------------------------------------


def _batches(inputs: Any, rows: int) -> Iterator[Batch]:
    """Yield batches of a source, of (source, examples), of a tensor or of an array."""
    if isinstance(inputs, tuple) and len(inputs) == 2 and hasattr(inputs[0], "splits"):
        source, chosen = inputs
        ids = torch.as_tensor(np.asarray(chosen), dtype=torch.int64)
    elif hasattr(inputs, "splits") and hasattr(inputs, "batch"):
        source, ids = inputs, torch.arange(len(inputs))
    else:
        values = as_images(as_tensor(inputs, "inputs"))
        for start in range(0, len(values), rows):
            part = values[start : start + rows]
            numbers = torch.arange(start, start + len(part))
            yield {"id": torch.stack([numbers, torch.zeros_like(numbers)], 1), "inputs": part}
        return
    pairs = ids if ids.dim() == 2 else torch.stack([ids, torch.zeros_like(ids)], 1)
    known: Source = source
    for part in pairs.split(rows):
        yield dict(known.batch(part.contiguous()))


def fitted(inputs: Tensor, raw: Mapping[str, Any] | None) -> Tensor:
    """Return inputs in the shape a model takes: rows unflattened, images resized, channels averaged or repeated.

    Raises:
        DataError: they cannot be made to fit.
    """
    if raw is None or list(inputs.shape[1:]) == list(raw["shape"]):
        return inputs
    shape = [int(size) for size in raw["shape"]]
    if inputs.dim() == 2 and inputs.shape[1] == int(np.prod(shape)):
        inputs = inputs.reshape(-1, *shape)
        return inputs if raw["dtype"] != "uint8" else inputs.round().clamp(0, 255).to(torch.uint8)
    if inputs.dim() != 4 or len(shape) != 3 or inputs.dtype != torch.uint8:
        raise DataError(
            say(
                "These inputs do not fit the model",
                f"{tuple(inputs.shape[1:])} {inputs.dtype}",
                f"{tuple(shape)} {raw['dtype']}",
            )
        )
    pixels = inputs.float()
    if pixels.shape[1] != shape[0]:
        pixels = pixels.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
    if list(pixels.shape[2:]) != shape[1:]:
        pixels = functional.interpolate(pixels, shape[1:], mode="bilinear", align_corners=False, antialias=True)
    return pixels.round().clamp(0, 255).to(torch.uint8)


__all__ = ["DTYPES", "HEADS", "DType", "FeatureExtractor", "fitted"]
