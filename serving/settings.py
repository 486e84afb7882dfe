"""What can be set about a server, from the command line or the environment; every limit has a safe default."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

PREFIX = "STILLFACE_SERVE_"
MIB = 1 << 20
_ONE_PROCESS = (
    "workers: a server is one process, because jobs, /metrics and reloads belong to it. It uses all cores: set "
    "replicas, runtime_threads and look_threads. For more processes start several servers on ports of their own "
    "behind a proxy that keeps a client's jobs with one of them."
)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseModel):
    """Settings of a server. Sizes are in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path = Field(description="The bundle's folder; may be a link that is switched before a reload.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="0 takes any free port.")

    artefact: str | None = Field(None, description="Form of the network; none: the fastest that runs here.")
    replicas: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Copies of the network that run side by side; none: one a core where one thread is enough, else "
        "one that gives each thread a crop of its own where several wait.",
    )
    runtime_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of each copy of the network; none: the cores, shared among the copies.",
    )
    look_threads: int = Field(
        default_factory=cores, ge=1, le=256, description="Threads that decode pictures and find faces."
    )
    max_batch: int | None = Field(
        None, ge=1, le=1024, description="Most crops given to the network at once; none: as many as pay here."
    )
    batch_memory: int = Field(
        128 * MIB,
        ge=0,
        description="Memory that several crops at once may take beyond a single one's, in a batch or in runs side by "
        "side, where how many is not set.",
    )
    max_wait_ms: float = Field(
        4.0, ge=0, le=1000, description="How long a crop waits for others that are on their way."
    )
    infer_timeout_s: float = Field(30.0, gt=0, description="After this the runtime counts as hung.")
    queue_timeout_s: float = Field(20.0, gt=0, description="Longest wait of a crop for the network.")
    ready_window_s: float = Field(30.0, gt=0, description="Ready means an inference succeeded within this.")

    max_inflight: int = Field(20, ge=1, description="Requests worked on at once; more are answered 503.")
    max_uploads: int = Field(128, ge=1, description="Bodies received at once; more are answered 503.")
    max_videos: int = Field(2, ge=1, description="Videos worked on at once.")
    max_jobs: int = Field(16, ge=0, description="Videos that may wait as jobs; 0: no jobs.")
    job_after_s: float = Field(120.0, ge=0, description="Longer videos become jobs unless streamed.")
    job_keep_s: float = Field(3600.0, gt=0, description="How long a finished job's result is kept.")

    max_image_bytes: int = Field(20 * MIB, ge=1)
    max_batch_images: int = Field(16, ge=1, description="Most pictures in one batch request.")
    max_batch_bytes: int = Field(64 * MIB, ge=1)
    max_video_bytes: int = Field(200 * MIB, ge=1)
    max_pixels: int = Field(40_000_000, ge=1, description="Width times height of a picture.")
    max_video_pixels: int = Field(9_500_000, ge=1, description="Width times height of a video's frame.")
    max_duration_s: float = Field(7200.0, gt=0, description="Longest video.")
    max_frames: int = Field(256, ge=1, description="Most frames looked at in one video.")
    max_faces: int = Field(64, ge=1, description="Most faces scored in one frame.")
    video_timeout_s: float = Field(120.0, gt=0, description="Longest work on one video, jobs included.")
    video_memory: int = Field(1536 * MIB, ge=256 * MIB, description="Memory of the video decoder's process.")

    header_timeout_s: float = Field(10.0, gt=0, description="Longest wait for a request's headers.")
    body_timeout_s: float = Field(20.0, gt=0, description="Longest wait for a request's body, plus the next.")
    body_bytes_per_s: int = Field(
        65536, ge=1, description="Slowest upload: each so many bytes earn a second."
    )
    max_connections: int = Field(512, ge=1, description="Open connections; more are answered 503.")
    drain_delay_s: float = Field(0.0, ge=0, description="Time between not being ready and not listening.")
    drain_timeout_s: float = Field(60.0, gt=0, description="Longest wait for started work when stopping.")

    keys: Path | None = Field(None, description="File of API keys, as `stillface key` writes it.")
    anonymous: bool = Field(False, description="Serve without keys on an address that others can reach.")
    cors_origins: tuple[str, ...] = Field((), description="Origins whose pages may call; none by default.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")

    @model_validator(mode="after")
    def _not_open_by_accident(self) -> Settings:
        if self.keys is None and not self.anonymous and not _is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached by others and there are no keys: set keys to a file made with "
                "`stillface key`, or anonymous=true if everybody may use this server"
            )
        return self


def load_settings(
    given: Mapping[str, Any], pairs: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from, in rising order: defaults, environment (`STILLFACE_SERVE_<NAME>`), pairs, `given`.

    Args:
        given: Values of the command line's own options; None means not given.
        pairs: key=value.
        environment: By default the process's.

    Raises:
        InputError: An unknown name or a value out of range; all mistakes at once.
    """
    source = os.environ if environment is None else environment
    values: dict[str, Any] = {
        name.removeprefix(PREFIX).lower(): value for name, value in source.items() if name.startswith(PREFIX)
    }
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise InputError(f"{pair!r}: expected key=value, for example max_inflight=64")
        values[key] = value
    values |= {key: value for key, value in given.items() if value is not None}
    if "workers" in values:
        raise InputError(_ONE_PROCESS)
    if isinstance(values.get("cors_origins"), str):
        values["cors_origins"] = [part for part in values["cors_origins"].split(",") if part]
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        names = ", ".join(Settings.model_fields)
        raise InputError(
            "Cannot serve with these settings:\n" + "\n".join(lines) + f"\nKnown: {names}"
        ) from error


def settings_table(settings: Settings) -> Table:
    """Settings, their values and what they mean."""
    # a server does without
    from rich.table import Table

    table = Table("setting", "value", "meaning")
    for name, field in Settings.model_fields.items():
        table.add_row(name, str(getattr(settings, name)), field.description or "")
    return table


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
