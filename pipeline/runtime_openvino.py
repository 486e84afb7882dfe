"""OpenVINO: the fastest runtime on Intel and AMD processors with int8 instructions."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from pipeline.errors import CannotRunHereError, InputError
from pipeline.runtime import Answer, Crops, check_crops

# Importing OpenVINO tells its makers of it over the network, from a child forked among threads, which may hang for
# ever. It does without where the package that tells is missing, and so does NNCF; so here it is missing, whoever
# imports them later.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

FloatPrecision = Literal["f32", "bf16"]
FLOAT_PRECISION_KEY: Final = ["stillface", "float_precision"]
"""Where a model keeps the arithmetic its float layers were proven in; without it they are computed in "f32"."""


@cache
def openvino_core() -> Any:
    """The one `openvino.Core` of the process, which is never given back.

    A core's CPU plug-in puts the creating thread's signals on a stack of its own and, when it goes, puts back the
    stack it found. Of two cores the one that goes last can thus put back the first one's, which is gone by then: the
    next signal with a handler (SIGTERM, Ctrl-C, a child's end) kills the process without a word.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import openvino

    return openvino.Core()


def has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16 (AVX-512 BF16 or AMX) and OpenVINO makes use of it."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoRuntime:
    """An OpenVINO model on the CPU.

    Args:
        path: The .xml file; its .bin lies beside it.
        threads: Inference threads; None for all cores.
        precision: Arithmetic where the model is float; None takes what the model was proven in. "bf16" becomes "f32",
            which is more exact, on a processor without it.
        for_one: Compile it a second time for a single crop, which is then answered sooner: with every shape known
            OpenVINO uses memory again earlier, fuses more, and takes the crop as it lies. Batches are not concerned.

    Raises:
        CannotRunHereError: OpenVINO is not installed.
        InputError: The model cannot be loaded or is none of ours.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        precision: FloatPrecision | None = None,
        for_one: bool = True,
    ) -> None:
        try:
            core = openvino_core()
        except ImportError as error:
            raise CannotRunHereError(
                f"{path} needs OpenVINO, which is not installed: `pip install openvino`, "
                "or choose another artefact of the bundle."
            ) from error
        config: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            read = core.read_model(str(path))
            floats = precision or _proven_in(read, path)
            config["INFERENCE_PRECISION_HINT"] = floats = floats if has_bfloat16() else "f32"
            model = one = core.compile_model(read, "CPU", config)
            if for_one:
                shape = read.inputs[0].get_partial_shape()
                shape[0] = 1
                read.reshape(shape)
                one = core.compile_model(read, "CPU", config)
        except RuntimeError as error:
            raise InputError(f"{path} cannot be loaded by OpenVINO: {error}") from error
        names = [output.get_any_name() for output in model.outputs]
        if model.inputs[0].get_any_name() != "crops" or names[:1] != ["logits"]:
            raise InputError(f"{path} is not a graph of ours: expected crops -> logits[, evidence].")
        self._any = model.create_infer_request()
        self._one = one.create_infer_request() if for_one else self._any
        self._count = len(names)
        self._size = int(model.inputs[0].get_partial_shape()[1].get_length())
        self.label = f"openvino {_version()} CPU" + (" bf16" if floats == "bf16" else "")

    def run(self, crops: Crops) -> Answer:
        """Answer for crops uint8 [N, H, W, 3]; see `pipeline.runtime.Runtime`."""
        check_crops(crops, self._size)
        request = self._one if len(crops) == 1 else self._any
        request.infer({0: np.ascontiguousarray(crops)})
        # the request's own buffers are overwritten by the next call
        logits, *rest = (request.get_output_tensor(i).data.copy() for i in range(self._count))
        return Answer(logits, rest[0] if rest else None)


def _proven_in(model: Any, path: Path) -> str:
    if not model.has_rt_info(FLOAT_PRECISION_KEY):
        return "f32"
    found = str(model.get_rt_info(FLOAT_PRECISION_KEY).value)
    if found not in get_args(FloatPrecision):
        raise InputError(
            f"{path} was proven with float layers in {found!r}; this stillface knows f32 and bf16. Update it, or "
            "choose another artefact of the bundle."
        )
    return found


def _version() -> str:
    import openvino

    return str(openvino.__version__.partition("-")[0])
