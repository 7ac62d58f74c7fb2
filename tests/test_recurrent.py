"""Recurrent layers in networks: against autograd, without classes, and what their loops take from around."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from graphs import differentiated, in_float64, in_onnxruntime, numeric_gradient, parse
from onnxplain_export import export, verify
from onnxplain_export.graph import taken_by_branches

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(24, 5, num_layers=2, bidirectional=True, batch_first=True),
    "GRU": lambda: nn.GRU(24, 5, bidirectional=True, batch_first=True),
    "RNN": lambda: nn.RNN(24, 10, nonlinearity="relu", batch_first=True),
}


class Rows(nn.Module):
    """A network that reads the rows of its feature maps one after another."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Tanh())
        self.layer = layer
        self.head = nn.Linear(10, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = self.features(image).permute(0, 2, 3, 1).flatten(2)
        states, _ = self.layer(rows)
        return self.head(states[:, -1] + states.mean(1))


def scans(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "Scan"]


@pytest.mark.parametrize("name", LAYERS)
def test_against_autograd(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "explainer.onnx"
    model = Rows(LAYERS[name]())
    measured = export(model, torch.zeros(1, 3, 8, 8), path, layer="features", guided=True).verification
    assert measured.rules < 1e-7
    assert measured.gradients < 1e-6
    assert verify(path).rules < 1e-7
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {"image": np.zeros((2, 3, 8, 8), np.float32), "class_index": np.zeros((2, 0), np.int64)}
    assert session.run(["gradients"], feeds)[0].shape == (2, 0, 6, 4, 4)
    graph = ir.load(path).graph
    assert bool(scans(graph)) is (name != "RNN")  # which PyTorch writes out step by step
    for scan in scans(graph):
        # OpenVINO knows nothing else that a loop takes from around it.
        body = scan.attributes["body"].as_graph()
        around = {value for value in taken_by_branches(scan) if value.graph is not body}
        assert all(value.is_initializer() for value in around)


COMPUTED = """g (float[3,batch,2] x, float[1] s) => (float[A,B] logits) {
    w_s = Mul(w, s)
    r_s = Mul(r, s)
    y, last = LSTM<hidden_size=2>(x, w_s, r_s)
    logits = Squeeze(last, zero)
}"""


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng([*shape]).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": drawn(1, 8, 2), "r": drawn(1, 8, 2) / 2, "zero": np.array([0])}
FEEDS = {"x": drawn(3, 4, 2), "s": drawn(1)}


def test_weights_that_are_computed() -> None:
    """A loop takes them from around it."""
    classes = np.array([[0, 1, 1, 0], [1, 1, 0, 0]])
    model = differentiated(parse(COMPUTED, **WEIGHTS), "x")
    feeds = {**FEEDS, "classes": classes}
    found = in_float64(model, feeds, ["gradient.x"])["gradient.x"]
    expected = numeric_gradient(parse(COMPUTED, **WEIGHTS), FEEDS, "x", classes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(in_onnxruntime(model, feeds)["gradient.x"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_plain_prediction_has_no_gates(count: int) -> None:
    """Without classes the loops run on empty batches: of the gates too, which have no classes."""
    model = differentiated(parse(COMPUTED, **WEIGHTS), "x")
    outputs = [output for scan in scans(model.graph) for output in scan.outputs]
    model.graph.outputs.extend(outputs)
    found = in_onnxruntime(model, {**FEEDS, "classes": np.zeros((count, 4), np.int64)})
    for output in outputs:
        assert 4 * (count > 0) in found[output.name].shape[:-1]
    assert found["gradient.x"].shape == (count, 3, 4, 2)
