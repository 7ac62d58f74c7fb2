"""Reductions over axes: sums, norms, extremes.

The axes are counted from the end, where they are the same with and without the classes in front.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant_ints, operand, rank, static_dims
from onnxplain_export.rules.registry import Op, constant_like, vjp
from onnxplain_export.rules.shapes import repeated


@vjp("ReduceSum")
def reduce_sum(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = sum of x over axes: dx = g, repeated along them."""
    return _repeat(op, node, _kept(op, node, gradient))


@vjp("ReduceMean")
def reduce_mean(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = mean of x over n elements: dx = g / n, repeated along the axes."""
    x, axes = operand(node, 0), _axes(op, node)
    kept = _kept(op, node, gradient)
    if isinstance(axes, list):
        return _mean_gradient(op, x, axes, kept)
    count = op.Div(*(op.Cast(op.Size(value), to=x.dtype) for value in (x, node.outputs[0])))
    return _repeat(op, node, op.Div(kept, count))


@vjp("ReduceSumSquare")
def reduce_sum_square(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = sum of x²: dx = 2 g x."""
    return op.Mul(op.Mul(_kept(op, node, gradient), 2.0), operand(node, 0))


@vjp("ReduceL1")
def reduce_l1(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = sum of abs(x): dx = g sign(x)."""
    return op.Mul(_kept(op, node, gradient), op.Sign(operand(node, 0)))


@vjp("ReduceL2")
def reduce_l2(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = sqrt(sum of x²): dx = g x / y; 0 where y is, as in PyTorch."""
    y = node.outputs[0]
    share = op.Where(op.Greater(y, 0.0), op.Div(gradient, y), 0.0)
    return op.Mul(_kept(op, node, share), operand(node, 0))


@vjp("ReduceLogSum")
def reduce_log_sum(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = log(sum of x): dx = g / exp(y), repeated along the axes."""
    return _repeat(op, node, _kept(op, node, op.Div(gradient, op.Exp(node.outputs[0]))))


@vjp("ReduceLogSumExp")
def reduce_log_sum_exp(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = log(sum of exp(x)): dx = g exp(x - y)."""
    y = _kept(op, node, node.outputs[0])
    return op.Mul(_kept(op, node, gradient), op.Exp(op.Sub(operand(node, 0), y)))


@vjp("ReduceProd")
def reduce_prod(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = product of x: dx = g times the product of the others, which is y / x where x is not 0.

    A lone zero has the product of all that are not zero; among several, each one's others have a zero.
    """
    x, y = operand(node, 0), _kept(op, node, node.outputs[0])
    is_zero = op.Equal(x, constant_like(op, 0.0, x))
    zeros = _sum(op, node, op.Cast(is_zero, to=x.dtype))
    others = op.ReduceProd(
        op.Where(is_zero, constant_like(op, 1.0, x), x), *_over(op, node), **_kept_axes(node)
    )
    at_zero = op.Where(op.Less(zeros, 1.5), others, 0.0)
    return op.Mul(_kept(op, node, gradient), op.Where(is_zero, at_zero, op.Div(y, x)))


@vjp("ReduceMax", "ReduceMin")
def reduce_extreme(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = the largest or smallest x: dx = g where x = y, in equal shares as PyTorch's amax and amin."""
    x, y = operand(node, 0), _kept(op, node, node.outputs[0])
    stands_there = op.Equal(x, y)
    count = _sum(op, node, op.Cast(stands_there, to=x.dtype))
    return op.Where(stands_there, op.Div(_kept(op, node, gradient), count), 0.0)


@vjp("GlobalAveragePool")
def global_average_pool(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = mean of x over its n places: dx = g / n, repeated over them."""
    x = operand(node, 0)
    return _mean_gradient(op, x, list(range(2 - rank(x), 0)), gradient)


def _mean_gradient(op: Op, x: ir.Value, axes: list[int], gradient: ir.Value) -> ir.Value:
    """Return a mean's gradient, whose reduced axes are kept, over their number of elements and repeated."""
    sizes = [static_dims(x)[axis] if axis in axes else 1 for axis in range(min(axes, default=0), 0)]
    known = [size for size in sizes if size is not None]
    if not axes or len(known) < len(sizes):
        return repeated(op, op.Div(gradient, element_count(op, x, axes)), x)
    # Divided by so many equal numbers, folded at load, it is repeated too: a third of what Expand takes.
    count = ir.tensor(np.array([math.prod(known)], x.dtype.numpy() if x.dtype else np.float32))
    return op.Div(gradient, op.ConstantOfShape(known, value=count))


def _axes(op: Op, node: ir.Node) -> list[int] | ir.Value:
    """Return the reduced axes, all below 0: a value where they are only known at run time."""
    x = operand(node, 0)
    named = node.inputs[1] if len(node.inputs) > 1 else None
    if named is not None and static_dims(named) != [0]:
        axes = constant_ints(named)
        if axes is None:
            return op.Where(op.Less(named, 0), named, op.Sub(named, rank(x)))
        if axes:
            return sorted(axis % rank(x) - rank(x) for axis in axes)
    return [] if _kept_axes(node)["noop_with_empty_axes"] else list(range(-rank(x), 0))


def _kept_axes(node: ir.Node) -> dict[str, int]:
    """Return the attributes of a reduction over the node's axes that keeps them."""
    return {"keepdims": 1, "noop_with_empty_axes": node.attributes.get_int("noop_with_empty_axes", 0)}


def _over(op: Op, node: ir.Node) -> list[list[int] | ir.Value]:
    """Return the axes as the further inputs of a reduction: none where nothing is reduced."""
    axes = _axes(op, node)
    return [] if axes == [] else [axes]


def _sum(op: Op, node: ir.Node, value: ir.Value) -> ir.Value:
    """Return the sum of a value of the forward pass over the node's axes, which are kept."""
    return op.ReduceSum(value, *_over(op, node), **_kept_axes(node))


def element_count(op: Op, x: ir.Value, axes: list[int]) -> float | ir.Value:
    """Return how many elements are reduced to one: a constant where the sizes are known."""
    sizes = [static_dims(x)[axis] for axis in axes]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return float(math.prod(known))
    return op.Cast(op.ReduceProd(op.Gather(op.Shape(x), axes), keepdims=0), to=x.dtype)


def _kept(op: Op, node: ir.Node, value: ir.Value) -> ir.Value:
    """Return a reduction's output or its gradient with the reduced axes in it, each of size 1."""
    axes = _axes(op, node)
    if node.attributes.get_int("keepdims", 1) or axes == []:
        return value
    return op.Unsqueeze(value, axes)


def _repeat(op: Op, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Return a gradient repeated along the reduced axes, of which it has one element each."""
    return repeated(op, gradient, operand(node, 0))
