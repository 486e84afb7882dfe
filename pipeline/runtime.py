"""Runs an artefact in the runtime it was made for; the parity gate, the benchmark and the server all use these.

Each runtime has a file of its own and is imported only when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CannotRunHereError, InputError
from pipeline.manifest import Artefact, Unproven

Crops = NDArray[np.uint8]
"""RGB uint8 [N, H, W, 3]."""

INSTALL_ONNX_CUDA: Final = "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
"""Both packages bring the module `onnxruntime`, so there can be only one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a network says of N crops.

    Attributes:
        logits: float32 [N, 2], column 0 real, column 1 fake.
        evidence: float32 [N, h, w], positive where a cell speaks for fake; None where the graph has none.
    """

    logits: NDArray[np.float32]
    evidence: NDArray[np.float32] | None


class Runtime(Protocol):
    """An artefact, loaded. May be called from one thread at a time."""

    @property
    def label(self) -> str:
        """Library, version and device, such as "onnxruntime 1.32.0 CPU"."""

    def run(self, crops: Crops) -> Answer:
        """Answer for a batch of crops, N >= 1.

        Raises:
            InputError: Another dtype, size or batch than the artefact takes.
        """


@runtime_checkable
class GivesBack(Protocol):
    """A runtime that keeps the memory of its largest batch and can be rid of it."""

    def give_back(self) -> None:
        """Give back the memory that runs took; the next run takes what it needs."""


@runtime_checkable
class RunsBeside(Protocol):
    """A runtime whose threads share a run, or have one each when there are several."""

    def beside(self) -> Runtime:
        """The same network with the same threads and weights, to be run from another thread at the same time.

        Its run takes one of the threads; while it is under way, the others have the runs of the rest.
        """


def open_artefact(folder: Path, artefact: Artefact | Unproven, *, threads: int | None = None) -> Runtime:
    """Load an artefact.

    Args:
        folder: The bundle's folder.
        artefact: Its entry in the manifest. A server opens what `Bundle.artefact` gives, which is proven; the
            parity gate opens what is not yet.
        threads: CPU threads of the runtime; None lets it take all cores.

    Raises:
        CannotRunHereError: The runtime is not installed, or there is no GPU or another than the engine's.
        InputError: The file cannot be loaded.
    """
    path = folder / artefact.files[0].path
    if artefact.runtime == "onnxruntime":
        from pipeline.runtime_onnx import OnnxRuntime

        return OnnxRuntime(path, threads=threads)
    if artefact.runtime == "onnxruntime-cuda":
        from pipeline.runtime_onnx import CUDA, OnnxRuntime

        return OnnxRuntime(path, threads=threads, provider=CUDA)
    if artefact.runtime == "openvino":
        from pipeline.runtime_openvino import OpenVinoRuntime

        return OpenVinoRuntime(path, threads=threads)
    if artefact.runtime in ("tensorrt", "tensorrt-rtx"):
        from pipeline.runtime_tensorrt import TensorRtRuntime

        if artefact.engine is None:
            raise InputError(
                f"{artefact.name} has no `engine` entry in the manifest. Export the bundle again."
            )
        return TensorRtRuntime(path, artefact.engine, library=artefact.runtime, name=artefact.name)
    raise CannotRunHereError(
        f"{artefact.name} needs {artefact.runtime}, which a server cannot run: it has no torch. "
        "Choose another artefact of the bundle."
    )


def check_crops(crops: Crops, image_size: int, max_batch: int | None = None) -> None:
    """Refuse what a graph with a fixed square and uint8 input would misread.

    Raises:
        InputError: Another dtype, shape or batch.
    """
    shape = crops.shape
    if crops.dtype != np.uint8 or len(shape) != 4 or shape[1:] != (image_size, image_size, 3) or not shape[0]:
        raise InputError(
            f"crops are {crops.dtype} {list(shape)}; expected uint8 [N, {image_size}, {image_size}, 3], N >= 1."
        )
    if max_batch is not None and shape[0] > max_batch:
        raise InputError(f"a batch of {shape[0]} crops; this artefact takes at most {max_batch}.")
