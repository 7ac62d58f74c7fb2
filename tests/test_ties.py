"""Where an operator has a kink or its rule divides by zero, PyTorch's gradient is the convention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from graphs import differentiated, gradient_name, in_float64, in_onnxruntime, parse

X = np.array([[0, 2, 2, -1], [0, 0, 3, 1], [0, 0, 0, 0], [-2, -2, -2, 5]], np.float32)

CASES = {
    "ReduceMax <keepdims = 0> (x, axes)": lambda x: x.amax(1),
    "ReduceMin <keepdims = 0> (x, axes)": lambda x: x.amin(1),
    "ReduceL1 <keepdims = 0> (x, axes)": lambda x: x.abs().sum(1),
    "ReduceL2 <keepdims = 0> (x, axes)": lambda x: x.norm(dim=1),
    "ReduceProd <keepdims = 0> (x, axes)": lambda x: x.prod(1),
    "GlobalMaxPool (x)": lambda x: functional.adaptive_max_pool1d(x[None], 1)[0, :, 0],
}


@pytest.mark.parametrize("operator", CASES)
@pytest.mark.parametrize("engine", ["float64", "onnxruntime"])
def test_ties_and_zeros(operator, engine):
    node, pooled = operator.replace("(x", "(maps" if "Global" in operator else "(x"), "Global" in operator
    text = f"""
        agraph (float[4, 4] x, float[4, 2] mix) => (logits) {{
            {"maps = Unsqueeze (x, first)" if pooled else ""}
            y = {node}
            row = Reshape (y, shape)
            logits = MatMul (row, mix)
        }}"""
    model = parse(text, axes=np.array([1]), first=np.array([0]), shape=np.array([1, -1]))
    mix = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    feeds = {"x": X, "mix": mix, "classes": np.array([[0], [1]])}
    model, name = differentiated(model, "x"), gradient_name("x")
    found = (in_float64(model, feeds, [name]) if engine == "float64" else in_onnxruntime(model, feeds))[name]
    point = torch.tensor(X, requires_grad=True)
    logits = CASES[operator](point) @ torch.tensor(mix)
    expected = np.stack([torch.autograd.grad(logit, point, retain_graph=True)[0] for logit in logits])
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
