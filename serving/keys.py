"""API keys: kept as hashes, compared in constant time, each with a rate of its own."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.errors import InputError
from pipeline.storage import write_whole

_MARK = "sf_"
DEFAULT_RATE = 600


class KeyEntry(BaseModel):
    """One key of a key file.

    Attributes:
        id: Name of its holder, as it stands in logs.
        sha256: Of the key. Keys are 256 random bits, so that a fast hash is enough.
        per_minute: Requests a minute; as many may come at once.
        admin: Whether it may reload the bundle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    per_minute: int = Field(default=DEFAULT_RATE, ge=1)
    admin: bool = False


_ENTRIES = TypeAdapter(tuple[KeyEntry, ...])


@dataclass(slots=True)
class _Bucket:
    """A token bucket: as many tokens as `per_minute`, refilled evenly."""

    tokens: float
    at: float


@dataclass(slots=True)
class Keys:
    """The keys a server knows.

    Attributes:
        entries: From the key file.
        clock: Seconds that never go back.
    """

    entries: tuple[KeyEntry, ...]
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def find(self, key: str) -> KeyEntry | None:
        """The entry of a key; the time it takes does not tell how much of it was right."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        found = None
        for entry in self.entries:
            if hmac.compare_digest(digest, entry.sha256):
                found = entry
        return found

    def wait_for(self, entry: KeyEntry) -> float:
        """Take one request off a key's rate; 0 if it may go, else the seconds to wait."""
        now, rate = self.clock(), entry.per_minute / 60
        bucket = self._buckets.setdefault(entry.id, _Bucket(entry.per_minute, now))
        bucket.tokens = min(entry.per_minute, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0.0
        return (1 - bucket.tokens) / rate


def read_keys(path: Path) -> Keys:
    """Read a key file.

    Raises:
        InputError: It is missing, not a key file, empty, or holds one name twice.
    """
    try:
        entries = _ENTRIES.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"Cannot read the key file {path}: {error.strerror}.") from error
    except ValidationError as error:
        raise InputError(f"{path} is not a key file: {error.errors()[0]['msg']}.") from error
    if not entries:
        raise InputError(f"{path} holds no key; make one with `stillface key NAME --keys {path}`.")
    if len({entry.id for entry in entries}) < len(entries):
        raise InputError(f"{path} holds two keys of one name; remove one.")
    return Keys(entries)


def add_key(path: Path, name: str, *, per_minute: int = DEFAULT_RATE, admin: bool = False) -> str:
    """Make a key, store its hash, and return it: it cannot be had again.

    Raises:
        InputError: The name is taken or not a name, or the file cannot be used.
    """
    known = read_keys(path).entries if path.exists() else ()
    if any(entry.id == name for entry in known):
        raise InputError(f"{path} has a key called {name!r} already; choose another name or remove that one.")
    key = _MARK + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    try:
        entry = KeyEntry(id=name, sha256=digest, per_minute=per_minute, admin=admin)
    except ValidationError as error:
        raise InputError(
            f"{name!r} cannot be a key's name: use letters, digits, dot, dash, underscore."
        ) from error
    entries = [item.model_dump() for item in (*known, entry)]
    write_whole(path, (json.dumps(entries, indent=2) + "\n").encode())
    path.chmod(0o600)
    return key
