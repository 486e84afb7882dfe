"""Reads and writes the tensors of the Open Inference Protocol, as JSON and in its binary form.

The binary form is the protocol's "binary tensor data extension": a JSON head whose length stands in the header
`Inference-Header-Content-Length`, then the tensors' bytes, little-endian, in the order of the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.runtime import Answer, Crops
from serving.problems import ProblemError

MODEL = "stillface"
HEAD_LENGTH = "inference-header-content-length"
MOST_CROPS = 256


class _Model(BaseModel):
    # unknown keys are the protocol's way to be extended
    model_config = ConfigDict(extra="ignore")


class InputTensor(_Model):
    """A tensor that is sent: `crops`, UINT8, [N, side, side, 3] RGB."""

    name: str = Field(examples=["crops"])
    shape: list[int] = Field(examples=[[1, 256, 256, 3]], max_length=8)
    datatype: str = Field(examples=["UINT8"])
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = Field(default=None, description="Flat or nested, row by row.")


class WantedOutput(_Model):
    """A tensor that is asked for: `logits` or `evidence`."""

    name: str = Field(examples=["logits"])
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(_Model):
    """The body of an inference."""

    id: str | None = Field(default=None, max_length=256)
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[InputTensor]
    outputs: list[WantedOutput] | None = Field(default=None, description="By default all.")


class OutputTensor(_Model):
    """A tensor that is answered."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[float] | None = None


class InferResponse(_Model):
    """The answer to an inference."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


@dataclass(frozen=True, slots=True)
class Asked:
    """An inference request, understood.

    Attributes:
        id: The client's; None where it gave none.
        crops: uint8 [N, S, S, 3].
        outputs: Names of the tensors to answer, and whether in binary form.
    """

    id: str | None
    crops: Crops
    outputs: tuple[tuple[str, bool], ...]


def read_request(body: bytes, head_length: str | None, image_size: int, known: Sequence[str]) -> Asked:
    """Understand a body.

    Args:
        body: As it came.
        head_length: The header `Inference-Header-Content-Length`; None: the body is JSON throughout.
        image_size: Side of a crop.
        known: Names of the outputs there are.

    Raises:
        ProblemError: It is not such a request, or its tensor is not what the network takes.
    """
    head, tail = body, b""
    if head_length is not None:
        if not head_length.isdecimal() or int(head_length) > len(body):
            raise _bad(f"{HEAD_LENGTH} is {head_length!r}; expected the number of bytes of the JSON head.")
        head, tail = body[: int(head_length)], body[int(head_length) :]
    try:
        request = InferRequest.model_validate_json(head)
    except ValidationError as error:
        first = error.errors()[0]
        raise _bad(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if [tensor.name for tensor in request.inputs] != ["crops"]:
        raise _bad(f"inputs are {[tensor.name for tensor in request.inputs]}; expected one, `crops`.")
    crops = _read_crops(request.inputs[0], tail, image_size)
    by_default = bool(request.parameters.get("binary_data_output", False))
    wanted = request.outputs or [WantedOutput(name=name) for name in known]
    for output in wanted:
        if output.name not in known:
            raise _bad(f"There is no output {output.name!r}; there are {', '.join(known)}.")
    outputs = tuple((item.name, bool(item.parameters.get("binary_data", by_default))) for item in wanted)
    return Asked(request.id, crops, outputs)


def write_response(asked: Asked, answer: Answer, version: str) -> tuple[bytes, bytes]:
    """The answer's JSON and, behind it, the bytes of the tensors in binary form."""
    outputs, tail = [], []
    for name, binary in asked.outputs:
        values = answer.logits if name == "logits" else answer.evidence
        if values is None:
            raise _bad("This network has no evidence map.")
        tensor = OutputTensor(name=name, shape=list(values.shape), datatype="FP32")
        if binary:
            data = np.ascontiguousarray(values, dtype="<f4").tobytes()
            tail.append(data)
            tensor.parameters = {"binary_data_size": len(data)}
        else:
            tensor.data = values.ravel().astype(float).tolist()
        outputs.append(tensor)
    head = InferResponse(model_name=MODEL, model_version=version, id=asked.id, outputs=outputs)
    return head.model_dump_json(exclude_none=True).encode(), b"".join(tail)


def _read_crops(tensor: InputTensor, tail: bytes, side: int) -> Crops:
    shape = tensor.shape
    if tensor.datatype != "UINT8" or len(shape) != 4 or shape[1:] != [side, side, 3]:
        raise _bad(f"crops are {tensor.datatype} {shape}; expected UINT8 [N, {side}, {side}, 3].")
    if not 1 <= shape[0] <= MOST_CROPS:
        raise _bad(f"{shape[0]} crops; expected 1 to {MOST_CROPS}.")
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        return _from_numbers(tensor.data, shape)
    expected = math.prod(shape)
    if tensor.data is not None or size != expected or len(tail) != expected:
        raise _bad(
            f"binary_data_size is {size} and {len(tail)} bytes follow the head; {shape} needs {expected}."
        )
    return np.frombuffer(tail, np.uint8).reshape(shape)


def _from_numbers(data: list[Any] | None, shape: Sequence[int]) -> Crops:
    if data is None:
        raise _bad("crops have no data.")
    try:
        values: NDArray[Any] = np.array(data)
    except ValueError as error:
        raise _bad("The data of crops are nested unevenly.") from error
    if values.dtype.kind not in "iu" or values.size != math.prod(shape):
        raise _bad(f"crops have {values.size} values; expected {math.prod(shape)} whole numbers.")
    if values.min() < 0 or values.max() > 255:
        raise _bad("A value of crops is not within 0..255.")
    return values.astype(np.uint8).reshape(tuple(shape))


def _bad(detail: str) -> ProblemError:
    return ProblemError("bad-request", detail)
