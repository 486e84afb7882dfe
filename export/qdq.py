"""Builds int8 graphs: which nodes are quantised, and the QDQ form that ONNX Runtime's CPU kernels fuse."""

from __future__ import annotations

import logging
import math
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quant_pre_process
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from export.activation_ranges import Range
from export.intermediates import read_graph

PRODUCTS: Final = ("Conv", "Gemm", "MatMul")
"""Operators whose int8 kernels pay. Norms, softmax, sums and the attention's products stay in float."""
_WRITE_COST: Final = 32
_NOTHING: Final = 1e-30
"""Not zero, and lost in any sum of float32."""

Form = Literal["onnxruntime", "openvino"]
"""Where Q/DQ pairs stand. ONNX Runtime's int8 convolution writes bytes, and the SiLU behind it is a table look-up and a
product of bytes when it is quantised too (measured on mobilevitv2_200: 2.5x fp32, against 2.0x with the SiLU in float).
OpenVINO fuses what follows into its convolution in float, so only inputs are quantised: as fast, and less noise."""


@dataclass(frozen=True, slots=True)
class Quantisable:
    """What of a graph can be quantised.

    Attributes:
        products: Names of convolutions and matrix products with constant weights, in graph order, without the head.
        head: Names of the products nearest to the logits; they cost nothing, and the score is their sum.
        silus: By product, the names of the nodes of `x * sigmoid(x)` on its output.
        before_silu: Tensors that only a SiLU reads.
        tensors: Activations that may get a range, in graph order.
        costs: By product, multiplications per crop and, weighed by 32, values written.
    """

    products: tuple[str, ...]
    head: tuple[str, ...]
    silus: dict[str, tuple[str, ...]]
    before_silu: frozenset[str]
    tensors: tuple[str, ...]
    costs: dict[str, float]

    def share(self, products: Iterable[str]) -> float:
        """Of the cost of all products, that of these; 0..1."""
        return sum(self.costs[name] for name in products) / sum(self.costs.values())


def prepare(source: Path) -> onnx.ModelProto:
    """Read a float graph and bring it into the form that is quantised: constants folded, shapes known."""
    read_graph(source)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        # Symbolic inference adds nothing here: height and width are fixed, only the batch is free.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        return onnx.load(str(prepared))


def examine(graph: onnx.GraphProto) -> Quantisable:
    """Find what can be quantised in a prepared graph."""
    constants = {item.name: item for item in graph.initializer}
    head = _nearest_products(graph)
    products = [n for n in graph.node if n.op_type in PRODUCTS and n.input[1] in constants]
    body = [node for node in products if node.name not in head]
    silus = {node.name: _silu_of(graph, node.output[0]) for node in body}
    chosen = {node.name for node in body} | {name for pair in silus.values() for name in pair}
    tensors: dict[str, None] = {}
    for node in graph.node:
        if node.name in chosen:
            used = node.input[:1] if node.op_type in PRODUCTS else node.input
            tensors.update(dict.fromkeys((*used, *node.output)))
    costs = costs_of(graph)
    return Quantisable(
        products=tuple(node.name for node in body),
        head=tuple(sorted(head)),
        silus=silus,
        before_silu=frozenset(node.output[0] for node in body if silus[node.name]),
        tensors=tuple(tensors),
        costs={node.name: costs[node.name] for node in body},
    )


def costs_of(graph: onnx.GraphProto) -> dict[str, float]:
    """Multiplications per crop and, weighed by 32, values written, of every product with constant weights."""
    constants = {item.name: item for item in graph.initializer}
    shapes = {value.name: value for value in graph.value_info}
    return {
        node.name: _cost(shapes.get(node.output[0]), constants[node.input[1]])
        for node in graph.node
        if node.op_type in PRODUCTS and node.input[1] in constants
    }


def quantise(
    graph: onnx.ModelProto,
    parts: Quantisable,
    products: Iterable[str],
    ranges: Mapping[str, Range],
    *,
    form: Form,
    reduce_range: bool,
) -> onnx.ModelProto:
    """Write Q/DQ pairs around products: uint8 activations with a zero point, int8 weights per output channel.

    Args:
        graph: Prepared float graph; it is left alone.
        parts: Of that graph.
        products: Names of those to quantise.
        ranges: Range of every activation they read or write.
        form: For which runtime.
        reduce_range: 7 bits for weights, so that the 16-bit sums of old instructions cannot overflow.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    names = list(products)
    options: dict[str, object] = {}
    if form == "onnxruntime":
        names += [name for product in names for name in parts.silus[product]]
    else:
        options["OpTypesToExcludeOutputQuantization"] = list(PRODUCTS)
    chosen = set(names)
    quantizer = QDQQuantizer(
        copied,
        per_channel=True,
        reduce_range=reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=_tensors_data(ranges),
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({node.op_type for node in copied.graph.node if node.name in chosen}),
        extra_options=options,
    )
    with _quiet():
        quantizer.quantize_model()
    model: onnx.ModelProto = quantizer.model.model
    if form == "openvino":
        _give_biases(model.graph, graph.graph)
        _read_tokens_as_floats(model.graph)
    return model


def _give_biases(changed: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Give every convolution without a bias one that changes no float.

    The CPU plug-in of OpenVINO 2026.4 answers wrongly for int8 convolutions without a bias that feed a norm (before a
    MobileViTv2's transformers: its logits fell from 16 to -4 dB), and strikes out an addition of zero.
    """
    sizes = {item.name: item.dims for item in original.initializer}
    channels = {node.name: sizes[node.input[1]][0] for node in original.node if node.op_type == "Conv"}
    for node in changed.node:
        if node.op_type == "Conv" and len(node.input) == 2:
            name = f"{node.name}/bias"
            values = np.full(channels[node.name], _NOTHING, np.float32)
            changed.initializer.append(numpy_helper.from_array(values, name))
            node.input.append(name)


def _read_tokens_as_floats(graph: onnx.GraphProto) -> None:
    """Let what is cut into tokens come from before its Q/DQ pair, which stays for the convolution beside it.

    OpenVINO turns bytes back into floats in two operators of their own where no product takes them in, as in front of
    an attention. ONNX Runtime is left as it is: there it was slower.
    """
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        back = makers.get(node.input[0]) if node.op_type == "Reshape" else None
        if back is None or back.op_type != "DequantizeLinear":
            continue
        there = makers.get(back.input[0])
        if there is not None and there.op_type == "QuantizeLinear":
            node.input[0] = there.input[0]


def has_byte_dot_products() -> bool:
    """Whether this processor sums products of bytes in 32 bits (VNNI, or any ARM).

    Older x86 instructions sum pairs in 16 bits and saturate, so that weights must keep to 7 bits there. Where the
    flags cannot be read the answer is no, which is safe and costs little.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return bool({"avx512_vnni", "avx_vnni"} & set(flags))


def _nearest_products(graph: onnx.GraphProto) -> set[str]:
    """Names of the products that a walk upwards from the logits meets first."""
    makers = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    seen: set[str] = set()
    waiting = ["logits"]
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in PRODUCTS:
            found.add(node.name)
        else:
            waiting.extend(node.input)
    return found


def _silu_of(graph: onnx.GraphProto, tensor: str) -> tuple[str, ...]:
    users = [node for node in graph.node if tensor in node.input]
    gate = next((node for node in users if node.op_type == "Sigmoid"), None)
    if gate is None:
        return ()
    product = next(
        (n for n in users if n.op_type == "Mul" and set(n.input) == {tensor, gate.output[0]}), None
    )
    return () if product is None else (gate.name, product.name)


def _cost(output: onnx.ValueInfoProto | None, weights: onnx.TensorProto) -> float:
    """Multiplications and values written per crop; the latter weigh more, because memory is slower."""
    dims = [dim.dim_value for dim in output.type.tensor_type.shape.dim[1:]] if output is not None else []
    written = math.prod(dims) if dims else 1
    channels = weights.dims[0]
    return float(math.prod(weights.dims) // channels * written + _WRITE_COST * written)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser talks to the root logger, about nothing that a user could change."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)


def _tensors_data(ranges: Mapping[str, Range]) -> TensorsData:
    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    return TensorsData(CalibrationMethod.MinMax, data)
