"""Gives memory that is free but still held back to the system: loading a network frees as much as it keeps."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return free memory of the C library's heap to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
