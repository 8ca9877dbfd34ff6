"""What a DataLoader draws from: the rows its sampler names; what it does beyond that is honoured or refused by name."""

from __future__ import annotations

from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
    default_convert,
)

from stillroom.errors import DataError, say

DO = "Give the Dataset itself or tensors; the order of training is Stillroom's own."


def taken_apart(loader: DataLoader[Any]) -> Any:
    """Return the Dataset of a loader's rows: all of them, or those that a SubsetRandomSampler names.

    The order of a loader, its batches and its workers do not matter: training has an order of its own.

    Raises:
        DataError: its collate_fn changes items, or its sampler weighs or repeats rows, or is of another kind.
    """
    collate: Any = loader.collate_fn
    if collate not in (default_collate, default_convert):
        name = getattr(collate, "__qualname__", type(collate).__name__)
        given = f"collate_fn={name}"
        do = "Do in the Dataset's __getitem__ what it does, or collect what the loader gives into tensors."
        raise DataError(say("The items of a DataLoader are changed as they are put together", given, "the default", do))
    sampler: Any = loader.sampler
    batches = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        given = f"batch_sampler={type(batches).__name__}"
        raise DataError(say("A DataLoader makes its batches by a sampler of its own", given, "batch_size", DO))
    if batches is not None:
        sampler = batches.sampler
    return _rows(loader.dataset, sampler)


def _rows(dataset: Any, sampler: Any) -> Any:
    kind = type(sampler)
    if isinstance(dataset, IterableDataset):  # it has no rows, which is refused where Datasets are read
        return dataset
    if kind is SubsetRandomSampler:
        chosen = sorted({int(index) for index in sampler.indices})
        if isinstance(dataset, TensorDataset):
            return TensorDataset(*(values[chosen] for values in dataset.tensors))
        return Subset(dataset, chosen)
    if kind is SequentialSampler:
        return dataset
    if kind is RandomSampler and not sampler.replacement and sampler.num_samples == len(dataset):
        return dataset
    given = f"sampler={kind.__name__}"
    if kind is RandomSampler:
        given += f" with replacement={sampler.replacement}, num_samples={sampler.num_samples}"
    allowed = "shuffle=True or False, or a SubsetRandomSampler, whose rows are taken"
    raise DataError(say("A DataLoader weighs, repeats or chooses rows", given, allowed, DO))
