"""Graphs in float64: what is nested in them, and recurrent operators as onnxruntime has them."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest

from graphs import Array, in_float64, in_onnxruntime, parse
from onnxplain_export.reference_graph import Arrays

RNG = np.random.default_rng(0)
STEPS, BATCH, INPUT, SIZE = 5, 3, 4, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STATES = {"RNN": 1, "GRU": 1, "LSTM": 2}


def drawn(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def test_branches_are_widened():
    """A branch holds a cast, a constant and an initializer; in float32 each would round."""
    model = parse(
        """
        g (float[N] x, bool chosen) => (float[N] logits) {
            logits = If(chosen) <
                then_branch = then () => (float[N] y) <float[1] third = {0.33333334}> {
                    tenth = Constant<value = float {0.1}>()
                    narrow = Cast<to = 1>(x)
                    root = Sqrt(tenth)
                    inverse = Sqrt(third)
                    factor = Mul(root, inverse)
                    y = Mul(narrow, factor)
                },
                else_branch = otherwise () => (float[N] z) { z = Identity(x) }
            >
        }
        """
    )
    x = RNG.standard_normal(4)
    found = in_float64(model, {"x": x, "chosen": np.array(True)}, ["logits"])["logits"]
    factor = np.sqrt(np.float64(np.float32(0.1))) * np.sqrt(np.float64(np.float32(0.33333334)))
    np.testing.assert_allclose(found, x * factor, rtol=1e-15)


@pytest.mark.parametrize(
    "nodes",
    [
        "zero = ConstantOfShape(one) logits = Add(x, zero)",
        "unit = EyeLike<dtype = 1>(table) wide = MatMul(x, unit) logits = Identity(wide)",
        "number = Constant<value_float = 0.5>() logits = Mul(x, number)",
        "numbers = Constant<value_floats = [0.5, 0.25]>() logits = Mul(x, numbers)",
    ],
)
def test_types_that_are_float32_by_an_attribute(nodes):
    """Numpy would take float32 and float64 together; the evaluator doesn't."""
    model = parse(
        f"g (float[1, 2] x) => (float[1, 2] logits) {{ {nodes} }}",
        one=np.array([1]),
        table=np.zeros((2, 2), np.int64),
    )
    x = RNG.standard_normal((1, 2))
    found = in_float64(model, {"x": x}, ["logits"])["logits"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, x * {"number": 0.5, "numbers": [0.5, 0.25]}.get(nodes.split()[0], 1))


def test_what_is_read_no_more_is_freed():
    """All values of a vision transformer's backward pass together took 15 GB."""
    names = [f"y{index}" for index in range(40)]
    nodes = " ".join(f"{after} = Neg({before})" for before, after in pairwise(["x", *names]))
    model = parse(
        f"g (float[100000] x) => (float[100000] logits) {{ {nodes} logits = Add(y0, {names[-1]}) }}"
    )
    x = RNG.standard_normal(100_000)
    tracemalloc.start()
    try:
        found = in_float64(model, {"x": x}, ["logits"])["logits"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, 0 * x)
    assert peak < 6 * x.nbytes


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("backwards", [0, 1])
def test_scan(axis, backwards):
    """Sums up to each step, of sequences along an axis in a direction; the outputs in the other one."""
    model = parse(
        f"""
        g (float[2] first, float[5, 2] x, float[2, 5] y, float[2] bias)
            => (float[2] last, float[A, B] logits) {{
            last, logits = Scan<num_scan_inputs = 2, scan_input_axes = [0, 1],
                scan_input_directions = [{backwards}, {1 - backwards}], scan_output_axes = [{axis}],
                scan_output_directions = [{1 - backwards}],
                body = body (float[2] state, float[2] a, float[2] b) => (float[2] next, float[2] output) {{
                    product = Mul(a, b)
                    more = Add(product, bias)
                    next = Add(state, more)
                    output = Identity(next)
                }}
            >(first, x, y)
        }}
        """
    )
    feeds = {"first": drawn(2), "x": drawn(5, 2), "y": drawn(2, 5), "bias": drawn(2)}
    single = in_onnxruntime(model, feeds)
    double = in_float64(model, feeds, list(single))
    assert double["logits"].shape == ((5, 2) if axis == 0 else (2, 5))
    for name, expected in single.items():
        np.testing.assert_allclose(double[name], expected, rtol=0, atol=1e-5)


def recurrent(operator: str, attributes: str, feeds: Arrays) -> ir.Model:
    """Return a layer of two directions as a graph, with all of its outputs."""
    kinds = {"float32": "float", "int32": "int32"}
    inputs = [f"{kinds[array.dtype.name]}{list(array.shape)} {name}" for name, array in feeds.items()]
    outputs = ["logits", "last", "cell"][: 1 + STATES[operator]]
    given = ["x", "w", "r", "b", "lengths", "h", "c", "p"]
    return parse(
        f"""
        g ({", ".join(inputs)}) => ({", ".join(f"float[] {name}" for name in outputs)}) {{
            {", ".join(outputs)} = {operator}<
                hidden_size = {SIZE}, direction = "bidirectional" {attributes}
            >({", ".join(name if name in feeds else '""' for name in given).rstrip(', "')})
        }}
        """
    )


def feeds_of(operator: str) -> Arrays:
    rows, states = GATES[operator] * SIZE, ["h", "c"][: STATES[operator]]
    weights = {"w": drawn(2, rows, INPUT), "r": drawn(2, rows, SIZE), "b": drawn(2, 2 * rows)}
    return {"x": drawn(STEPS, BATCH, INPUT), **weights, **{name: drawn(2, BATCH, SIZE) for name in states}}


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("RNN", ', activations = ["Softplus", "Softsign"], clip = 0.5'),
        ("GRU", ', activations = ["Softsign", "Relu", "Sigmoid", "Softplus"], clip = 0.5'),
        ("GRU", ", linear_before_reset = 1, clip = 0.5"),
        ("LSTM", ", clip = 0.5"),
        ("LSTM", ", input_forget = 1"),
    ],
)
def test_recurrent(operator, attributes):
    """What the rules refuse may still stand beside the path."""
    feeds = {**feeds_of(operator), "lengths": np.array([5, 1, 3], np.int32)}
    if operator == "LSTM":
        feeds["p"] = drawn(2, 3 * SIZE)
    model = recurrent(operator, attributes, feeds)
    single = in_onnxruntime(model, feeds)
    double = in_float64(model, feeds, list(single))
    for name, expected in single.items():
        np.testing.assert_allclose(double[name], expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("operator", GATES)
def test_batch_first(operator):
    """In the layout that onnxruntime's CPU provider lacks, the batch comes before the steps or directions."""
    feeds = feeds_of(operator)
    swapped = {name: array.swapaxes(0, 1) if name in "xhc" else array for name, array in feeds.items()}
    expected = in_float64(recurrent(operator, "", feeds), feeds, ["logits", "last"])
    found = in_float64(recurrent(operator, ", layout = 1", swapped), swapped, ["logits", "last"])
    np.testing.assert_array_equal(found["logits"], expected["logits"].transpose(2, 0, 1, 3))
    np.testing.assert_array_equal(found["last"], expected["last"].swapaxes(0, 1))
