"""The README's table of the server, out of its result files: a column for each network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Result: TypeAlias = dict[str, Any]

_ROADS = {
    "tensors": "crops (tensor route)",
    "tensors-by-8": "crops, eight in a request",
    "images": "pictures (decode, find, infer)",
}


def serve_table(results: Sequence[Result]) -> str:
    """Markdown of results of `benchmarks serve`, with the commands that gave them."""
    head = ["", *(f"{r['network']} at {r['image_size']} px, {r['artefact']}" for r in results)]
    lines = [head, ["---"] * len(head)]
    lines += [[name, *(_or_dash(cell, result) for result in results)] for name, cell in _rows()]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    commands = ", ".join(f"`{result['command']}`" for result in results)
    first = results[0]
    return (
        f"{text}\n\nMedians with 95 % bootstrap intervals; {first['cores']} cores ({first['processor']}) shared by "
        f"server, client and what is measured beside it; load average before the start "
        f"{', '.join(str(result['load_average']) for result in results)}. LitServe {first['litserve']} serves the same "
        f"file in the same run, in turns, and finds faces with our code. {commands}"
    )


def _rows() -> list[tuple[str, Callable[[Result], str]]]:
    rows: list[tuple[str, Callable[[Result], str]]] = [
        ("from start to ready", lambda r: f"{r['seconds_to_ready']:.1f} s"),
        (
            "resident memory at the start, at the end",
            lambda r: f"{r['memory_mib_at_start']:.0f}, {r['memory_mib_at_end']:.0f} MiB",
        ),
    ]
    for road, name in _ROADS.items():
        rows += [
            (f"{name}: share of the bare road's throughput, 16 at once", _share(road)),
            (f"{name}: added to the bare road, one at a time", _added(road)),
        ]
        if road == "tensors":
            rows.append((f"{name}: processor time of one, bare, and of server and client", _costs(road)))
        if road == "tensors-by-8":
            continue
        rows += [
            (f"{name}: throughput over LitServe's", _over_rival(road)),
            (f"{name}: p99 at 16 at once, and LitServe's", _tails(road)),
            (f"{name}: LitServe's resident memory", _memory_of_rival(road)),
        ]
    rows += [
        ("three times the capacity: answers by status, wrong ones, none at all", _overload),
        (
            "p99 of accepted ones then, against that at capacity",
            lambda r: f"{r['overload']['p99_over_capacity']:.2f}",
        ),
        (
            "memory grown",
            lambda r: f"{r['growth']['grown_mib']:+.1f} MiB over {r['growth']['requests']:,} requests",
        ),
    ]
    return rows


def _share(road: str) -> Callable[[Result], str]:
    return lambda r: _spread(r[road]["share_of_bare"], ".0%") + f" of {r[road]['bare_per_second']:.0f}/s"


def _added(road: str) -> Callable[[Result], str]:
    return lambda r: (
        _spread(r[road]["alone"]["added_ms"], "+.1f") + f" ms to {r[road]['alone']['bare_ms']:.0f}"
    )


def _costs(road: str) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        spent = result[road]["processor_ms"]
        return f"{spent['bare']:.2f}; {spent['server']:.2f} and {spent['client']:.2f} ms"

    return cell


def _memory_of_rival(road: str) -> Callable[[Result], str]:
    return lambda r: f"{r[road]['litserve_mib']:.0f} MiB"


def _over_rival(road: str) -> Callable[[Result], str]:
    return lambda r: _spread(r[road]["over_litserve"], ".2f")


def _tails(road: str) -> Callable[[Result], str]:
    return lambda r: f"{r[road]['busy']['ms']['p99']:.0f}, {r[road]['litserve']['ms']['p99']:.0f} ms"


def _overload(result: Result) -> str:
    part = result["overload"]
    statuses = ", ".join(
        f"{status}: {count:,}" for status, count in part["statuses"].items() if status != "0"
    )
    return f"{statuses}; {part['wrong']}; {part['statuses'].get('0', 0)}"


def _spread(value: dict[str, float], form: str) -> str:
    return f"{value['median']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def _or_dash(cell: Callable[[Result], str], result: Result) -> str:
    """A part that was left out of a run has no figure."""
    try:
        return cell(result)
    except KeyError:
        return "-"
