"""The plain door for a machine with a GPU: `python -m benchmarks.gpu` needs neither typer nor rich.

What cannot be measured there (TensorRT, an ONNX Runtime without CUDA, a missing GPU) is marked with its reason, and
the run goes on to its end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.table_command import Choice, run_table
from benchmarks.table_plan import ROLES
from pipeline.errors import run_command


def main() -> None:
    """Run the table in the ways of a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    for role in ROLES:
        parser.add_argument(f"--{role}", type=Path, help="weights file; by default random weights")
    parser.add_argument("--quick", action="store_true", help="small networks")
    parser.add_argument("--way", action="append", help="only this way; may be given again")
    parser.add_argument("--rival", action="append", help="NAME@SIZE, any name of timm; may be given again")
    parser.add_argument("--threads", type=int, help="of the CPU; by default all cores")
    parser.add_argument("--minutes", type=float, help="after which no other way is begun; by default none")
    parser.add_argument("--config", type=Path, default=Path("configs/config_SBI.json"))
    parser.add_argument("--set", action="append", default=[], help="key=value of the training settings")
    parser.add_argument("--out", type=Path, default=Path("output/table/gpu.json"))
    given = parser.parse_args()
    paths = {role: getattr(given, role.replace("-", "_")) for role in ROLES}
    run_table(
        Choice(
            out=given.out,
            checkpoints={role: path for role, path in paths.items() if path is not None},
            rivals=given.rival,
            ways=given.way,
            gpu=True,
            quick=given.quick,
            threads=given.threads,
            config=given.config,
            overrides=given.set,
            minutes=given.minutes,
        )
    )


if __name__ == "__main__":
    run_command(main)
