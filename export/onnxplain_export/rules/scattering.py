"""Operators that put updates at indices: an update's gradient is picked from where it was put."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain_export.graph import operand, rank
from onnxplain_export.rules.indexing import classes_first, classes_last, for_each_class
from onnxplain_export.rules.infinite import kept_where
from onnxplain_export.rules.registry import Op, constant_like, vjp


@vjp("ScatterElements", "ScatterND")
def scatter(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x with updates u put at indices, or added, multiplied or compared there: du = g from there."""
    reduction = node.attributes.get_string("reduction", "none")
    if reduction == "mul":
        return _product(op, node, wrt, gradient)
    if reduction in ("max", "min"):
        return _extreme(op, node, wrt, gradient)
    if wrt == 2:
        return _picked_gradient(op, node, gradient)
    if reduction == "add":
        return gradient
    # What was overwritten has no part in y.
    kept = _put(op, node, _full(op, node, 0, 1.0), _full(op, node, 2, 0.0), "none")
    return kept_where(op, op.Cast(kept, to=ir.DataType.BOOL), gradient, node.outputs[0])


def _product(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x u_1 u_2 ...: each one's gradient is g times the product of the others.

    A lone zero has the product of all that are not zero; among several, each one's others have a zero.
    """
    x, u = operand(node, 0), operand(node, 2)
    if wrt == 0:
        return op.Mul(gradient, _put(op, node, _full(op, node, 0, 1.0), u, "mul"))
    is_zero = op.Equal(u, constant_like(op, 0.0, u))
    marks = op.Cast(is_zero, to=u.dtype)
    zeros = _picked(op, node, _put(op, node, _full(op, node, 0, 0.0), marks, "add"))
    factors = op.Where(is_zero, constant_like(op, 1.0, u), u)
    product = _picked(op, node, _put(op, node, _full(op, node, 0, 1.0), factors, "mul"))
    # The zeros among the others are those at the place without one's own.
    others = op.Where(op.Less(op.Sub(zeros, marks), 0.5), op.Div(product, factors), 0.0)
    return op.Mul(_picked_gradient(op, node, op.Mul(gradient, x)), others)


def _extreme(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = the largest or smallest of x and u: g goes to it, in equal shares as PyTorch's scatter_reduce."""
    x, u, y = operand(node, 0), operand(node, 2), node.outputs[0]
    x_is_it = op.Equal(x, y)
    u_is_it = op.Equal(u, _picked(op, node, y))
    count = _put(op, node, op.Cast(x_is_it, to=x.dtype), op.Cast(u_is_it, to=x.dtype), "add")
    share = op.Div(gradient, count)
    if wrt == 0:
        return op.Where(x_is_it, share, 0.0)
    return op.Where(u_is_it, _picked_gradient(op, node, share), 0.0)


def _full(op: Op, node: ir.Node, index: int, number: float) -> ir.Value:
    """Return one number in the shape of an input."""
    value = operand(node, index)
    return op.Expand(constant_like(op, number, value), op.Shape(value))


def _put(op: Op, node: ir.Node, x: ir.Value, updates: ir.Value, reduction: str) -> ir.Value:
    """Scatter values of the forward pass as the node does."""
    if node.op_type == "ScatterND":
        return op.ScatterND(x, operand(node, 1), updates, reduction=reduction)
    axis = node.attributes.get_int("axis", 0)
    return op.ScatterElements(x, operand(node, 1), updates, axis=axis, reduction=reduction)


def _picked(op: Op, node: ir.Node, value: ir.Value) -> ir.Value:
    """Return the elements of a value of the forward pass from where the node puts updates."""
    if node.op_type == "ScatterND":
        return op.GatherND(value, operand(node, 1))
    return op.GatherElements(value, operand(node, 1), axis=node.attributes.get_int("axis", 0))


def _picked_gradient(op: Op, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Return the elements of a gradient from where the node puts updates."""
    indices, axes = operand(node, 1), rank(operand(node, 0))
    if node.op_type == "ScatterND":
        # An index counts from the first axis on, so the classes step back.
        picked = op.GatherND(classes_last(op, gradient, axes), indices)
        return classes_first(op, picked, rank(operand(node, 2)))
    axis = node.attributes.get_int("axis", 0) % axes + 1
    return op.GatherElements(gradient, for_each_class(op, indices, gradient), axis=axis)
