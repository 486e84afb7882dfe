"""Keeps a long-lived process's memory in order: what is free goes back, what stays is not looked through again."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

_RESIDENT = Path("/proc/self/statm")


def give_back() -> None:
    """Return free memory of the C library's heap to the system, where the C library can (glibc).

    Loading a network frees as much as it keeps.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def freeze() -> None:
    """Take all objects there are now out of Python's garbage collections.

    Modules, routes and models stay until the end, and looking through them takes 45 ms every thousand requests or so,
    while every request waits.
    """
    gc.freeze()


def clear_away() -> None:
    """Collect what is no longer used, frozen or not, and give its memory back."""
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()
    give_back()


def resident_bytes() -> int:
    """Memory of this process that is in use; 0 where the system does not tell (it has no /proc)."""
    try:
        return int(_RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
