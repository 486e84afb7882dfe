"""Turns what was built into what may be served: an unproven artefact becomes a proven one, or is rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from export.formats import FORMATS
from export.parity_chain import ParityChain, Runs
from export.parity_gate import GATES
from export.parity_report import ArtefactVerdict, Drift, LinkReport
from export.speed_gate import WORTH, speedup
from pipeline.errors import CannotRunHereError, InputError
from pipeline.manifest import Artefact, BundleFile, Parity, Unproven
from pipeline.runtime import GivesBack, open_artefact

PROGRAM = "torch.export program"
ONNX_OFF = "onnx, optimiser off"
_NEEDS_FACES = "reduced to int8 it can only be proven on faces: give --calibration DATA"
SOME_FACES = 96
"""So many faces are shown to links that are only bounded number by number; all of them where AUC is bounded."""

_DRIFT_CROPS = 8
_WORST_LAYERS = 12

Opened = dict[str, Runs]
"""The fp32 runtimes, by artefact: int8 is timed against them."""


def prove(
    chain: ParityChain,
    item: Unproven,
    folder: Path,
    opened: Opened,
    *,
    graph: Path | None = None,
    threads: int | None = None,
) -> ArtefactVerdict:
    """Measure one artefact and decide.

    Args:
        chain: With the links measured that it was made from.
        item: What was built.
        folder: Of the bundle.
        opened: The fp32 runtimes so far; if it is one, this is added.
        graph: The fp32 ONNX file; an ONNX file that is broken is compared with it layer by layer.
        threads: CPU threads.
    """
    before = link_before(chain, item)
    verdict = prove_with(chain, item, lambda: _open(folder, item, threads), opened, before=before)
    return verdict if graph is None else locate(chain, item, folder, verdict, graph, threads=threads)


def locate(
    chain: ParityChain,
    item: Unproven,
    folder: Path,
    verdict: ArtefactVerdict,
    graph: Path,
    *,
    threads: int | None = None,
) -> ArtefactVerdict:
    """Add to the verdict on an ONNX file that is broken where it leaves the fp32 one, which takes a while."""
    if verdict.verdict != "broken" or item.runtime != "onnxruntime":
        return verdict
    return verdict.model_copy(update={"drift": _where(graph, folder / item.files[0].path, chain, threads)})


def _where(graph: Path, changed: Path, chain: ParityChain, threads: int | None) -> Drift | None:
    """The layers that lose most, and the first that loses much; None where the graphs share no layers."""
    from export.drift import drift, first_drifted

    try:
        found = drift(graph, changed, chain.inputs.crops[:_DRIFT_CROPS], threads=threads)
    except InputError:
        return None
    # casts are numbered anew in every graph
    layers = [layer for layer in found if layer.op != "Cast"]
    first = first_drifted(layers)
    worst = sorted(layers, key=lambda layer: layer.sqnr_db)[:_WORST_LAYERS]
    return Drift(
        starts_at=None if first is None else f"{first.tensor} ({first.op})",
        sqnr_db={layer.tensor: layer.sqnr_db for layer in worst},
    )


def _open(folder: Path, item: Unproven, threads: int | None) -> Runs:
    """Open an artefact, also of the one runtime that needs torch and that a server therefore does not have."""
    if item.runtime == "torch-tensorrt" and item.engine is not None:
        from export.torch_tensorrt_program import TorchTensorRtRuntime

        return TorchTensorRtRuntime(folder / item.files[0].path, item.engine)
    return open_artefact(folder, item, threads=threads)


def prove_with(
    chain: ParityChain, item: Unproven, open_it: Callable[[], Runs], opened: Opened, *, before: str
) -> ArtefactVerdict:
    """As `prove`, with the way to open it and the link before it given."""
    try:
        runtime = open_it()
    except CannotRunHereError as error:
        return ArtefactVerdict(name=item.name, verdict="unproven", reason=str(error), notes=item.notes)
    except InputError as error:
        here = f"{before} -> {item.name}"
        return ArtefactVerdict(
            name=item.name, verdict="broken", reason=str(error), first_broken=here, notes=item.notes
        )
    faces = None if item.precision == "int8" else SOME_FACES
    chain.measure(item.name, runtime, item.precision, before=before, max_batch=item.max_batch, faces=faces)
    if item.precision == "fp32":
        opened[item.name] = runtime
        if isinstance(runtime, GivesBack):
            runtime.give_back()  # of a teacher's largest batch, before making int8 needs memory of its own
    links, first = chain.path_to(item.name), chain.first_broken(item.name)
    verdict = ArtefactVerdict(name=item.name, verdict="passed", links=links, notes=item.notes)
    if first is not None:
        why = "; ".join(chain.links[first.rpartition(" -> ")[2]].broken)
        return verdict.model_copy(
            update={"verdict": "broken", "reason": f"{first}: {why}", "first_broken": first}
        )
    if chain.inputs.labelled is None and GATES[item.precision].needs_faces:
        return verdict.model_copy(update={"verdict": "unproven", "reason": _NEEDS_FACES})
    full = opened.get(full_precision(item))
    if item.precision != "int8" or full is None:
        return verdict
    gain = speedup(full, runtime, chain.inputs.crops)
    if gain >= WORTH:
        return verdict.model_copy(update={"speedup": gain})
    reason = f"{gain:.2f} times the speed of fp32 in {item.runtime} on this machine; {WORTH:g} are asked for"
    return verdict.model_copy(update={"verdict": "not worth it", "reason": reason, "speedup": gain})


def link_before(chain: ParityChain, item: Unproven) -> str:
    """The link an artefact was made from, as far as it is in the chain; else the reference itself."""
    source = FORMATS[item.name].made_from
    wanted = PROGRAM if source == "checkpoint" else source
    return wanted if wanted in chain.links else chain.label


def full_precision(item: Unproven) -> str:
    """The fp32 format of the same runtime."""
    return next(
        (name for name, kind in FORMATS.items() if kind.runtime == item.runtime and kind.precision == "fp32"),
        "",
    )


def as_unproven(item: Artefact | Unproven) -> Unproven:
    """An artefact as it was before it was proven, to be measured anew."""
    if isinstance(item, Unproven):
        return item
    return Unproven(
        name=item.name,
        runtime=item.runtime,
        precision=item.precision,
        files=item.files,
        reason="to be measured again",
        max_batch=item.max_batch,
        engine=item.engine,
        notes=item.notes,
    )


def proven(item: Unproven, files: tuple[BundleFile, ...], parity: Parity) -> Artefact:
    """The artefact that passed, where it now lies."""
    return Artefact(
        name=item.name,
        runtime=item.runtime,
        precision=item.precision,
        files=files,
        max_batch=item.max_batch,
        parity=parity,
        engine=item.engine,
        notes=item.notes,
    )


def parity_of(link: LinkReport, verdict: ArtefactVerdict, artefact_sha256: str, report: BundleFile) -> Parity:
    """The manifest's summary of a link that passed."""
    on = "faces" if link.faces is not None else "drawn"
    return Parity(
        passed=verdict.verdict == "passed",
        artefact_sha256=artefact_sha256,
        report=report,
        max_abs_logit=link.overall.max_abs,
        max_abs_p=link.overall.max_abs_p,
        flips={flip.point: flip.flips for flip in link.flips if flip.on == on},
        compared=link.overall.count,
        measured_with=link.runtime,
        sqnr_db=(link.faces or link.overall).sqnr_db,
        delta_auc=None if link.deltas is None else link.deltas.auc.value,
        speedup=verdict.speedup,
    )
