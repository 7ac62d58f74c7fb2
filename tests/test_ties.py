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


@pytest.mark.parametrize("operator", ["ScatterElements", "ScatterND"])
@pytest.mark.parametrize(("reduction", "name"), [("max", "amax"), ("min", "amin"), ("mul", "prod")])
@pytest.mark.parametrize("engine", ["float64", "onnxruntime"])
def test_ties_and_zeros_of_updates(operator, reduction, name, engine):
    places = np.array([0, 0, 2, 1, 1, 3])
    indices = places[:, None] if operator == "ScatterND" else places
    text = f"""
        agraph (float[4] x, float[6] u, float[4, 2] mix) => (logits) {{
            y = {operator} <reduction = "{reduction}"> (x, indices, u)
            row = Reshape (y, shape)
            logits = MatMul (row, mix)
        }}"""
    model = parse(text, indices=indices, shape=np.array([1, -1]))
    x, u = np.array([1, 0, 3, 4], np.float32), np.array([1, 2, 3, 0, 0, 0], np.float32)
    mix = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    feeds = {"x": x, "u": u, "mix": mix, "classes": np.array([[0], [1]])}
    model, names = differentiated(model, "x", "u"), [gradient_name("x"), gradient_name("u")]
    found = in_float64(model, feeds, names) if engine == "float64" else in_onnxruntime(model, feeds)
    points = [torch.tensor(array, requires_grad=True) for array in (x, u)]
    logits = points[0].scatter_reduce(0, torch.tensor(places), points[1], name) @ torch.tensor(mix)
    for index, gradient in enumerate(names):
        expected = np.stack(
            [torch.autograd.grad(logit, points, retain_graph=True)[index] for logit in logits]
        )
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found[gradient], expected, rtol=0, atol=1e-6 * np.abs(expected).max())
