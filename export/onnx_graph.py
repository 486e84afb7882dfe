"""Writes the exported network as one ONNX file that is the same, byte for byte, whenever the weights are.

Nodes are called by the module they come from ("backbone.stem.conv/Conv"), because reports and exclusion lists of
later stages name them to people.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import onnx
import torch

from export.graph import ExportGraph
from export.plane_means import pool_plane_means
from pipeline.errors import InputError
from pipeline.storage import write_whole
from training.networks import Detector
from training.run_folder import version_of

CPU_OPSET: Final = 18
"""For ONNX Runtime and OpenVINO on a CPU, and what int8 is made from. From 21 on GroupNormalization is one node, for
which ONNX Runtime has no CPU kernel, and its quantiser refuses the file."""
GPU_OPSET: Final = 21
"""For TensorRT, which has a native layer for GroupNormalization with statistics in float32."""

_OURS: Final = ("backbone.", "cells.", "head.")
"""What the parameters of the exported module are called."""


def write_onnx(
    detector: Detector, path: Path, *, opset: int = CPU_OPSET, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a detector as a single ONNX file: `crops` uint8 [batch, H, W, 3] in, `logits` [, `evidence`] out.

    Args:
        detector: The trained network.
        path: The file, replaced in one step.
        opset: Version of ONNX's operators.
        metadata: Facts to keep in the file beside the version and the network, such as the checkpoint's hash. The
            same facts give the same file.

    Returns:
        `path`.

    Raises:
        InputError: NaN or infinite weights, or a size at which the network would resize its own maps.
    """
    model = build_onnx(detector, opset=opset, metadata=metadata)
    write_whole(path, model.SerializeToString(deterministic=True))
    return path


def build_onnx(
    detector: Detector, *, opset: int = CPU_OPSET, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """As `write_onnx`, into memory."""
    # As one operator from opset 21 on; before that the exporter would add what the fold has just taken away.
    model = trace(ExportGraph(detector, native_group_norm=opset >= GPU_OPSET), opset)
    if any(node.op_type in ("Resize", "Upsample") for node in model.graph.node):
        raise InputError(
            f"At {detector.spec.image_size} px {detector.spec.name} resizes its own feature maps, which is slow and "
            "which TensorRT refuses. Train and export it at a multiple of 64 px."
        )
    if opset < GPU_OPSET:  # on GPUs sums are trees already
        pool_plane_means(model)
    facts = {
        "stillface_version": version_of("stillface") or "unknown",
        "network": json.dumps(detector.spec.model_dump(mode="json"), sort_keys=True),
        **(metadata or {}),
    }
    seal(model, facts)
    return model


def trace(graph: ExportGraph, opset: int) -> onnx.ModelProto:
    """Export a module with PyTorch's exporter; node and value names are readable and depend on nothing else."""
    side = graph.image_size
    # A batch of 2: sizes 0 and 1 would be burnt into the program.
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    loud = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [logger.level for logger in loud]
    try:
        for logger in loud:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                dynamic_shapes={"crops": {0: "batch"}},
                input_names=["crops"],
                output_names=list(graph.outputs),
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)
    model: onnx.ModelProto = program.model_proto
    _rename(model.graph, list(graph.outputs))
    return model


def seal(model: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    """Drop what differs between machines (paths, stack traces), put the facts in, and check the whole.

    Raises:
        onnx.checker.ValidationError: The graph breaks ONNX's rules, a fault of ours.
    """
    graph = model.graph
    for owner in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        owner.ClearField("metadata_props")
        owner.ClearField("doc_string")
    graph.name = "stillface"
    model.producer_name, model.producer_version = "stillface", facts.get("stillface_version", "")
    onnx.helper.set_model_props(model, dict(sorted(facts.items())))
    onnx.checker.check_model(model, full_check=True)


def _rename(graph: onnx.GraphProto, outputs: list[str]) -> None:
    """Call nodes by module and operator, and values by the node that makes them."""
    names: dict[str, str] = {name: name for name in ("crops", *outputs)}
    seen: Counter[str] = Counter()
    for node in graph.node:
        scope = _scope(node)
        plain = f"{scope}/{node.op_type}" if scope else node.op_type
        seen[plain] += 1
        node.name = plain if seen[plain] == 1 else f"{plain}_{seen[plain]}"
        for index, output in enumerate(node.output):
            names.setdefault(output, node.name if index == 0 else f"{node.name}:{index}")
    constants = [i.name for i in graph.initializer if not i.name.startswith(_OURS)]
    names.update({name: f"constant_{index}" for index, name in enumerate(constants)})
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for item in (*graph.initializer, *graph.value_info):
        item.name = names.get(item.name, item.name)


def _scope(node: onnx.NodeProto) -> str:
    """The innermost module that the exporter says a node comes from; a convolution's is the owner of its weight."""
    if node.op_type == "Conv" and node.input[1].startswith(_OURS):
        # a BatchNorm that was folded into it has left its own name on it
        return str(node.input[1]).rpartition(".")[0]
    found = [item.value for item in node.metadata_props if item.key == "pkg.torch.onnx.name_scopes"]
    scopes = [part for part in "".join(found).strip("[]").replace("'", "").split(", ")[:-1] if part]
    return scopes[-1] if scopes and not scopes[-1].startswith("_") else ""
