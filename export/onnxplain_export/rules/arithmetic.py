"""Elementwise arithmetic with broadcasting; the driver sums over the axes that were broadcast."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant, operand
from onnxplain_export.rules.infinite import kept_where
from onnxplain_export.rules.registry import Op, vjp


@vjp("Add", broadcasts=True)
def add(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = x + y: dx = g, dy = g."""
    return gradient


@vjp("Sub", broadcasts=True)
def sub(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = x - y: dx = g, dy = -g."""
    return gradient if wrt == 0 else op.Neg(gradient)


@vjp("Mul", broadcasts=True)
def mul(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = x y: dx = g y, dy = g x."""
    return op.Mul(gradient, node.inputs[1 - wrt])


@vjp("Div", broadcasts=True)
def div(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = x / y: dx = g / y, dy = -g z / y."""
    divisor = node.inputs[1]
    if wrt == 0:
        return op.Div(gradient, divisor)
    return op.Neg(op.Mul(gradient, op.Div(node.outputs[0], divisor)))


@vjp("Neg")
def neg(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = -x: dx = -g."""
    return op.Neg(gradient)


@vjp("Mod", broadcasts=True)
def remainder(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = x - n y with n whole: dx = g, dy = -g n."""
    if wrt == 0:
        return gradient
    x, y = operand(node, 0), operand(node, 1)
    return op.Mul(gradient, op.Round(op.Div(op.Sub(node.outputs[0], x), y)))


@vjp("Pow", broadcasts=True)
def power(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = x ^ y: dx = g y x ^ (y - 1), dy = g z log(x), which has the limit 0 at x = 0."""
    x, y, z = operand(node, 0), operand(node, 1), node.outputs[0]
    if wrt == 1:
        return op.Where(op.Equal(x, 0.0), 0.0, op.Mul(gradient, op.Mul(z, op.Log(x))))
    exponent = constant(y)
    if exponent is None or exponent.size > 1 or not exponent.any():
        y = op.CastLike(y, x)
        # x ^ 0 is constant, at x = 0 too.
        slope = op.Mul(y, op.Pow(x, op.Sub(y, 1.0)))
        return op.Where(op.Equal(y, 0.0), 0.0, op.Mul(gradient, slope))
    number = float(exponent.reshape(-1)[0])
    if number == 2.0:
        factor = x
    elif number == 3.0:
        factor = op.Mul(x, x)
    else:
        # A division is cheaper than another power. It has no value at 0, where x ^ (y - 1) has one.
        with np.errstate(divide="ignore"):
            at_zero = float(np.power(0.0, number - 1.0))
        factor = op.Where(op.Equal(x, 0.0), at_zero, op.Div(z, x))
    return op.Mul(gradient, op.Mul(factor, number))


@vjp("Sum", broadcasts=True)
def variadic_sum(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = x_0 + x_1 + ...: dx_i = g."""
    return gradient


@vjp("Mean", broadcasts=True)
def variadic_mean(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = (x_0 + ... + x_(n-1)) / n: dx_i = g / n."""
    return op.Div(gradient, float(len(node.inputs)))


@vjp("Max", "Min", broadcasts=True)
def extremum(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = max(x_0, x_1, ...): dx_i = g where x_i is z, shared equally where several are, as in PyTorch."""
    z = node.outputs[0]

    are_chosen = [op.Equal(operand(node, index), z) for index in range(len(node.inputs))]
    count = op.Sum(*(op.Cast(is_chosen, to=z.dtype) for is_chosen in are_chosen))
    return kept_where(op, are_chosen[wrt], op.Div(gradient, count), z)


@vjp("Where", broadcasts=True)
def where(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = x where the condition holds, else y: dx = g there, dy = g elsewhere."""
    condition = operand(node, 0)
    return op.Where(condition, gradient, 0.0) if wrt == 1 else op.Where(condition, 0.0, gradient)
