"""Files on other engines than onnxruntime in Python: OpenVINO, and onnxruntime in Node and as WebAssembly.

Skipped where an engine isn't installed and, for npm's packages, can't be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from onnxplain_export import export
from other_engines import PACKAGES, assert_equal
from test_heatmap_outputs import network
from test_pixels import SPECS, Passing, noise, write
from test_tokens import ChannelsLast, VisionTransformer

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from engine_runs import Runner, in_node, in_openvino, on_provider

ENGINES = ["OpenVINO", *(pytest.param(package, marks=pytest.mark.slow) for package in PACKAGES)]
#: Of five: ranks, classes, and two that don't exist.
CLASSES = np.array([[-1, 3, -2, 5], [0, -6, 4, -3]])
MISSING = np.array([[0, 0, 0, 1], [0, 1, 0, 0]], bool)

in_python = on_provider("CPUExecutionProvider")


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest) -> Runner:
    if request.param == "OpenVINO":
        pytest.importorskip("openvino")
        return in_openvino
    request.getfixturevalue("npm_packages")
    return in_node(request.param)


def image(*size: int) -> NDArray[np.float32]:
    return np.random.default_rng(8).standard_normal((2, 3, *size)).astype(np.float32)


class SquareConvolutions(nn.Module):
    """As many channels behind as before each: with strides, without, in groups, and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.strided, self.grouped = nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1, groups=2)
        self.transposed, self.point = nn.ConvTranspose2d(16, 16, 2, 2), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.stem(image)
        for layer in (self.strided, self.transposed, self.grouped, self.point):
            maps = torch.tanh(layer(maps))
        return self.head(maps.mean((2, 3)))


def square_head() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5))


#: A network, and how it is exported.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "average pooling": (lambda: network(nn.Linear(8, 5)), {"layer": "last"}),
    "square linear layers": (lambda: network(square_head()), {"layer": "last"}),
    "two layers": (lambda: network(square_head()), {"layer": ["first", "last"]}),
    "no weights at the end": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), Mean()), {"layer": "0"}),
    "square convolutions": (SquareConvolutions, {"layer": "stem"}),
    "of any size": (SquareConvolutions, {"layer": "stem", "dynamic_size": True}),
    "class token": (lambda: VisionTransformer(1, "token"), {"layer": "blocks.0"}),
    "mean of the tokens": (lambda: VisionTransformer(2, "mean"), {"layer": "blocks.0"}),
    "channels last": (ChannelsLast, {"layer": "features"}),
}


class Mean(nn.Module):
    """Global average pooling, and nothing behind it."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean((2, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_onnxruntimes(name: str, run: Runner, tmp_path: Path) -> None:
    """Ranks, classes that don't exist, several, one and none."""
    torch.manual_seed(3)
    build_network, options = NETWORKS[name]
    path = tmp_path / "model.onnx"
    export(build_network(), torch.zeros(1, 3, 24, 32), path, heatmap="gradcam", **options)
    size = (40, 24) if options.get("dynamic_size") else (24, 32)
    feeds = [{"image": image(*size), "class_index": CLASSES[:, :count]} for count in (4, 1, 0)]
    expected, found = in_python(path, feeds), run(path, feeds)
    for ours, theirs in zip(expected, found, strict=True):
        assert_equal(theirs, ours)
    everything, _, nothing = found
    np.testing.assert_array_equal(everything["explained_class"] == -1, MISSING)
    np.testing.assert_array_equal(np.isnan(everything["heatmap"]).all(axis=(2, 3)), MISSING)
    assert nothing["heatmap"].shape == (2, 0, *size)


@pytest.mark.parametrize("batch", [1, 3])
def test_classes_of_another_batch(batch: int, run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(network(nn.Linear(8, 5)), torch.zeros(1, 3, 24, 32), path, layer="last")
    with pytest.raises(Exception, match="Concat"):
        run(path, [{"image": image(24, 32), "class_index": np.zeros((batch, 2), np.int64)}])


#: The resizes that OpenVINO computes: it ignores `antialias`.
OPENVINO_SPECS = ("nearest", "nearest, padded")


@pytest.mark.parametrize("name", ["usual", "padded", "bicubic", *OPENVINO_SPECS])
def test_pictures(name: str, run: Runner, tmp_path: Path) -> None:
    """Larger and smaller than the network's input."""
    if run is in_openvino and name not in OPENVINO_SPECS:
        pytest.skip("OpenVINO ignores antialias")
    path = write(tmp_path / "model.onnx", SPECS[name], Passing(SPECS[name]))
    classes = np.array([[-1, 2, 4], [0, -5, -2]])
    for size in ((50, 75), (13, 17)):
        feeds = [{"image": noise(size, 2), "class_index": classes[:, :count]} for count in (3, 0)]
        for ours, theirs in zip(in_python(path, feeds), run(path, feeds), strict=True):
            assert_equal(theirs, ours)
