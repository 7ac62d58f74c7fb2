"""At its kinks an elementwise function has the gradient that PyTorch gives it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from graphs import differentiated, gradient_name, in_float64, in_onnxruntime, parse
from onnxplain_export import export

POINTS = np.array([[-7, -3, -1, -0.5, 0, 0.5, 1, 3, 6, 7]], np.float32)
# Equal to x at some points.
OTHERS = np.array([[-7, 2, -1, 0.5, 0, -0.5, 1, 3, 2, 8]], np.float32)

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
CASES: dict[str, Function] = {
    "Abs (x)": lambda x, y: x.abs(),
    "Celu <alpha = 0.5> (x)": lambda x, y: functional.celu(x, 0.5),
    "Clip (x, zero, six)": lambda x, y: functional.relu6(x),
    "Clip (x, zero)": lambda x, y: functional.relu(x),
    "Clip (x, six, zero)": lambda x, y: torch.clamp(x, torch.tensor(6.0), torch.tensor(0.0)),
    "Elu <alpha = 0.5> (x)": lambda x, y: functional.elu(x, 0.5),
    "HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)": lambda x, y: functional.hardsigmoid(x),
    "HardSwish (x)": lambda x, y: functional.hardswish(x),
    "LeakyRelu <alpha = 0.2> (x)": lambda x, y: functional.leaky_relu(x, 0.2),
    "LeakyRelu <alpha = -0.2> (x)": lambda x, y: functional.leaky_relu(x, -0.2),
    "Max (x, y)": lambda x, y: torch.maximum(x, y),
    "Max (x, x, y)": lambda x, y: torch.stack([x, x, y]).amax(0),
    "Min (x, y)": lambda x, y: torch.minimum(x, y),
    "Pow (x, y)": lambda x, y: x**y,
    "Pow (x, zero)": lambda x, y: x**0.0,
    "Pow (x, one)": lambda x, y: x**1.0,
    "Pow (x, two)": lambda x, y: x**2.0,
    "Pow (x, three)": lambda x, y: x**3.0,
    "Pow (x, six)": lambda x, y: x**6.0,
    "PRelu (x, y)": lambda x, y: torch.where(x > 0, x, x * y),
    "Relu (x)": lambda x, y: functional.relu(x),
    "Selu (x)": lambda x, y: functional.selu(x),
    "Shrink <lambd = 0.5, bias = 0.5> (x)": lambda x, y: functional.softshrink(x),
    "Softsign (x)": lambda x, y: functional.softsign(x),
    "ThresholdedRelu <alpha = 0.5> (x)": lambda x, y: functional.threshold(x, 0.5, 0),
}
CONSTANTS = {
    name: np.array(value, np.float32)
    for name, value in {"zero": 0, "one": 1, "two": 2, "three": 3, "six": 6}.items()
}


@pytest.mark.parametrize("engine", [in_float64, in_onnxruntime])
@pytest.mark.parametrize("operator", CASES)
def test_kink(operator, engine):
    constants = {name: value for name, value in CONSTANTS.items() if name in operator}
    targets = [name for name in "xy" if f"({name}" in operator or f", {name}" in operator]
    text = f"""agraph (float[1, 10] x, float[1, 10] y) => (logits) {{
        applied = {operator}
        logits = Identity (applied)
    }}"""
    model = differentiated(parse(text, **constants), *targets)
    names = [gradient_name(name) for name in targets]
    feeds = {"x": POINTS, "y": OTHERS, "classes": np.arange(10)[:, None]}
    found = in_float64(model, feeds, names) if engine is in_float64 else in_onnxruntime(model, feeds)
    x, y = torch.tensor(POINTS, requires_grad=True), torch.tensor(OTHERS, requires_grad=True)
    CASES[operator](x, y).sum().backward()
    for name, value in zip(names, [x, y], strict=False):
        slopes = found[name][:, 0]
        np.testing.assert_allclose(np.diagonal(slopes), value.grad.numpy()[0], rtol=1e-5, atol=1e-6)


class Clamped(nn.Module):
    """A network whose rectified maps, half of them 0, are cut off at 0 again."""

    def __init__(self, cut: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.cut = cut
        self.head = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.cut(self.features(image))).mean((2, 3)))


CUTS = {
    "clamp": lambda maps: maps.clamp(0, 6),
    "clamp, at least": lambda maps: maps.clamp(min=0.0),
    "clamp_min": lambda maps: maps.clamp_min(0),
    "relu6": functional.relu6,
    "hardtanh": lambda maps: functional.hardtanh(maps, 0, 6),
}


@pytest.mark.parametrize("cut", CUTS)
def test_cut_off_at_zero_again(cut, tmp_path):
    """PyTorch's clamp passes the gradient at its bounds, and hardtanh and ReLU6 don't."""
    torch.manual_seed(0)
    model = Clamped(CUTS[cut]).eval()
    report = export(model, torch.randn(1, 3, 8, 8), tmp_path / "model.onnx", layer="features")
    assert report.verification.gradients < 1e-6
