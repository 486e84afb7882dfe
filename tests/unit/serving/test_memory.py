"""Free memory goes back to the system; what stays is not collected, what goes is."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref

import pytest

from serving.memory import clear_away, freeze
from tests.conftest import ROOT

FREED_BELOW_SOMETHING_KEPT = """
import ctypes, psutil
from serving.memory import give_back
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
places = [libc.malloc(65536) for _ in range(1600)]
for place in places:
    ctypes.memset(ctypes.c_void_p(place), 1, 65536)
for place in places[:-1]:
    libc.free(ctypes.c_void_p(place))
held = psutil.Process().memory_info().rss
give_back()
print(held - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to")
def test_what_lies_free_below_something_kept_is_given_back() -> None:
    command = [sys.executable, "-c", FREED_BELOW_SOMETHING_KEPT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 90e6


class Ring:
    """Refers to itself, so that only a collection can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_no_longer_used_is_cleared_away_though_it_was_frozen(frozen: bool) -> None:
    ring = Ring()
    there = weakref.ref(ring)
    if frozen:
        freeze()
    try:
        del ring
        if frozen:
            gc.collect()
            assert there() is not None
        clear_away()
        assert there() is None
        assert (gc.get_freeze_count() > 0) == frozen
    finally:
        gc.unfreeze()
