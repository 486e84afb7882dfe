"""Weights from outside enter here: read without running code, recognised, matched to the last tensor.

A file that fits only partly is the failure that hides longest (a network left at its random start still
trains), so nothing here loads "as much as fits".
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import InputError

Kind = Literal["stillface", "efficientnet_pytorch", "cvnets", "timm", "unknown"]

_SHOWN = 20
_WRONG_STARTS = {
    b"<!DOCTYPE": "an HTML page, so the download fetched a web page instead of the file",
    b"<!doctype": "an HTML page, so the download fetched a web page instead of the file",
    b"<html": "an HTML page, so the download fetched a web page instead of the file",
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to (`git lfs pull` fetches it)",
}


class LoadReport(BaseModel):
    """What was loaded into a network, kept with the run so that nobody has to believe it.

    Attributes:
        source: Where the weights came from: "none", "imagenet:<timm name>", "file:<path>" or "sbi:<path>".
        matched: Tensors that were filled from the source.
        total: Tensors the source had to fill (the backbone's; with the head's where `head` is "loaded").
        dropped: Names in the source that were left out on purpose (the classifier of another task).
        head: Whether the two-class head came from the source or starts at random.
        sha256: Of the file, or for downloaded weights of the tensors themselves; None without a source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    matched: int = Field(ge=0)
    total: int = Field(ge=0)
    dropped: tuple[str, ...] = ()
    head: Literal["random", "loaded"] = "random"
    sha256: str | None = None

    def __str__(self) -> str:
        """One line for the log, e.g. "imagenet:mobilevitv2_200: 415 of 415 tensors, head random"."""
        dropped = f", {len(self.dropped)} classifier tensors dropped" if self.dropped else ""
        return f"{self.source}: {self.matched} of {self.total} tensors{dropped}, head {self.head}"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weight file's content as it was read (`payload`, usually a dict) and the SHA-256 of its bytes."""

    path: Path
    payload: object
    sha256: str


def read_weight_file(path: Path) -> WeightFile:
    """Read a .safetensors or torch file on the CPU without executing anything stored in it.

    Raises:
        InputError: The file is missing, empty, cut short, not a weight file, or needs code to be read.
    """
    _refuse_what_is_no_weight_file(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    payload = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return WeightFile(path, payload, sha256)


def tensors_of(payload: object, path: Path) -> dict[str, Tensor]:
    """Return `payload` as a flat dict of finite floating-point (or counter) tensors.

    Raises:
        InputError: It is something else, holds no tensor, or holds NaN or Inf.
    """
    if not isinstance(payload, Mapping) or not payload:
        raise InputError(f"{path} holds a {type(payload).__name__}, expected a dict of named tensors.")
    strangers = [str(name) for name, value in payload.items() if not isinstance(value, Tensor)]
    if strangers:
        raise InputError(
            f"{path} is not a flat dict of tensors: {_some(strangers)} hold something else. "
            "Save the network's state dict alone."
        )
    broken = [name for name, value in payload.items() if not torch.isfinite(value).all()]
    if broken:
        raise InputError(
            f"{path} holds NaN or Inf in {_some(broken)}: its training had diverged. Take another one."
        )
    return {str(name): value for name, value in payload.items()}


def kind_of(names: Sequence[str]) -> Kind:
    """Tell whose naming a state dict follows, from the names alone."""
    bare = [name.removeprefix("module.") for name in names]
    if any(name.startswith("backbone.") for name in bare):
        return "stillface"
    if any(name.removeprefix("net.").startswith("_conv_stem.") for name in bare):
        return "efficientnet_pytorch"
    if any(re.match(r"(conv_1\.block\.|layer_\d+\.)", name) for name in bare):
        return "cvnets"
    if any(re.match(r"(conv_stem|stem|stages|blocks|conv1|layer1|patch_embed)\.", name) for name in bare):
        return "timm"
    return "unknown"


def describe(kind: Kind) -> str:
    """Say in words what a file of this kind is and what it is good for."""
    return {
        "stillface": "a network saved by stillface itself (names `backbone.…`): load it as a checkpoint "
        "(resume, or the student of stage 1), not as foreign weights",
        "efficientnet_pytorch": "an EfficientNet-PyTorch network as self-blended-image detectors store it "
        "(names `net._conv_stem.…`): give it as the teacher's weights",
        "cvnets": "Apple's own file with cvnets names (`conv_1.block.conv.…`, `layer_1.…`): take the "
        "conversion that timm publishes (`imagenet`, or the model.safetensors of `timm/mobilevitv2_*`)",
        "timm": "a timm network (names `stem.…`, `conv_stem.…`, `blocks.…`): give it as the pretrained "
        "weights of the timm model it was saved from",
        "unknown": "a state dict whose names fit no known network",
    }[kind]


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> int:
    """Copy every tensor of `state` into `module` and return their number.

    Raises:
        InputError: A name is missing or left over, or a shape differs; nothing is loaded then.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or extra or wrong:
        parts = (("missing", missing), ("not in the network", extra), ("of another shape", wrong))
        faults = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in parts if names)
        fitting = len(expected) - len(missing) - len(wrong)
        raise InputError(
            f"{source} does not fit: {fitting} of {len(expected)} tensors match. "
            f"{faults}. Nothing was loaded; give the weights of exactly this network."
        )
    module.load_state_dict(dict(state), strict=True)
    return len(expected)


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over sorted names, dtypes, shapes and bytes of `state`."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _refuse_what_is_no_weight_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} is not a file. Give the path of a .safetensors, .pth or .tar weight file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes). Download or copy it again.")
    with path.open("rb") as file:
        start = file.read(32)
    for mark, meaning in _WRONG_STARTS.items():
        if start.startswith(mark):
            raise InputError(f"{path} is {meaning}. Download it again.")


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}). Download or copy it again."
        ) from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_refused_pickle(path, error)) from error
    except (RuntimeError, EOFError, OSError, UnicodeDecodeError, KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{path} cannot be read as a torch file ({_first_line(error)}). It is cut short or of another "
            "kind; download or copy it again, and do not unpack a `.tar` that torch.save wrote."
        ) from error


def _refused_pickle(path: Path, error: pickle.UnpicklingError) -> str:
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    if code is None:
        return f"{path} is no torch file. Give one written by torch.save or safetensors."
    return (
        f"{path} needs code to be run to be read ({code[1]}), which a weight file must not. If you trust its "
        "origin, load it yourself with `torch.load(path, weights_only=False)`, save it with nothing but its state "
        "dict under the same key, and give that file."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} … and {len(names) - _SHOWN} more"
