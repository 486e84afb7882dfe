"""The model card of a bundle, written out of its manifest: what it is, what it was measured to do, what it is not."""

from __future__ import annotations

from typing import Any

from export.parity_page import table
from pipeline.manifest import Manifest
from pipeline.metrics import Estimate, LevelReport
from pipeline.scoring import Interval, OperatingPoint


def model_card(manifest: Manifest) -> str:
    """Markdown for people who have to decide whether to deploy the bundle."""
    network, training = manifest.network, manifest.training
    parts = [
        f"# {network.name} at {network.image_size} px: face-forgery detector",
        f"{network.parameters:,} parameters, stage `{training.stage}`, epoch {training.epoch}, checkpoint "
        f"`{training.checkpoint_sha256}`, git revision `{training.git_revision or 'unknown'}`.",
        "## What it does",
        "It says how likely the face in a crop is forged by blending. Crops are cut as `manifest.json` says "
        f"(margin {manifest.crop.margin:.1%} of the face box on each side); a video's score is the rule "
        f"`{manifest.aggregation.rule}` over {manifest.aggregation.frames} frames.",
        "## What it was measured on",
        _data(manifest),
        "## Measures, with 95 % intervals over videos",
        _measures(manifest),
        "## Operating points",
        _points(manifest.calibration.operating_points),
        _calibration(manifest),
        "## Formats",
        _formats(manifest),
        "## Limits",
        _limits(manifest),
        "## Licences of the weights",
        "\n".join(f"- {line}" for line in licences(training.provenance)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def licences(provenance: dict[str, Any]) -> list[str]:
    """Where the weights come from and what their licences ask for, as far as the checkpoint says."""
    lines = []
    for role, name in (("weights", "the network started from"), ("teacher", "it was taught by")):
        origin = provenance.get(role)
        if isinstance(origin, dict) and origin.get("source"):
            source = str(origin["source"])
            licence = f" (licence: {_timm_licence(source)})" if source.startswith("imagenet:") else ""
            lines.append(f"{name} `{source}`{licence}")
    started = str(provenance.get("started_from_imagenet") or "")
    if started:
        lines.append(
            f"stage 1 started from timm's ImageNet weights of `{started}` (licence: {_timm_licence(started)})"
        )
    if not lines:
        lines.append(
            "the checkpoint does not say what it started from; ask who trained it before you pass it on"
        )
    lines.append("the face finder is YuNet of the OpenCV Zoo, MIT")
    return lines


def _timm_licence(source: str) -> str:
    import timm

    name = source.removeprefix("imagenet:")
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    licence = getattr(config, "license", None) or "not stated by timm"
    if name.startswith("mobilevit"):
        return f"{licence}; Apple's sample-code licence, which grants no patents"
    return str(licence)


def _data(manifest: Manifest) -> str:
    measured = manifest.measured
    frame = measured.metrics.overall.frame
    text = (
        f"Prepared folder `{measured.data}` (index `{measured.data_sha256}`), split {measured.split}: "
        f"{frame.real} real frames of {frame.real_videos} video(s), {frame.fake} {measured.fakes} fakes of "
        f"{frame.fake_videos}. Temperature and thresholds were fitted on the very same data, so the figures below "
        "flatter them; measure a test set once with `stillface evaluate`."
    )
    if measured.fakes == "self-blended":
        text += " **The fakes were blended from the real faces: no figure here says how well deepfakes are found.**"
    return text


def _measures(manifest: Manifest) -> str:
    scope = manifest.measured.metrics.overall

    def row(name: str, pick: str) -> list[str]:
        levels: tuple[LevelReport, LevelReport] = (scope.frame, scope.video)
        return [name, *(show(getattr(level, pick)) for level in levels)]

    rows = [row("AUC", "auc"), row("EER", "eer"), row("average precision", "average_precision")]
    rows += [row("ECE at this mix of classes", "ece"), row("Brier score", "brier")]
    return table(["measure", "per frame", "per video"], rows)


def _points(points: tuple[OperatingPoint, ...]) -> str:
    rows = [
        [
            point.level,
            point.name,
            f"{point.threshold:.6g}",
            _rate(point.fpr, point.fpr_interval),
            _rate(point.tpr, point.tpr_interval),
            point.note or "",
        ]
        for point in points
    ]
    return table(["per", "point", "threshold", "FPR", "TPR", "note"], rows)


def _calibration(manifest: Manifest) -> str:
    calibration = manifest.calibration
    interval = calibration.temperature_interval
    near = f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
    lines = [
        f"Default point: `{calibration.default_point}`. Temperature {calibration.temperature:.4g}{near}."
    ]
    if calibration.ece_before is not None and calibration.ece_after is not None:
        lines.append(
            f"Calibration error of frame scores, both classes weighing the same: {calibration.ece_before:.4f} before, "
            f"{calibration.ece_after:.4f} after."
        )
    lines += [
        f"Too close to call per {band.level}: scores from {band.low:.4g} to {band.high:.4g}."
        for band in calibration.abstain
    ]
    return " ".join(lines)


def _formats(manifest: Manifest) -> str:
    rows = [
        [
            item.name,
            "proven",
            f"{item.parity.max_abs_logit:.2g}",
            str(max(item.parity.flips.values(), default=0)),
            "" if item.parity.speedup is None else f"{item.parity.speedup:.2f}x fp32",
            f"{sum(file.size for file in item.files) / 1e6:.1f} MB",
            "; ".join(item.notes),
        ]
        for item in manifest.artefacts
    ]
    rows += [
        [
            item.name,
            "**not proven**",
            "",
            "",
            "",
            f"{sum(f.size for f in item.files) / 1e6:.1f} MB",
            item.reason,
        ]
        for item in manifest.unproven
    ]
    rows += [[item.name, "**rejected**", "", "", "", "", item.reason] for item in manifest.rejected]
    return table(["format", "", "max Δlogit", "flips", "speed", "size", "notes"], rows)


def _limits(manifest: Manifest) -> str:
    overall = manifest.measured.metrics.overall
    lines = [
        *manifest.calibration.notes,
        *(f"per {level.level}: {note}" for level in (overall.frame, overall.video) for note in level.notes),
        "faces that are smaller than the face finder finds, or not found at all, get no score",
        "other manipulations, compressions and cameras than those of the data above shift both scores and calibration",
    ]
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def show(estimate: Estimate) -> str:
    """Value and interval, or the reason why there is no value."""
    if estimate.value is None:
        return estimate.reason or "undefined"
    low_high = None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)
    return _rate(estimate.value, low_high)


def _rate(value: float, interval: Interval | None) -> str:
    return f"{value:.3f}" if interval is None else f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
