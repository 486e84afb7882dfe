"""Holds a result file against the networks and checkpoints it speaks of: nothing in it may have been typed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.making import RANDOM
from benchmarks.network_cost import cost_of
from benchmarks.table_result import Network, Table
from training.checkpoint import load_detector
from training.networks import Detector, NetworkSpec, build_from_spec


def differences(table: Table, checkpoints: Mapping[str, Path] | None = None) -> list[str]:
    """What a table says of its networks and is not so.

    Args:
        table: The result.
        checkpoints: By role; one of other bytes than the table's says nothing of it, and that is said.

    Returns:
        A line for each; none where all is well.
    """
    built: dict[tuple[str, int], Detector] = {}
    lines = []
    for network in table.networks:
        place = network.name, network.image_size
        if place not in built:
            built[place] = build_from_spec(NetworkSpec(name=network.name, image_size=network.image_size))
        lines += _by_structure(network, built[place])
        if (network.weights == RANDOM) and network.val_auc is not None:
            lines.append(f"{network.key}: an AUC of {network.val_auc} for random weights")
        if path := (checkpoints or {}).get(network.key):
            lines += _by_checkpoint(network, path)
    return lines


def _by_structure(network: Network, detector: Detector) -> list[str]:
    cost = cost_of(detector)
    said = {
        "parameters": (network.parameters, cost.parameters),
        "GMACs": (network.gmacs, cost.gmacs),
        "activations": (network.mactivations, cost.mactivations),
    }
    return [
        f"{network.key}: {what} {told:g}, the network has {true:g}"
        for what, (told, true) in said.items()
        if abs(told - true) > 1e-6 * true
    ]


def _by_checkpoint(network: Network, path: Path) -> list[str]:
    info = load_detector(path)[1]
    if info.sha256 != network.weights:
        return [f"{network.key}: measured with other weights than {path}"]
    if info.val_auc != network.val_auc:
        return [f"{network.key}: AUC {network.val_auc}, the checkpoint says {info.val_auc}"]
    return []
