"""Who may ask, how fast, and what happens to clients that are slow, rude or gone."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from serving.keys import add_key
from tests.servers import ServerThread, post_image, read_all, until

TIMEOUT = 60
Start = Callable[..., ServerThread]


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = {
        "user": add_key(path, "user"),
        "other": add_key(path, "other"),
        "slow": add_key(path, "slow", per_minute=3),
        "ops": add_key(path, "ops", admin=True),
    }
    return path, keys


@pytest.fixture(scope="module")
def locked(start: Start, key_file: tuple[Path, dict[str, str]]) -> ServerThread:
    return start(keys=key_file[0])


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_without_a_good_key_nothing_but_health_is_answered(
    locked: ServerThread, key_file: tuple[Path, dict[str, str]], face_png: bytes
) -> None:
    user = key_file[1]["user"]
    for headers in ({}, bearer("sf_wrong"), {"x-api-key": user[:-1]}, {"authorization": f"Basic {user}"}):
        answer = post_image(locked.url, face_png, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["type"] == "/problems/unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/bundle", "/metrics", "/openapi.json", "/v2", "/v1/jobs/x"):
        assert requests.get(locked.url + path, timeout=TIMEOUT).status_code == 401
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert requests.get(locked.url + path, timeout=TIMEOUT).status_code == 200
    for headers in (bearer(user), {"x-api-key": user}):
        assert post_image(locked.url, face_png, headers=headers).status_code == 200
    assert locked.metric("stillface_shed_total", reason="key") >= 9


def test_a_wrong_key_is_refused_before_the_body_is_read(locked: ServerThread) -> None:
    with socket.create_connection(("127.0.0.1", locked.port), TIMEOUT) as link:
        link.sendall(
            b"POST /v1/images HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
            b"x-api-key: sf_wrong\r\ncontent-length: 1000000\r\n\r\n"
        )
        # not one byte of the body was sent
        assert link.recv(4096).startswith(b"HTTP/1.1 401")


def test_rates_hold_per_key(
    locked: ServerThread, key_file: tuple[Path, dict[str, str]], face_png: bytes
) -> None:
    slow, user = bearer(key_file[1]["slow"]), bearer(key_file[1]["user"])
    codes = [
        requests.get(f"{locked.url}/v1/bundle", headers=slow, timeout=TIMEOUT).status_code for _ in range(3)
    ]
    assert codes == [200, 200, 200]
    over = post_image(locked.url, face_png, headers=slow)
    assert over.status_code == 429
    assert over.json()["type"] == "/problems/rate-limited"
    assert 1 <= int(over.headers["retry-after"]) <= 20
    assert requests.get(f"{locked.url}/v1/bundle", headers=user, timeout=TIMEOUT).status_code == 200


def test_only_an_admin_reloads(locked: ServerThread, key_file: tuple[Path, dict[str, str]]) -> None:
    def reload(key: str) -> requests.Response:
        return requests.post(f"{locked.url}/admin/reload", headers=bearer(key), timeout=TIMEOUT)

    assert reload(key_file[1]["user"]).status_code == 403
    assert reload(key_file[1]["ops"]).status_code == 200


def test_a_job_is_seen_by_its_own_key_only(
    locked: ServerThread, key_file: tuple[Path, dict[str, str]], small_clip: Path
) -> None:
    mine, other = bearer(key_file[1]["user"]), bearer(key_file[1]["other"])
    made = requests.post(
        f"{locked.url}/v1/videos?frames=1",
        data=small_clip.read_bytes(),
        headers={**mine, "content-type": "video/mp4", "prefer": "respond-async"},
        timeout=TIMEOUT,
    )
    address = locked.url + made.headers["location"]
    assert requests.get(address, headers=other, timeout=TIMEOUT).status_code == 404
    assert requests.delete(address, headers=other, timeout=TIMEOUT).status_code == 404
    assert requests.get(address, headers=mine, timeout=TIMEOUT).status_code == 200
    until(lambda: requests.get(address, headers=mine, timeout=TIMEOUT).json()["state"] == "done")


def test_a_body_that_trickles_in_is_given_up(start: Start) -> None:
    hasty = start(body_timeout_s=0.5, body_bytes_per_s=1_000_000)
    with socket.create_connection(("127.0.0.1", hasty.port), TIMEOUT) as link:
        link.sendall(
            b"POST /v1/images HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\n"
        )
        started = time.monotonic()
        for _ in range(5):
            link.sendall(b"x")
            time.sleep(0.05)
        answer = read_all(link)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"/problems/too-slow" in answer
        assert b"connection: close" in answer
        assert time.monotonic() - started < 10
    assert hasty.metric("stillface_shed_total", reason="slow") == 1
    assert hasty.service.road.images.inside == 0


def test_headers_that_trickle_in_are_given_up(start: Start, face_png: bytes) -> None:
    hasty = start(header_timeout_s=0.5)
    with socket.create_connection(("127.0.0.1", hasty.port), TIMEOUT) as link:
        link.sendall(b"POST /v1/images HTTP/1.1\r\nhost: x\r\n")
        link.settimeout(10)
        assert link.recv(4096) == b""
    # a second request on a connection that was idle for longer is served
    link = http.client.HTTPConnection("127.0.0.1", hasty.port, timeout=TIMEOUT)
    for _ in range(2):
        link.request("POST", "/v1/images", face_png, {"content-type": "image/png"})
        assert link.getresponse().read()
        time.sleep(0.8)
    link.close()


def test_too_many_uploads_at_once(start: Start, face_png: bytes) -> None:
    small = start(max_uploads=1)
    with socket.create_connection(("127.0.0.1", small.port), TIMEOUT) as link:
        link.sendall(
            b"POST /v1/images HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\nx"
        )
        until(lambda: post_image(small.url, face_png).status_code == 503)
        busy = post_image(small.url, face_png)
        assert busy.headers["retry-after"] == "1"
    until(lambda: post_image(small.url, face_png).status_code == 200)


def test_a_client_that_leaves_takes_its_work_along(start: Start, face_png: bytes) -> None:
    quiet = start()
    release, entered = asyncio.Event(), asyncio.Event()
    batcher = quiet.service.engines.current.batcher
    real = batcher.run

    async def held(crops: Any) -> Any:
        entered.set()
        await release.wait()
        return await real(crops)

    batcher.run = held  # type: ignore[method-assign]
    with socket.create_connection(("127.0.0.1", quiet.port), TIMEOUT) as link:
        head = (
            "POST /v1/images HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
            f"content-length: {len(face_png)}\r\n\r\n"
        )
        link.sendall(head.encode() + face_png)
        until(entered.is_set)
        assert quiet.service.road.images.inside == 1
    until(lambda: quiet.service.road.images.inside == 0)
    batcher.run = real  # type: ignore[method-assign]
    assert post_image(quiet.url, face_png).status_code == 200


def test_a_client_that_leaves_a_stream_ends_the_decoder(start: Start, clip: Path) -> None:
    quiet = start()
    data = clip.read_bytes()
    before = len(children())
    with socket.create_connection(("127.0.0.1", quiet.port), TIMEOUT) as link:
        head = (
            "POST /v1/videos?frames=100 HTTP/1.1\r\nhost: x\r\ncontent-type: video/mp4\r\n"
            f"accept: application/x-ndjson\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        link.sendall(head.encode() + data)
        assert link.recv(4096).startswith(b"HTTP/1.1 200")
        assert quiet.service.road.videos.inside == 1
    until(lambda: quiet.service.road.videos.inside == 0)
    until(lambda: len(children()) <= before)
    assert requests.get(f"{quiet.url}/readyz", timeout=TIMEOUT).status_code == 200


def children() -> list[int]:
    """Video processes of this test process: at most a spare one per server is left."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_text()
        except OSError:
            continue
        if parent == os.getpid() and "serving.video_child" in command:
            found.append(int(entry.name))
    return found


def test_uploads_are_not_kept(
    server: ServerThread, small_clip: Path, face_png: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder of its own, for other processes come and go in the system's.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    big = face_png + b"\0" * (2 << 20)
    pictures = requests.post(f"{server.url}/v1/images", files={"file": ("a.png", big)}, timeout=TIMEOUT)
    videos = requests.post(
        f"{server.url}/v1/videos?frames=1",
        files={"file": ("a.mp4", small_clip.read_bytes())},
        timeout=TIMEOUT,
    )
    assert (pictures.status_code, videos.status_code) == (200, 200)
    assert list(tmp_path.iterdir()) == []


def test_other_origins_get_no_word(server: ServerThread, start: Start) -> None:
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    closed = requests.options(f"{server.url}/v1/images", headers=asked, timeout=TIMEOUT)
    assert "access-control-allow-origin" not in closed.headers
    opened = start(cors_origins=("https://example.org",))
    allowed = requests.options(f"{opened.url}/v1/images", headers=asked, timeout=TIMEOUT)
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    other = requests.options(
        f"{opened.url}/v1/images", headers={**asked, "origin": "https://example.com"}, timeout=TIMEOUT
    )
    assert "access-control-allow-origin" not in other.headers


def test_what_the_log_says(server: ServerThread, face_png: bytes, caplog: pytest.LogCaptureFixture) -> None:
    from serving.logs import JsonFormatter

    with caplog.at_level("INFO", "stillface.serving"):
        post_image(server.url, face_png, headers={"x-request-id": "find-me"})
        until(lambda: any("find-me" in str(getattr(record, "fields", "")) for record in caplog.records))
    record = next(item for item in caplog.records if "find-me" in str(getattr(item, "fields", "")))
    line = json.loads(JsonFormatter().format(record))
    assert (line["method"], line["path"], line["status"], line["request_id"]) == (
        "POST",
        "/v1/images",
        200,
        "find-me",
    )
    assert line["ms"] > 0
