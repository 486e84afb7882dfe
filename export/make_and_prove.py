"""Builds one format and has it measured: int8 anew while all it lacks is less noise; what cannot be made is told."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from export.build import Ingredients, build
from export.formats import REFERENCE, Format
from export.half_range import DoesNotFitError
from export.parity_chain import ParityChain
from export.parity_gate import noise_to_lose
from export.parity_report import ArtefactVerdict
from export.prove import ONNX_OFF, PROGRAM, SOME_FACES, Opened, locate, prove, prove_with
from export.torch_runtimes import ProgramRuntime
from pipeline.bundle import describe_file
from pipeline.manifest import Unproven
from pipeline.runtime_onnx import OnnxRuntime

_MORE_TRIES: Final = 3
"""Times that an int8 format is made anew with less noise."""
_SPARE_DB: Final = 1.0
_NOTHING_ROUNDED: Final = (
    "no layer could be rounded to int8: too many decisions would change, and this is int8 by name alone"
)


def make_and_prove(
    item: Format, chain: ParityChain, ingredients: Ingredients, opened: Opened
) -> tuple[Unproven | None, ArtefactVerdict]:
    """Make a format as well as it can be made, and decide about it.

    Args:
        item: The format.
        chain: With the links measured that it is made from; its own are added.
        ingredients: What it is made from.
        opened: The fp32 runtimes so far; if it is one, this is added.

    Returns:
        What was built, and the verdict. Nothing was built where the network is beyond float16: that costs the bundle
        this format, and no other.

    Raises:
        InputError: As `build`.
    """
    try:
        entry, verdict = _once(item, chain, ingredients, opened)
    except DoesNotFitError as error:
        link = f"{item.made_from} -> {item.name}"
        reason = f"{link}: {error}"
        return None, ArtefactVerdict(name=item.name, verdict="broken", reason=reason, first_broken=link)
    for _ in range(_MORE_TRIES):
        if not _ask_for_less_noise(item, chain, ingredients, verdict):
            break
        entry, verdict = _once(item, chain, ingredients, opened)
    if item.name != REFERENCE:
        graph, folder = ingredients.built[REFERENCE].files[0], ingredients.folder.parent
        verdict = locate(chain, entry, folder, verdict, graph, threads=ingredients.threads)
    return entry, verdict


def _once(
    item: Format, chain: ParityChain, ingredients: Ingredients, opened: Opened
) -> tuple[Unproven, ArtefactVerdict]:
    made, threads = build(item, ingredients), ingredients.threads
    entry = Unproven(
        name=item.name,
        runtime=item.runtime,
        precision=item.precision,
        files=tuple(describe_file(ingredients.folder.parent, path) for path in made.files),
        reason="not measured yet",
        max_batch=made.max_batch,
        engine=made.engine,
        notes=made.notes,
    )
    if item.name == REFERENCE:
        _measure_sources(chain, ingredients, made.files[0])
        path = made.files[0]
        return entry, prove_with(
            chain, entry, lambda: OnnxRuntime(path, threads=threads), opened, before=ONNX_OFF
        )
    verdict = prove(chain, entry, ingredients.folder.parent, opened, threads=threads)
    if verdict.verdict == "passed" and made.layers_in_int8 == 0:
        verdict = verdict.model_copy(update={"verdict": "not worth it", "reason": _NOTHING_ROUNDED})
    return entry, verdict


def _measure_sources(chain: ParityChain, ingredients: Ingredients, path: Path) -> None:
    """The links that all others stand on: the traced program, and its ONNX file as it is."""
    # Neither has a name here: each keeps the memory of its largest batch for as long as it is held.
    chain.measure(PROGRAM, ProgramRuntime(ingredients.detector), "fp32", before=chain.label, faces=SOME_FACES)
    chain.measure(
        ONNX_OFF,
        OnnxRuntime(path, threads=ingredients.threads, optimise=False),
        "fp32",
        before=PROGRAM,
        faces=SOME_FACES,
    )


def _ask_for_less_noise(
    item: Format, chain: ParityChain, ingredients: Ingredients, verdict: ArtefactVerdict
) -> bool:
    """Whether int8 failed by its noise alone; then more layers are to stay in float the next time.

    The search holds its bounds on other faces, and expects of the gate's what then is counted.
    """
    sqnr, link = ingredients.built[item.name].sqnr_db, chain.links.get(item.name)
    own_fault = verdict.first_broken is not None and verdict.first_broken.endswith(f" -> {item.name}")
    if sqnr is None or link is None or not own_fault:
        return False
    missing = noise_to_lose(link)
    if missing is None:
        return False
    ingredients.wanted_db[item.name] = sqnr + missing + _SPARE_DB
    return True
