"""The folder of one run: its name, what is written before step 1, and which run a command resumes."""

from __future__ import annotations

import fcntl
import glob
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.storage import TEMPORARY, write_whole
from training.checkpoint import started
from training.config import Settings, Stage

STATE = Path("state") / "last.pt"
DONE = "done.json"
# Settings that change how fast or where a run goes, not what it computes (another number of threads changes the
# order of sums, so that the last bits differ). The data may have moved; its hash is compared.
_FREE = frozenset(
    {
        "data",
        "output",
        "workers",
        "threads",
        "log_every_steps",
        "save_every_steps",
        "val_batch_size",
        "keep_best",
    }
)
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow", "scikit-learn")


def choose_folder(settings: Settings, stage: Stage, name: str, resume: str) -> tuple[Path, bool]:
    """The folder to write to, and whether it holds a run to go on with.

    Args:
        settings: Settings of the run to start.
        stage: Its stage.
        name: The `-n NAME` of the command.
        resume: `auto` goes on with the newest run of that name if it is unfinished, `never` starts afresh, else a
            run folder to go on with.

    Raises:
        InputError: the folder to resume is no run, is finished, or was made with other settings.
    """
    if not name or "/" in name or name.startswith("."):
        raise InputError(
            f"-n {name!r}: expected a plain name such as pretrain_mobilevit; the parent is --set output=FOLDER"
        )
    if resume == "never":
        return _fresh(settings.output, name), False
    if resume == "auto":
        saved = [run for run in _runs(settings.output, name) if (run / STATE).is_file()]
        if not saved or finished(saved[-1]):
            return _fresh(settings.output, name), False
        folder = saved[-1]
    else:
        folder = Path(resume)
        _check_resumable(folder)
    check_same_settings(folder, settings, stage)
    return folder, True


def finished(folder: Path) -> bool:
    """Whether the run reached its last epoch."""
    return (folder / DONE).is_file()


def check_same_settings(folder: Path, settings: Settings, stage: Stage) -> None:
    """Refuse to go on with a run under settings that change what it computes.

    Raises:
        InputError: another stage or differing settings, all of them named.
    """
    saved = _read_json(folder / "config.json")
    mine = json.loads(settings.model_dump_json())
    saved_stage = saved.pop("stage", None)
    differing = [
        f"{key}: {saved.get(key)!r} there, {value!r} now"
        for key, value in mine.items()
        if key not in _FREE and saved.get(key) != value
    ]
    if saved_stage != stage:
        differing.insert(0, f"stage: {saved_stage} there, {stage} now")
    if differing:
        raise InputError(
            f"{folder} is an unfinished run with other settings ({'; '.join(differing)}); give it those "
            "settings to go on, or start afresh with --resume never"
        )


def write_opening(folder: Path, settings: Settings, stage: Stage, provenance: dict[str, Any]) -> None:
    """Write the resolved settings and the provenance before step 1."""
    config = {"stage": stage, **json.loads(settings.model_dump_json())}
    write_whole(folder / "config.json", _json(config))
    write_whole(folder / "run.json", _json(provenance))


def go_on(folder: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance of a resumed run: what it began with, and the versions and command it goes on with.

    Raises:
        InputError: the prepared data are not those the run began with.
    """
    begun = read_provenance(folder)
    if begun.get("data_hash") != provenance["data_hash"]:
        raise InputError(
            f"{folder} began with other data (hash {begun.get('data_hash')}, now {provenance['data_hash']}): the "
            "prepared folder was changed or exchanged. Put it back to go on, or start afresh with --resume never"
        )
    changing = {key: provenance[key] for key in ("started", "command", "git", "versions")}
    begun["resumed"] = [*begun.get("resumed", []), changing]
    write_whole(folder / "run.json", _json(begun))
    return begun


def read_provenance(folder: Path) -> dict[str, Any]:
    """What `write_opening` kept of a run's origins.

    Raises:
        InputError: the file is missing or damaged.
    """
    return _read_json(folder / "run.json")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a run folder; the claim ends with this process, however it ends.

    What a killed process left half-written in it is deleted.

    Raises:
        InputError: another process is writing there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}); choose --set output=FOLDER"
        ) from error
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another process is at work on this run; wait for it, or start afresh with --resume never"
            ) from error
        except OSError:
            pass  # a file system without locks
        for left in folder.rglob(f"{TEMPORARY}*"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def write_closing(folder: Path, result: dict[str, Any]) -> None:
    """Mark the run as finished."""
    write_whole(folder / DONE, _json(result))


def provenance_of(data_hash: str) -> dict[str, Any]:
    """Versions, revision, data and command: what it takes to tell where a checkpoint came from."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": git_revision(),
        "data_hash": data_hash,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version_of(name) for name in _PACKAGES},
    }


def version_of(package: str) -> str | None:
    """Installed version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The checkout's commit, with `-dirty` where tracked files were changed; None outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # noqa: S607
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _runs(output: Path, name: str) -> list[Path]:
    # NAME_YYYYmmdd-HHMMSS sorts by time; the pattern keeps NAME from matching NAME_other
    stamp = "[0-9]" * 8 + "-" + "[0-9]" * 6
    found = [path for path in output.glob(f"{glob.escape(name)}_{stamp}*") if path.is_dir()]
    return sorted(found, key=started)


def _fresh(output: Path, name: str) -> Path:
    stem = f"{name}_{time.strftime('%Y%m%d-%H%M%S')}"
    folder = output / stem
    attempt = 1
    while folder.exists():
        attempt += 1
        folder = output / f"{stem}-{attempt}"
    return folder


def _check_resumable(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"--resume {folder}: not a run folder (no config.json); expected auto, never, or a folder "
            "such as output/NAME_TIME"
        )
    if finished(folder):
        raise InputError(f"--resume {folder}: that run is finished; start another with --resume never")
    if not (folder / STATE).is_file():
        raise InputError(
            f"--resume {folder}: stopped before its first save, nothing to resume; use --resume never"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); start afresh with --resume never, or restore that file"
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected a JSON object; start afresh with --resume never, or restore that file"
        )
    return content


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
