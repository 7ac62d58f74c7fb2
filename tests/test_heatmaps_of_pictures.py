"""Heatmaps that a file puts out, on pictures: the runtime's own, of the crop that the network saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torchvision.models import mobilenet_v2

from onnxplain import Explainer
from onnxplain.heatmap import heatmap
from onnxplain.images import Image, read_image
from onnxplain.preprocessing import preprocess
from onnxplain_export import export
from onnxplain_export.maps import METHODS
from onnxplain_models import NETWORKS, PREPROCESSING, TARGET_LAYERS, samples
from onnxplain_models.networks import load

REALWORLD = Path(__file__).resolve().parents[2] / "shared" / "realworld"
PHOTOGRAPHS = sorted((REALWORLD / "images").glob("*.*"))
USUAL = ("gradcam", "layercam")


def check(path: Path, pictures: Sequence[Image], method: str) -> None:
    """Compare a file's heatmaps with the runtime's, each computed in a run of its own."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    explainer = Explainer(session=session)
    # Else it would take the file's own maps.
    explainer.manifest = replace(explainer.manifest, heatmap=None)
    spec = explainer.manifest.input
    batch = np.stack([preprocess(read_image(picture), spec)[0] for picture in pictures])
    classes = np.tile([[-1, -2]], (len(batch), 1))
    (found,) = session.run(["heatmap"], {"image": batch, "class_index": classes})
    for picture, both in zip(pictures, found, strict=True):
        for one, heat in zip(explainer.explain_classes(picture, top=2, method=method), both, strict=True):
            np.testing.assert_allclose(heat, heatmap(one.cams, heat.shape), rtol=0, atol=1e-4)
            # Nothing may speak against a class.
            assert heat.max() == 1 or (method == "counterfactual" and not one.cam.any())


METHODS_OF_SCENES = [
    pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in METHODS if name != "cam"
]


@pytest.mark.parametrize("method", METHODS_OF_SCENES)
@pytest.mark.parametrize("network", NETWORKS)
def test_scenes(network: str, method: str, tmp_path: Path) -> None:
    path = tmp_path / "explainer.onnx"
    size = (PREPROCESSING.channels, PREPROCESSING.height, PREPROCESSING.width)
    example = torch.zeros(1, *size)
    layer = TARGET_LAYERS[network]
    export(load(network), example, path, layer=layer, preprocessing=PREPROCESSING, heatmap=method)
    check(path, [sample.picture.read_bytes() for sample in samples()], method)


@pytest.mark.skipif(not PHOTOGRAPHS, reason="the photographs of ../shared are not here")
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_photographs(method: str, tmp_path: Path) -> None:
    network = mobilenet_v2()
    network.load_state_dict(torch.load(REALWORLD / "mobilenet_v2_imagenet.pth", weights_only=True))
    path = tmp_path / "explainer.onnx"
    export(network.eval(), torch.zeros(1, 3, 224, 224), path, heatmap=method)
    check(path, PHOTOGRAPHS, method)
