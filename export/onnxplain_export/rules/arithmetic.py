"""Elementwise arithmetic with broadcasting; the driver sums over the axes that were broadcast."""

from __future__ import annotations

import onnx_ir as ir

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
