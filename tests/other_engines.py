"""What the tests of other engines share: npm's packages, and what counts as the same answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from onnxplain.web_page import ORT_WEB
from onnxplain_export.reference_graph import Arrays

_EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "node" / "package.json"
_NODE = json.loads(_EXAMPLE.read_text())["dependencies"]
#: By name, npm's packages in the versions that the project pins.
PACKAGES = {"onnxruntime-node": f"onnxruntime-node@{_NODE['onnxruntime-node']}", "onnxruntime-web": ORT_WEB}


def assert_equal(found: Arrays, expected: Arrays, tolerance: float = 1e-5) -> None:
    """Compare an engine's outputs with onnxruntime's, over the largest; heatmaps as they are."""
    assert found.keys() >= expected.keys()  # OpenVINO has all names of one value
    for name, array in expected.items():
        scale = np.nanmax(np.abs(array), initial=0) if name != "heatmap" else 1.0
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale, err_msg=name)
