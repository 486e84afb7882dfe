"""Makes each format from what it is made of; one small function per format, libraries imported inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from export.formats import FORMATS, Format
from export.half_range import DoesNotFitError, find_peak
from export.labelled_crops import LabelledCrops
from pipeline.errors import InputError
from pipeline.manifest import EngineFacts
from pipeline.storage import write_whole
from training.networks import Detector

if TYPE_CHECKING:
    from export.agreement import Decisions, Gate
    from export.int8 import Int8Result
    from export.int8_calibration import Calibration
    from export.tensorrt_engine import BuiltEngine
    from pipeline.tensorrt_library import LibraryName


_FEW_DRAWN = [0, -4, -3, -2, -1]
"""Of the drawn crops: noise, a cloud, black, white, checkerboard."""


@dataclass(frozen=True, slots=True)
class Built:
    """A format's files, the first of which is opened, and what to know of them; see `pipeline.manifest.Artefact`.

    Attributes:
        sqnr_db: Of an int8 format for CPUs, which can be made anew with less noise.
        layers_in_int8: Of such a format.
    """

    files: tuple[Path, ...]
    max_batch: int | None = None
    engine: EngineFacts | None = None
    notes: tuple[str, ...] = ()
    sqnr_db: float | None = None
    layers_in_int8: int | None = None


@dataclass
class Ingredients:
    """What formats are made from.

    Attributes:
        detector: The trained network.
        folder: Each format is written to a folder of its name below this one.
        metadata: Facts to keep in every graph.
        gather_ranges: Gives the crops from which int8 ranges are taken; called once, if at all.
        decisions: What errors of int8 may change, on the gate's faces; None for the decisions of those crops.
        threads: CPU threads of what is run while building; None for all cores.
        built: What was made so far, by format.
        wanted_db: SQNR to reach, by format; what is not here only has to hold the gate.
    """

    detector: Detector
    folder: Path
    metadata: dict[str, str]
    gather_ranges: Callable[[], LabelledCrops]
    decisions: Decisions | None = None
    threads: int | None = None
    built: dict[str, Built] = field(default_factory=dict)
    wanted_db: dict[str, float] = field(default_factory=dict)

    @cached_property
    def ranges(self) -> LabelledCrops:
        """Crops from which int8 ranges are taken."""
        return self.gather_ranges()

    @cached_property
    def calibration(self) -> Calibration:
        """What all int8 formats for CPUs are made from; the `onnx` format is built by then."""
        from export.int8_calibration import calibrate

        source, ranges = self.built["onnx"].files[0], self.ranges
        return calibrate(source, ranges.crops, ranges.labels, decisions=self.decisions, threads=self.threads)

    @property
    def half_note(self) -> str:
        """How near the network comes to the end of float16; a network that goes beyond is refused here."""
        if isinstance(self._half, DoesNotFitError):
            raise self._half
        return self._half

    @cached_property
    def _half(self) -> str | DoesNotFitError:
        """That, found once for all formats in float16, also where it is a refusal."""
        from export.parity_inputs import drawn_crops

        crops, _ = drawn_crops(self.detector.spec.image_size)
        try:
            return find_peak(self.detector, crops[_FEW_DRAWN]).note
        except DoesNotFitError as error:
            return error

    @cached_property
    def half_file(self) -> bytes:
        """The ONNX graph in float16, which is proven once on a CPU and once on a GPU."""
        from export.onnx_graph import CPU_OPSET
        from export.tensorrt_formats import half_onnx

        model = half_onnx(self.detector, self.metadata, opset=CPU_OPSET)
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    @property
    def range_notes(self) -> tuple[str, ...]:
        """What the int8 ranges were taken from; nothing where no format needed any."""
        return self.ranges.notes if "ranges" in self.__dict__ else ()

    def path(self, item: Format) -> Path:
        """Where a format's main file goes; its folder exists."""
        folder = self.folder / item.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"model{item.suffix}"


def build(item: Format, ingredients: Ingredients) -> Built:
    """Make one format and remember it for those made from it.

    Raises:
        DoesNotFitError: The network is beyond float16, of which the format is made.
        InputError: It cannot be made from this network or on this machine.
    """
    if item.name not in _BUILDERS:
        raise InputError(f"{item.name} cannot be made by this stillface; leave it out of --formats.")
    if item.made_from != "checkpoint" and item.made_from not in ingredients.built:
        build(FORMATS[item.made_from], ingredients)
    made = _BUILDERS[item.name](item, ingredients)
    ingredients.built[item.name] = made
    return made


def _onnx(item: Format, ingredients: Ingredients) -> Built:
    from export.onnx_graph import CPU_OPSET, write_onnx

    path = ingredients.path(item)
    write_onnx(ingredients.detector, path, opset=CPU_OPSET, metadata=ingredients.metadata)
    return Built((path,), notes=(f"opset {CPU_OPSET}",))


def _onnx_fp16(item: Format, ingredients: Ingredients) -> Built:
    from export.onnx_graph import CPU_OPSET

    note, path = ingredients.half_note, ingredients.path(item)
    write_whole(path, ingredients.half_file)
    return Built((path,), notes=(f"opset {CPU_OPSET}; norms, softmax and head in fp32", note))


def _onnx_int8(item: Format, ingredients: Ingredients) -> Built:
    from export.int8 import quantise_onnx

    path = ingredients.path(item)
    result = quantise_onnx(ingredients.calibration, path, gate=_gate(item, ingredients))
    return _built_int8((path,), result)


def _openvino(item: Format, ingredients: Ingredients) -> Built:
    from export.openvino_formats import write_openvino

    return Built(write_openvino(ingredients.built["onnx"].files[0], ingredients.path(item)))


def _openvino_int8(item: Format, ingredients: Ingredients) -> Built:
    from export.openvino_formats import quantise_openvino

    path = ingredients.path(item)
    result = quantise_openvino(ingredients.calibration, path, gate=_gate(item, ingredients))
    return _built_int8((path, path.with_suffix(".bin")), result)


def _built_int8(files: tuple[Path, ...], result: Int8Result) -> Built:
    return Built(files, notes=result.notes, sqnr_db=result.agreement.sqnr_db, layers_in_int8=result.quantised)


def _gate(item: Format, ingredients: Ingredients) -> Gate:
    from export.int8 import GATE

    return replace(GATE, min_sqnr_db=ingredients.wanted_db.get(item.name, GATE.min_sqnr_db))


def _engine(item: Format, ingredients: Ingredients) -> Built:
    from export.tensorrt_engine import check_builder
    from export.tensorrt_formats import half_engine, notes_of

    library: LibraryName = "tensorrt" if item.runtime == "tensorrt" else "tensorrt-rtx"
    check_builder(library)
    fits = ingredients.half_note
    made = half_engine(
        ingredients.detector,
        ingredients.path(item),
        library=library,
        metadata=ingredients.metadata,
        threads=ingredients.threads,
    )
    return _built_engine(made, (*notes_of(made), fits))


def _int8_engine(item: Format, ingredients: Ingredients) -> Built:
    from export.tensorrt_engine import check_builder
    from export.tensorrt_formats import int8_engine, notes_of

    check_builder("tensorrt")
    fits = ingredients.half_note
    made, chosen = int8_engine(
        ingredients.detector,
        ingredients.path(item),
        ingredients.ranges.crops,
        library="tensorrt",
        metadata=ingredients.metadata,
        threads=ingredients.threads,
    )
    return _built_engine(made, (*notes_of(made), *chosen.notes, fits))


def _torch_tensorrt(item: Format, ingredients: Ingredients) -> Built:
    from export.tensorrt_formats import notes_of
    from export.torch_tensorrt_program import build_program

    fits = ingredients.half_note
    made = build_program(ingredients.detector, ingredients.path(item))
    return _built_engine(made, (*notes_of(made), fits))


def _built_engine(made: BuiltEngine, notes: tuple[str, ...]) -> Built:
    """Its facts go into the manifest, and lie beside it for those who copy the engine alone."""
    from pipeline.engine_check import facts_path

    return Built((made.path, facts_path(made.path)), made.facts.max_batch, made.facts, notes)


_BUILDERS: dict[str, Callable[[Format, Ingredients], Built]] = {
    "onnx": _onnx,
    "onnx-fp16": _onnx_fp16,
    "onnx-cuda": _onnx_fp16,
    "onnx-int8": _onnx_int8,
    "openvino": _openvino,
    "openvino-int8": _openvino_int8,
    "tensorrt": _engine,
    "tensorrt-int8": _int8_engine,
    "tensorrt-rtx": _engine,
    "torch-tensorrt": _torch_tensorrt,
}
