"""Opens the folder that is deployed, and refuses it when it is not, byte for byte, what was proven."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Artefact,
    BundleFile,
    Manifest,
    content_hash,
)
from pipeline.scoring import Interval, Level, OperatingPoint

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose schema, hashes and parity hold.

    Attributes:
        folder: Where it lies.
        manifest: What it says.
    """

    folder: Path
    manifest: Manifest

    def path(self, file: BundleFile) -> Path:
        """Absolute path of one of its files."""
        return self.folder / file.path

    def artefact(self, name: str) -> Artefact:
        """The artefact of that name.

        Raises:
            InputError: There is none; the message lists those that are, and why one was rejected.
        """
        found = next((item for item in self.manifest.artefacts if item.name == name), None)
        if found is not None:
            return found
        rejected = next((item.reason for item in self.manifest.rejected if item.name == name), None)
        names = ", ".join(item.name for item in self.manifest.artefacts)
        why = f" It was rejected at export: {rejected}" if rejected else ""
        if any(item.name == name for item in self.manifest.unproven):
            why = f" It was built but not proven: run `stillface parity {self.folder}` on a machine that can run it."
        raise InputError(f"{self.folder} has no artefact {name!r}; it has {names}.{why}")

    def operating_point(self, level: Level, name: str | None = None) -> OperatingPoint:
        """An operating point for frame or for video scores; by default the bundle's default point.

        Raises:
            InputError: There is none of that name; the message lists those that are.
        """
        calibration = self.manifest.calibration
        wanted = name or calibration.default_point
        at_level = [point for point in calibration.operating_points if point.level == level]
        found = next((point for point in at_level if point.name == wanted), None)
        if found is None:
            names = ", ".join(point.name for point in at_level) or "none"
            raise InputError(f"no operating point {wanted!r} for {level} scores; there is: {names}")
        return found

    def abstain_band(self, point: OperatingPoint) -> Interval | None:
        """The band of scores too close to call, widened where needed so that it holds the point's threshold."""
        band = next((b for b in self.manifest.calibration.abstain if b.level == point.level), None)
        if band is None:
            return None
        return min(band.low, point.threshold), max(band.high, point.threshold)


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle and check everything that can be checked without running it.

    Raises:
        InputError: No manifest, another schema version, unknown or wrong entries, a file that is missing,
            changed or outside the folder, or an artefact whose parity did not pass or is of other bytes.
    """
    folder = folder.resolve()
    manifest = read_manifest(folder)
    for file in files_of(manifest):
        check_file(folder, file)
    for artefact in manifest.artefacts:
        _check_parity(folder, artefact)
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest without checking its files.

    Raises:
        InputError: It is missing, not JSON, of another schema version, has unknown or wrong entries, or was
            changed after it was sealed.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(
            f"{folder} is no bundle: it has no {MANIFEST_NAME}. Make one with `stillface export`."
        )
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}). Export the bundle again.") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema_version {version!r}, this stillface reads {SCHEMA_VERSION}: "
            "use the stillface that exported it, or export the checkpoint again."
        )
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{path}: {where}: {first['msg']}{more}. Export the bundle again.") from error
    if not manifest.id.endswith(content_hash(raw)):
        raise InputError(
            f"{path} is not as it was exported: its content does not belong to its id {manifest.id}. "
            "Copy the bundle again, or export it again."
        )
    return manifest


def files_of(manifest: Manifest) -> Iterator[BundleFile]:
    """Every file that a manifest names."""
    yield manifest.face_finder.file
    for artefact in manifest.artefacts:
        yield from artefact.files
        yield artefact.parity.report
    for unproven in manifest.unproven:
        yield from unproven.files
    for rejected in manifest.rejected:
        if rejected.report is not None:
            yield rejected.report
    yield from manifest.documents


def check_file(folder: Path, file: BundleFile) -> None:
    """Compare a file of a bundle with what the manifest says of it.

    Raises:
        InputError: It is missing, leads out of the folder (a symbolic link), or its size or hash differs.
    """
    path = folder / file.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path} leads out of the bundle {folder}; a bundle holds all its own files.")
    if not path.is_file():
        raise InputError(f"{path} is missing although the manifest names it. Copy the whole bundle again.")
    if path.stat().st_size != file.size or sha256_of(path) != file.sha256:
        raise InputError(
            f"{path} is not the file that was exported (its SHA-256 or size differs from the manifest's). "
            "Copy the bundle again, or export it again."
        )


def describe_file(folder: Path, path: Path) -> BundleFile:
    """The manifest's entry for a file that lies in a bundle's folder."""
    return BundleFile(
        path=path.relative_to(folder).as_posix(), sha256=sha256_of(path), size=path.stat().st_size
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check_parity(folder: Path, artefact: Artefact) -> None:
    if not artefact.parity.passed:
        raise InputError(
            f"{folder}: artefact {artefact.name} did not pass the parity gate; see {artefact.parity.report.path}. "
            "It must not be served: export again, or remove it from the bundle."
        )
    if artefact.parity.artefact_sha256 != artefact.files[0].sha256:
        raise InputError(
            f"{folder}: the parity of {artefact.name} was measured on another file than {artefact.files[0].path}. "
            "Run `stillface export` again."
        )
