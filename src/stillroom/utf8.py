"""Texts as tensors and back: UTF-8 bytes, one row a text, padded with zeros.

So a text is a column of the Batch like any other: it can be hashed, viewed and sent, and every model's own ``encode``
turns the same bytes into tokens of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pack(texts: Sequence[str]) -> Tensor:
    """Return ``texts`` as uint8 (B, bytes of the longest; at least 1); the zero byte, which ends a row, is left out."""
    return pack_bytes([text.replace("\0", "").encode("utf-8", "replace") for text in texts])


def pack_bytes(rows: Sequence[bytes]) -> Tensor:
    """Return UTF-8 ``rows`` without zero bytes as uint8 (B, bytes of the longest; at least 1)."""
    longest = max(1, max((len(row) for row in rows), default=1))
    joined = np.frombuffer(b"".join(row.ljust(longest, b"\0") for row in rows), np.uint8)
    return torch.from_numpy(joined.reshape(len(rows), longest).copy())


def unpack(inputs: Tensor) -> list[str]:
    """Return the texts in ``inputs`` (uint8, B x bytes); bytes that are not UTF-8 become the replacement character."""
    return [row.decode("utf-8", "replace") for row in unpack_bytes(inputs)]


def unpack_bytes(inputs: Tensor) -> list[bytes]:
    """Return each row of ``inputs`` (uint8, B x bytes) as bytes, without its padding."""
    rows, width = inputs.shape
    joined = inputs.contiguous().numpy().tobytes()
    return [joined[start : start + width].rstrip(b"\0") for start in range(0, rows * width, width)]
