"""What a measurement ran on: every result file begins with it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from training.run_folder import git_revision, version_of

PACKAGES = ("numpy", "opencv-python-headless", "torch", "timm")


def environment() -> dict[str, Any]:
    """Command, machine, processor, its load, versions and git revision, JSON-able."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": git_revision(),
        "machine": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
    }


def processor() -> str:
    """The processor's name; Linux tells it in /proc, other systems through platform."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
