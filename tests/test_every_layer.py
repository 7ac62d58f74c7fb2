"""Every residual block and stage of deep networks: exact in float64, and within rounding in float32."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import every_layer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", every_layer.LAYERS)
def test_every_layer(name: str) -> None:
    for row in every_layer.measure(name):
        assert row.rules < 1e-6, row
        assert row.median < 1e-4, row
        assert row.total < 2e-2, row


@pytest.mark.parametrize("name", every_layer.SMOOTH)
def test_every_layer_of_a_smooth_network(name: str) -> None:
    for row in every_layer.measure(name, smooth=True):
        assert row.total < 1e-4, row
