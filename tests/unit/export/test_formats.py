"""The list of formats is the manifest's, and what cannot be made here is said with the way out."""

from __future__ import annotations

from typing import get_args

import pytest

from export.formats import FORMATS, default_formats, missing_modules, parse_formats
from pipeline.errors import InputError
from pipeline.manifest import ArtefactName


def test_the_manifest_knows_each_format_and_no_other() -> None:
    assert set(FORMATS) == set(get_args(ArtefactName))


def test_what_a_format_is_made_from_comes_before_it() -> None:
    names = list(FORMATS)
    for item in FORMATS.values():
        if item.made_from != "checkpoint":
            assert names.index(item.made_from) < names.index(item.name)


def test_onnx_is_always_among_them() -> None:
    assert [item.name for item in parse_formats("onnx-fp16")] == ["onnx", "onnx-fp16"]


@pytest.mark.parametrize("text", ["", " , ", "onnx,onnx-int4"])
def test_an_unknown_format_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(InputError, match=r"is no format; choose from onnx, onnx-fp16"):
        parse_formats(text)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.formats.missing_modules", lambda item: ["tensorrt"] * item.needs_gpu)
    with pytest.raises(InputError, match=r"tensorrt is not installed.*pip install -e '\.\[tensorrt\]'"):
        parse_formats("onnx,tensorrt")


def test_the_default_is_what_can_be_built_here() -> None:
    chosen = parse_formats(default_formats())
    assert all(item.builds_without_gpu and not missing_modules(item) for item in chosen)
