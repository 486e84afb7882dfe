"""The comparison of two checkouts finds a planted slowdown of a fifth, and finds none where the code is the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compare import EFFORT, checked_out, compare_trees, markdown
from benchmarks.progress import Progress
from benchmarks.table_plan import Entry
from benchmarks.ways import WAYS
from benchmarks.worker_process import ROOT
from pipeline.errors import InputError

SMALL = Entry("small", "small student", "demo", "mobilevitv2_050", 128)


@pytest.fixture(scope="module")
def slowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout's packages with a busy loop of a fifth of the time in one runtime."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("pipeline", "training", "export", "benchmarks"):
        shutil.copytree(
            ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    path = tree / "pipeline" / "runtime_onnx.py"
    text = path.read_text()
    old = '        logits, *rest = self._session.run(self._outputs, {"crops": np.ascontiguousarray(crops)})\n'
    assert old in text
    new = (
        "        import time\n\n        begun = time.process_time()\n"
        + old
        + "        end = begun + 1.2 * (time.process_time() - begun)\n"
        "        while time.process_time() < end:\n            pass\n"
    )
    path.write_text(text.replace(old, new))
    return tree


@pytest.mark.slow
def test_a_planted_fifth_is_found_and_equal_code_is_not(slowed: Path) -> None:
    with Progress() as progress:
        slow, same = compare_trees(
            ROOT,
            [WAYS["onnx"], WAYS["torch"]],
            progress,
            here=slowed,
            networks=[SMALL],
            effort=replace(EFFORT, rounds=5),
            pairs=2,
        )
    assert slow.reason is None, slow.reason
    assert slow.processor is not None
    assert slow.is_slower(0.05, "processor"), slow
    assert same.reason is None, same.reason
    # two processes of equal code may differ by some per cent throughout, by where their memory lies
    assert not same.is_slower(0.15, "processor"), same
    assert "**slower**" in markdown([slow], "HEAD", 0.05, "processor")
    assert "**slower**" not in markdown([same], "HEAD", 0.15, "processor")


def test_a_revision_is_checked_out_with_our_harness_and_taken_away_again() -> None:
    with checked_out("HEAD") as tree:
        assert (tree / "pipeline" / "runtime.py").is_file()
        assert (tree / "benchmarks" / "compare.py").read_text() == (
            ROOT / "benchmarks" / "compare.py"
        ).read_text()
    assert not tree.exists()
    with pytest.raises(InputError, match="nonsense"), checked_out("nonsense"):
        pass
