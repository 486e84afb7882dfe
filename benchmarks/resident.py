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
    return _field("VmRSS") or of_usage(resource.getrusage(resource.RUSAGE_SELF))


def peak() -> int:
    """Bytes resident at most, since `reset_peak` where that works."""
    return _field("VmHWM") or of_usage(resource.getrusage(resource.RUSAGE_SELF))


def reset_peak() -> bool:
    """Let the peak start again from now; returns whether that could be done."""
    try:
        _REFERENCES.write_text("5")
    except OSError:
        return False
    return True


def of_usage(usage: resource.struct_rusage) -> int:
    """Bytes resident at most in a process, by what the system tells of it."""
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024


def _field(name: str) -> int | None:
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
