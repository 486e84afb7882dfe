"""What a GPU is needed for: run with `pytest tests/gpu`; elsewhere every test is skipped and says why."""

from __future__ import annotations

import pytest
import torch

from pipeline.cuda_device import CudaDevice, find_device
from pipeline.errors import CannotRunHereError
from tests.gpu.shown import SIZE, crops
from training.networks import Detector, NetworkSpec


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder, and skip them where no GPU can be used."""
    try:
        find_device()
        why = ""
    except CannotRunHereError as error:
        why = str(error).partition(". On a machine")[0]
    for item in items:
        if "tests/gpu/" not in item.path.as_posix():
            continue
        item.add_marker(pytest.mark.gpu)
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def device() -> CudaDevice:
    """The first GPU."""
    return find_device()


@pytest.fixture(scope="session")
def student() -> Detector:
    """A small student whose statistics are those of its activations, as after training."""
    torch.manual_seed(0)
    detector = Detector(NetworkSpec(name="mobilevitv2_050", image_size=SIZE))
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        detector(torch.from_numpy(crops(8)))
    return detector.eval()
