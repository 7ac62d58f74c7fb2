"""The weights are in the file once, in whatever order the backward pass reads them: engines reorder them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from onnxplain_export import export

INPUT_SIZE = 16
CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "3x3": lambda: nn.Conv2d(16, 24, 3, padding=1),
    "1x1": lambda: nn.Conv2d(16, 24, 1),
    "strides": lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1),
    "1x1, strides": lambda: nn.Conv2d(16, 24, 1, stride=2),
    "dilated": lambda: nn.Conv2d(16, 24, 3, dilation=2),
    "groups": lambda: nn.Conv2d(16, 24, 3, groups=4),
    "groups, strides": lambda: nn.Conv2d(16, 24, 3, groups=4, stride=2),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1)),
}


def network(convolution: str) -> nn.Module:
    torch.manual_seed(0)
    head = [nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)]
    return nn.Sequential(nn.Conv2d(3, 16, 3), CONVOLUTIONS[convolution](), *head).eval()


def image() -> torch.Tensor:
    return torch.randn(1, 3, INPUT_SIZE, INPUT_SIZE)


def weights(path: Path) -> list[tuple[int, ...]]:
    """Return the shapes of a file's constants that are larger than numbers and shapes."""
    graph = onnx.load(path).graph
    attributes = (attribute for node in graph.node for attribute in node.attribute)
    constants = [*graph.initializer, *(attribute.t for attribute in attributes if attribute.HasField("t"))]
    return sorted(tuple(tensor.dims) for tensor in constants if np.prod(tensor.dims) > 100)


def onnx_file(model: nn.Module, path: Path) -> Path:
    images = torch.cat([image(), image()])
    dynamic_shapes = ({0: "batch"},)
    torch.onnx.export(model, (images,), path, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False)
    return path


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_one_copy_of_the_weights(convolution: str, fp16: bool, tmp_path: Path) -> None:
    model = network(convolution)
    path = tmp_path / "explainer.onnx"
    export(model, image(), path, layer="0", fp16=fp16)
    own = [tuple(value.shape) for value in model.state_dict().values() if value.numel() > 100]
    assert weights(path) == sorted(own)


class Images(CalibrationDataReader):
    """Images to calibrate on."""

    def __init__(self, name: str) -> None:
        self.feeds = iter([{name: image().numpy()} for _ in range(4)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


@pytest.mark.parametrize(
    "options",
    [{}, {"per_channel": True}, {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}],
    ids=["one scale", "a scale a channel", "a zero point"],
)
def test_whole_numbers(options: dict[str, Any], tmp_path: Path) -> None:
    plain = onnx_file(network("3x3"), tmp_path / "plain.onnx")
    quantised, path = tmp_path / "quantised.onnx", tmp_path / "explainer.onnx"
    name = onnx.load(plain).graph.input[0].name
    quantize_static(plain, quantised, Images(name), quant_format=QuantFormat.QDQ, **options)
    names = [node.output[0] for node in onnx.load(quantised).graph.node if node.op_type == "Conv"]
    export(quantised, None, path, layer=f"{names[0]}_DequantizeLinear")
    assert weights(path) == weights(quantised)


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_reordered_at_load(convolution: str, tmp_path: Path) -> None:
    """Of every convolution in the graph that onnxruntime runs, the kernel is a constant."""
    path, optimised = tmp_path / "explainer.onnx", tmp_path / "optimised.onnx"
    export(network(convolution), image(), path, layer="0")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    proto = onnx.load(optimised)
    constants = {tensor.name for tensor in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type in ("Conv", "FusedConv")]
    own = [module for module in network(convolution).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) > len(own)
    assert {node.input[1] for node in convolutions} <= constants
