"""The CPU image's own steps, taken without Docker: what they install, and that the server runs as it would there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml
from numpy.typing import NDArray

from tests.conftest import ROOT
from tests.images import Image, read_steps
from tests.integration.serving.conftest import encoded


@pytest.fixture(scope="module")
def image(bundle_folder: Path) -> Iterator[Image]:
    """The image, with a bundle and the command line's other packages beside it, none of it to be written."""
    # pytest's own folders are closed to other users
    root = Path(tempfile.mkdtemp(prefix="stillface-image-"))
    root.chmod(0o755)
    try:
        made = Image(root)
        made.build(ROOT / "Dockerfile")
        shutil.copytree(bundle_folder, root / "bundle")
        shutil.copy(ROOT / "stillface.py", made.app)
        for package in ("training", "export"):
            shutil.copytree(ROOT / package, made.app / package)
        subprocess.run(["chmod", "-R", "a-w,a+rX", made.app, root / "bundle"], check=True)
        yield made
    finally:
        if os.getuid() != 0:
            subprocess.run(["chmod", "-R", "u+w", root], check=True)
        shutil.rmtree(root)


@pytest.mark.slow
def test_the_image_has_no_torch_and_nothing_to_train_with(image: Image) -> None:
    for name in ("torch", "torchvision", "timm", "sklearn", "matplotlib"):
        code, out = image.run("python", "-c", f"import {name}")
        assert code == 1, name
        assert "ModuleNotFoundError" in out
    code, out = image.run("python", "-c", "import onnxruntime, openvino, cv2, av, fastapi")
    assert code == 0, out


@pytest.mark.slow
def test_the_image_stays_small(image: Image) -> None:
    size = sum(path.lstat().st_size for path in (image.root / "venv").rglob("*"))
    assert size < 800e6  # 708 MB when this was written, 190 of it OpenVINO


@pytest.mark.slow
def test_it_does_not_start_without_keys(image: Image) -> None:
    code, out = image.run(*image.command[:-1], str(image.root / "bundle"))
    assert code == 2
    assert "keys.json" in out


@pytest.mark.slow
def test_a_stranger_serves_from_a_read_only_tree(image: Image, portraits: list[NDArray[np.uint8]]) -> None:
    keys = str(image.root / "keys" / "keys.json")
    code, key = image.run("python", "-m", "serving", "key", "tester", "--keys", keys)
    assert code == 0, key
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert image.command[-2:] == ["serve", "/bundle"]
    settings = {"STILLFACE_SERVE_PORT": str(port), "STILLFACE_SERVE_RUNTIME_THREADS": "1"}
    process = image.start(*image.command[:-1], str(image.root / "bundle"), **settings)
    try:
        assert process.stdout
        for line in process.stdout:
            assert line.startswith("{"), line + process.stdout.read()
            if json.loads(line)["message"] == "serving":
                break
        code, out = image.run(*image.health, **settings)
        assert code == 0, out
        picture, kind = encoded(portraits[0][::2, ::2]), {"content-type": "image/png"}
        url, known = f"http://127.0.0.1:{port}/v1/images", {"authorization": f"Bearer {key.strip()}"}
        assert requests.post(url, data=picture, headers=kind | known, timeout=60).json()["faces"]
        assert requests.post(url, data=picture, headers=kind, timeout=60).status_code == 401
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out


@pytest.mark.slow
def test_the_command_line_door_opens_without_torch(image: Image) -> None:
    code, out = image.run("python", "stillface.py", "--help")
    assert code == 0, out
    bundle, folder = str(image.root / "bundle"), str(image.app)
    code, out = image.run("python", "stillface.py", "predict", bundle, folder)
    assert code == 2
    assert "holds no picture" in out


def test_images_and_composition_agree_and_are_closed() -> None:
    composition = yaml.safe_load((ROOT / "compose.yaml").read_text())
    stages = {
        argument.split()[-1] for name, argument in read_steps(ROOT / "Dockerfile.gpu") if name == "FROM"
    }
    for name, service in composition["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"], name  # noqa: S108
        if isinstance(service["build"], dict):
            assert service["build"]["target"] in stages
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
    for path in ("Dockerfile", "Dockerfile.gpu"):
        steps = read_steps(ROOT / path)
        assert {argument for name, argument in steps if name == "USER"} == {"10001:10001"}, path
        last = [name for name, _ in steps if name in ("FROM", "USER", "HEALTHCHECK")]
        assert last[last.index("USER") - len(last) :][-1] == "HEALTHCHECK", path


def test_what_the_images_copy_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for path in ("Dockerfile", "Dockerfile.gpu"):
        for name, argument in read_steps(ROOT / path):
            if name == "COPY" and not argument.startswith("--from"):
                assert set(argument.split()[:-1]) - {"."} <= kept, path
