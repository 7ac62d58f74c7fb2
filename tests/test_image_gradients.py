"""The image's own gradient, and that of guided backpropagation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from pytorch_grad_cam import GuidedBackpropReLUModel
from torch import nn

from onnxplain.errors import VerificationError
from onnxplain_export import export, verify

EXAMPLE = torch.zeros(1, 3, 16, 16)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.stem(image)
        return self.head((maps + self.body(maps)).mean((2, 3)))


def exported(tmp_path, **options):
    torch.manual_seed(3)
    model = Network().eval()
    path = tmp_path / "model.onnx"
    report = export(model, EXAMPLE, path, layer="body", **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return model, report, session


def run(session, image, classes):
    names = [output.name for output in session.get_outputs()]
    feeds = {"image": image.numpy(), "class_index": np.asarray(classes, np.int64)}
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_equals_autograd(tmp_path):
    model, report, session = exported(tmp_path, input_gradient=True)
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    outputs = run(session, image, [[0, 3, -1], [4, 1, 7]])
    assert outputs["image_gradients"].shape == (2, 3, 3, 16, 16)
    source = image.clone().requires_grad_()
    logits = model(source)
    for place, column in enumerate([[0, 4], [3, 1]]):
        score = logits[[0, 1], column].sum()
        expected = torch.autograd.grad(score, source, retain_graph=True)[0]
        np.testing.assert_allclose(outputs["image_gradients"][:, place], expected, atol=1e-6)
    assert np.isnan(outputs["image_gradients"][1, 2]).all()
    assert report.verification.rules < 1e-6
    assert verify(tmp_path / "model.onnx").rules < 1e-6


def test_guided_equals_grad_cam(tmp_path):
    model, _, session = exported(tmp_path, guided=True)
    plain_folder = tmp_path / "plain"
    plain_folder.mkdir()
    _, _, plain = exported(plain_folder)
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(10))
    outputs = run(session, image, [[2]])
    assert "image_gradients" not in outputs
    expected = GuidedBackpropReLUModel(model=model, device="cpu")(image.clone(), target_category=2)
    found = outputs["guided_image_gradients"][0, 0].transpose(1, 2, 0)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(outputs["gradients"], run(plain, image, [[2]])["gradients"])


def test_a_wrong_image_gradient_fails_verification(tmp_path):
    exported(tmp_path, input_gradient=True)
    path = tmp_path / "model.onnx"
    model = ir.load(path)
    output = next(value for value in model.graph.outputs if value.name == "image_gradients")
    node = output.producer()
    assert node is not None
    doubled = ir.node("Add", [node.inputs[0], node.inputs[0]])
    doubled.outputs[0].name = "doubled"
    node.prepend(doubled)
    node.replace_input_with(0, doubled.outputs[0])
    ir.save(model, path)
    with pytest.raises(VerificationError, match="the gradient rules differ"):
        verify(path)
