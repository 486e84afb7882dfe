"""Graphs that several test files read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.export.planted_graph import write_small


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network of `planted_graph` as ONNX."""
    return write_small(tmp_path_factory.mktemp("graph") / "model.onnx")
