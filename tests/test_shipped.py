"""The explainers in the package are what today's exporter makes of the weights in the package."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from onnxplain.manifest import METADATA_KEY
from onnxplain_export import verify
from onnxplain_models import NETWORKS, explainer_file
from onnxplain_models.export_all import export_all


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped")
    export_all(folder)
    return folder


def parts(model: onnx.ModelProto) -> tuple[object, ...]:
    """All of a model but the errors that its verification measured, which depend on the machine."""
    (entry,) = model.metadata_props
    assert entry.key == METADATA_KEY
    manifest = json.loads(entry.value)
    del manifest["verification"]
    weights = {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}
    nodes = [node.SerializeToString(deterministic=True) for node in model.graph.node]
    return manifest, nodes, weights


@pytest.mark.parametrize("network", NETWORKS)
def test_shipped_explainers_are_up_to_date(exported: Path, network: str) -> None:
    """If this fails, run: python -m onnxplain_models.export_all."""
    shipped = onnx.load_from_string(explainer_file(network).read_bytes())
    assert parts(shipped) == parts(onnx.load(exported / f"{network}.onnx"))


@pytest.mark.parametrize("network", NETWORKS)
def test_shipped_explainers_verify(exported: Path, network: str) -> None:
    path = exported / f"{network}.copy.onnx"
    path.write_bytes(explainer_file(network).read_bytes())
    assert verify(path).rules < 1e-8
