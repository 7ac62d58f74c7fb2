"""When directions agree, and how much is evaluated until they do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graphs import Array
from onnxplain_export import export, verify
from onnxplain_export.reference_graph import Arrays, ReferenceGraph
from onnxplain_export.rule_check import TOLERANCE, _largest_agreed

NAN = np.nan


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([[[1e-9, 1e-8]]], 1e-8),
        ([[[1e-9, 1e-3]]], np.inf),
        ([[[1e-9, 1e-3]], [[1e-3, 1e-8]]], 1e-3),  # by chance
        ([[[1e-9, 1e-3]], [[1e-3, 1e-8]], [[1e-3, 2e-8]]], 2e-8),
        ([[[1e-9, 1e-3]], [[1e-3, 1e-2]], [[1e-3, 1e-2]]], 1e-2),
        ([[[1e-9, NAN]]], 1e-9),  # one that can't be told
        ([[[NAN, NAN]]], np.inf),
        ([[[NAN, 1e-9]], [[1e-8, 1e-3]]], np.inf),
        ([[[NAN, 1e-9]], [[1e-8, 1e-3]], [[2e-8, NAN]]], 2e-8),
        ([[[np.inf, 1e-9]]], np.inf),
    ],
)
def test_agreement(errors: list[list[list[float]]], expected: float) -> None:
    found = _largest_agreed([np.array(one) for one in errors])
    assert (found <= TOLERANCE) == (expected <= TOLERANCE)
    if expected <= TOLERANCE:
        assert found == expected


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), activation, *head).eval()


@pytest.mark.parametrize(("activation", "most"), [(nn.Tanh(), 1 + 2), (nn.ReLU(), 2 + 2)])
def test_little_is_evaluated(
    activation: nn.Module, most: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The graph once, and a step ahead and one back; beside kinks the graph at another point too."""
    runs: list[Any] = []
    run = ReferenceGraph.run

    def counted(self: ReferenceGraph, feeds: Mapping[str, Array]) -> Arrays:
        runs.append(feeds)
        return run(self, feeds)

    monkeypatch.setattr(ReferenceGraph, "run", counted)
    path = tmp_path / "e.onnx"
    export(network(activation), torch.zeros(1, 3, 12, 12), path, layer="0")
    assert len(runs) == most
    runs.clear()
    verify(path)
    assert len(runs) == most


class Sharp(nn.Module):
    """Its square root has no slope at 0, where half of the rectified maps are, and no value behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head((self.maps(image) ** 1.5).mean((2, 3)))


def test_another_point_where_there_is_no_derivative(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = export(Sharp().eval(), torch.zeros(1, 3, 12, 12), tmp_path / "e.onnx", layer="maps")
    assert report.verification.rules < TOLERANCE
