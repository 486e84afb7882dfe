"""API keys and their rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from serving.keys import Keys, add_key, read_keys


def test_a_key_is_found_and_never_stored(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = add_key(path, "newsroom")
    second = add_key(path, "ops", admin=True, per_minute=5)
    assert first not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    keys = read_keys(path)
    found = keys.find(second)
    assert found is not None
    assert (found.id, found.admin, found.per_minute) == ("ops", True, 5)
    for wrong in ("", first[:-1], first + "x", "ops", found.sha256):
        assert keys.find(wrong) is None


def test_a_rate_refills_evenly(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "a", per_minute=60)
    now = 100.0
    keys = Keys(read_keys(path).entries, clock=lambda: now)
    entry = keys.entries[0]
    assert [keys.wait_for(entry) for _ in range(60)] == [0.0] * 60
    assert keys.wait_for(entry) == pytest.approx(1.0)
    now += 0.5
    assert keys.wait_for(entry) == pytest.approx(0.5)
    now += 0.6
    assert keys.wait_for(entry) == 0.0
    now += 3600
    assert [keys.wait_for(entry) for _ in range(61)][:60] == [0.0] * 60


def test_what_is_no_key_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(InputError, match="Cannot read"):
        read_keys(path)
    for text, message in (
        ("nothing", "not a key file"),
        ("[]", "no key"),
        ('[{"id": "a", "sha256": "short"}]', "not a key file"),
        (json.dumps([{"id": "a", "sha256": "0" * 64}] * 2), "two keys of one name"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_keys(path)
    path.unlink()
    add_key(path, "a")
    with pytest.raises(InputError, match="already"):
        add_key(path, "a")
    with pytest.raises(InputError, match="cannot be a key's name"):
        add_key(path, "two words")
