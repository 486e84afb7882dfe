"""Writes a file so that other processes, and the next run after a crash, see it whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pipeline.errors import InputError

TEMPORARY = ".part-"
"""How the names of files begin that are not whole yet; only a killed process leaves them behind."""


def write_whole(path: Path, content: bytes | memoryview, *, durable: bool = False) -> None:
    """Write a file by way of a temporary one beside it, which then takes its name in one step.

    Args:
        path: Where to; its folder is made if needed.
        content: The file's bytes.
        durable: Wait until the bytes are on the disk before the name changes, so that a power cut cannot leave
            an empty file under it; too slow for thousands of small files.

    Raises:
        InputError: The folder cannot be written, for instance because the disk is full; nothing is left
            half-written and an older file of that name is untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=TEMPORARY, delete=False) as handle:
            temporary = Path(handle.name)
            handle.write(content)
            if durable:
                handle.flush()
                os.fsync(handle.fileno())
        # NamedTemporaryFile's files are private; a prepared folder or a cache may be shared.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"Cannot write {path.name} into {path.parent}: {error.strerror or error}. "
            "Free space there or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
