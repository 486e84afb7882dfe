"""A server's settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import serving
from pipeline.errors import InputError
from serving.settings import Settings, load_settings


def test_options_beat_pairs_beat_the_environment() -> None:
    settings = load_settings(
        {"bundle": "b", "port": 1, "host": None},
        ["port=2", "max_batch=4"],
        {
            "STILLFACE_SERVE_PORT": "3",
            "STILLFACE_SERVE_MAX_BATCH": "5",
            "STILLFACE_SERVE_MAX_FACES": "6",
            "X": "7",
        },
    )
    assert (settings.port, settings.max_batch, settings.max_faces) == (1, 4, 6)
    assert settings.host == "127.0.0.1"


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(InputError) as told:
        load_settings({"bundle": "b"}, ["max_bacth=4", "port=-1"], {})
    assert "max_bacth" in str(told.value)
    assert "port" in str(told.value)
    with pytest.raises(InputError, match="key=value"):
        load_settings({"bundle": "b"}, ["port"], {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])  # noqa: S104
def test_an_address_that_others_reach_needs_keys_or_a_word(host: str) -> None:
    with pytest.raises(InputError, match="can be reached by others"):
        load_settings({"bundle": "b", "host": host}, [], {})
    assert load_settings({"bundle": "b", "host": host}, ["anonymous=true"], {}).host == host
    assert load_settings({"bundle": "b", "host": host, "keys": "k"}, [], {}).host == host


def test_every_setting_is_read_somewhere() -> None:
    folder = Path(serving.__file__).parent
    code = "\n".join(path.read_text() for path in folder.glob("*.py") if path.name != "settings.py")
    code += (folder / "settings.py").read_text().partition("def _not_open_by_accident")[2]
    unread = [name for name in Settings.model_fields if not re.search(rf'\.{name}\b|"{name}"', code)]
    assert not unread


def test_several_processes_are_refused_with_the_way_out() -> None:
    for given in ({"pairs": ["workers=4"]}, {"environment": {"STILLFACE_SERVE_WORKERS": "4"}}):
        with pytest.raises(InputError, match=r"one process.*replicas.*behind a proxy"):
            load_settings({"bundle": "b"}, **{"environment": {}, **given})  # type: ignore[arg-type]
