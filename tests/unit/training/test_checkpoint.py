"""Checkpoints: whole or not there, self-describing, and found by the pattern the method's commands use."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import InputError
from training.checkpoint import (
    CheckpointInfo,
    drop_later,
    is_checkpoint,
    load_detector,
    prune,
    ranked_weights,
    resolve_weights,
    save_atomically,
    save_checkpoint,
    started,
    weights_name,
)
from training.networks import Detector, NetworkSpec

SPEC = NetworkSpec(name="test_efficientnet", image_size=32, mean=(0.5, 0.4, 0.3), dropout=0.2)


def info(**changes: Any) -> CheckpointInfo:
    content = {
        "stage": "stage1",
        "epoch": 3,
        "val_auc": 0.75,
        "threshold": 0.4,
        "network": SPEC,
        "config": {"seed": 5},
        "provenance": {"git": "abc"},
        **changes,
    }
    return CheckpointInfo.model_validate(content)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(SPEC)


@pytest.fixture
def saved(detector: Detector, tmp_path: Path) -> Path:
    path = tmp_path / "3_0.7500_val.pth"
    save_checkpoint(path, detector.state_dict(), info())
    return path


def test_a_checkpoint_rebuilds_the_network_and_tells_all_about_it(saved: Path, detector: Detector) -> None:
    loaded, told = load_detector(saved)
    assert not loaded.training
    for name, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    crops = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    was_training = detector.training
    torch.testing.assert_close(loaded(crops), detector.eval()(crops), rtol=0, atol=0)
    detector.train(was_training)
    assert told == info().model_copy(update={"sha256": hashlib.sha256(saved.read_bytes()).hexdigest()})


def test_a_checkpoint_needs_no_code_to_be_read(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert content["format"] == "stillface.checkpoint"
    assert is_checkpoint(saved)


def test_other_torch_files_are_told_apart(tmp_path: Path, detector: Detector) -> None:
    path = tmp_path / "bare.pth"
    torch.save(detector.state_dict(), path)
    assert not is_checkpoint(path)
    with pytest.raises(InputError, match=r"bare\.pth: not a stillface checkpoint; give a file such as"):
        load_detector(path)


def changed(path: Path, **changes: Any) -> Path:
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, r"schema 2, this one reads 1"),
        ({"info": '{"stage": "stage1"}'}, "description cannot be read"),
        ({"info": "{"}, "description cannot be read"),
        ({"model": {}}, "expected a dict of named tensors"),
        ({"model": {"head.weight": torch.zeros(2, 2)}}, "does not fit"),
        ({"model": {"head.weight": torch.full((2, 2), float("nan"))}}, "NaN or Inf"),
        (
            {"info": info(network=NetworkSpec(name="test_vit", image_size=32)).model_dump_json()},
            "does not fit",
        ),
        ({"info": info().model_dump_json().replace("test_efficientnet", "no_such_net")}, "knows no network"),
    ],
)
def test_a_checkpoint_that_does_not_hold_together_is_refused_by_name(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_detector(changed(saved, **changes))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_checkpoint_cut_short_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=str(saved)):
        load_detector(saved)


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_half_written(
    saved: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device.*same command then resumes"):
        save_checkpoint(saved, detector.state_dict(), info(epoch=4))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_state_that_is_replaced_is_whole_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "state" / "last.pt"
    save_atomically(path, {"step": 1})
    with path.open("rb") as open_before:
        save_atomically(path, {"step": 2})
        assert torch.load(open_before, weights_only=True) == {"step": 1}
    assert torch.load(path, weights_only=True) == {"step": 2}
    assert [child.name for child in path.parent.iterdir()] == ["last.pt"]


def test_names_are_those_of_the_method() -> None:
    assert weights_name(7, 0.98765) == "7_0.9877_val.pth"
    assert weights_name(100, 1.0) == "100_1.0000_val.pth"


def weights(run: Path, *names: str) -> Path:
    folder = run / "weights"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_the_best_comes_first_and_the_later_of_equals(tmp_path: Path) -> None:
    names = (
        "1_0.9000_val.pth",
        "10_0.9500_val.pth",
        "2_0.9500_val.pth",
        "3_1.0000_val.pth",
        "4_0.0912_val.pth",
    )
    folder = weights(tmp_path, *names, "notes_val.pth", ".part-5_0.9999_val.pth", "5_0.99_val.pth")
    assert [path.name for path in ranked_weights(folder)] == [
        "3_1.0000_val.pth",
        "10_0.9500_val.pth",
        "2_0.9500_val.pth",
        "1_0.9000_val.pth",
        "4_0.0912_val.pth",
    ]


def test_only_the_best_are_kept_and_other_files_are_left_alone(tmp_path: Path) -> None:
    folder = weights(tmp_path, *(f"{epoch}_0.{epoch}000_val.pth" for epoch in range(1, 8)), "mine.pth")
    gone = prune(folder, 5)
    assert sorted(path.name for path in gone) == ["1_0.1000_val.pth", "2_0.2000_val.pth"]
    assert len(ranked_weights(folder)) == 5
    assert (folder / "mine.pth").is_file()
    assert prune(folder, 5) == []


def test_weights_of_epochs_to_be_trained_again_are_dropped(tmp_path: Path) -> None:
    folder = weights(tmp_path, "9_0.5000_val.pth", "10_0.6000_val.pth", "11_0.7000_val.pth")
    drop_later(folder, 9)
    assert [path.name for path in ranked_weights(folder)] == ["9_0.5000_val.pth"]


def relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd()))


@pytest.mark.parametrize("spell", [str, relative])
def test_best_is_the_best_epoch_of_the_newest_run_that_has_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spell: Callable[[Path], str]
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "output"
    weights(output / "pretrain_mobilevit_20250101-000000", "1_0.9900_val.pth")
    weights(output / "pretrain_mobilevit_20250301-120000", "1_0.7000_val.pth", "2_0.8000_val.pth")
    weights(output / "pretrain_mobilevit_20250401-120000")  # nothing saved yet
    weights(output / "distill_mobilevit_20260101-120000", "1_0.9000_val.pth")
    found = resolve_weights(spell(output / "pretrain_mobilevit_*" / "weights" / "BEST.pth"))
    assert found.resolve() == output / "pretrain_mobilevit_20250301-120000" / "weights" / "2_0.8000_val.pth"


def test_runs_of_one_second_and_of_many_years_keep_their_order(tmp_path: Path) -> None:
    weights(tmp_path / "x_20260101-000000-2", "1_0.1000_val.pth")
    weights(tmp_path / "x_20250630-235959", "1_0.2000_val.pth")
    weights(tmp_path / "x_20260101-000000", "1_0.3000_val.pth")
    pattern = str(tmp_path / "x_*" / "weights" / "BEST.pth")
    assert resolve_weights(pattern).parent.parent.name == "x_20260101-000000-2"
    weights(tmp_path / "x_20260101-000000-10", "1_0.4000_val.pth")
    assert resolve_weights(pattern).parent.parent.name == "x_20260101-000000-10"
    weights(tmp_path / "x_20270101-000000", "1_0.5000_val.pth")
    assert resolve_weights(pattern).parent.parent.name == "x_20270101-000000"
    assert started(Path("renamed")) < started(Path("x_20250101-000000"))


def test_a_run_named_outright_and_a_file_of_that_name_are_taken_as_given(tmp_path: Path) -> None:
    folder = weights(tmp_path / "renamed", "1_0.1000_val.pth", "2_0.2000_val.pth")
    assert resolve_weights(str(folder / "BEST.pth")).name == "2_0.2000_val.pth"
    (folder / "BEST.pth").write_bytes(b"mine")
    assert resolve_weights(str(folder / "BEST.pth")) == folder / "BEST.pth"
    assert resolve_weights(str(folder / "1_0.1000_val.pth")).name == "1_0.1000_val.pth"


def test_what_cannot_be_found_is_told_with_what_lies_near(tmp_path: Path) -> None:
    folder = weights(tmp_path / "x_20250101-000000")
    with pytest.raises(InputError, match=r"no run with saved weights matches.*x_20250101-000000"):
        resolve_weights(str(tmp_path / "x_*" / "weights" / "BEST.pth"))
    with pytest.raises(InputError, match="folders that matched: none"):
        resolve_weights(str(tmp_path / "y_*" / "weights" / "BEST.pth"))
    with pytest.raises(InputError, match="no such weights file"):
        resolve_weights(str(folder / "1_0.9000_val.pth"))
