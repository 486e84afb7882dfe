"""Fixtures for training runs of seconds: a prepared folder of drawn faces, tiny networks, the real command line."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InputError
from tests.bundles import write_bundle, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]

TINY: dict[str, Any] = {
    "student": "test_efficientnet",
    "image_size": 32,
    "pretrained": "none",
    "dropout": 0.3,
    "teacher": "test_efficientnet",
    "teacher_image_size": 48,
    "teacher_pretrained": "none",
    "teacher_drop_path": 0.0,
    "min_teacher_auc": 0.0,
    "pretrained_student_weights": "none",
    "epochs": 2,
    "batch_size": 4,
    "val_batch_size": 8,
    "lr": 0.01,
    "log_every_steps": 1,
    "save_every_steps": 2,
    "threads": 1,
    "workers": 0,
    "device": "cpu",
}
"""Settings of a run with 3 steps in an epoch."""


def store_faces(folder: Path, counts: dict[str, int]) -> Path:
    """Write a prepared folder with so many real faces per split, two frames to a video."""
    from tests.drawn_faces import stored_face
    from training.index import write_index

    numbered = [(split, number) for split, count in counts.items() for number in range(count)]
    records = [
        stored_face(
            folder,
            seed,
            split=split,  # type: ignore[arg-type]
            video=f"{split}/{number // 2}",
            name=f"{split}_{number}",
            store="jpeg",
            size=(96, 104),
            face=(24, 20, 72, 84),
        )
        for seed, (split, number) in enumerate(numbered)
    ]
    write_index(folder, records)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    """Tests send Ctrl-C to processes they start; under `nohup make test &` those would inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: six drawn faces to train on, four to validate on."""
    return store_faces(tmp_path_factory.mktemp("prepared"), {"train": 6, "val": 4})


@pytest.fixture
def store() -> Callable[[Path, dict[str, int]], Path]:
    """`store_faces`, for folders of another make."""
    return store_faces


@pytest.fixture
def tiny(prepared: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes the settings of a tiny run with changes; puts torch back to how it was afterwards."""
    import torch

    from training.config import Settings

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    def make(**changes: Any) -> Settings:
        places = {"data": prepared, "output": tmp_path / "output"}
        return Settings.model_validate({**TINY, **places, **changes})

    yield make
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def written(prepared: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny run's config file, with changes, and returns its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "config.json"
        content = {**TINY, "data": str(prepared), "output": "output", **changes}
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts one of the repository's scripts in its own process, in `tmp_path`, as a person would."""

    def start(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / script), *map(str, arguments)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
            **options,
        )

    return start


@pytest.fixture
def run_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs one of the repository's scripts in this process, which saves seconds of imports.

    Returns exit code, stdout and stderr; what escapes the script escapes here too.
    """

    def run(script: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture(scope="session")
def portraits() -> list[NDArray[np.uint8]]:
    """Real faces: the first frames of two clips, RGB 1280x720. They are third-party files, fetched once."""
    from pipeline import assets
    from pipeline.video import sample_frames

    try:
        clips = [assets.fetch(name) for name in ("clip_01", "clip_03")]
    except InputError as error:
        pytest.skip(f"needs third-party files that cannot be fetched here: {error}")
    return [next(iter(sample_frames(clip, 1))).image for clip in clips]


@pytest.fixture(scope="session")
def clip() -> Path:
    """A video of a speaking face, 1280x720."""
    from pipeline import assets

    try:
        return assets.fetch("clip_01")
    except InputError as error:
        pytest.skip(f"needs third-party files that cannot be fetched here: {error}")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small random network whose scores differ from face to face."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "01_0.5000_val.pth")


@pytest.fixture(scope="session")
def bundle_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that network; not to be changed, copy it for that."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "bundle", checkpoint)


@pytest.fixture(scope="session")
def exported_bundle(checkpoint: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `stillface export` makes of that network, as onnx alone; not to be changed, copy it for that."""
    from rich.console import Console

    from export.exporter import ExportSettings, export_bundle
    from export.formats import parse_formats

    out = tmp_path_factory.mktemp("exported") / "bundle"
    settings = ExportSettings(checkpoint, out, parse_formats("onnx"), prepared, images=24, threads=1)
    export_bundle(settings, Console(quiet=True))
    return out
