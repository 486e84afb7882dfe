"""ONNX Runtime: the runtime that every machine has, on its processor or on an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import queue
import sys
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from pipeline.errors import CannotRunHereError, InputError
from pipeline.runtime import INSTALL_ONNX_CUDA, Answer, Crops, check_crops

Provider = Literal["CPUExecutionProvider", "CUDAExecutionProvider"]
CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
_ARENAS: dict[Provider, str] = {CPU: "cpu:0", CUDA: "gpu:0"}
# With TF32 what a graph keeps in float32 (norms, softmax, head) would be rounded to 10 bits. By default every kernel of
# cuDNN is tried for every convolution whenever the batch is of another size than the last: seconds, on an H100 too.
_OPTIONS: dict[Provider, dict[str, str]] = {
    CPU: {},
    CUDA: {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}
_LOAD_ERRORS = (
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)


class OnnxRuntime:
    """An ONNX graph in ONNX Runtime.

    Args:
        path: The graph.
        threads: Of one operator; None for one per core.
        provider: What computes it. It must load: no silent CPU.
        optimise: Let the runtime rewrite the graph; off for the parity chain's first ONNX link.

    Raises:
        CannotRunHereError: The provider is not to be had here.
        InputError: The file cannot be loaded, or is no graph of ours.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        provider: Provider = CPU,
        optimise: bool = True,
    ) -> None:
        if provider == CUDA:
            _prepare_cuda()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Spinning threads burn the cores that decode and find faces.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Memory planned ahead for a size is kept beside that of its first run, and wins nothing: mobilevitv2_200 at 256
        # px takes 42 MiB less without, 84 in batches of two.
        options.enable_mem_pattern = False
        # Work is handed out in small pieces: a thread that is kept off its core for a moment then holds up the others
        # less, and the server's own thread does that all the time.
        options.add_session_config_entry("session.dynamic_block_base", "4")
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[provider], provider_options=[_OPTIONS[provider]]
            )
        except _LOAD_ERRORS as error:
            raise InputError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
        if self._session.get_providers()[0] != provider:
            raise CannotRunHereError(
                f"ONNX Runtime {onnxruntime.__version__} could not start {provider}, and says why above. It needs an "
                "NVIDIA driver, and CUDA and cuDNN of the versions it was built for, which this brings: "
                f"`{INSTALL_ONNX_CUDA}`."
            )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._outputs = [output.name for output in outputs]
        if [i.name for i in inputs] != ["crops"] or self._outputs[:1] != ["logits"]:
            raise InputError(f"{path} is not a graph of ours: expected crops -> logits[, evidence].")
        self._size = int(inputs[0].shape[1])
        self._arena = _ARENAS[provider]
        self.label = f"onnxruntime {onnxruntime.__version__} {provider.removesuffix('ExecutionProvider')}"

    def run(self, crops: Crops) -> Answer:
        """Answer for crops uint8 [N, H, W, 3]; see `pipeline.runtime.Runtime`."""
        check_crops(crops, self._size)
        logits, *rest = self._session.run(self._outputs, {"crops": np.ascontiguousarray(crops)})
        return Answer(logits, rest[0] if rest else None)

    def give_back(self) -> None:
        """Give back the memory that larger batches took; see `pipeline.runtime.GivesBack`."""
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", self._arena)
        crop = np.zeros((1, self._size, self._size, 3), np.uint8)
        self._session.run(self._outputs, {"crops": crop}, options)

    def beside(self) -> OnnxRuntimeBeside:
        """Another way into the same session; see `pipeline.runtime.RunsBeside`."""
        return OnnxRuntimeBeside(self._session, self.label)


class OnnxRuntimeBeside:
    """Runs in one of a session's threads, at the same time as the runs of others. Made by `OnnxRuntime.beside`.

    A thread of the pool that is given a whole run does it alone, and is not there for the others meanwhile: each run
    has a processor to itself, none waits at a layer for another thread, and weights lie in memory once.

    Args:
        session: What it shares.
        label: Its runtime's.
    """

    def __init__(self, session: onnxruntime.InferenceSession, label: str) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._size = int(session.get_inputs()[0].shape[1])
        # the pool of a session with one thread has none, since whoever calls is the first
        self._has_pool = session.get_session_options().intra_op_num_threads != 1
        self.label = label

    def run(self, crops: Crops) -> Answer:
        """Answer for crops uint8 [N, H, W, 3]; see `pipeline.runtime.Runtime`."""
        check_crops(crops, self._size)
        logits, *rest = self._values(np.ascontiguousarray(crops))
        return Answer(logits, rest[0] if rest else None)

    def _values(self, crops: Crops) -> list[Any]:
        if not self._has_pool:
            return list(self._session.run(self._outputs, {"crops": crops}))
        done: queue.SimpleQueue[tuple[list[Any], str]] = queue.SimpleQueue()

        def tell(values: list[Any], _: object, error: str) -> None:
            done.put((values, error))

        self._session.run_async(self._outputs, {"crops": crops}, tell, None)
        values, error = done.get()
        if error:
            raise errors.RuntimeException(error)
        return values


def _prepare_cuda() -> None:
    """Load CUDA's and cuDNN's libraries where pip has put them, for the loader does not look there.

    Raises:
        CannotRunHereError: This build of ONNX Runtime is without CUDA.
    """
    if CUDA not in onnxruntime.get_available_providers():
        raise CannotRunHereError(
            f"ONNX Runtime {onnxruntime.__version__} here is built without CUDA. On a machine with an NVIDIA GPU: "
            f"`{INSTALL_ONNX_CUDA}`."
        )
    # it prints what it does not find, and what a command prints is its answer
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()
