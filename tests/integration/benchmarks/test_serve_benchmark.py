"""The server's benchmark, briefly: it is the measuring that is tested here, not the speed."""

from __future__ import annotations

from pathlib import Path

import pytest
from numpy.typing import NDArray

from benchmarks.serve import ROADS, markdown, run


@pytest.mark.slow
def test_the_benchmark_counts_every_request(bundle_folder: Path, portraits: list[NDArray[object]]) -> None:
    result = run(
        bundle_folder,
        artefact="onnx",
        seconds=0.5,
        rounds=1,
        alone=4,
        overload_seconds=3,
        requests=20,
        rival=True,
        settings=["max_inflight=2", "runtime_threads=1"],
    )
    # sixteen at once where two are let in: the rest is told to come again, and nothing is lost
    for road in ROADS:
        busy = result[road]["busy"]
        assert set(busy["statuses"]) <= {"200", "503"}
        assert busy["wrong"] == busy["without_retry_after"] == 0
        assert busy["statuses"]["200"] == busy["accepted"] > 0
        assert result[road]["alone"]["statuses"] == {"200": 4}
        assert result[road]["alone"]["wrong"] == 0
        if road == "tensors-by-8":
            continue
        # LitServe turns nobody away, and its answers are as right
        rival = result[road]["litserve"]
        assert rival["statuses"] == {"200": rival["accepted"]}
        assert rival["accepted"] > 0
        assert rival["wrong"] == 0
    assert set(result["overload"]["statuses"]) <= {"200", "503"}
    assert result["overload"]["wrong"] == 0
    assert result["seconds_to_ready"] > 0
    assert result["memory_mib_at_end"] > 50
    said = markdown(result)
    assert "of the bare road" in said
    assert "times LitServe's" in said
