"""Loaders of self-blended pairs that leave the run's random streams alone and fail in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from pipeline.errors import InputError
from training.dataset import BlendedFaces, EpochSampler, collate, worker_init
from training.runtime import Runtime

T = TypeVar("T")


class LostWorkersError(RuntimeError):
    """Loader processes have died: killed, out of memory, or ended by a signal to the whole job."""


def blended_loader(
    faces: BlendedFaces, sampler: EpochSampler, runtime: Runtime, *, workers: int, keep_workers: bool = False
) -> DataLoader[Any]:
    """Batches of `faces` in the order of `sampler`.

    Args:
        faces: What to load.
        sampler: Order and batch size in pairs.
        runtime: Where the batches go.
        workers: Loader processes; they change no pixel.
        keep_workers: Let them live, and read ahead, from one epoch to the next.
    """
    return DataLoader(
        faces,
        batch_size=sampler.batch_size,
        sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=worker_init,
        persistent_workers=keep_workers and workers > 0,
        prefetch_factor=4 if workers else None,
        pin_memory=runtime.device.type == "cuda",
        drop_last=sampler.drop_last,
        # Every iteration draws a seed for its workers, which use none. Drawn from the stream that dropout uses, it
        # would make a run depend on the number of workers and on where it was stopped.
        generator=torch.Generator(),
    )


def batches_of(loader: Iterable[T]) -> Iterator[T]:
    """What the loader yields.

    Raises:
        InputError: a face cannot be used; in the words of the worker that found out, without its traceback.
        LostWorkersError: loader processes have died.
    """
    try:
        yield from loader
    except InputError as error:
        text = str(error)
        if "Traceback (most recent call last)" not in text:
            raise
        raise InputError(text.rpartition(f"{InputError.__name__}: ")[2].strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise LostWorkersError(str(error)) from error
    except (EOFError, ConnectionError, FileNotFoundError) as error:
        # a batch was announced, and its worker died before handing it over
        raise LostWorkersError("a loader process has died while it handed over a batch") from error
