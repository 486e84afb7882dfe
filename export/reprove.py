"""Measures a bundle's stored files again, on this machine: for GPUs that the export had not, and for doubts.

A bundle keeps PyTorch's answers to images that every machine can draw again, so that this needs neither the
checkpoint nor the faces. Faces may be given; then the fp32 ONNX file, once it agrees with the stored answers, stands
in for PyTorch unless the checkpoint is given too.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from export.bundle_writer import ARTEFACTS, REJECTED, move, new_folder, put_in_place, reject, write_manifest
from export.differences import Unsure
from export.facts import gates, machine, versions
from export.formats import REFERENCE
from export.labelled_crops import LabelledCrops, gather
from export.model_card import model_card
from export.parity_chain import PYTORCH, ParityChain, run_in_batches
from export.parity_inputs import ParityInputs, build_inputs, digest
from export.parity_page import to_markdown, verdict_table
from export.parity_report import (
    ArtefactVerdict,
    ParityReport,
    ShownCrops,
    read_parity,
    stored_unsure,
)
from export.prove import ONNX_OFF, Opened, as_unproven, parity_of, prove, prove_with, proven
from export.rounding import doubt_of
from export.torch_runtimes import EagerRuntime, answer_all
from pipeline.bundle import Bundle, describe_file, open_bundle
from pipeline.errors import InputError, NotProvenError
from pipeline.manifest import Artefact, Manifest, Unproven
from pipeline.runtime import Answer
from pipeline.runtime_onnx import OnnxRuntime
from pipeline.storage import write_whole
from training.checkpoint import load_detector
from training.index import Split
from training.networks import Detector

_MORE_NOISE_DB = 3.0
MEASURED_AGAIN = "measured_again"


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """What a bundle is measured with.

    Attributes:
        bundle: Its folder.
        checkpoint: The file it was exported from; None takes the bundle's own reference.
        data: Prepared folder whose faces are shown; None shows drawn images only.
        split, images, seed: Which faces, as for an export.
        threads: CPU threads; None for all cores.
        write: Put verdicts into the bundle: what passes for the first time may be served from now on, what fails is
            moved to `rejected`.
    """

    bundle: Path
    checkpoint: Path | None = None
    data: Path | None = None
    split: Split = "val"
    images: int = 300
    seed: int = 5
    threads: int | None = None
    write: bool = True


def prove_bundle(settings: ProofSettings, console: Console) -> ParityReport:
    """Measure every artefact of a bundle, those that are not proven yet too.

    Raises:
        InputError: No sound bundle, or a checkpoint or data that do not belong to it.
        NotProvenError: An artefact does not do what was trained.
    """
    start = time.perf_counter()
    bundle = open_bundle(settings.bundle)
    before = read_parity(bundle.folder)
    labelled = _faces(settings, bundle.manifest)
    chain, label = _chain(settings, bundle, before, labelled)
    opened = Opened()
    verdicts = [_onnx(chain, bundle, opened, settings.threads)]
    graph = bundle.path(bundle.artefact(REFERENCE).files[0])
    items = [as_unproven(item) for item in bundle.manifest.artefacts if item.name != REFERENCE]
    if verdicts[0].verdict == "passed":
        for item in (*items, *bundle.manifest.unproven):
            with console.status(item.name):
                verdict = prove(chain, item, bundle.folder, opened, graph=graph, threads=settings.threads)
                verdicts.append(_worse_than_at_export(verdict, chain, before))
    report = _report(bundle.manifest, chain, label, verdicts, settings, before, time.perf_counter() - start)
    console.print(verdict_table(report), markup=False, highlight=False)
    for verdict in verdicts:
        if verdict.reason:
            console.print(
                f"{verdict.name}: {verdict.verdict}. {verdict.reason}", markup=False, highlight=False
            )
    if settings.write:
        _write(bundle, report, console)
    _refuse_broken(report, settings)
    return report


def _faces(settings: ProofSettings, manifest: Manifest) -> LabelledCrops | None:
    if settings.data is None:
        return None
    size = manifest.network.image_size
    return gather(settings.data, size, split=settings.split, images=settings.images, seed=settings.seed)


def _chain(
    settings: ProofSettings, bundle: Bundle, before: ParityReport, labelled: LabelledCrops | None
) -> tuple[ParityChain, str]:
    """The reference's answers: PyTorch's where the checkpoint is given, else the stored ones."""
    inputs = build_inputs(bundle.manifest.network.image_size, labelled)
    drawn = inputs.crops[inputs.labelled_count :]
    if digest(drawn) != before.shown.drawn_sha256:
        raise InputError(
            f"{bundle.folder} was proven on other drawn images than this stillface draws: use the version "
            "that exported it, or export again."
        )
    manifest, detector = bundle.manifest, None
    if settings.checkpoint is not None:
        detector = _detector(settings.checkpoint, manifest)
        eager = EagerRuntime(detector)
        answer, label = answer_all(eager, inputs.crops), eager.label
    else:
        answer, label = _stored(bundle, inputs, before, settings.threads)

    def stored(places: NDArray[np.int64]) -> Unsure:
        return before.shown.unsure.at(places - inputs.labelled_count)

    doubt = stored if detector is None else doubt_of(detector, inputs, answer)
    return ParityChain(inputs, manifest.calibration, manifest.aggregation.rule, answer, doubt=doubt), label


def _detector(path: Path, manifest: Manifest) -> Detector:
    detector, info = load_detector(path)
    if info.sha256 != manifest.training.checkpoint_sha256:
        raise InputError(
            f"{path} is not the checkpoint of this bundle: its SHA-256 is {info.sha256[:12]}…, the bundle was exported "
            f"from {manifest.training.checkpoint_sha256[:12]}…."
        )
    return detector


def _stored(
    bundle: Bundle, inputs: ParityInputs, before: ParityReport, threads: int | None
) -> tuple[Answer, str]:
    """PyTorch's stored answers for the drawn images, and for faces the fp32 ONNX file's, which they judge."""
    stored = np.array(before.shown.drawn_logits, dtype=np.float32)
    if inputs.labelled is None:
        return Answer(stored, None), f"stored answers of {before.reference}"
    path = bundle.path(bundle.artefact(REFERENCE).files[0])
    answer = run_in_batches(OnnxRuntime(path, threads=threads, optimise=False), inputs.crops)
    logits = np.concatenate((answer.logits[: inputs.labelled_count], stored))
    label = "the fp32 ONNX file for faces, PyTorch's stored answers for drawn images"
    return Answer(logits, answer.evidence), label


def _worse_than_at_export(
    verdict: ArtefactVerdict, chain: ParityChain, before: ParityReport
) -> ArtefactVerdict:
    """Break an int8 artefact that no faces prove here when even drawn images are answered with more noise than there.

    A processor without dot products of bytes saturates where the one of the export did not.
    """
    here, there = chain.links.get(verdict.name), before.link(verdict.name)
    if verdict.verdict != "unproven" or here is None or there is None:
        return verdict
    now, then = here.kinds["clouds"].sqnr_db, there.kinds["clouds"].sqnr_db
    if now is None or then is None or now > then - _MORE_NOISE_DB:
        return verdict
    link = f"{here.before} -> {verdict.name}"
    reason = f"{link}: SQNR of drawn images is {now:.1f} dB here, it was {then:.1f} dB where it was exported"
    return verdict.model_copy(update={"verdict": "broken", "reason": reason, "first_broken": link})


def _onnx(chain: ParityChain, bundle: Bundle, opened: Opened, threads: int | None) -> ArtefactVerdict:
    item = as_unproven(bundle.artefact(REFERENCE))
    path = bundle.path(item.files[0])
    chain.measure(ONNX_OFF, OnnxRuntime(path, threads=threads, optimise=False), "fp32", before=chain.label)
    return prove_with(chain, item, lambda: OnnxRuntime(path, threads=threads), opened, before=ONNX_OFF)


def _report(
    manifest: Manifest,
    chain: ParityChain,
    label: str,
    verdicts: list[ArtefactVerdict],
    settings: ProofSettings,
    before: ParityReport,
    seconds: float,
) -> ParityReport:
    inputs = chain.inputs
    kinds = list(dict.fromkeys(inputs.kinds.tolist()))
    reference = chain.answers[PYTORCH].answer.logits[inputs.labelled_count :]
    return ParityReport(
        network=manifest.network.name,
        image_size=manifest.network.image_size,
        checkpoint_sha256=manifest.training.checkpoint_sha256,
        reference=label,
        calibration=manifest.calibration,
        rule=manifest.aggregation.rule,
        shown=ShownCrops(
            counts={kind: int((inputs.kinds == kind).sum()) for kind in kinds},
            notes=() if inputs.labelled is None else inputs.labelled.notes,
            drawn_sha256=before.shown.drawn_sha256,
            drawn_logits=tuple((float(real), float(fake)) for real, fake in reference),
            drawn_unsure=stored_unsure(chain.unsure.at(slice(inputs.labelled_count, None))),
        ),
        links=tuple(chain.links.values()),
        artefacts=tuple(verdicts),
        gates=gates(),
        machine=machine(settings.threads),
        packages=versions(),
        seconds=seconds,
    )


def _write(bundle: Bundle, report: ParityReport, console: Console) -> None:
    """Replace the bundle by one with the new verdicts, where there are any."""
    promoted = [item for item in bundle.manifest.unproven if _verdict(report, item) == "passed"]
    broken = [item for item in bundle.manifest.artefacts if _verdict(report, item) == "broken"]
    useless = [
        item for item in bundle.manifest.unproven if _verdict(report, item) in ("broken", "not worth it")
    ]
    if not promoted and not broken and not useless:
        return
    if any(item.name == REFERENCE for item in broken):
        return  # nothing of the bundle can be trusted, so nothing of it is moved about
    with new_folder(bundle.folder) as folder:
        shutil.copytree(bundle.folder, folder, dirs_exist_ok=True)
        manifest = _changed(folder, bundle.manifest, report, promoted, [*broken, *useless])
        put_in_place(folder, bundle.folder)
    console.print(f"bundle {manifest.id}: {bundle.folder}", markup=False, highlight=False)


def _changed(
    folder: Path,
    manifest: Manifest,
    report: ParityReport,
    promoted: list[Unproven],
    failed: list[Artefact | Unproven],
) -> Manifest:
    written = folder / f"{MEASURED_AGAIN}.json"
    write_whole(written, report.model_dump_json(indent=1).encode())
    page = folder / f"{MEASURED_AGAIN}.md"
    write_whole(page, to_markdown(report).encode())
    gone = {item.name for item in failed} | {item.name for item in promoted}
    artefacts = [item for item in manifest.artefacts if item.name not in gone]
    rejected = list(manifest.rejected)
    for item in promoted:
        link, verdict = report.link(item.name), report.artefact(item.name)
        if link is None or verdict is None:
            raise ValueError(f"{item.name} passed without being measured")
        files = move(folder, item, ARTEFACTS)
        parity = parity_of(link, verdict, files[0].sha256, describe_file(folder, written))
        artefacts.append(proven(item, files, parity))
    for failure in failed:
        verdict = report.artefact(failure.name)
        if verdict is None:
            raise ValueError(f"no verdict on {failure.name}")
        move(folder, as_unproven(failure), REJECTED)
        rejected = [entry for entry in rejected if entry.name != failure.name]
        rejected.append(reject(folder, verdict, report))
    changed = manifest.model_copy(
        update={
            "artefacts": tuple(artefacts),
            "rejected": tuple(rejected),
            "unproven": tuple(item for item in manifest.unproven if item.name not in gone),
        }
    )
    card = folder / "model_card.md"
    card.write_text(model_card(changed), encoding="utf-8")
    kept = [file for file in manifest.documents if file.path not in (card.name, page.name)]
    documents = (*kept, describe_file(folder, card), describe_file(folder, page))
    return write_manifest(folder, changed.model_copy(update={"documents": documents}))


def _verdict(report: ParityReport, item: Artefact | Unproven) -> str | None:
    verdict = report.artefact(item.name)
    return None if verdict is None else verdict.verdict


def _refuse_broken(report: ParityReport, settings: ProofSettings) -> None:
    broken = [item for item in report.artefacts if item.verdict == "broken"]
    if any(item.name == REFERENCE for item in broken):
        raise NotProvenError(
            f"{settings.bundle}: the fp32 ONNX file does not do what was trained ({broken[0].reason}). Nothing of this "
            "bundle may be served: export the checkpoint again."
        )
    if broken:
        said = "; ".join(f"{item.name} ({item.first_broken})" for item in broken)
        what = f"moved to {settings.bundle / REJECTED}" if settings.write else "left where it is (--dry-run)"
        raise NotProvenError(f"{said}; {what}.")
