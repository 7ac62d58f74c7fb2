"""A trained MobileNetV2 in float16 and in int8: its maps of photographs are those that it has in float32."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torchvision.models import mobilenet_v2

from graphs import Array
from onnxplain import Explainer, Explanation
from onnxplain.images import read_image
from onnxplain.maps import METHODS
from onnxplain.preprocessing import preprocess
from onnxplain_export import export
from onnxplain_export.reference_graph import ReferenceGraph

ROOT = Path(__file__).resolve().parents[1]
REALWORLD = ROOT.parent / "shared" / "realworld"
PHOTOGRAPHS = sorted((REALWORLD / "images").glob("*.*"))

sys.path.append(str(ROOT / "examples"))
from quantize import quantize  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOGRAPHS, reason="the photographs of ../shared are not here"),
]

EXAMPLE = torch.zeros(1, 3, 224, 224)
# What `features.14` puts out, under its names in the files in float and in int8.
LAYERS = {"last": (None, None), "features.14": ("node_Conv_892", "getitem_123_DequantizeLinear")}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    network = mobilenet_v2()
    network.load_state_dict(torch.load(REALWORLD / "mobilenet_v2_imagenet.pth", weights_only=True))
    return network.eval()


def correlation(one: Array, other: Array) -> float:
    return float(spearmanr(one.ravel(), other.ravel()).statistic)


def correlations(one: Sequence[Explanation], other: Sequence[Explanation]) -> list[float]:
    """Return the rank correlation of the maps of each picture whose predicted class is the same."""
    pairs = zip(one, other, strict=True)
    return [correlation(a.cam, b.cam) for a, b in pairs if a.index == b.index]


# --- Half precision ---


@pytest.fixture(scope="module")
def halves(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("fp16")
    half = export(network, EXAMPLE, folder / "half.onnx", fp16=True)
    plain = export(network, EXAMPLE, folder / "float.onnx")
    assert half.size < 0.51 * plain.size
    return plain.path, half.path


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_half_precision(halves: tuple[Path, Path], step: int) -> None:
    plain, half = (Explainer(path).explain_batch(PHOTOGRAPHS[::step]) for path in halves)
    found = correlations(plain, half)
    assert len(found) == len(PHOTOGRAPHS[::step])
    assert min(found) > 0.99


@pytest.mark.parametrize("step", [14, pytest.param(1, marks=pytest.mark.slow)])
def test_half_arithmetic(halves: tuple[Path, Path], step: int) -> None:
    """The same where every node in float16 rounds to it, which onnxruntime's CPU provider doesn't do."""
    explainer = Explainer(halves[0])
    names = ["activations", "gradients", "explained_class"]
    graph = ReferenceGraph(ir.load(halves[1]), ["image", "class_index"], names, {}, in_float64=False)
    for picture, plain in zip(PHOTOGRAPHS[::step], explainer.explain_batch(PHOTOGRAPHS[::step]), strict=True):
        image = preprocess(read_image(picture), explainer.manifest.input)[0][None]
        found = graph.run({"image": image, "class_index": np.array([[-1]])})
        assert found["explained_class"] == plain.index
        (cam,) = METHODS["gradcam"].maps(found["activations"], found["gradients"])
        assert correlation(cam[0], plain.cam) > 0.99


# --- Int8 ---


@pytest.fixture(scope="module")
def sources(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The classifier in float and quantised, calibrated on every other photograph."""
    folder = tmp_path_factory.mktemp("int8")
    plain, quantised = folder / "float.onnx", folder / "int8.onnx"
    torch.onnx.export(
        network,
        (torch.zeros(2, *EXAMPLE.shape[1:]),),
        plain,
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    quantize(plain, quantised, PHOTOGRAPHS[::2], export(plain, None, folder / "e.onnx").manifest.input)
    return plain, quantised


def integer_nodes(path: Path) -> Counter[str]:
    """Return how many nodes of each kind compute in whole numbers, once onnxruntime has optimised a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    return Counter(kind for kind in kinds if kind.startswith("Q"))


@pytest.mark.parametrize(("layer", "least"), [("last", 0.98), ("features.14", 0.9)])
def test_int8(sources: tuple[Path, Path], layer: str, least: float, tmp_path: Path) -> None:
    explainers = [
        export(source, None, tmp_path / f"{source.stem}.onnx", layer=name).path
        for source, name in zip(sources, LAYERS[layer], strict=True)
    ]
    pictures = PHOTOGRAPHS[1::2]
    found = correlations(*(Explainer(path).explain_batch(pictures) for path in explainers))
    assert len(found) >= 0.85 * len(pictures)
    assert np.median(found) >= least
    # No convolution has fallen back to float.
    counts = integer_nodes(explainers[1])
    assert counts["QLinearConv"] == 52
    assert counts == integer_nodes(sources[1])
