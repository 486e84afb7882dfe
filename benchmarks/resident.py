"""Resident memory of this process, now and at most.

On Linux from /proc, where the peak can be set back; `ru_maxrss` cannot, and starts with what the parent process had.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def now() -> int:
    """Bytes resident now; elsewhere than on Linux at most so far."""
    return _field("VmRSS") or _by_usage()


def peak() -> int:
    """Bytes resident at most, since `reset_peak` where that works."""
    return _field("VmHWM") or _by_usage()


def reset_peak() -> bool:
    """Let the peak start again from now; returns whether that could be done."""
    try:
        _REFERENCES.write_text("5")
    except OSError:
        return False
    return True


def _field(name: str) -> int | None:
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _by_usage() -> int:
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
