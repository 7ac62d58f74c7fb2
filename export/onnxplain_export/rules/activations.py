"""Activation functions, most of them in terms of their output y, which the forward pass has already."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain_export.graph import operand, rank
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, constant_like, vjp


@vjp("Relu")
def relu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = max(x, 0): dx = g where y > 0."""
    return op.Where(op.Greater(node.outputs[0], 0.0), gradient, 0.0)


@vjp("Clip")
def clip(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = min(max(x, low), high): dx = g where low < y < high."""
    if wrt != 0:
        raise UnsupportedCaseError("a Clip whose bounds depend on the layer")
    y = node.outputs[0]
    low, high = [*node.inputs[1:], None, None][:2]
    if low is not None:
        gradient = op.Where(op.Greater(y, low), gradient, 0.0)
    if high is not None:
        gradient = op.Where(op.Less(y, high), gradient, 0.0)
    return gradient


@vjp("Sigmoid")
def sigmoid(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = 1 / (1 + exp(-x)): dx = g y (1 - y)."""
    y = node.outputs[0]
    return op.Mul(gradient, op.Mul(y, op.Sub(1.0, y)))


@vjp("Tanh")
def tanh(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = tanh(x): dx = g (1 - y y)."""
    y = node.outputs[0]
    return op.Mul(gradient, op.Sub(1.0, op.Mul(y, y)))


@vjp("HardSigmoid")
def hard_sigmoid(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = min(max(alpha x + beta, 0), 1): dx = alpha g where 0 < y < 1."""
    slope = node.attributes.get_float("alpha", 0.2)
    y = node.outputs[0]
    inside = op.And(op.Greater(y, 0.0), op.Less(y, 1.0))
    return op.Where(inside, op.Mul(gradient, slope), 0.0)


@vjp("HardSwish")
def hard_swish(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = x s(x), s(x) = min(max(x / 6 + 1/2, 0), 1): dx = g (s(x) + x s'(x))."""
    x = operand(node, 0)
    # The operator's definition has 1/6 as a float32 attribute, so this is the slope that it really has.
    s = op.HardSigmoid(x, alpha=1 / 6, beta=0.5)
    inside = op.And(op.Greater(s, 0.0), op.Less(s, 1.0))
    return op.Mul(gradient, op.Add(s, op.Where(inside, op.Sub(s, 0.5), 0.0)))


@vjp("Gelu")
def gelu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = x Phi(x): dx = g (Phi(x) + x phi(x)); or the tanh approximation of it.

    The square roots are taken in the graph, where constant folding evaluates them at the graph's own
    precision: as float32 constants they would limit the check in float64.
    """
    x = operand(node, 0)
    square = op.Mul(x, x)
    if node.attributes.get_string("approximate", "none") == "none":
        cumulative = op.Mul(op.Add(op.Erf(op.Div(x, op.Sqrt(constant_like(op, 2.0, x)))), 1.0), 0.5)
        # phi(x) = exp(-x²/2) / sqrt(2 pi), and pi = 4 atan(1).
        normalizer = op.Sqrt(op.Mul(op.Atan(constant_like(op, 1.0, x)), 8.0))
        density = op.Div(op.Exp(op.Mul(square, -0.5)), normalizer)
        return op.Mul(gradient, op.Add(cumulative, op.Mul(x, density)))
    # y = x (1 + t) / 2 with t = tanh(c (x + 0.044715 x³)), c = sqrt(2 / pi)
    c = op.Sqrt(op.Div(0.5, op.Atan(constant_like(op, 1.0, x))))
    cubic = op.Div(op.Mul(square, 44715.0), 1e6)
    t = op.Tanh(op.Mul(op.Mul(x, c), op.Add(cubic, 1.0)))
    slope = op.Mul(c, op.Add(op.Mul(cubic, 3.0), 1.0))
    factor = op.Add(op.Add(t, 1.0), op.Mul(op.Mul(x, op.Sub(1.0, op.Mul(t, t))), slope))
    return op.Mul(gradient, op.Mul(factor, 0.5))


@vjp("Softmax")
def softmax(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = softmax(x) along an axis: dx = y (g - sum(g y))."""
    y = node.outputs[0]
    axis = node.attributes.get_int("axis", -1)
    from_the_end = axis - rank(y) if axis >= 0 else axis
    weighted = op.ReduceSum(op.Mul(gradient, y), [from_the_end], keepdims=1)
    return op.Mul(y, op.Sub(gradient, weighted))
