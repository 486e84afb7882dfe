"""Chooses which form of the network to run: the one asked for, or the fastest that this machine can run."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.bundle import Bundle
from pipeline.errors import InputError
from pipeline.manifest import Artefact
from pipeline.runtime import Runtime, open_artefact

_FASTEST_FIRST = (
    "tensorrt",
    "tensorrt-int8",
    "tensorrt-rtx",
    "onnx-cuda",
    "openvino-int8",
    "onnx-int8",
    "openvino",
    "onnx",
    "onnx-fp16",
)
"""What runs on a GPU, then what is fastest on a processor. torch-tensorrt needs torch, which a server never loads."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An artefact, loaded.

    Attributes:
        artefact: Its entry in the manifest.
        runtime: What runs it.
        passed_over: Faster artefacts that this machine cannot run and those that are not proven, and why.
    """

    artefact: Artefact
    runtime: Runtime
    passed_over: tuple[str, ...] = ()


def open_best(bundle: Bundle, name: str | None = None, *, threads: int | None = None) -> Opened:
    """Load an artefact of a bundle.

    Args:
        bundle: The bundle.
        name: Which; None: the fastest that this machine can run.
        threads: CPU threads of the runtime; None: all cores.

    Raises:
        InputError: The one asked for is not there or cannot be run here, or none can; the message says why.
    """
    if name is not None:
        artefact = bundle.artefact(name)
        return Opened(artefact, open_artefact(bundle.folder, artefact, threads=threads))
    present = {artefact.name: artefact for artefact in bundle.manifest.artefacts}
    passed_over = [
        f"{item.name}: built, but not proven: run `stillface parity {bundle.folder}` on the machine that serves, "
        "then start again or reload"
        for item in bundle.manifest.unproven
    ]
    for candidate in (present[kind] for kind in _FASTEST_FIRST if kind in present):
        try:
            runtime = open_artefact(bundle.folder, candidate, threads=threads)
        except InputError as error:
            passed_over.append(f"{candidate.name}: {error}")
            continue
        return Opened(candidate, runtime, tuple(passed_over))
    reasons = "\n".join(passed_over) or f"it has only {', '.join(present)}"
    raise InputError(f"This machine can run no artefact of {bundle.folder}:\n{reasons}")
