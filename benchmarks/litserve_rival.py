"""LitServe with a bundle's network, as its guide would have it: what `benchmarks serve` measures ours against.

Started as `python -m benchmarks.litserve_rival BUNDLE ARTEFACT ROAD`. The road "tensors" takes the bytes of one crop,
"images" a picture, whose faces are found and cut by the very code that our server uses. Both get raw bytes, which costs
LitServe least.
"""

# no postponed annotations: LitServe reads the type of `request` from the signature
import argparse
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import cv2
import numpy as np
from fastapi import Body
from litserve import LitAPI, LitServer

from pipeline.analysis import Analyser
from pipeline.bundle import open_bundle
from pipeline.images import read_image
from pipeline.runtime import Crops, open_artefact

Raw: TypeAlias = Annotated[bytes, Body(media_type="application/octet-stream")]


class Rival(LitAPI):  # type: ignore[misc]
    """One network behind LitServe.

    Args:
        bundle: Its folder.
        artefact: Which form of the network.
        road: "tensors" or "images".
        threads: Of the runtime and of OpenCV.
        options: LitServe's own.
    """

    def __init__(self, bundle: Path, artefact: str, road: str, threads: int, **options: Any) -> None:
        super().__init__(**options)
        self._what = (bundle, artefact, road, threads)

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the network, in the worker's process."""
        folder, artefact, self.road, threads = self._what
        cv2.setNumThreads(threads)
        bundle = open_bundle(folder)
        self.analyser = Analyser(bundle)
        self.runtime = open_artefact(folder, bundle.artefact(artefact), threads=threads)

    def decode_request(self, request: Raw) -> Crops:
        """One crop, uint8 [S, S, 3]: as it came, or of the picture's largest face."""
        if self.road == "images":
            return np.asarray(self.analyser.look(read_image(request)).crops[0])
        side = self.analyser.image_size
        return np.frombuffer(request, np.uint8).reshape(side, side, 3)

    def batch(self, inputs: list[Crops]) -> Crops:
        """Crops of several requests, uint8 [N, S, S, 3]."""
        return np.stack(inputs)

    def predict(self, x: Crops) -> Any:
        """Logits, float32 [N, 2]."""
        return self.runtime.run(x).logits

    def unbatch(self, output: Any) -> list[Any]:
        """Logits of each request."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Logits as JSON."""
        return {"logits": output.tolist()}


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("artefact")
    parser.add_argument("road", choices=("tensors", "images"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    given = parser.parse_args()
    # the wait of our own batcher
    options = {"max_batch_size": given.batch, "batch_timeout": 0.004}
    api = Rival(given.bundle, given.artefact, given.road, given.threads, **options)
    LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=given.port, generate_client_file=False)


if __name__ == "__main__":
    main()
