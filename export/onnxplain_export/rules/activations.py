"""Activation functions, most of them in terms of their output y, which the forward pass has already."""

from __future__ import annotations

import functools

import onnx_ir as ir

from onnxplain_export.graph import operand, rank
from onnxplain_export.rules.infinite import kept_where, may_be_infinite
from onnxplain_export.rules.registry import Op, constant_like, vjp

#: Under this key PyTorch's exporter notes on a node the function that it was traced from.
TORCH_FUNCTION_KEY = "pkg.torch.onnx.class_hierarchy"


@vjp("Relu")
def relu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = max(x, 0): dx = g where y > 0."""
    y = node.outputs[0]
    # As y is never negative, it is true as a bool where it is positive: a Cast is faster than Greater.
    return kept_where(op, op.Cast(y, to=ir.DataType.BOOL), gradient, y)


@vjp("Clip", broadcasts=True)
def clip(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = min(max(x, low), high): dx = g where low < y < high, dlow = g below low, dhigh = g above high.

    At a bound itself PyTorch's clamp passes the gradient on, while hardtanh and ReLU6 don't. Behind a ReLU
    many values are exactly 0, so there the choice decides.
    """
    x, y = operand(node, 0), node.outputs[0]
    low, high = [*node.inputs[1:], None, None][:2]
    # Where the bounds have changed places, high wins.
    if wrt == 1:
        chosen = op.Less(x, low)
        return op.Where(chosen if high is None else op.And(chosen, op.Less(low, high)), gradient, 0.0)
    if wrt == 2:
        chosen = op.Greater(x, high)
        return op.Where(chosen if low is None else op.Or(chosen, op.Greater(low, high)), gradient, 0.0)
    if "aten.clamp" in node.metadata_props.get(TORCH_FUNCTION_KEY, ""):
        return kept_where(op, op.Equal(x, y), gradient, y)
    inside = [op.Greater(y, low)] if low is not None else []
    if high is not None:
        inside.append(op.Less(y, high))
    return kept_where(op, functools.reduce(op.And, inside), gradient, y) if inside else gradient


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
    is_positive = op.Greater(s, 0.0)
    slope = op.Add(s, op.Where(op.And(is_positive, op.Less(s, 1.0)), op.Sub(s, 0.5), 0.0))
    dx = op.Mul(gradient, slope)
    return op.Where(is_positive, dx, 0.0) if may_be_infinite(node.outputs[0]) else dx


@vjp("Gelu")
def gelu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = x Phi(x): dx = g (Phi(x) + x phi(x)); or the tanh approximation of it.

    The constants are computed in the graph, where constant folding evaluates them at the graph's own
    precision: as float32 numbers they would limit the check in float64. pi = 4 atan(1).
    """
    x = operand(node, 0)
    quarter_pi = op.Atan(constant_like(op, 1.0, x))
    if node.attributes.get_string("approximate", "none") == "none":
        # With t = x / sqrt(2): Phi(x) = (erf(t) + 1) / 2 and x phi(x) = t exp(-t²) / sqrt(pi).
        t = op.Div(x, op.Sqrt(constant_like(op, 2.0, x)))
        cumulative = op.Mul(op.Add(op.Erf(t), 1.0), 0.5)
        density = op.Exp(op.Sub(op.Log(op.Sqrt(op.Div(0.25, quarter_pi))), op.Mul(t, t)))
        return op.Mul(gradient, op.Add(cumulative, op.Mul(t, density)))
    # y = x s with s = sigmoid(u), u = linear + cubic = 2 sqrt(2 / pi) (x + 0.044715 x³)
    linear = op.Mul(x, op.Sqrt(op.Div(2.0, quarter_pi)))
    cubic = op.Mul(linear, op.Mul(op.Mul(x, x), op.Div(constant_like(op, 44715.0, x), 1e6)))
    u = op.Add(linear, cubic)
    s = op.Sigmoid(u)
    # x u' = linear + 3 cubic, and so dx = g (s + s (1 - s) x u').
    slope = op.Mul(op.Sub(1.0, s), op.Add(u, op.Mul(cubic, 2.0)))
    return op.Mul(gradient, op.Mul(s, op.Add(slope, 1.0)))


@vjp("Softmax")
def softmax(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = softmax(x) along an axis: dx = y (g - sum(g y))."""
    y = node.outputs[0]
    weighted = op.ReduceSum(op.Mul(gradient, y), [_softmax_axis(node)], keepdims=1)
    return op.Mul(y, op.Sub(gradient, weighted))


def _softmax_axis(node: ir.Node) -> int:
    """Return the axis counted from the end, where it is the same with the classes in front."""
    axis = node.attributes.get_int("axis", -1)
    return axis - rank(node.outputs[0]) if axis >= 0 else axis


@vjp("LogSoftmax")
def log_softmax(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = log(softmax(x)) along an axis: dx = g - exp(y) sum(g)."""
    y = node.outputs[0]
    return op.Sub(gradient, op.Mul(op.Exp(y), op.ReduceSum(gradient, [_softmax_axis(node)], keepdims=1)))


@vjp("LeakyRelu")
def leaky_relu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = x where x > 0, else alpha x: dx = g, else alpha g."""
    slope = node.attributes.get_float("alpha", 0.01)
    # A slope that isn't negative keeps the sign, so that nothing else needs x and a Conv before can be fused.
    signed = node.outputs[0] if slope >= 0 else operand(node, 0)
    return op.Where(op.Greater(signed, 0.0), gradient, op.Mul(gradient, slope))


@vjp("PRelu", broadcasts=True)
def parametric_relu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = x where x > 0, else s x: dx = g, else s g; ds = 0, else x g."""
    x, slope = operand(node, 0), operand(node, 1)
    is_positive = op.Greater(x, 0.0)
    if wrt == 0:
        return op.Where(is_positive, gradient, op.Mul(gradient, slope))
    return op.Where(is_positive, 0.0, op.Mul(gradient, x))


@vjp("Elu")
def elu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = x where x > 0, else alpha (exp(x) - 1): dx = g, else g (y + alpha)."""
    alpha = node.attributes.get_float("alpha", 1.0)
    scaled = op.Mul(gradient, op.Add(node.outputs[0], alpha))
    return op.Where(op.Greater(operand(node, 0), 0.0), gradient, scaled)


@vjp("Selu")
def selu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = gamma x where x > 0, else gamma alpha (exp(x) - 1): dx = g gamma, else g (y + gamma alpha)."""
    alpha = node.attributes.get_float("alpha", 1.6732632423543772)
    gamma = node.attributes.get_float("gamma", 1.0507009873554805)
    y = node.outputs[0]
    # Multiplied in the graph, as the product of two float32 numbers isn't one.
    below = op.Add(y, op.Mul(constant_like(op, gamma, y), alpha))
    return op.Mul(gradient, op.Where(op.Greater(y, 0.0), gamma, below))


@vjp("Celu")
def celu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = x where x > 0, else alpha (exp(x / alpha) - 1): dx = g, else g (y / alpha + 1)."""
    alpha = node.attributes.get_float("alpha", 1.0)
    scaled = op.Mul(gradient, op.Add(op.Div(node.outputs[0], alpha), 1.0))
    return op.Where(op.Greater(operand(node, 0), 0.0), gradient, scaled)


@vjp("ThresholdedRelu")
def thresholded_relu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = x where x > alpha, else 0: dx = g, else 0."""
    threshold = node.attributes.get_float("alpha", 1.0)
    return op.Where(op.Greater(operand(node, 0), threshold), gradient, 0.0)


@vjp("Shrink")
def shrink(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = x + bias below -lambd, x - bias above lambd, else 0: dx = g outside, 0 between."""
    outside = op.Greater(op.Abs(operand(node, 0)), node.attributes.get_float("lambd", 0.5))
    return op.Where(outside, gradient, 0.0)


@vjp("Mish")
def mish(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """y = x t, t = tanh(softplus(x)): dx = g (t + x (1 - t t) sigmoid(x))."""
    x = operand(node, 0)
    t = op.Tanh(op.Softplus(x))
    slope = op.Mul(op.Sub(1.0, op.Mul(t, t)), op.Sigmoid(x))
    return op.Mul(gradient, op.Add(t, op.Mul(x, slope)))
