"""The published teacher's file against the library it was trained with, and every file that is something else."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from training.networks import build_student, build_teacher
from training.sbi_weights import read_sbi_weights

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """The network under the attribute `net`, with statistics and weights that let the picture through."""
    library = pytest.importorskip("efficientnet_pytorch")
    torch.manual_seed(0)
    wrapper = nn.Module()
    net: Any = library.EfficientNet.from_name("efficientnet-b4", num_classes=2)
    wrapper.net = net
    with torch.no_grad():
        for module in wrapper.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
        wrapper.train()
        for module in wrapper.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # take over the statistics of this one batch
        net(pictures(2, seed=9).permute(0, 3, 1, 2).float() / 255)
        net._fc.weight.mul_(20)
    return wrapper.eval()


def pictures(number: int, seed: int) -> Tensor:
    """Coarse patterns rather than noise, so that every stage has something to respond to."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 12, 12, generator=generator) * 255
    smooth = nn.functional.interpolate(coarse, size=(380, 380), mode="bilinear")
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


@pytest.fixture(scope="module")
def published_file(published: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sbi") / "FFc23.tar"
    optimizer = torch.optim.SGD(published.parameters(), lr=1e-3, momentum=0.9)
    torch.save({"model": published.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 93}, path)
    return path


def test_the_teacher_gives_the_logits_of_the_library_it_was_trained_with(
    published: Any, published_file: Path
) -> None:
    teacher, report = build_teacher(published_file)
    assert report.matched == report.total == len(published.state_dict()) == 706
    assert (report.head, report.source) == ("loaded", f"sbi:{published_file}")
    crops = pictures(2, seed=1)
    with torch.no_grad():
        ours = teacher.eval()(crops)
        theirs = published.net(crops.permute(0, 3, 1, 2).float() / 255)
    assert (theirs[0] - theirs[1]).abs().min() > 0.05, "the pictures must matter, or equality says nothing"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_names_are_translated_block_by_block(published_file: Path) -> None:
    state = read_sbi_weights(published_file).state
    model = torch.load(published_file, weights_only=True)["model"]
    for theirs, ours in {
        "_conv_stem.weight": "backbone.conv_stem.weight",
        "_bn0.running_var": "backbone.bn1.running_var",
        "_blocks.0._depthwise_conv.weight": "backbone.blocks.0.0.conv_dw.weight",
        "_blocks.0._bn1.weight": "backbone.blocks.0.0.bn1.weight",
        "_blocks.1._project_conv.weight": "backbone.blocks.0.1.conv_pw.weight",
        "_blocks.1._bn2.running_mean": "backbone.blocks.0.1.bn2.running_mean",
        "_blocks.2._expand_conv.weight": "backbone.blocks.1.0.conv_pw.weight",
        "_blocks.2._bn0.bias": "backbone.blocks.1.0.bn1.bias",
        "_blocks.21._se_reduce.bias": "backbone.blocks.4.5.se.conv_reduce.bias",
        "_blocks.31._bn2.num_batches_tracked": "backbone.blocks.6.1.bn3.num_batches_tracked",
        "_conv_head.weight": "backbone.conv_head.weight",
        "_bn1.weight": "backbone.bn2.weight",
        "_fc.bias": "head.bias",
    }.items():
        assert torch.equal(state[ours], model[f"net.{theirs}"]), theirs


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _without(name: str) -> Change:
    return lambda model: {key: value for key, value in model.items() if key != name}


def _with(name: str, value: Tensor) -> Change:
    return lambda model: {**model, name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _without("net._blocks.7._bn1.weight"),
            r"705 of 706.*1 missing: backbone\.blocks\.2\.1\.bn2\.weight",
        ),
        (
            _with("net._blocks.32._bn1.weight", torch.ones(1)),
            r"706 of 706.*not in the network: net\._blocks\.32\._bn1\.weight",
        ),
        (_with("net._swish.beta", torch.ones(1)), r"not in the network: net\._swish\.beta"),
        (
            _with("net._fc.weight", torch.ones(1000, 1792)),
            r"head\.weight \(1000, 1792\) instead of \(2, 1792\)",
        ),
        (_with("net._fc.bias", torch.tensor([0.0, float("inf")])), r"NaN or Inf in net\._fc\.bias"),
    ],
)
def test_a_file_that_fits_only_partly_is_refused_with_the_names(
    published: nn.Module, tmp_path: Path, change: Change, message: str
) -> None:
    path = tmp_path / "changed.tar"
    torch.save({"model": change(dict(published.state_dict()))}, path)
    with pytest.raises(InputError, match=message):
        build_teacher(path)


FEW = {"net._conv_stem.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FEW, "no `model` entry.*saved without its `model` key"),
        ({"_conv_stem.weight": torch.zeros(1)}, "without the prefix `net.`"),
        ({"model": {"_conv_stem.weight": torch.zeros(1)}}, "without the prefix `net.`"),
        (
            {"conv_stem.weight": torch.zeros(1), "blocks.0.0.bn1.weight": torch.zeros(1)},
            "looks like a timm network",
        ),
        ({"model": {"conv_stem.weight": torch.zeros(1)}}, "`model` entry.*looks like a timm network"),
        (
            {"model": {"backbone.conv_stem.weight": torch.zeros(1)}, "format": "x"},
            "saved by stillface itself",
        ),
        ({"state_dict": FEW, "epoch": 3}, "no `model` entry.*begin with state_dict, epoch"),
        ({"model": {"features.0.weight": torch.zeros(1)}}, r"something else \(its keys begin with features"),
        ({"model": {"net._conv_stem.weight": 3.0}}, "net._conv_stem.weight hold something else"),
        ({}, "no `model` entry.*nothing"),
        ([torch.zeros(1)], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
    ],
)
def test_a_file_of_another_kind_is_told_what_it_looks_like(
    tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "teacher.tar"
    torch.save(content, path)
    with pytest.raises(InputError, match=message):
        build_teacher(path)


def test_a_student_of_ours_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "12_0.9310_val.pth"
    student, _ = build_student("mobilevitv2_050", image_size=64, pretrained="none")
    torch.save({"model": student.state_dict(), "format": "stillface.checkpoint"}, path)
    with pytest.raises(InputError, match=r"saved by stillface itself.*load it as a checkpoint"):
        build_teacher(path)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("data.pkl")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))


class Malicious:
    """Unpickling this would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), r"empty \(0 bytes\)"),
        (lambda path: path.write_text("<!DOCTYPE html><title>Sign in</title>"), "an HTML page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 200), "cut short or of another kind"),
        (lambda path: path.write_bytes(bytes(range(256)) * 8), "no torch file"),
        (lambda path: path.write_text("teacher weights"), "torch file"),
        (_tar, "do not unpack"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda _: None, "is not a file"),
    ],
)
def test_files_that_are_no_weights_are_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "FFc23.tar"
    write(path)
    with pytest.raises(InputError, match=message):
        build_teacher(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_download_that_was_cut_short_is_refused(published_file: Path, tmp_path: Path, share: float) -> None:
    whole = published_file.read_bytes()
    path = tmp_path / "FFc23.tar"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="cut short"):
        build_teacher(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_needs_code_is_refused_and_the_code_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "FFc23.tar", tmp_path / "trace"
    content = {"model": FEW, "optimizer": Malicious(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"needs code to be run.*mkdir.*weights_only=False"):
        build_teacher(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"FFc23\.tar"):
        build_teacher(path)
    assert not trace.exists()


def test_the_older_torch_format_is_read_as_well(published: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "FFraw.tar"
    torch.save({"model": published.state_dict(), "epoch": 1}, path, _use_new_zipfile_serialization=False)
    assert len(read_sbi_weights(path).state) == 706


def test_other_teachers_take_no_such_file(published_file: Path) -> None:
    with pytest.raises(InputError, match="belong to tf_efficientnet_b4, the teacher is tf_efficientnet_b0"):
        build_teacher(published_file, name="tf_efficientnet_b0", image_size=224)
