"""The GPU benchmark starts where little more than torch is installed."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

_WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("psutil", "typer", "rich", "openvino", "nncf", "matplotlib"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
import benchmarks.gpu
"""


def test_it_needs_no_psutil_typer_or_rich() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _WITHOUT], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
