"""What can go wrong from outside, and the one border where it becomes a message and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import NoReturn

BAD_INPUT = 2
NOT_PROVEN = 3
INTERRUPTED = 130


class InputError(ValueError):
    """Something given from outside (file, folder, setting, video) cannot be used.

    The message is printed as it stands and the command exits with code 2, so it names the input,
    what was expected of it and what to do next.
    """


class CannotRunHereError(InputError):
    """An artefact may be sound, but this machine lacks what runs it: a package, a GPU, the GPU it was built for."""


class NotProvenError(Exception):
    """Something exported does not do what was trained; the message names it and the broken link. Exit code 3."""


class Stopped(Exception):  # noqa: N818 - a stop that was asked for, not an error
    """Work was asked to stop by a signal and has put itself away; `exit_code` is 128 + the signal (130, 143)."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def run_command(command: Callable[[], object]) -> NoReturn:
    """Run a command line and exit: 0 done, 2 bad input or full disk, 3 not proven, 130 interrupted, else traceback."""
    try:
        command()
    except InputError as error:
        _leave(f"error: {error}", BAD_INPUT)
    except NotProvenError as error:
        _leave(f"not proven: {error}", NOT_PROVEN)
    except Stopped as stop:
        _leave(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _leave(f"error: the disk is full ({error}); free space and run the command again", BAD_INPUT)
    sys.exit(0)


def _leave(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.exit(code)
