"""Files that take pictures, on pictures: torchvision's pixels of PIL pictures, and PyTorch's answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from onnxplain import Explainer
from onnxplain.images import Image, read_image
from onnxplain_export import export
from onnxplain_models import NETWORKS, PREPROCESSING, TARGET_LAYERS, samples
from onnxplain_models.networks import load
from test_preprocessing import PHOTOGRAPHS, torchvision_pixels


def check(
    network: nn.Module, example: torch.Tensor, folder: Path, pictures: Sequence[Image], **options: Any
) -> None:
    """Compare a file of pictures with torchvision and PyTorch, and with a file of normalised images."""
    plain, path = folder / "plain.onnx", folder / "pixels.onnx"
    export(network, example, plain, **options)
    export(network, example, path, pixels=True, heatmap="gradcam", **options)
    proto = onnx.load(path)
    proto.graph.output.add(name="normalised_image").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    explainer = Explainer(plain)
    spec = explainer.manifest.input
    mean, std = (np.array(numbers)[:, None, None] for numbers in (spec.mean, spec.std))
    for picture in map(read_image, pictures):
        feeds = {"image": picture[None], "class_index": np.array([[-1]])}
        tensor, logits, heat = session.run(["normalised_image", "logits", "heatmap"], feeds)
        expected = torchvision_pixels(picture, spec)
        assert np.abs((tensor[0] * std + mean) * 255 - expected).mean() < 0.1
        image = torch.tensor((expected / 255 - mean) / std, dtype=torch.float32)
        with torch.no_grad():
            assert logits[0].argmax() == network(image[None])[0].argmax()
        explanation = explainer.explain(picture)
        assert np.abs(heat[0, 0] - explanation.heatmap).mean() < 0.005


@pytest.mark.parametrize("network", NETWORKS)
def test_scenes(network: str, tmp_path: Path) -> None:
    pictures = [sample.picture.read_bytes() for sample in samples()]
    layer = TARGET_LAYERS[network]
    example = torch.zeros(1, PREPROCESSING.channels, PREPROCESSING.height, PREPROCESSING.width)
    check(load(network), example, tmp_path, pictures, layer=layer, preprocessing=PREPROCESSING)


@pytest.mark.skipif(not PHOTOGRAPHS, reason="the photographs of ../shared are not here")
@pytest.mark.slow
def test_photographs(tmp_path: Path) -> None:
    network = mobilenet_v2()
    weights = PHOTOGRAPHS[0].parents[1] / "mobilenet_v2_imagenet.pth"
    network.load_state_dict(torch.load(weights, weights_only=True))
    check(network.eval(), torch.zeros(1, 3, 224, 224), tmp_path, PHOTOGRAPHS)
