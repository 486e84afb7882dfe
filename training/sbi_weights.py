"""Reads the detector that self-blended images' authors publish (FFc23.tar, FFraw.tar) under our names.

Their file is a torch file (not a tar archive) with the keys `model`, `optimizer` and `epoch`; `model` holds
an EfficientNet-PyTorch B4 under the prefix `net.`. The same network exists in timm as `tf_efficientnet_b4`
(TF "same" padding, BatchNorm eps 1e-3), so only names differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipeline.errors import InputError
from training.weight_files import WeightFile, describe, kind_of, read_weight_file, tensors_of

TEACHER_NAME = "tf_efficientnet_b4"
"""The timm network these weights belong to."""

STAGE_DEPTHS = (2, 4, 4, 6, 6, 8, 2)
"""Blocks per stage of EfficientNet-B4: B0's (1, 2, 2, 3, 3, 4, 1) times 1.8, rounded up (Tan and Le 2019)."""

_OUTSIDE_BLOCKS = {
    "_conv_stem": "backbone.conv_stem",
    "_bn0": "backbone.bn1",
    "_conv_head": "backbone.conv_head",
    "_bn1": "backbone.bn2",
    "_fc": "head",
}
_IN_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The first stage does not expand: its blocks start at the depthwise convolution and timm counts from there.
_IN_FIRST_STAGE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


@dataclass(frozen=True, slots=True)
class SbiWeights:
    """The teacher's tensors under a Detector's names (`backbone.…`, `head.…`) and the file's SHA-256."""

    state: dict[str, Tensor]
    sha256: str


def read_sbi_weights(path: Path) -> SbiWeights:
    """Read a self-blended-images checkpoint; unknown names stay as they are, for a strict load to report.

    Raises:
        InputError: The file cannot be read, or is of another kind; the message says which and what to do.
    """
    file = read_weight_file(path)
    state = tensors_of(_model_part(file), path)
    return SbiWeights({_our_name(name): tensor for name, tensor in state.items()}, file.sha256)


def _model_part(file: WeightFile) -> Mapping[object, object]:
    """Return the dict under `model`, whose names must start with `net.`."""
    payload = file.payload
    if not isinstance(payload, Mapping):
        raise InputError(f"{file.path} holds a {type(payload).__name__}. {_WANTED}")
    model = payload.get("model")
    if not isinstance(model, Mapping):
        keys = [str(key) for key in payload]
        raise InputError(f"{file.path} has no `model` entry; it looks like {_guess(keys)}. {_WANTED}")
    names = [str(name) for name in model]
    if kind_of(names) != "efficientnet_pytorch" or not all(name.startswith("net.") for name in names):
        raise InputError(f"The `model` entry of {file.path} looks like {_guess(names)}. {_WANTED}")
    return model


_WANTED = (
    "Expected is a file as the self-blended-images training writes it (FFc23.tar, FFraw.tar): keys `model`, "
    "`optimizer`, `epoch`, and under `model` an EfficientNet-B4 whose names start with `net._conv_stem`."
)


def _guess(names: list[str]) -> str:
    kind = kind_of(names)
    if kind == "efficientnet_pytorch":
        flat = any(name.startswith("_conv_stem.") for name in names)
        state = "without the prefix `net.`" if flat else "saved without its `model` key or partly renamed"
        remedy = 're-save it as {"model": {"net." + name: tensor}}'
        return f"an EfficientNet-PyTorch state dict {state}; {remedy}"
    if kind == "unknown":
        shown = ", ".join(names[:5]) or "nothing"
        return f"something else (its keys begin with {shown})"
    return describe(kind)


def _our_name(name: str) -> str:
    """Translate one name, e.g. `net._blocks.2._bn0.weight` -> `backbone.blocks.1.0.bn1.weight`."""
    match = re.fullmatch(r"net\.(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", name)
    if match is None:
        return name
    block, layer, leaf = match.groups()
    if block is None:
        ours = _OUTSIDE_BLOCKS.get(layer)
        return name if ours is None else f"{ours}.{leaf}"
    place = _stage_and_index(int(block))
    if place is None:
        return name
    stage, index = place
    ours = (_IN_FIRST_STAGE if stage == 0 else _IN_BLOCK).get(layer)
    return name if ours is None else f"backbone.blocks.{stage}.{index}.{ours}.{leaf}"


def _stage_and_index(block: int) -> tuple[int, int] | None:
    for stage, depth in enumerate(STAGE_DEPTHS):
        if block < depth:
            return stage, block
        block -= depth
    return None
