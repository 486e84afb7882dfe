"""A run put together: its data, its networks and their first weights, refused in words where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from training.checkpoint import CheckpointInfo, save_checkpoint
from training.config import Settings
from training.dataset import BlendedFaces, EpochSampler
from training.index import read_index, write_index
from training.loader import batches_of, blended_loader
from training.networks import Detector, NetworkSpec
from training.progress import Progress
from training.runtime import Runtime
from training.stage_networks import Networks, build_networks, load_stage1, load_teacher
from training.stages import assemble, build_loader, build_optimizer, build_validator, conclude, read_faces

CPU = Runtime(torch.device("cpu"), None)
Make = Callable[..., Settings]


def checkpoint(path: Path, *, name: str = "test_efficientnet", size: int = 32, **spec: Any) -> Path:
    torch.manual_seed(7)
    detector = Detector(NetworkSpec(name=name, image_size=size, **spec))
    info = CheckpointInfo(
        stage="teacher",
        epoch=1,
        val_auc=0.5,
        threshold=0.5,
        network=detector.spec,
        config={},
        provenance={},
    )
    save_checkpoint(path, detector.state_dict(), info)
    return path


# --- data ---


def test_faces_are_the_real_ones_of_their_split(tiny: Make) -> None:
    train_faces, val_faces = read_faces(tiny())
    assert ({face.split for face in train_faces}, len(train_faces)) == ({"train"}, 6)
    assert ({face.split for face in val_faces}, len(val_faces)) == ({"val"}, 4)
    assert len(read_faces(tiny(frames_per_video=1))[0]) == 3


def test_a_split_without_real_faces_says_what_there_is(
    tiny: Make, store: Callable[[Path, dict[str, int]], Path], tmp_path: Path
) -> None:
    data = store(tmp_path / "data", {"train": 4, "test": 2})
    with pytest.raises(InputError, match=r"no real faces in the val split.*2 test real, 4 train real"):
        read_faces(tiny(data=data))


def test_fakes_alone_are_not_trained_on(
    tiny: Make, store: Callable[[Path, dict[str, int]], Path], tmp_path: Path
) -> None:
    data = store(tmp_path / "data", {"train": 4, "val": 2})
    fakes = [replace(record, label=1, method="Deepfakes") for record in read_index(data)]
    write_index(data, fakes)
    with pytest.raises(InputError, match=r"no real faces in the train split.*4 train fake"):
        read_faces(tiny(data=data))


def test_a_missing_folder_is_named(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        read_faces(tiny(data=tmp_path / "nowhere"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_faces_that_cannot_be_blended_are_found_before_the_first_step(
    tiny: Make, store: Callable[[Path, dict[str, int]], Path], tmp_path: Path, split: str
) -> None:
    data = store(tmp_path / "data", {"train": 4, "val": 2})
    records = read_index(data)
    odd = next(place for place, record in enumerate(records) if record.split == split)
    records[odd] = replace(records[odd], landmarks=np.asarray(records[odd].landmarks + 500, np.float32))
    write_index(data, records)
    with pytest.raises(InputError, match=rf"{split}_0\.jpg: .*landmarks"):
        read_faces(tiny(data=data))
    records[odd].path.unlink()
    with pytest.raises(InputError, match=rf"1 of 6 indexed crops are missing.*{split}_0\.jpg"):
        read_faces(tiny(data=data))


def test_a_worker_that_finds_a_broken_crop_says_so_in_one_sentence(
    tiny: Make, store: Callable[[Path, dict[str, int]], Path], tmp_path: Path
) -> None:
    data = store(tmp_path / "data", {"train": 4, "val": 2})
    settings = tiny(data=data)
    faces, _ = read_faces(settings)
    faces[0].path.write_bytes(faces[0].path.read_bytes()[:300])
    messages = []
    for workers in (0, 1):
        blended = BlendedFaces(faces, sizes=(32,), seed=5, phase="train")
        loader = blended_loader(blended, EpochSampler(4, seed=5, batch_size=2), CPU, workers=workers)
        with pytest.raises(InputError) as caught:
            list(batches_of(loader))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "train_0.jpg" in messages[0]
    assert "Traceback" not in messages[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_stream_alone_that_dropout_draws_from(tiny: Make, workers: int) -> None:
    settings = tiny(workers=workers)
    _, loader = build_loader(read_faces(settings)[0], (32,), settings, CPU)
    before = torch.get_rng_state()
    assert len(list(loader)) == 3
    assert len(list(loader)) == 3
    assert torch.equal(torch.get_rng_state(), before)


# --- networks and their weights ---


def test_stage1_learns_alone(tiny: Make) -> None:
    networks = build_networks("stage1", tiny(drop_path=0.1), CPU)
    assert networks.teacher is None
    assert networks.sizes == (32,)
    spec = networks.learner.spec
    assert (spec.name, spec.image_size, spec.dropout, spec.drop_path) == ("test_efficientnet", 32, 0.3, 0.1)
    assert networks.origins["weights"]["source"] == "none"


def test_a_teacher_is_trained_on_rgb_over_255_as_the_published_one(tiny: Make) -> None:
    learner = build_networks("teacher", tiny(teacher_dropout=0.4), CPU).learner
    assert (learner.spec.image_size, learner.spec.dropout) == (48, 0.4)
    assert (learner.spec.mean, learner.spec.std) == ((0, 0, 0), (1, 1, 1))


def test_stage2_has_a_frozen_teacher_in_evaluation_mode(tiny: Make, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "teacher.pth", size=48)
    networks = build_networks("stage2", tiny(teacher_weights=str(path)), CPU)
    assert networks.teacher is not None
    assert not networks.teacher.training
    assert not any(parameter.requires_grad for parameter in networks.teacher.parameters())
    assert networks.sizes == (32, 48)
    told = networks.origins["teacher"]
    assert told["matched"] == told["total"] == len(networks.teacher.state_dict())
    assert told["source"] == f"file:{path}"


def test_the_control_run_needs_no_teacher(tiny: Make) -> None:
    networks = build_networks("stage2", tiny(loss="none", teacher_weights="nowhere.pth"), CPU)
    assert networks.teacher is None
    assert networks.sizes == (32,)
    assert "teacher" not in networks.origins


def test_stage2_starts_from_every_tensor_of_stage1(tiny: Make, tmp_path: Path) -> None:
    first = build_networks("stage1", tiny(), CPU).learner
    path = checkpoint(tmp_path / "stage1.pth", mean=first.spec.mean, std=first.spec.std)
    settings = tiny(loss="none", pretrained_student_weights=str(path), pretrained="imagenet")  # not fetched
    networks = build_networks("stage2", settings, CPU)
    saved = torch.load(path, weights_only=True)["model"]
    for name, value in networks.learner.state_dict().items():
        assert torch.equal(value, saved[name])
    told = networks.origins["weights"]
    assert told["matched"] == told["total"] == len(saved)
    assert told["head"] == "loaded"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"name": "test_vit"}, "holds a test_vit, the student is a test_efficientnet"),
        ({"mean": (0, 0, 0), "std": (1, 1, 1)}, "normalised by mean"),
    ],
)
def test_weights_of_another_student_are_refused(
    tiny: Make, tmp_path: Path, made: dict[str, Any], message: str
) -> None:
    path = checkpoint(tmp_path / "other.pth", **made)
    learner = build_networks("stage1", tiny(), CPU).learner
    with pytest.raises(InputError, match=message):
        load_stage1(learner, str(path))


def test_stage2_at_another_size_takes_the_same_weights(tiny: Make, tmp_path: Path) -> None:
    learner = build_networks("stage1", tiny(image_size=64), CPU).learner
    path = checkpoint(tmp_path / "small.pth", size=32, mean=learner.spec.mean, std=learner.spec.std)
    assert load_stage1(learner, str(path)).matched == len(learner.state_dict())
    assert learner.spec.image_size == 64


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"size": 32}, r"holds a test_efficientnet at 32 px, the settings say test_efficientnet at 48 px"),
        ({"name": "test_vit", "size": 48}, r"holds a test_vit at 48 px"),
    ],
)
def test_another_teacher_than_the_settings_say_is_refused(
    tiny: Make, tmp_path: Path, made: dict[str, Any], message: str
) -> None:
    path = checkpoint(tmp_path / "teacher.pth", **made)
    with pytest.raises(InputError, match=message):
        load_teacher(tiny(teacher_weights=str(path)))


def test_a_teacher_or_a_first_stage_that_was_forgotten_is_refused(tiny: Make, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "teacher.pth", size=48)
    with pytest.raises(InputError, match="teacher_weights is not set, and a teacher with random weights"):
        build_networks("stage2", tiny(), CPU)
    with pytest.raises(InputError, match=r"would start without stage 1.*BEST\.pth.*or to .none."):
        build_networks("stage2", tiny(teacher_weights=str(path), pretrained_student_weights=None), CPU)


def test_a_teacher_that_is_no_detector_is_refused(tiny: Make, tmp_path: Path) -> None:
    path = tmp_path / "classifier.pth"
    torch.save(Detector(NetworkSpec(name="test_efficientnet", image_size=48)).backbone.state_dict(), path)
    with pytest.raises(InputError, match="belong to tf_efficientnet_b4, the teacher is test_efficientnet"):
        load_teacher(tiny(teacher_weights=str(path)))
    with pytest.raises(InputError, match=r"classifier\.pth"):
        load_teacher(tiny(teacher_weights=str(path), teacher="tf_efficientnet_b4", teacher_image_size=64))


def test_going_on_fetches_no_weights_and_keeps_the_first_origins(tiny: Make, tmp_path: Path) -> None:
    teacher = checkpoint(tmp_path / "teacher_20250101-000000" / "weights" / "1_0.5000_val.pth", size=48)
    pattern = str(tmp_path / "teacher_*" / "weights" / "BEST.pth")
    settings = tiny(teacher_weights=pattern, pretrained="imagenet", pretrained_student_weights="gone.pth")
    first = build_networks("stage2", tiny(teacher_weights=pattern), CPU).origins
    checkpoint(tmp_path / "teacher_20260101-000000" / "weights" / "1_0.9000_val.pth", size=48)
    networks = build_networks("stage2", settings, CPU, begun=first)
    assert networks.origins == first
    assert networks.origins["teacher"]["source"] == f"file:{teacher}"


def test_going_on_with_an_exchanged_teacher_is_refused(tiny: Make, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "teacher.pth", size=48)
    settings = tiny(teacher_weights=str(path))
    begun = build_networks("stage2", settings, CPU).origins
    checkpoint(path, size=48, dropout=0.1)
    with pytest.raises(InputError, match="not the teacher this run began with"):
        build_networks("stage2", settings, CPU, begun=begun)
    path.unlink()
    with pytest.raises(InputError, match=r"teacher\.pth is not a file"):
        build_networks("stage2", settings, CPU, begun=begun)


# --- optimizer and run ---


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_only_matrices_and_kernels_decay(tiny: Make, name: str, kind: type) -> None:
    settings = tiny(optimizer=name, weight_decay=0.3, momentum=0.8, lr=0.02)
    learner = build_networks("stage1", settings, CPU).learner
    optimizer = build_optimizer(learner, settings)
    assert isinstance(optimizer, kind)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {parameter.ndim for parameter in decayed["params"]} == {2, 4}
    assert {parameter.ndim for parameter in plain["params"]} == {1}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in learner.parameters()}
    assert decayed["lr"] == plain["lr"] == 0.02
    if name == "sgd":
        assert decayed["momentum"] == plain["momentum"] == 0.8


def put_together(settings: Settings, folder: Path) -> Any:
    networks: Networks = build_networks("stage1", settings, CPU)
    train_faces, val_faces = read_faces(settings)
    validator = build_validator(val_faces, networks, settings, CPU)
    progress = Progress(None, settings.epochs)
    return assemble("stage1", settings, CPU, folder, networks, train_faces, validator, progress, {})


def test_a_run_takes_its_settings_on(tiny: Make, tmp_path: Path) -> None:
    settings = tiny(
        sam_rho=0.3,
        sam_adaptive=True,
        clip_norm=0.7,
        ema_decay=0.9,
        accumulate=2,
        draws_per_face=5,
        val_draws=3,
    )
    run = put_together(settings, tmp_path)
    assert (run.sam.rho, run.sam.adaptive, run.sam.clip_norm) == (0.3, True, 0.7)
    assert run.average is not None
    assert run.average.decay == 0.9
    assert run.sampler.batches_per_epoch == 15  # 6 faces, 5 draws, 2 pairs in a batch
    assert run.steps_per_epoch == 8
    assert len(run.validator.loader.dataset) == 12
    assert run.scaler is None


def test_a_batch_larger_than_the_data_is_refused(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="6 samples do not fill one batch of 8"):
        put_together(tiny(batch_size=16), tmp_path)


def test_a_run_without_usable_weights_does_not_end_well(tiny: Make, tmp_path: Path) -> None:
    run = put_together(tiny(), tmp_path)
    with pytest.raises(InputError, match=r"training diverged.*lower --set lr \(now 0\.01\)"):
        conclude(run)
    assert not (tmp_path / "done.json").exists()
