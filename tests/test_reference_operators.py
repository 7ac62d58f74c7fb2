"""The quick operators of the float64 evaluation against onnx's own, on random cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from graphs import Array
from onnxplain_export.reference_operators import OPERATORS


def evaluated(operator: str, inputs: Sequence[Array], quick: bool, **attributes: Any) -> Array:
    """Evaluate a node by onnx's own operator, or by the quick one."""
    names = [f"x{number}" for number in range(len(inputs))]
    values = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in [*names, "y"]]
    node = helper.make_node(operator, names, ["y"], **attributes)
    model = helper.make_model(helper.make_graph([node], "g", values[:-1], values[-1:]))
    evaluator = ReferenceEvaluator(model, new_ops=OPERATORS if quick else None)
    result: Array = evaluator.run(None, dict(zip(names, inputs, strict=True)))[0]
    return result


@pytest.mark.parametrize("seed", range(60))
def test_convolutions(seed: int) -> None:
    draw = np.random.default_rng(seed)
    axes, groups = int(draw.integers(1, 4)), int(draw.choice([1, 2, 4]))
    within, out = int(draw.integers(1, 4)), groups * int(draw.integers(1, 4))
    kernel, strides = draw.integers(1, 4, axes).tolist(), draw.integers(1, 4, axes).tolist()
    attributes: dict[str, Any] = {"group": groups, "kernel_shape": kernel, "strides": strides}
    padding = str(draw.choice(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding == "NOTSET":
        attributes["pads"] = draw.integers(0, 4, 2 * axes).tolist()
    else:
        attributes["auto_pad"] = padding
    if not padding.startswith("SAME"):  # there onnx's own pads a dilated kernel as if it weren't
        attributes["dilations"] = draw.integers(1, 3, axes).tolist()
    x = draw.standard_normal((2, groups * within, *draw.integers(6, 10, axes)))
    w, b = draw.standard_normal((out, within, *kernel)), draw.standard_normal(out)
    inputs = [x, w, b] if seed % 2 else [x, w]
    found = evaluated("Conv", inputs, True, **attributes)
    np.testing.assert_allclose(found, evaluated("Conv", inputs, False, **attributes), rtol=0, atol=1e-12)


def test_convolution_with_no_attributes() -> None:
    draw = np.random.default_rng(0)
    x, w = draw.standard_normal((2, 3, 5, 6)), draw.standard_normal((4, 3, 2, 3))
    np.testing.assert_allclose(evaluated("Conv", [x, w], True), evaluated("Conv", [x, w], False), atol=1e-12)


def test_convolution_on_threads() -> None:
    draw = np.random.default_rng(0)
    inputs = [
        draw.standard_normal((5, 8, 30, 31)),
        draw.standard_normal((12, 4, 3, 3)),
        draw.standard_normal(12),
    ]
    attributes = {"group": 2, "pads": [1, 0, 0, 2]}
    found = evaluated("Conv", inputs, True, **attributes)
    np.testing.assert_allclose(found, evaluated("Conv", inputs, False, **attributes), rtol=0, atol=1e-12)


def test_of_no_images() -> None:
    found = evaluated("Conv", [np.zeros((0, 3, 5, 6)), np.zeros((4, 3, 2, 3))], True)
    assert found.shape == (0, 4, 4, 4)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((4, 5), (5, 6)),
        ((3, 4, 5), (5, 6)),
        ((4, 5), (3, 5, 6)),
        ((2, 1, 4, 5), (3, 5, 6)),
        ((2, 3, 4, 5), (2, 3, 5, 6)),
        ((5,), (3, 5, 6)),
        ((3, 4, 5), (5,)),
        ((0, 4, 5), (5, 6)),
        ((3, 60, 50), (50, 70)),
        ((2, 3, 60, 50), (2, 3, 50, 70)),
    ],
)
def test_products(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    inputs = [draw.standard_normal(a), draw.standard_normal(b)]
    found = evaluated("MatMul", inputs, True)
    assert found.shape == np.matmul(*inputs).shape
    np.testing.assert_allclose(found, evaluated("MatMul", inputs, False), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [2, 100])
def test_overflow_on_threads(size: int) -> None:
    infinite, zero = np.full((3, size, size), np.inf), np.zeros((size, size))
    assert np.isnan(evaluated("MatMul", [infinite, zero], True)).all()
    found = evaluated("Conv", [infinite[None].repeat(2, 0), np.zeros((4, 3, 1, 1))], True)
    assert np.isnan(found).all()


def test_products_of_whole_numbers() -> None:
    a = np.arange(24).reshape(2, 3, 4)
    found = evaluated("MatMul", [a, a.swapaxes(1, 2)], True)
    assert found.dtype == a.dtype
    np.testing.assert_array_equal(found, a @ a.swapaxes(1, 2))


def test_error_function() -> None:
    x = np.concatenate([np.linspace(-7, 7, 2001), [np.inf, -np.inf, 1e-300]])
    found = evaluated("Erf", [x], True)
    np.testing.assert_allclose(found, [math.erf(number) for number in x], rtol=1e-14, atol=0)
    assert found.dtype == np.float64
