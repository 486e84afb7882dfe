"""Says whether an engine belongs to this machine, before a byte of it is run: deserializing executes native code."""

from __future__ import annotations

import platform
from pathlib import Path

from pydantic import ValidationError

from pipeline.cuda_device import CudaDevice
from pipeline.errors import CannotRunHereError, InputError
from pipeline.manifest import EngineFacts

ANY_PLATFORM = "any"


def this_platform() -> str:
    """Operating system and processor, such as "linux-x86_64"."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def check_engine(
    path: Path,
    facts: EngineFacts,
    *,
    name: str,
    version: str,
    device: CudaDevice,
    here: str | None = None,
) -> None:
    """Refuse an engine that was built for another library, platform, GPU or a newer driver.

    Args:
        path: The engine, for the message.
        facts: What it says of itself.
        name: Its artefact's name, for the message.
        version: Of the library that is to run it, as installed.
        device: The GPU it is to run on.
        here: This machine's platform; by default `this_platform()`.

    Raises:
        CannotRunHereError: Naming everything that differs and the command that builds the engine for this machine.
    """
    wrong = differences(facts, version=version, device=device, here=here or this_platform())
    if wrong:
        raise CannotRunHereError(
            f"{path} was not built for this machine: {'; '.join(wrong)}. Build it here with `stillface export "
            f"CHECKPOINT --out BUNDLE --formats {name}`, or use another artefact of the bundle, such as onnx."
        )


def differences(facts: EngineFacts, *, version: str, device: CudaDevice, here: str) -> list[str]:
    """What sets the machine an engine was built for apart from this one, in words; empty if it may run here."""
    wrong = []
    if facts.runtime_version != version:
        wrong.append(f"built with version {facts.runtime_version} of its library, {version} is installed")
    if facts.platform not in (ANY_PLATFORM, here):
        wrong.append(f"built for {facts.platform}, this is {here}")
    if device.compute_capability not in facts.compute_capabilities:
        built = ", ".join(facts.compute_capabilities)
        wrong.append(f"built for compute capability {built}, {device.name} has {device.compute_capability}")
    elif facts.device not in (None, device.name):
        wrong.append(f"built on {facts.device}, this is {device.name}")
    if facts.driver is not None and _number(device.driver) < _number(facts.driver):
        wrong.append(f"built under a driver for CUDA {facts.driver}, the one here knows CUDA {device.driver}")
    return wrong


def facts_path(engine: Path) -> Path:
    """Where an engine's facts lie: beside it."""
    return engine.with_name(f"{engine.name}.json")


def read_facts(engine: Path) -> EngineFacts:
    """Read what an engine that is not part of a bundle says of itself.

    Raises:
        InputError: There is no such file beside it, or it is none of ours.
    """
    path = facts_path(engine)
    try:
        return EngineFacts.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{engine} has no {path.name} beside it, so nobody knows what it was built for. Build it again with "
            "`stillface export CHECKPOINT --out BUNDLE --formats tensorrt`."
        ) from error
    except ValidationError as error:
        raise InputError(f"{path} does not describe an engine: {error.errors()[0]['msg']}.") from error


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
