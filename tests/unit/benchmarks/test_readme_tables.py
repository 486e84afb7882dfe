"""The README's tables: made from result files, and a stale one is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.readme import RESULTS, ROOT, update
from pipeline.errors import InputError


def test_readme_shows_the_committed_results() -> None:
    assert update(check=True)


def test_a_changed_result_is_noticed_and_written(tmp_path: Path) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    shutil.copytree(RESULTS, results)
    shutil.copy(ROOT / "README.md", readme)
    blend = json.loads((results / "selfblend.json").read_text())
    blend["ms"]["total"]["p50"] = 77.7
    (results / "selfblend.json").write_text(json.dumps(blend))
    assert not update(readme, results, check=True)
    assert "77.7 ms" not in readme.read_text()
    assert not update(readme, results)
    assert "77.7 ms" in readme.read_text()
    assert update(readme, results, check=True)


def test_a_missing_result_or_marker_is_named(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    with pytest.raises(InputError, match="markers"):
        update(readme)
    with pytest.raises(InputError, match=r"demo\.json"):
        update(ROOT / "README.md", tmp_path, check=True)
