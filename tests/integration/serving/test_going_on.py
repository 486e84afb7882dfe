"""Overload, failing runtimes, swapped bundles, stopping: no request is lost, none is answered wrongly."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from pipeline.bundle import open_bundle
from pipeline.manifest import MANIFEST_NAME
from pipeline.runtime import Answer, Crops
from pipeline.runtime_onnx import OnnxRuntime, OnnxRuntimeBeside
from serving.settings import cores
from tests.bundles import write_bundle, write_checkpoint, write_manifest
from tests.servers import ServerProcess, ServerThread, post_image, until

Start = Callable[..., ServerThread]
TIMEOUT = 60


def test_overload_is_told_at_once_and_nothing_is_lost(start: Start, face_png: bytes) -> None:
    small = start(max_inflight=2)
    expected = post_image(small.url, face_png).json()["score"]
    slowest_refusal = 0.0

    def ask(_: int) -> int:
        nonlocal slowest_refusal
        started = time.monotonic()
        answer = post_image(small.url, face_png)
        if answer.status_code == 200:
            assert answer.json()["score"] == pytest.approx(expected, abs=1e-6)
        else:
            assert answer.json()["type"] == "/problems/overloaded"
            assert answer.headers["retry-after"] == "1"
            slowest_refusal = max(slowest_refusal, time.monotonic() - started)
        return answer.status_code

    with ThreadPoolExecutor(12) as clients:
        codes = Counter(clients.map(ask, range(80)))
    assert set(codes) == {200, 503}
    assert codes.total() == 80
    assert small.metric("stillface_shed_total", reason="requests") == codes[503]
    assert small.service.road.images.inside == 0


def test_many_at_once_get_their_own_answers(server: ServerThread, bundle_folder: Path) -> None:
    """Crops of many requests share batches; each gets the logits that it gets alone."""
    before = server.metric("stillface_batch_crops_count")
    asked = _ask_at_once(server, bundle_folder)
    assert server.metric("stillface_batch_crops_count") - before < asked


@pytest.mark.skipif(cores() < 2, reason="one core has nothing to share")
def test_a_slow_network_answers_one_for_each_thread_at_once(
    start: Start, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every network is slow here; the crops of several requests run beside each other in one copy."""
    monkeypatch.setattr("serving.copies._QUICK_S", 0.0)
    server = start(runtime_threads=None, max_batch=None)
    ways = {lane.runtime for lane in server.service.engines.current.batcher.lanes}
    assert len(ways) == min(cores(), 8)
    assert {type(way) for way in ways} == {OnnxRuntime, OnnxRuntimeBeside}
    before = server.metric("stillface_batch_crops_count")
    asked = _ask_at_once(server, bundle_folder)
    assert server.metric("stillface_batch_crops_count") - before == asked


def _ask_at_once(server: ServerThread, bundle_folder: Path) -> int:
    """Send crops from many clients, check the answers against the bare runtime's, return how many crops."""
    bundle = open_bundle(bundle_folder)
    runtime = OnnxRuntime(bundle.folder / "model.onnx", threads=1)
    side = bundle.manifest.network.image_size
    crops = np.random.default_rng(2).integers(0, 256, (48, side, side, 3), dtype=np.uint8)
    expected = np.concatenate([runtime.run(crop[None]).logits for crop in crops])
    tensor: dict[str, Any] = {"name": "crops", "shape": [1, side, side, 3], "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": side * side * 3}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]}).encode()

    def ask(place: int) -> list[float]:
        answer = requests.post(
            f"{server.url}/v2/models/stillface/infer",
            data=head + crops[place].tobytes(),
            headers={"inference-header-content-length": str(len(head))},
            timeout=TIMEOUT,
        )
        return list(answer.json()["outputs"][0]["data"])

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, range(len(crops))))
    np.testing.assert_allclose(answers, expected, atol=2e-5)
    return len(crops)


@pytest.mark.parametrize("how", ["throws", "hangs"])
def test_a_runtime_that_fails_is_replaced(
    start: Start, face_png: bytes, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The real runtime, but for one call that throws or hangs, and a replacement that takes its time."""
    flawed, repaired, stuck = threading.Event(), threading.Event(), threading.Event()
    real_run, real_open = OnnxRuntime.run, OnnxRuntime.__init__

    def run(self: OnnxRuntime, crops: Crops) -> Answer:
        if flawed.is_set():
            flawed.clear()
            if how == "hangs":
                stuck.wait(30)
            raise RuntimeError("device lost")
        return real_run(self, crops)

    def reopen(self: OnnxRuntime, *args: Any, **options: Any) -> None:
        repaired.wait(30)
        real_open(self, *args, **options)

    server = start(infer_timeout_s=0.5)
    expected = post_image(server.url, face_png).json()["score"]
    monkeypatch.setattr(OnnxRuntime, "run", run)
    monkeypatch.setattr(OnnxRuntime, "__init__", reopen)
    try:
        flawed.set()
        failed = post_image(server.url, face_png)
        assert failed.status_code == 503
        assert failed.json()["type"] == "/problems/runtime-failed"
        assert "retry-after" in failed.headers
        assert requests.get(f"{server.url}/readyz", timeout=TIMEOUT).status_code == 503
        assert requests.get(f"{server.url}/healthz", timeout=TIMEOUT).status_code == 200
        assert post_image(server.url, face_png).status_code == 503
        repaired.set()
        until(lambda: requests.get(f"{server.url}/readyz", timeout=TIMEOUT).status_code == 200)
        assert post_image(server.url, face_png).json()["score"] == pytest.approx(expected, abs=1e-6)
        reason = "hung" if how == "hangs" else "threw"
        assert server.metric("stillface_runtime_replacements_total", reason=reason) == 1
    finally:
        repaired.set()
        stuck.set()


def test_readiness_rests_on_a_real_inference(start: Start) -> None:
    server = start(ready_window_s=0.6)
    batcher = server.service.engines.current.batcher
    first = batcher.last_success
    time.sleep(1.0)
    # nobody asked anything, and yet it was tried
    assert batcher.last_success > first
    assert requests.get(f"{server.url}/readyz", timeout=TIMEOUT).status_code == 200


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of another network, whose scores differ."""
    folder = tmp_path_factory.mktemp("other")
    return write_bundle(folder / "bundle", write_checkpoint(folder / "01_0.5000_val.pth", seed=4))


def test_a_bundle_is_swapped_without_losing_a_request(
    start: Start, bundle_folder: Path, other_bundle: Path, face_png: bytes, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle_folder)
    server = start(bundle=link)
    ids = [open_bundle(folder).manifest.id for folder in (bundle_folder, other_bundle)]
    seen: list[tuple[str, float]] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answer = post_image(server.url, face_png)
            assert answer.status_code == 200, answer.text
            body = answer.json()
            seen.append((body["bundle"]["id"], round(body["score"], 4)))

    with ThreadPoolExecutor(3) as clients:
        asking = [clients.submit(keep_asking) for _ in range(3)]
        try:
            until(lambda: len(seen) > 5)
            fresh = tmp_path / "fresh"
            fresh.symlink_to(other_bundle)
            fresh.replace(link)
            swapped = requests.post(f"{server.url}/admin/reload", timeout=TIMEOUT)
            assert swapped.json()["id"] == ids[1]
            count = len(seen)
            until(lambda: len(seen) > count + 8)
        finally:
            stop.set()
        for future in asking:
            future.result()
    assert {identity for identity, _ in seen} == set(ids)
    # one score per bundle: no answer mixes the two
    assert len(set(seen)) == 2
    assert seen[-1][0] == ids[1]


def test_a_corrupt_bundle_is_not_swapped_in(
    start: Start, bundle_folder: Path, face_png: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    server = start(bundle=folder)
    expected = post_image(server.url, face_png).json()["score"]
    graph = bytearray((folder / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    # a new file, as a deployment would write it; the one in service stays open
    (folder / "model.onnx.new").write_bytes(bytes(graph))
    (folder / "model.onnx.new").replace(folder / "model.onnx")
    refused = requests.post(f"{server.url}/admin/reload", timeout=TIMEOUT)
    assert refused.status_code == 409
    assert "is not the file that was exported" in refused.json()["detail"]
    after = post_image(server.url, face_png).json()
    assert after["score"] == pytest.approx(expected, abs=1e-6)
    assert requests.get(f"{server.url}/readyz", timeout=TIMEOUT).status_code == 200


def damage_hash(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "model.onnx").write_bytes(bytes(data))


def damage_parity(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["artefacts"][0]["parity"]["passed"] = False
    write_manifest(folder, manifest)


def damage_schema(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**manifest, "colour": "red"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_hash, "model.onnx is not the file that was exported"),
        (damage_parity, "did not pass the parity gate"),
        (damage_schema, "colour"),
        (shutil.rmtree, "is no bundle"),
    ],
)
def test_a_corrupt_bundle_is_not_started(
    run_script: Callable[..., tuple[int, str, str]],
    bundle_folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    damage(folder)
    code, _, err = run_script("stillface.py", "serve", folder, "--port", 0)
    assert code == 2
    assert words in err


def test_a_graph_that_is_none_is_not_started(
    run_script: Callable[..., tuple[int, str, str]], bundle_folder: Path, tmp_path: Path
) -> None:
    """Every hash holds, but what was sealed is no network."""
    from pipeline.bundle import describe_file

    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    (folder / "model.onnx").write_bytes(b"nothing")
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    file = describe_file(folder, folder / "model.onnx").model_dump()
    manifest["artefacts"][0]["files"] = [file]
    manifest["artefacts"][0]["parity"]["artefact_sha256"] = file["sha256"]
    write_manifest(folder, manifest)
    code, _, err = run_script("stillface.py", "serve", folder, "--port", 0)
    assert code == 2
    assert "This machine can run no artefact" in err


def test_an_address_in_use(
    run_script: Callable[..., tuple[int, str, str]], bundle_folder: Path, server: ServerThread
) -> None:
    code, _, err = run_script("stillface.py", "serve", bundle_folder, "--port", server.port)
    assert code == 2
    assert "Cannot listen" in err


def test_signals(bundle_folder: Path, face_png: bytes, small_clip: Path) -> None:
    """SIGHUP reloads; SIGTERM finishes what was started, says it is not ready meanwhile, and ends with 0."""
    process = ServerProcess(bundle_folder, "--set", "drain_delay_s=2", "--set", "runtime_threads=1")
    try:
        assert post_image(process.url, face_png).status_code == 200
        process.send(signal.SIGHUP)
        until(lambda: any(line["message"] == "bundle swapped" for line in process.log))
        answers: list[requests.Response] = []

        def long_request() -> None:
            answers.append(
                requests.post(
                    f"{process.url}/v1/videos?frames=12",
                    data=small_clip.read_bytes(),
                    headers={"content-type": "video/mp4"},
                    timeout=TIMEOUT,
                )
            )

        working = threading.Thread(target=long_request)
        working.start()
        time.sleep(0.1)
        process.send(signal.SIGTERM)
        until(lambda: any(line["message"] == "draining" for line in process.log))
        assert requests.get(f"{process.url}/readyz", timeout=TIMEOUT).status_code == 503
        assert post_image(process.url, face_png).status_code == 200
        working.join(TIMEOUT)
        assert answers[0].status_code == 200
        assert process.wait() == 0
        assert process.log[-1]["message"] == "stopped"
        with pytest.raises(requests.ConnectionError):
            requests.get(process.url, timeout=5)
    finally:
        process.kill()
