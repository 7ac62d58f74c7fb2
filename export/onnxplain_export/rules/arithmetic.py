"""Elementwise arithmetic with broadcasting; the driver sums over the axes that were broadcast."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain_export.graph import constant, operand
from onnxplain_export.rules.registry import Op, constant_like, vjp


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


@vjp("Pow", broadcasts=True)
def power(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = x ^ y: dx = g y x ^ (y - 1), dy = g z log(x)."""
    x, y = operand(node, 0), operand(node, 1)
    if wrt == 1:
        return op.Mul(gradient, op.Mul(node.outputs[0], op.Log(x)))
    exponent = constant(y)
    if exponent is not None and exponent.size == 1:
        number = float(exponent.reshape(-1)[0])
        base = x if number == 2.0 else op.Pow(x, constant_like(op, number - 1.0, x))
        return op.Mul(gradient, op.Mul(base, number))
    y = op.CastLike(y, x)
    return op.Mul(gradient, op.Mul(y, op.Pow(x, op.Sub(y, 1.0))))


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

    def is_chosen(value: ir.Value) -> ir.Value:
        return op.CastLike(op.Equal(value, z), z)

    chosen = [is_chosen(operand(node, index)) for index in range(len(node.inputs))]
    count = chosen[0] if len(chosen) == 1 else op.Sum(*chosen)
    return op.Mul(gradient, op.Div(chosen[wrt], count))


@vjp("Where", broadcasts=True)
def where(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """z = x where the condition holds, else y: dx = g there, dy = g elsewhere."""
    condition = operand(node, 0)
    return op.Where(condition, gradient, 0.0) if wrt == 1 else op.Where(condition, 0.0, gradient)
