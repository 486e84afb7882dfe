"""Where a run computes: device, precision, threads, seeds and the processes of `torchrun`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import BAD_INPUT, InputError
from training.config import Settings

Rng = dict[str, Tensor]
T = TypeVar("T")

# The other processes wait while the main one validates or writes to a slow disk.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Runtime:
    """Device, autocast type and place among the processes.

    Attributes:
        device: Where the networks live.
        autocast_dtype: torch.bfloat16, torch.float16, or None for fp32.
        rank: This process's number.
        world_size: Number of processes.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """A fresh autocast context for one forward pass."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def on_main(self, work: Callable[[], T]) -> T:
        """Do something in the main process alone and give every process its (picklable) result.

        Raises:
            InputError: `work` raised it; the other processes leave with its exit code and without a word.
        """
        if self.world_size == 1:
            return work()
        told: list[Any] = [None, None]
        refusal: InputError | None = None
        if self.is_main:
            try:
                told[0] = work()
            except InputError as error:
                refusal, told[1] = error, str(error)
        dist.broadcast_object_list(told)
        if refusal is not None:
            raise refusal
        if told[1] is not None:
            raise SystemExit(BAD_INPUT)
        result: T = told[0]
        return result

    def largest(self, number: int) -> int:
        """The largest of every process's number; all processes must ask at the same point."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)


@contextmanager
def start_runtime(settings: Settings) -> Iterator[Runtime]:
    """Set threads, seeds and kernels, and join the process group when `torchrun` started us.

    Raises:
        InputError: the device or precision asked for does not exist here.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    device = _pick_device(settings.device)
    torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 1) // neighbours))
    cv2.setNumThreads(1)
    keep_float32()
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    # every process draws its own dropout masks; DistributedDataParallel hands out the main one's first weights
    seed_everything(settings.seed + rank)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Runtime(device, _pick_dtype(settings.precision, device), rank, world_size)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def keep_float32() -> None:
    """Let float32 be float32 on GPUs too: by default cuDNN rounds its factors to the 10 bits of TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; only torch's stream is used in training, the others guard third parties."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def read_rng(device: torch.device) -> Rng:
    """The random streams that training draws from (dropout, stochastic depth)."""
    streams = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        streams["cuda"] = torch.cuda.get_rng_state(device)
    return streams


def restore_rng(streams: Rng, device: torch.device) -> None:
    """Set the streams back to what `read_rng` gave."""
    torch.set_rng_state(streams["cpu"].cpu())
    if device.type == "cuda" and "cuda" in streams:
        torch.cuda.set_rng_state(streams["cuda"].cpu(), device)


def gather_rng(runtime: Runtime) -> list[Rng]:
    """Every rank's streams, in order of rank; all ranks must call it."""
    mine = read_rng(runtime.device)
    if runtime.world_size == 1:
        return [mine]
    gathered: list[Any] = [None] * runtime.world_size
    dist.all_gather_object(gathered, mine)
    return gathered


def _pick_device(name: str) -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    expected = f"device {name!r}: expected auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(expected) from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise InputError(expected)
    if not torch.cuda.is_available():
        raise InputError(f"device {name!r}: PyTorch sees no CUDA device here; use --set device=cpu")
    index = local if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count:
        raise InputError(
            f"device {name!r}: number {index} asked for, but PyTorch sees {count} CUDA device(s), numbered from 0; "
            "name one of them, or start no more processes on a machine than it has devices"
        )
    if device.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"device {name!r}: under torchrun every process needs its own; use --set device=cuda"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _pick_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "fp16" and device.type != "cuda":
        raise InputError("precision 'fp16' needs a CUDA device; use --set precision=bf16 or fp32 on this one")
    if precision == "auto":
        # Measured on a CPU with AVX512-BF16: no faster than fp32 in channels-last, so only GPUs get it by default.
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
