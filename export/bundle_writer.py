"""Puts a bundle together in a folder beside its place and moves it there when it is whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from export.parity_page import rejection_page, to_markdown
from export.parity_report import REPORT_JSON, REPORT_MARKDOWN, ArtefactVerdict, ParityReport
from export.prove import parity_of, proven
from pipeline.bundle import describe_file
from pipeline.errors import InputError
from pipeline.manifest import MANIFEST_NAME, Artefact, BundleFile, Manifest, Rejected, Unproven, sealed
from pipeline.storage import TEMPORARY, write_whole

ARTEFACTS, UNPROVEN, REJECTED = "artefacts", "unproven", "rejected"
REPORT = "report.json"
"""Beside each rejected artefact: what was found of it and of the links it stands on."""


def check_place(out: Path) -> None:
    """Refuse to write over anything but an older bundle.

    Raises:
        InputError: `out` is a file, or a folder that holds something else.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_NAME).is_file()):
        raise InputError(f"{out} exists and is no bundle, so it is not replaced: choose another --out.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`; what is left of it is deleted in the end.

    Raises:
        InputError: It cannot be made.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f"{TEMPORARY}{out.name}-"))
    except OSError as error:
        raise InputError(
            f"Cannot write into {out.parent}: {error.strerror}. Choose another --out."
        ) from error
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, out: Path) -> None:
    """Give a finished folder its name; an older one of that name goes only when the new one is there."""
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f"{TEMPORARY}old-"))
    try:
        if out.exists():
            out.rename(old / out.name)
        try:
            folder.rename(out)
        except OSError:
            if (old / out.name).exists():
                (old / out.name).rename(out)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def settle(
    folder: Path, built: Sequence[Unproven], report: ParityReport
) -> tuple[tuple[Artefact, ...], tuple[Rejected, ...], tuple[Unproven, ...]]:
    """Move each built artefact to where its verdict sends it, and write the reports.

    Args:
        folder: The bundle's; the files of `built` lie in it.
        built: What was built, or was unproven before.
        report: With a verdict for each, and for those that could not be built.

    Returns:
        What goes into the manifest: proven, rejected and unproven artefacts, in the order given.
    """
    write_whole(folder / REPORT_JSON, report.model_dump_json(indent=1).encode())
    write_whole(folder / REPORT_MARKDOWN, to_markdown(report).encode())
    written = describe_file(folder, folder / REPORT_JSON)
    artefacts, rejected, unproven = [], [], []
    for item in built:
        verdict, link = report.artefact(item.name), report.link(item.name)
        if verdict is None:
            raise ValueError(f"no verdict on {item.name}")
        if verdict.verdict == "passed" and link is not None:
            files = move(folder, item, ARTEFACTS)
            artefacts.append(proven(item, files, parity_of(link, verdict, files[0].sha256, written)))
        elif verdict.verdict == "unproven":
            files = move(folder, item, UNPROVEN)
            unproven.append(item.model_copy(update={"files": files, "reason": verdict.reason or item.reason}))
        else:
            move(folder, item, REJECTED)
            rejected.append(reject(folder, verdict, report))
    names = {item.name for item in built}
    rejected += [reject(folder, item, report) for item in report.artefacts if item.name not in names]
    return tuple(artefacts), tuple(rejected), tuple(unproven)


def reject(folder: Path, verdict: ArtefactVerdict, report: ParityReport) -> Rejected:
    """Write why an artefact was rejected beside its files, and the manifest's entry for it."""
    place = folder / REJECTED / verdict.name
    links = tuple(link for link in report.links if link.name in verdict.links)
    narrowed = report.model_copy(update={"links": links, "artefacts": (verdict,)})
    write_whole(place / REPORT, narrowed.model_dump_json(indent=1).encode())
    write_whole(place / "report.md", rejection_page(verdict, links).encode())
    useless = "not worth it: " if verdict.verdict == "not worth it" else ""
    return Rejected(
        name=verdict.name,
        reason=f"{useless}{verdict.reason or verdict.verdict}",
        report=describe_file(folder, place / REPORT),
    )


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Seal the manifest and write it; it is the last file of a bundle to appear."""
    final = sealed(manifest)
    write_whole(folder / MANIFEST_NAME, (final.model_dump_json(indent=1) + "\n").encode(), durable=True)
    return final


def move(folder: Path, item: Unproven, where: str) -> tuple[BundleFile, ...]:
    """Move an artefact's folder to `where`/NAME and describe its files anew."""
    source = (folder / item.files[0].path).parent
    target = folder / where / item.name
    if source != target:
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        source.rename(target)
    return tuple(describe_file(folder, target / Path(file.path).name) for file in item.files)
