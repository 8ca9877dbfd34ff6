"""The first moments of a worker, before PyTorch is imported: it never outlives the process that it works for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any

given: dict[str, Any] = {}
"""What the parent gave this worker: ``run``, the run folder, and ``reports``, where progress is told."""

_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def tie(run: str, parent: int, reports: Any) -> None:
    """Make this process deaf to Ctrl-C, which its parent answers, and let it end when ``parent`` ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    given.update(run=run, reports=reports)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


__all__ = ["given", "tie"]
