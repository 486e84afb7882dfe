"""A `torch.export` program whose parts run in TensorRT, for those who serve with PyTorch.

The program carries its own types (`export.half_graph`); torch-tensorrt is asked for nothing but to keep them. It
needs PyTorch and a GPU both to be made and to be run, so a server, which has no torch, does not offer it.
"""

from __future__ import annotations

import importlib
import time
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from export.engine_layers import EngineLayer, check_precision, count_types
from export.half_graph import HalfGraph
from export.tensorrt_engine import BuiltEngine, Profile
from pipeline.cuda_device import CudaDevice, find_device
from pipeline.engine_check import check_engine, facts_path, this_platform
from pipeline.errors import CannotRunHereError, InputError
from pipeline.manifest import EngineFacts
from pipeline.runtime import Answer, Crops, check_crops
from pipeline.storage import write_whole
from training.networks import Detector

PROFILE: Final[Profile] = (1, 8, 32)
_NAMES: Final = {
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.float32: "Float",
    torch.int8: "Int8",
}


def make_program(graph: HalfGraph, profile: Profile = PROFILE) -> torch.export.ExportedProgram:
    """Trace a network for the batches of a profile."""
    least, _, most = profile
    side, device = graph.image_size, next(graph.parameters()).device
    # At least 2: sizes 0 and 1 would be burnt into the program.
    example = torch.zeros(max(2, least), side, side, 3, dtype=torch.uint8, device=device)
    shapes = {"crops": {0: torch.export.Dim("batch", min=least, max=most)}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(graph, (example,), dynamic_shapes=shapes)


def layers_of_program(program: torch.export.ExportedProgram) -> list[EngineLayer]:
    """Convolutions and matrix products of a program with the type they compute in, which TensorRT has to keep."""
    products = ("conv", "linear", "mm", "matmul")
    layers = []
    for node in program.graph.nodes:
        if node.op == "call_function" and any(word in str(node.target) for word in products):
            name = _NAMES.get(node.meta["val"].dtype)
            if name is not None:
                layers.append(EngineLayer(node.name, frozenset({name}), name))
    return layers


def build_program(detector: Detector, target: Path, *, profile: Profile = PROFILE) -> BuiltEngine:
    """Compile a network in float16 and save it.

    Args:
        detector: The trained network.
        target: The .pt2 file; `TARGET.json` beside it gets its facts.
        profile: Smallest, best and largest batch; the largest at least 2.

    Raises:
        CannotRunHereError: No GPU, or torch-tensorrt is not installed or does not load.
        InputError: An operator that TensorRT has no place for, or a profile that is none.
    """
    least, best, most = profile
    if not 1 <= least <= best <= most or most < 2:
        raise InputError(
            f"{profile} is no profile: expected 1 <= smallest <= best <= largest, and 2 <= largest."
        )
    device = find_device()
    library = open_torch_tensorrt()
    graph = HalfGraph(detector).cuda()
    program = make_program(graph, profile)
    layers = layers_of_program(program)
    check_precision(layers, "fp16")
    begun = time.perf_counter()
    _compile(library, program, graph.image_size, profile, target)
    seconds = time.perf_counter() - begun
    by_type, by_weights = count_types(layers)
    facts = EngineFacts(
        runtime_version=version_of(library),
        compute_capabilities=(device.compute_capability,),
        device=device.name,
        driver=device.driver,
        platform=this_platform(),
        profiles=(profile,),
        onnx_sha256=None,
        tf32=True,
        layer_types=by_type,
        weight_layer_types=by_weights,
    )
    write_whole(facts_path(target), f"{facts.model_dump_json(indent=2)}\n".encode())
    return BuiltEngine(target, facts, seconds)


def open_torch_tensorrt() -> Any:
    """Import torch-tensorrt.

    Raises:
        CannotRunHereError: It is not installed, or finds no TensorRT or no driver.
    """
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as error:  # without TensorRT or a driver it raises just that
        missing = isinstance(error, ModuleNotFoundError) and error.name == "torch_tensorrt"
        cause = "" if missing else f" ({error})"
        raise CannotRunHereError(
            f"torch-tensorrt is not installed here{cause}. Install it with `pip install -e '.[torch-tensorrt]'`; its "
            "TensorRT comes from NVIDIA's own package index, which the machine must be able to reach."
        ) from error


def version_of(library: Any) -> str:
    """Versions that a saved program is bound to."""
    tensorrt = importlib.import_module("tensorrt").__version__
    return f"{library.__version__} (torch {torch.__version__.partition('+')[0]}, tensorrt {tensorrt})"


class TorchTensorRtRuntime:
    """A saved program on a GPU.

    Args:
        path: The .pt2 file.
        facts: What it says of itself; compared with this machine before it is read.

    Raises:
        CannotRunHereError: No GPU, no torch-tensorrt, or the program was made for another machine.
    """

    def __init__(self, path: Path, facts: EngineFacts) -> None:
        device: CudaDevice = find_device()
        library = open_torch_tensorrt()
        check_engine(path, facts, name="torch-tensorrt", version=version_of(library), device=device)
        self._module = library.load(str(path)).module()
        self._facts = facts
        self.label = f"torch-tensorrt {library.__version__} {device.name}"

    @torch.no_grad()
    def run(self, crops: Crops) -> Answer:
        """Answer for crops uint8 [N, H, W, 3]; see `pipeline.runtime.Runtime`."""
        check_crops(crops, crops.shape[1] if crops.ndim == 4 else 0, self._facts.max_batch)
        answers = self._module(torch.from_numpy(np.ascontiguousarray(crops)).cuda())
        logits, *rest = (answer.float().cpu().numpy() for answer in answers)
        return Answer(logits, rest[0] if rest else None)


def _compile(
    library: Any, program: torch.export.ExportedProgram, side: int, profile: Profile, target: Path
) -> None:
    """Compile and save; one engine for the whole network, or none."""
    least, best, most = ((size, side, side, 3) for size in profile)
    given = library.Input(min_shape=least, opt_shape=best, max_shape=most, dtype=torch.uint8, name="crops")
    try:
        # Types are the program's own: precisions are not asked for, and from 2.13 on cannot be.
        compiled = library.dynamo.compile(program, arg_inputs=[given], require_full_compilation=True)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"torch-tensorrt {library.__version__} cannot compile this network: {error}"
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    library.save(compiled, str(target), output_format="exported_program", arg_inputs=[given])
