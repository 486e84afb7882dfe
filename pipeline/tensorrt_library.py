"""The two libraries that make and run engines, TensorRT and TensorRT for RTX: one API under two names.

They differ in little: RTX builds ahead of time without a GPU, keeps no timing cache and captures CUDA graphs itself.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from pipeline.errors import CannotRunHereError, InputError

LibraryName = Literal["tensorrt", "tensorrt-rtx"]

RTX_TARGETS: Final = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that engines of TensorRT for RTX are built for: Ampere, Ada and Blackwell.

Turing (7.5) would need a build of its own and has no products in float32.
"""

_MODULES: dict[LibraryName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
_OLDEST: dict[LibraryName, tuple[int, int]] = {"tensorrt": (10, 15), "tensorrt-rtx": (1, 5)}
_WHY_NOT: dict[LibraryName, str] = {
    "tensorrt": " Its libraries come from NVIDIA's own package index, which the machine must be able to reach.",
    "tensorrt-rtx": "",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Library:
    """One of the two, imported.

    Attributes:
        name: What artefacts call it.
        api: The module.
        version: Its version, such as "10.15.1.29".
    """

    name: LibraryName
    api: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT for RTX."""
        return self.name == "tensorrt-rtx"


def install_command(name: LibraryName) -> str:
    """The command that installs a library into the environment that runs this."""
    return f"pip install -e '.[{name}]'"


def open_library(name: LibraryName) -> Library:
    """Import a library.

    Raises:
        CannotRunHereError: It is not installed, cannot be loaded, or is older than this code was written for.
    """
    if name not in get_args(LibraryName):
        raise InputError(f"{name!r} builds no engines; choose from {', '.join(get_args(LibraryName))}.")
    module = _MODULES[name]
    try:
        api = importlib.import_module(module)
    except (ImportError, OSError) as error:
        cause = "" if isinstance(error, ModuleNotFoundError) and error.name == module else f" ({error})"
        raise CannotRunHereError(
            f"{name} is not installed here{cause}. Install it with `{install_command(name)}`.{_WHY_NOT[name]}"
        ) from error
    version = str(api.__version__)
    oldest = _OLDEST[name]
    if tuple(int(part) for part in version.split(".")[:2]) < oldest:
        raise CannotRunHereError(
            f"{name} {version} is installed; this stillface needs {oldest[0]}.{oldest[1]} or newer. "
            f"Update it with `{install_command(name)}`."
        )
    return Library(name, api, version)


def engine_log(library: Library) -> Any:
    """A logger that the library accepts, which keeps its errors and what it says of the layers it has built.

    Returns:
        The library's `ILogger` with `errors: list[str]` and `layers: str`.
    """
    api = library.api
    base: Any = api.ILogger
    severity_of: Any = api.ILogger.Severity

    class EngineLog(base):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            """Called by the library; may not raise."""
            if severity in (severity_of.ERROR, severity_of.INTERNAL_ERROR):
                self.errors.append(message.strip())
            elif severity == severity_of.WARNING:
                logger.debug("%s: %s", library.name, message)
            elif "LayerType: " in message:
                self.layers += f"{message}\n"

    return EngineLog()
