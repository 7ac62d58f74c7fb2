"""The benchmark's ReciproCAM: its graph in OpenVINO says what masking says in PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from onnxplain_export import export

pytest.importorskip("openvino")

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from networks import SIZE, Files, export_plain
from reciprocam import check, target_tensor


class Network(nn.Module):
    """After its layers it needs the batch, which the file takes from the image: as convnext's does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 7, 32), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Tanh())
        self.token = nn.Parameter(torch.ones(1, 2))
        self.head = nn.Linear(6 * 5 * 5 + 2, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.last(self.first(image)).flatten(1)
        return self.head(torch.cat([features, self.token.expand(features.shape[0], -1)], dim=1))


@pytest.mark.parametrize("layer", ["first", "last"])
def test_graph_is_masking(layer: str, tmp_path: Path) -> None:
    """At the last layer, and at one with a convolution after it."""
    torch.manual_seed(3)
    network = Network().eval()
    files = Files(tmp_path / "plain.onnx", tmp_path / "explainer.onnx", layer)
    export_plain(network, files.plain)
    export(network, torch.zeros(1, 3, SIZE, SIZE), files.explainer, layer=layer)
    check(network, files, target_tensor(files))
