"""Sums and means over axes."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxplain_export.graph import constant_ints, operand, rank, static_dims
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, vjp


@vjp("ReduceSum")
def reduce_sum(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = sum of x over axes: dx = g, repeated along them."""
    return _repeat(op, node, gradient)


@vjp("ReduceMean")
def reduce_mean(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = mean of x over n elements: dx = g / n, repeated along the axes."""
    return _repeat(op, node, op.Div(gradient, _count(op, operand(node, 0), _axes(node))))


@vjp("GlobalAveragePool")
def global_average_pool(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = mean of x over its n places: dx = g / n, repeated over them."""
    x = operand(node, 0)
    places = list(range(2, rank(x)))
    return op.Expand(op.Div(gradient, _count(op, x, places)), op.Shape(x))


def _axes(node: ir.Node) -> list[int]:
    """Return the reduced axes, counted from 0; all of them where none are named."""
    x = operand(node, 0)
    named = node.inputs[1] if len(node.inputs) > 1 else None
    axes = constant_ints(named)
    if named is not None and axes is None:
        raise UnsupportedCaseError(f"a {node.op_type} whose axes are only known at run time")
    if not axes:
        return [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank(x)))
    return sorted(axis % rank(x) for axis in axes)


def _count(op: Op, x: ir.Value, axes: list[int]) -> float | ir.Value:
    """Return how many elements are reduced to one: a constant where the sizes are known."""
    sizes = [static_dims(x)[axis] for axis in axes]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return float(math.prod(known))
    return op.Cast(op.ReduceProd(op.Gather(op.Shape(x), axes), keepdims=0), to=x.dtype)


def _repeat(op: Op, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Return the gradient of a reduction's output, repeated along the axes that it lost."""
    axes = _axes(node)
    if not node.attributes.get_int("keepdims", 1) and axes:
        gradient = op.Unsqueeze(gradient, [axis + 1 for axis in axes])
    return op.Expand(gradient, op.Shape(operand(node, 0)))
