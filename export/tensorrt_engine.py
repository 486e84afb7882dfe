"""Builds an engine from an ONNX graph, with TensorRT on a GPU or with TensorRT for RTX on any machine.

Networks are strongly typed: the graph decides every type, here and in every later version. Choices that hold for
all engines: no version compatibility and no hardware compatibility, which cost speed; an engine is built again
where it is needed, and refused elsewhere (`pipeline.engine_check`).
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from export.engine_layers import (
    EngineLayer,
    check_precision,
    count_types,
    layers_of_inspector,
    layers_of_log,
)
from pipeline.assets import cache_folder
from pipeline.cuda_device import CudaDevice, find_device
from pipeline.engine_check import ANY_PLATFORM, facts_path, this_platform
from pipeline.errors import InputError
from pipeline.manifest import EngineFacts, Precision
from pipeline.storage import write_whole
from pipeline.tensorrt_library import RTX_TARGETS, Library, LibraryName, engine_log, open_library

Profile = tuple[int, int, int]
"""Smallest, best and largest batch."""

PROFILES: Final[dict[LibraryName, tuple[Profile, ...]]] = {
    # One crop has kernels of its own: that is what a single picture or a live stream asks for.
    "tensorrt": ((1, 1, 1), (2, 8, 32)),
    # Kernels are compiled for the batches that come where it runs; a second profile would only double the file.
    "tensorrt-rtx": ((1, 8, 32),),
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine on the disk.

    Attributes:
        path: The engine; its facts lie beside it as `PATH.json`.
        facts: What it is bound to, and what its layers compute in.
        seconds: Time the builder took.
    """

    path: Path
    facts: EngineFacts
    seconds: float


def build_engine(
    graph: bytes,
    target: Path,
    *,
    library: LibraryName,
    precision: Precision,
    profiles: tuple[Profile, ...] | None = None,
    timing_cache: Path | None = None,
    threads: int | None = None,
) -> BuiltEngine:
    """Build an engine and prove that it computes in the precision it is named for.

    Args:
        graph: Serialized ONNX: crops uint8 [N, H, W, 3] -> logits float32 [, evidence float32], typed throughout.
        target: Where the engine goes; `TARGET.json` beside it gets its facts.
        library: "tensorrt" needs the GPU it builds for, "tensorrt-rtx" none.
        precision: What the graph's weights compute in.
        profiles: Batches to optimize for; by default those of `PROFILES`.
        timing_cache: Measured kernels of earlier builds, read and written; by default a file in the cache folder.
            TensorRT for RTX has none.
        threads: Of the builder; None leaves it to the library.

    Raises:
        CannotRunHereError: The library is not installed, or there is no GPU and it needs one.
        InputError: The graph cannot be parsed or built, with all that the library says; the profiles are no
            profiles; or the engine's layers are not of that precision.
    """
    opened = open_library(library)
    device = None if opened.is_rtx else find_device()
    chosen = _checked(profiles or PROFILES[library])
    log = engine_log(opened)
    builder = opened.api.Builder(log)
    if threads is not None:
        builder.max_threads = threads
    network, parser = _parse(graph, opened, builder, log)
    config = builder.create_builder_config()
    config.profiling_verbosity = opened.api.ProfilingVerbosity.DETAILED
    tf32 = precision != "fp32"
    if not tf32:
        config.clear_flag(opened.api.BuilderFlag.TF32)
    targets = _set_targets(config, opened) if device is None else (device.compute_capability,)
    _add_profiles(builder, config, network, chosen)
    cache = None if device is None else timing_cache or default_timing_cache(opened, device)
    if cache is not None:
        _load_timing_cache(config, cache)
    begun = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - begun
    del parser
    if plan is None:
        raise InputError(f"{library} {opened.version} cannot build this graph: {_told(log)}")
    content = bytes(plan)
    if cache is not None:
        write_whole(cache, bytes(config.get_timing_cache().serialize()))
    layers = layers_of_log(log.layers) if device is None else inspect(content, opened, log)
    check_precision(layers, precision)
    by_type, by_weights = count_types(layers)
    facts = EngineFacts(
        runtime_version=opened.version,
        compute_capabilities=targets,
        device=device.name if device else None,
        driver=device.driver if device else None,
        platform=this_platform() if device else ANY_PLATFORM,
        profiles=chosen,
        onnx_sha256=hashlib.sha256(graph).hexdigest(),
        tf32=tf32,
        layer_types=by_type,
        weight_layer_types=by_weights,
    )
    write_whole(target, content)
    write_whole(facts_path(target), f"{facts.model_dump_json(indent=2)}\n".encode())
    logger.info("%s: %d bytes in %.1f s, layers with weights: %s", target, len(content), seconds, by_weights)
    return BuiltEngine(target, facts, seconds)


def check_builder(library: LibraryName) -> None:
    """Refuse at once what would be refused after minutes of tracing and calibrating.

    Raises:
        CannotRunHereError: The library is not installed, or there is no GPU and it needs one.
    """
    if not open_library(library).is_rtx:
        find_device()


def inspect(plan: bytes, library: Library, log: Any) -> list[EngineLayer]:
    """Layers of a fresh engine by TensorRT's inspector, for every profile; needs the GPU it was built on.

    Raises:
        InputError: The engine does not open.
    """
    api = library.api
    runtime = api.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise InputError(f"The engine just built does not open again: {_told(log)}")
    layers: list[EngineLayer] = []
    for profile in range(engine.num_optimization_profiles):
        # With dynamic shapes an inspector knows no types until a context has shapes.
        context = engine.create_execution_context()
        context.set_optimization_profile_async(profile, 0)
        context.set_input_shape("crops", tuple(engine.get_tensor_profile_shape("crops", profile)[1]))
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        layers += layers_of_inspector(inspector.get_engine_information(api.LayerInformationFormat.JSON))
    return layers


def default_timing_cache(library: Library, device: CudaDevice) -> Path:
    """Where kernels measured on this GPU by this version are kept."""
    name = f"{library.version}-{device.name}".replace(" ", "_").replace("/", "_")
    return cache_folder() / "tensorrt" / f"timing-{name}.cache"


def cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that casts crops to float before it moves their axes: TensorRT moves no uint8. Exact."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    for node in nodes:
        if node.op_type != "Transpose" or node.input[0] != "crops":
            continue
        for follower in [other for other in nodes if node.output[0] in other.input]:
            if follower.op_type != "Cast":
                raise InputError(f"TensorRT cannot run {follower.op_type} on uint8 crops; cast them first.")
            moved = f"{follower.output[0]}/cast_first"
            cast = onnx.helper.make_node("Cast", ["crops"], [moved], f"{follower.name}/cast_first")
            cast.attribute.extend(follower.attribute)
            transpose = onnx.helper.make_node(
                "Transpose", [moved], [follower.output[0]], f"{node.name}/moved"
            )
            transpose.attribute.extend(node.attribute)
            place = nodes.index(follower)
            nodes[place : place + 1] = [cast, transpose]
        nodes.remove(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _checked(profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    for least, best, most in profiles:
        if not 1 <= least <= best <= most:
            raise InputError(f"{least, best, most} is no profile: expected 1 <= smallest <= best <= largest.")
    return profiles


def _parse(graph: bytes, library: Library, builder: Any, log: Any) -> tuple[Any, Any]:
    """The network of a graph, and the parser, which owns the weights until the network is built.

    Raises:
        InputError: With every error of the parser, and what the library logged.
    """
    try:
        model = cast_first(onnx.load_from_string(graph))
    except DecodeError as error:
        raise InputError(f"That is no ONNX graph: {error}") from error
    flag = library.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    # Without the flag TensorRT 10 takes types as hints; from 11 on, and in RTX, there is no other kind of network.
    typed = library.is_rtx or int(library.version.partition(".")[0]) > 10
    network = builder.create_network(0 if typed else 1 << int(flag))
    parser = library.api.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        listed = "; ".join(
            f"node {error.node()} {error.node_name()} ({error.node_operator()}): {error.desc().strip()}"
            for error in errors
        )
        raise InputError(f"{library.name} {library.version} cannot parse this graph: {listed or _told(log)}")
    return network, parser


def _set_targets(config: Any, library: Library) -> tuple[str, ...]:
    known = library.api.ComputeCapability.__members__
    targets = [target for target in RTX_TARGETS if _member(target) in known]
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(known[_member(target)], index):
            raise InputError(f"{library.name} {library.version} does not build for {target}.")
    return tuple(targets)


def _member(compute_capability: str) -> str:
    return f"SM{compute_capability.replace('.', '')}"


def _add_profiles(builder: Any, config: Any, network: Any, profiles: tuple[Profile, ...]) -> None:
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    if names != ["crops"]:
        raise InputError(f"The graph takes {', '.join(names)}; expected crops alone.")
    batch, *rest = network.get_input(0).shape
    if batch != -1 or -1 in rest:
        raise InputError(
            f"crops are {[batch, *rest]}; expected a free batch and fixed height, width and colours."
        )
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        shapes.set_shape("crops", *[(size, *rest) for size in profile])
        if config.add_optimization_profile(shapes) < 0:
            raise InputError(f"{profile} is refused as a profile.")


def _load_timing_cache(config: Any, path: Path) -> None:
    """Use the kernels measured before; of another version or device they are ignored, not trusted."""
    stored = path.read_bytes() if path.is_file() else b""
    for content in (stored, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return
    raise InputError(f"{path} is no timing cache and no new one can be made. Delete the file and try again.")


def _told(log: Any) -> str:
    return "; ".join(dict.fromkeys(log.errors)) or "it gives no reason"
