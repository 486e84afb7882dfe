"""Counts what types the layers of a built engine really compute in: a requested precision is a claim until then.

TensorRT 11 dropped the switches FP16 and INT8; code that only looks whether they exist builds in float32 and says
nothing. So the engine's own layers are read: from its inspector where a GPU can open it, else from the builder's log.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.manifest import Precision

_NARROWEST_FIRST: Final = ("Int8", "Half", "BFloat16", "Float")
"""Names as TensorRT's inspector gives them."""
_SPELLINGS: Final = (
    ("Int8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("Half", re.compile(r"\b(half|fp16|float16)\b", re.IGNORECASE)),
    ("BFloat16", re.compile(r"\b(bfloat16|bf16)\b", re.IGNORECASE)),
    ("Float", re.compile(r"\b(float|fp32|float32)\b", re.IGNORECASE)),
)
_WANTED: Final[dict[Precision, str]] = {"fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}
_ENOUGH: Final = 0.25
"""Share of the layers with weights that must have the precision asked for; sensitive layers may stay wider."""

_LOG_LAYER: Final = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: (?P<inputs>\[.*?\]), "
    r"(?:Constants: (?P<constants>\[.*?\]), )?Outputs: \[",
    re.MULTILINE,
)
_LOG_TENSOR: Final = re.compile(r"Dimensions: (?P<dimensions>\[[-\d,]*\]).*?Datatype: (?P<type>\w+)")


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """A layer of a built engine.

    Attributes:
        name: As the engine calls it; several operators may be fused in it.
        reads: Types of what flows in.
        weights: Type of its weight matrix; None where it has none.
    """

    name: str
    reads: frozenset[str]
    weights: str | None

    @property
    def type(self) -> str | None:
        """The narrowest type it reads, weights included; None for layers about shapes and integers."""
        types = {*self.reads, *([self.weights] if self.weights else [])}
        return next((name for name in _NARROWEST_FIRST if name in types), None)


def layers_of_inspector(text: str) -> list[EngineLayer]:
    """Read the JSON of `IEngineInspector.get_engine_information`, of TensorRT 10 or 11.

    Raises:
        InputError: It holds names only, because the engine was built without detailed verbosity.
    """
    layers = json.loads(text).get("Layers", [])
    if any(not isinstance(layer, dict) for layer in layers):
        raise InputError("The engine tells only the names of its layers; build it with detailed verbosity.")
    return [_layer(layer) for layer in layers]


def layers_of_log(text: str) -> list[EngineLayer]:
    """Read the layers that a builder lists, in its verbose log, after it has built an engine."""
    found = []
    for match in _LOG_LAYER.finditer(text):
        inputs = [_type_of(item["type"]) for item in _LOG_TENSOR.finditer(match["inputs"])]
        constants = [
            (json.loads(item["dimensions"]), item["type"])
            for item in _LOG_TENSOR.finditer(match["constants"] or "")
        ]
        found.append(EngineLayer(match["name"], _known(inputs), _matrix(constants)))
    return found


def count_types(layers: Iterable[EngineLayer]) -> tuple[dict[str, int], dict[str, int]]:
    """Number of layers by the narrowest type they read, and of those with weights by the type of the weights."""
    listed = list(layers)
    by_type = Counter(layer.type for layer in listed if layer.type is not None)
    by_weights = Counter(layer.weights for layer in listed if layer.weights is not None)
    return dict(sorted(by_type.items())), dict(sorted(by_weights.items()))


def check_precision(layers: Iterable[EngineLayer], precision: Precision) -> None:
    """Refuse an engine that was asked for in a reduced precision and does not compute in it.

    Raises:
        InputError: Fewer than a quarter of its layers with weights (of all its layers, where it does not tell which
            have weights) are of that type, or it tells of no layers at all.
    """
    by_type, by_weights = count_types(layers)
    counts = by_weights or by_type
    if not counts:
        raise InputError(
            f"The engine does not tell the types of its layers, so nobody can say whether it is {precision}."
        )
    wanted = _WANTED.get(precision)
    if wanted is not None and counts.get(wanted, 0) < _ENOUGH * sum(counts.values()):
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise InputError(
            f"An engine in {precision} was asked for, but of its layers {told}: it would be called {precision} and "
            f"run at another precision. The graph it is built from must be {precision} itself."
        )


def _layer(layer: dict[str, Any]) -> EngineLayer:
    inputs = [_type_of(_type_text(tensor)) for tensor in layer.get("Inputs", []) if isinstance(tensor, dict)]
    constants = [
        (tensor.get("Dimensions", []), _type_text(tensor))
        for tensor in layer.get("Constants", [])
        if isinstance(tensor, dict)
    ]
    weights = _matrix(constants)
    # Precompiled kernels tell their weights apart from constants, by type and number.
    own = layer.get("Weights")
    if weights is None and isinstance(own, dict) and int(own.get("Count", 0)) > 1:
        weights = _type_of(str(own.get("Type", "")))
    return EngineLayer(str(layer.get("Name", "")), _known(inputs), weights)


def _type_text(tensor: dict[str, Any]) -> str:
    return str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or "")


def _type_of(text: str) -> str | None:
    return next((name for name, spelling in _SPELLINGS if spelling.search(text)), None)


def _known(types: Iterable[str | None]) -> frozenset[str]:
    return frozenset(name for name in types if name is not None)


def _matrix(constants: Iterable[tuple[list[int], str]]) -> str | None:
    """Type of the largest constant with two sides above 1: per-channel scales and biases have one."""
    sized = []
    for dimensions, text in constants:
        sides = [side for side in dimensions if side > 1]
        if len(sides) > 1:
            size = 1
            for side in sides:
                size *= side
            sized.append((size, text))
    return _type_of(max(sized)[1]) if sized else None
