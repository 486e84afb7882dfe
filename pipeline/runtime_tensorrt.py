"""TensorRT and TensorRT for RTX: runs an engine on a GPU with CUDA's runtime alone, without torch.

One stream, one execution context per optimization profile, pinned host buffers for the largest batch: without CUDA
graphs nothing is allocated after the start.
"""

from __future__ import annotations

import ctypes
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.cuda_device import ask, cuda_runtime, find_device
from pipeline.engine_check import check_engine
from pipeline.errors import InputError
from pipeline.manifest import EngineFacts
from pipeline.runtime import Answer, Crops, check_crops
from pipeline.tensorrt_library import Library, LibraryName, engine_log, open_library

_TENSORS: Final[dict[str, tuple[str, type[np.generic]]]] = {
    "crops": ("UINT8", np.uint8),
    "logits": ("FLOAT", np.float32),
    "evidence": ("FLOAT", np.float32),
}


@dataclass(frozen=True, slots=True)
class _Buffer:
    """An input or output of the engine.

    Attributes:
        name: Its name in the graph.
        device: Address on the GPU.
        host: Pinned memory, [largest batch, ...].
        row: Bytes of one crop's share.
    """

    name: str
    device: int
    host: NDArray[Any]
    row: int


class TensorRtRuntime:
    """An engine on a GPU.

    Args:
        path: The engine.
        facts: What it says of itself; compared with this machine before the engine is read.
        library: "tensorrt" or "tensorrt-rtx".
        name: The artefact's, for messages; by default the library's.
        device: Number of the GPU.
        cuda_graphs: Record the launches of each batch size once and replay them, which pays at small batches. Each
            size takes a context's memory; for callers with a few fixed sizes.

    Raises:
        CannotRunHereError: No GPU, the library is not installed, or the engine was built for another machine.
        InputError: The engine cannot be loaded or is none of ours.
        RuntimeError: CUDA failed.
    """

    def __init__(
        self,
        path: Path,
        facts: EngineFacts,
        *,
        library: LibraryName,
        name: str | None = None,
        device: int = 0,
        cuda_graphs: bool = False,
    ) -> None:
        gpu = find_device(device)
        opened = open_library(library)
        check_engine(path, facts, name=name or library, version=opened.version, device=gpu)
        self._cuda = cuda_runtime()
        self._device = device
        ask(self._cuda.cudaSetDevice(device))
        self._api = opened.api
        self._log = engine_log(opened)
        # The library's runtime has to live as long as what it has opened.
        self._runtime, self._engine = _deserialize(path, opened, self._log)
        cleanup = ExitStack()
        # Frees GPU memory when a server swaps bundles; also at exit, should nobody call `close`.
        self._finalizer = weakref.finalize(self, cleanup.close)
        self._stream = ask(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))
        cleanup.callback(self._cuda.cudaStreamDestroy, self._stream)
        tensors = _tensors(path, self._engine)
        self._profiles = _profiles(self._engine)
        self._max_batch = max(most for _, _, most in self._profiles)
        self._input, *self._outputs = (
            self._allocate(name, np.dtype(kind), cleanup) for name, kind in tensors.items()
        )
        self._size = int(self._input.host.shape[1])
        # RTX records and replays by itself.
        self._contexts = [
            self._context(profile, opened.is_rtx and cuda_graphs) for profile in range(len(self._profiles))
        ]
        self._records = cuda_graphs and not opened.is_rtx
        self._graphs: dict[int, tuple[Any, Any]] = {}
        self._cleanup = cleanup
        self.label = f"{library} {opened.version} {gpu.name}"

    def run(self, crops: Crops) -> Answer:
        """Answer for crops uint8 [N, H, W, 3]; see `pipeline.runtime.Runtime`."""
        check_crops(crops, self._size, self._max_batch)
        count = len(crops)
        profile = self._profile_for(count)
        # The device is a thread's own; a server may call from another thread than the one that loaded.
        ask(self._cuda.cudaSetDevice(self._device))
        self._input.host[:count] = crops
        if self._records and count not in self._graphs:
            self._graphs[count] = self._record(profile, count)
        if self._records:
            ask(self._cuda.cudaGraphLaunch(self._graphs[count][1], self._stream))
        else:
            self._enqueue(self._contexts[profile], count)
        ask(self._cuda.cudaStreamSynchronize(self._stream))
        # The pinned buffers are overwritten by the next call.
        logits, *rest = (output.host[:count].copy() for output in self._outputs)
        return Answer(logits, rest[0] if rest else None)

    def close(self) -> None:
        """Free the GPU's memory; the runtime cannot be used afterwards."""
        self._finalizer()
        self._contexts.clear()
        self._graphs.clear()

    def _allocate(self, name: str, kind: np.dtype[Any], cleanup: ExitStack) -> _Buffer:
        shape = tuple(self._engine.get_tensor_shape(name))[1:]
        row = int(np.prod(shape)) * kind.itemsize
        size = row * self._max_batch
        device = int(ask(self._cuda.cudaMalloc(size)))
        cleanup.callback(self._cuda.cudaFree, device)
        pinned = int(ask(self._cuda.cudaMallocHost(size)))
        cleanup.callback(self._cuda.cudaFreeHost, pinned)
        memory = (ctypes.c_uint8 * size).from_address(pinned)
        return _Buffer(name, device, np.ctypeslib.as_array(memory).view(kind).reshape(-1, *shape), row)

    def _context(self, profile: int, graphs: bool = False) -> Any:
        """An execution context with its profile chosen and its buffers told."""
        if graphs:
            settings = self._engine.create_runtime_config()
            settings.cuda_graph_strategy = self._api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(settings)
        else:
            context = self._engine.create_execution_context()
        done = context is not None and context.set_optimization_profile_async(profile, int(self._stream))
        for buffer in (self._input, *self._outputs):
            done = done and context.set_tensor_address(buffer.name, buffer.device)
        if not done:
            raise RuntimeError(
                f"no execution context for profile {profile}: {'; '.join(self._log.errors) or 'no reason given'}"
            )
        # Engines are built talkative so that their layers can be counted; running ones need not be.
        context.nvtx_verbosity = self._api.ProfilingVerbosity.NONE
        ask(self._cuda.cudaStreamSynchronize(self._stream))
        return context

    def _profile_for(self, count: int) -> int:
        """The profile that holds a batch and whose optimum is nearest to it."""
        fitting = [
            (abs(best - count), index)
            for index, (least, best, most) in enumerate(self._profiles)
            if least <= count <= most
        ]
        if not fitting:
            raise InputError(
                f"a batch of {count} crops fits none of the engine's profiles (smallest, best, largest batch): "
                f"{', '.join(map(str, self._profiles))}."
            )
        return min(fitting)[1]

    def _enqueue(self, context: Any, count: int) -> None:
        """Queue copy in, inference and copy out; the caller waits for the stream."""
        cuda, kinds, stream = self._cuda, self._cuda.cudaMemcpyKind, self._stream
        given = self._input
        to, from_ = given.device, given.host.ctypes.data
        ask(cuda.cudaMemcpyAsync(to, from_, count * given.row, kinds.cudaMemcpyHostToDevice, stream))
        shape = (count, self._size, self._size, 3)
        if not context.set_input_shape("crops", shape) or not context.execute_async_v3(int(stream)):
            raise RuntimeError(f"the engine did not run {count} crops: {'; '.join(self._log.errors)}")
        for output in self._outputs:
            to, from_ = output.host.ctypes.data, output.device
            ask(cuda.cudaMemcpyAsync(to, from_, count * output.row, kinds.cudaMemcpyDeviceToHost, stream))

    def _record(self, profile: int, count: int) -> tuple[Any, Any]:
        """Record the launches of a batch size, in a context of its own so that no other size disturbs it."""
        cuda = self._cuda
        context = self._context(profile)
        # The first run with a shape sets the context up, which a recording must not contain.
        self._enqueue(context, count)
        ask(cuda.cudaStreamSynchronize(self._stream))
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        ask(cuda.cudaStreamBeginCapture(self._stream, mode))
        self._enqueue(context, count)
        graph = ask(cuda.cudaStreamEndCapture(self._stream))
        executable = ask(cuda.cudaGraphInstantiate(graph, 0))
        ask(cuda.cudaGraphDestroy(graph))
        self._cleanup.callback(cuda.cudaGraphExecDestroy, executable)
        return context, executable


def _deserialize(path: Path, library: Library, log: Any) -> tuple[Any, Any]:
    """The library's runtime and the engine."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    runtime = library.api.Runtime(log)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        why = "; ".join(log.errors) or "no reason given"
        raise InputError(
            f"{path} cannot be loaded by {library.name} {library.version}: {why}. "
            f"Build it here with `stillface export CHECKPOINT --out BUNDLE --formats {library.name}`."
        )
    return runtime, engine


def _tensors(path: Path, engine: Any) -> dict[str, type[np.generic]]:
    """The engine's input and outputs and their types, in the order of our contract."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    kinds = {name: engine.get_tensor_dtype(name).name for name in names}
    expected = {name: kind for name, (kind, _) in _TENSORS.items() if name in kinds or name != "evidence"}
    if kinds != expected:
        raise InputError(
            f"{path} is not an engine of ours: expected uint8 crops -> float32 logits[, evidence], it has {kinds}."
        )
    return {name: _TENSORS[name][1] for name in _TENSORS if name in kinds}


def _profiles(engine: Any) -> list[tuple[int, int, int]]:
    """Smallest, best and largest batch of each profile, as the engine itself has them."""
    profiles = []
    for index in range(engine.num_optimization_profiles):
        least, best, most = engine.get_tensor_profile_shape("crops", index)
        profiles.append((int(least[0]), int(best[0]), int(most[0])))
    return profiles
