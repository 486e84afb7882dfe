"""The parity report as a page and as a table on the terminal."""

from __future__ import annotations

from export.parity_report import ArtefactVerdict, LinkReport, ParityReport
from pipeline.metrics import Estimate


def to_markdown(report: ParityReport) -> str:
    """The whole report for people."""
    counts = ", ".join(f"{count} {kind}" for kind, count in report.shown.counts.items())
    parts = [
        f"# Parity of {report.network} at {report.image_size} px",
        "Every form of the network against the network as it was trained. "
        f"Reference: {report.reference}; checkpoint `{report.checkpoint_sha256}`.",
        f"Shown: {counts}.",
        *(f"- {note}" for note in report.shown.notes),
        "## Artefacts",
        verdict_table(report),
        *(f"- **{item.name}**, {item.verdict}: {item.reason}" for item in report.artefacts if item.reason),
        "## Links",
        link_table(report.links),
        "Differences are from PyTorch, over all crops. SQNR is of the logits; flips are decisions that change at "
        "the worst operating point; batch is the largest change of a logit with the batch it is in.",
        allowance_note(report.links),
        "## Decisions at each operating point",
        flip_table(report.links),
        "## Labelled faces: change of the measures",
        delta_table(report.links),
        "## By kind of crop: max |Δlogit|",
        kind_table(report.links),
        *_broken(report),
        "## Gates",
        "| precision | bounds |\n| --- | --- |\n"
        + "\n".join(
            f"| {precision} | {', '.join(f'{name} {bound:g}' for name, bound in bounds.items())} |"
            for precision, bounds in report.gates.items()
        ),
        f"Measured in {report.seconds:.0f} s on {report.machine}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict_table(report: ParityReport) -> str:
    """One row per artefact."""
    rows = []
    for item in report.artefacts:
        link = report.link(item.name)
        numbers = ["", "", "", "", ""] if link is None else _numbers(link)
        speed = "" if item.speedup is None else f"{item.speedup:.2f}x"
        rows.append([item.name, item.verdict, *numbers, speed, item.first_broken or ""])
    header = [
        "artefact",
        "verdict",
        "max Δlogit",
        "mean Δlogit",
        "max Δp",
        "SQNR dB",
        "flips",
        "speed",
        "broken at",
    ]
    return table(header, rows)


def link_table(links: tuple[LinkReport, ...]) -> str:
    """One row per link of the chain."""
    rows = [
        [
            link.name,
            link.before or "",
            link.runtime,
            *_numbers(link),
            f"{link.overall.cosine:.6f}",
            str(link.overall.non_finite),
            _small(link.repeat.max_abs_logit),
            _small(link.repeat.rerun_max_abs_logit),
            "" if link.overall.evidence_share is None else _small(link.overall.evidence_share),
            "; ".join(link.broken) or "holds",
        ]
        for link in links
    ]
    header = ["link", "made from", "runtime", "max Δlogit", "mean Δlogit", "max Δp", "SQNR dB", "flips"]
    return table([*header, "cosine", "NaN/Inf", "batch", "rerun", "Δevidence", "gate"], rows)


def allowance_note(links: tuple[LinkReport, ...]) -> str:
    """Which links hold their bounds only because PyTorch is unsure of drawn images itself; empty where none does."""
    lines = [
        f"- {link.name}: {found.crops} drawn images, off by up to {found.max_abs:.2g} of a logit (allowed: up to "
        f"{found.most:.2g}) and {found.evidence_max_abs:.2g} of the evidence map (up to {found.evidence_most:.2g})"
        for link in links
        if (found := link.allowed) is not None
    ]
    if not lines:
        return ""
    why = (
        "Drawn images beyond the bounds that were allowed more, because PyTorch's own answers to them move when its "
        "weights move to neighbouring float32 numbers. Faces are never allowed more."
    )
    return "\n".join([why, "", *lines])


def flip_table(links: tuple[LinkReport, ...]) -> str:
    """One row per link, operating point and kind of crop where anything flipped."""
    rows = [
        [
            link.name,
            flip.point,
            flip.on,
            f"{flip.threshold:.6g}",
            f"{flip.flips} of {flip.compared}",
            f"{flip.furthest:.2g}",
        ]
        for link in links
        for flip in link.flips
        if flip.furthest is not None
    ]
    if not rows:
        return "No decision changes in any link."
    return table(["link", "point", "on", "threshold", "flips", "furthest from the threshold"], rows)


def delta_table(links: tuple[LinkReport, ...]) -> str:
    """ΔAUC, ΔEER and ΔECE of each link on the faces it was shown."""
    rows = [
        [
            link.name,
            str(link.faces.count),
            *(_change(value) for value in (link.deltas.auc, link.deltas.eer, link.deltas.ece)),
        ]
        for link in links
        if link.deltas is not None and link.faces is not None
    ]
    if not rows:
        return "No labelled faces were shown."
    return table(["link", "faces", "ΔAUC", "ΔEER", "ΔECE"], rows)


def kind_table(links: tuple[LinkReport, ...]) -> str:
    """Largest difference of a logit by kind of crop."""
    kinds = list(dict.fromkeys(kind for link in links for kind in link.kinds))
    rows = [
        [link.name, *(_small(link.kinds[kind].max_abs) if kind in link.kinds else "" for kind in kinds)]
        for link in links
    ]
    return table(["link", *kinds], rows)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    lines = [escaped[0], ["---"] * len(header), *escaped[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rejection_page(item: ArtefactVerdict, links: tuple[LinkReport, ...]) -> str:
    """Why one artefact was rejected, for the folder it is moved to."""
    parts = [
        f"# {item.name}: {item.verdict}",
        item.reason or "",
        f"First broken link: {item.first_broken}" if item.first_broken else "",
        link_table(links),
        allowance_note(links),
        flip_table(links),
        delta_table(links),
        *_drift(item),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _broken(report: ParityReport) -> list[str]:
    drifts = [line for item in report.artefacts for line in _drift(item)]
    return ["## Where it drifts", *drifts] if drifts else []


def _drift(item: ArtefactVerdict) -> list[str]:
    if not item.drift:
        return []
    start = f"starts at `{item.drift.starts_at}`" if item.drift.starts_at else "no single layer loses much"
    rows = [[f"`{name}`", f"{value:.1f}"] for name, value in item.drift.sqnr_db.items()]
    return [f"{item.name}: {start}. Layers that lose most:", table(["layer", "SQNR dB"], rows)]


def _numbers(link: LinkReport) -> list[str]:
    whole = link.overall
    shown = link.faces or whole
    worst = max((flip.flips for flip in link.flips), default=0)
    sqnr = "equal" if shown.sqnr_db is None else f"{shown.sqnr_db:.1f}"
    return [_small(whole.max_abs), _small(whole.mean_abs), _small(whole.max_abs_p), sqnr, str(worst)]


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


def _change(estimate: Estimate) -> str:
    if estimate.value is None:
        return estimate.reason or "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.5f}"
    return f"{estimate.value:+.5f} ({estimate.low:+.5f} to {estimate.high:+.5f})"
