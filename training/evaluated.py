"""What is evaluated: a checkpoint in PyTorch, or an artefact of a bundle in the runtime that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bundle import open_bundle, read_manifest
from pipeline.errors import InputError
from pipeline.manifest import MANIFEST_NAME
from pipeline.runtime import open_artefact
from pipeline.scoring import DEFAULT_RULE
from training.checkpoint import load_detector
from training.evaluation_report import ArtefactFacts, CheckpointFacts
from training.face_scores import Network, in_torch
from training.networks import NetworkSpec
from training.runtime import keep_float32


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What scores are cut at.

    Attributes:
        frame, video: Scores at or above are called fake; None where there is no threshold.
        source: Where they come from, in words.
    """

    frame: float | None
    video: float | None
    source: str

    @classmethod
    def given(cls, threshold: float) -> Thresholds:
        """One for both levels, by whoever evaluates."""
        return cls(threshold, threshold, f"{threshold:.6g}, given")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A network, opened.

    Attributes:
        network: What is asked.
        facts: Of the checkpoint.
        artefact: Where it is a bundle's.
        thresholds: Its own.
        rule: How it makes a video's score from its faces, where nothing else is asked for.
        device, precision: Where and in what arithmetic it runs, for people.
    """

    network: Network
    facts: CheckpointFacts
    artefact: ArtefactFacts | None
    thresholds: Thresholds
    rule: str
    device: str
    precision: str


def is_bundle(path: Path) -> bool:
    """Whether a path is a bundle's folder, sound or not."""
    return (path / MANIFEST_NAME).is_file()


def open_checkpoint(path: Path, device: torch.device) -> Evaluated:
    """Load a checkpoint; its threshold, fitted for frames, is applied to videos as it stands.

    Raises:
        InputError: As `load_detector`.
    """
    keep_float32()
    detector, info = load_detector(path, device)
    source = "none"
    if info.threshold is not None:
        source = f"{info.threshold:.6g}, the checkpoint's: EER point on self-blended validation faces"
    return Evaluated(
        network=in_torch(detector, device),
        facts=CheckpointFacts(
            path=str(path),
            sha256=info.sha256,
            stage=info.stage,
            epoch=info.epoch,
            val_auc=info.val_auc,
            network=info.network,
        ),
        artefact=None,
        thresholds=Thresholds(info.threshold, info.threshold, source),
        rule=DEFAULT_RULE,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        precision=str(detector.head.weight.dtype).removeprefix("torch."),
    )


def open_in_bundle(
    folder: Path, name: str, *, operating_point: str | None = None, threads: int | None = None
) -> Evaluated:
    """Load a proven artefact, with the temperature, thresholds and rule that a server uses.

    Args:
        folder: The bundle.
        name: Of the artefact.
        operating_point: Whose thresholds, for frames and for videos; None: the bundle's default.
        threads: CPU threads of the runtime; None: all cores.

    Raises:
        InputError: No sound bundle, no such artefact or operating point, or it cannot run here.
    """
    bundle = open_bundle(folder)
    manifest, artefact = bundle.manifest, bundle.artefact(name)
    frame, video = (bundle.operating_point(level, operating_point) for level in ("frame", "video"))
    runtime = open_artefact(folder, artefact, threads=threads)

    def answer(crops: torch.Tensor) -> NDArray[np.float64]:
        given, most = crops.numpy(), artefact.max_batch or len(crops)
        parts = [runtime.run(given[start : start + most]).logits for start in range(0, len(given), most)]
        return np.concatenate(parts).astype(np.float64)

    network, trained, temperature = manifest.network, manifest.training, manifest.calibration.temperature
    return Evaluated(
        network=Network(network.image_size, answer, temperature),
        facts=CheckpointFacts(
            path=str(folder),
            sha256=trained.checkpoint_sha256,
            stage=trained.stage,
            epoch=trained.epoch,
            val_auc=trained.val_auc,
            network=NetworkSpec(
                name=network.name, image_size=network.image_size, mean=network.mean, std=network.std
            ),
        ),
        artefact=ArtefactFacts(
            bundle=manifest.id,
            name=artefact.name,
            sha256=artefact.files[0].sha256,
            temperature=temperature,
            operating_point=frame.name,
        ),
        thresholds=Thresholds(
            frame.threshold,
            video.threshold,
            f"{frame.threshold:.6g} for frames, {video.threshold:.6g} for videos: operating point {frame.name} of the "
            "bundle",
        ),
        rule=manifest.aggregation.rule,
        device=runtime.label,
        precision=artefact.precision,
    )


def refuse_unused(
    path: Path, *, artefact: str | None, operating_point: str | None, threads: int | None, device: str
) -> None:
    """Refuse what the kind of network that lies at a path does not read.

    Raises:
        InputError: A bundle without an artefact or with a device, or a checkpoint with what only bundles have.
    """
    if not is_bundle(path):
        unread = {"--artefact": artefact, "--operating-point": operating_point, "--threads": threads}
        named = " and ".join(name for name, value in unread.items() if value is not None)
        if named:
            raise InputError(
                f"{path} is no bundle; {named} is for bundles only: leave it out, or give a bundle."
            )
        return
    if artefact is None:
        names = ", ".join(item.name for item in read_manifest(path).artefacts)
        raise InputError(f"{path} is a bundle: say which of its artefacts to measure, --artefact {names}.")
    if device != "cpu":
        raise InputError(f"{path} is a bundle: an artefact runs where it was made for. Leave --device out.")
