"""Operators that pick elements by index; their gradients are scattered back to where they came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxplain_export.graph import constant, constant_ints, operand, rank, static_dims
from onnxplain_export.rules.placing import numbers_to, put_back
from onnxplain_export.rules.registry import Op, vjp
from onnxplain_export.rules.shapes import reshape_like, zeros_like

_SEQUENCE_AXES = ("batch_axis", "time_axis")


@vjp("Gather")
def gather(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x at the indices along an axis: dx = the sum of g over the places that an element was copied to."""
    x, indices = operand(node, 0), operand(node, 1)
    axis = _axis(node, 0)
    if rank(indices) == 0:
        gradient = op.Unsqueeze(gradient, [axis + 1])
    elif rank(indices) > 1:
        before, after = op.Shape(gradient, start=0, end=axis + 1), op.Shape(x, start=axis + 1, end=rank(x))
        gradient = op.Reshape(
            gradient, op.Concat(before, op.Reshape(op.Size(indices), [1]), after, axis=0), allowzero=1
        )
    known = constant_ints(indices)
    if known is not None:
        return put_back(op, gradient, x, axis, np.array(known))
    # They may be int32, and sizes are int64.
    places = op.Cast(op.Reshape(indices, [-1]), to=ir.DataType.INT64)
    # A negative index counts from the end.
    size = op.Shape(x, start=axis, end=axis + 1)
    places = op.Where(op.Less(places, 0), op.Add(places, size), places)
    return put_back(op, gradient, x, axis, places)


@vjp("Compress")
def compress(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x where a condition holds along an axis: dx = g there, zeros elsewhere."""
    x, condition = operand(node, 0), operand(node, 1)
    known = constant(condition)
    if known is not None:
        places: ir.Value | npt.NDArray[Any] = np.flatnonzero(known)
    else:
        places = op.Squeeze(op.NonZero(condition), [0])
    if "axis" in node.attributes:
        return put_back(op, gradient, x, _axis(node, 0), places)
    # Without an axis, x is taken as a vector.
    flat = op.Reshape(x, [-1])
    flat.type = x.type
    dims = [dim for dim in static_dims(x) if dim is not None]
    flat.shape = ir.Shape([math.prod(dims) if len(dims) == rank(x) else None])
    return reshape_like(op, put_back(op, gradient, flat, 0, places), x)


@vjp("ReverseSequence")
def reverse_sequence(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x with the start of each sequence reversed: dx = g, reversed alike."""
    axes = rank(operand(node, 0))
    # The axes of batch and time must be the first two: the classes step back.
    moved = classes_last(op, gradient, axes)
    attributes = {name: node.attributes.get_int(name, 1 - index) for index, name in enumerate(_SEQUENCE_AXES)}
    return classes_first(op, op.ReverseSequence(moved, operand(node, 1), **attributes), axes)


def for_each_class(op: Op, indices: ir.Value, gradient: ir.Value) -> ir.Value:
    """Repeat indices for each class, as the operators that work element by element need them."""
    return op.Expand(indices, op.Concat(op.Shape(gradient, start=0, end=1), op.Shape(indices), axis=0))


def _axis(node: ir.Node, default: int) -> int:
    return node.attributes.get_int("axis", default) % rank(operand(node, 0))


@vjp("GatherElements")
def gather_elements(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x at an index for each element of y: dx = the sum of g over the copies of an element."""
    x = operand(node, 0)
    places = for_each_class(op, operand(node, 1), gradient)
    zeros = zeros_like(op, gradient, x)
    return op.ScatterElements(zeros, places, gradient, axis=_axis(node, 0) + 1, reduction="add")


@vjp("TopK", many_outputs=True)
def top_k(op: Op, node: ir.Node, wrt: int, gradients: Sequence[ir.Value | None]) -> ir.Value:
    """Y = the largest elements along an axis: dx = g where they stood."""
    gradient = gradients[0]
    assert gradient is not None
    places = for_each_class(op, node.outputs[1], gradient)
    zeros = zeros_like(op, gradient, operand(node, 0))
    return op.ScatterElements(zeros, places, gradient, axis=_axis(node, -1) + 1)


@vjp("GatherND")
def gather_nd(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = slices of x at rows of indices: dx = the sum of g over the copies of a slice."""
    x = operand(node, 0)
    rows = _whole_rows(op, node)
    zeros = zeros_like(op, gradient, x)
    # An index counts from the first axis on, so the classes step back.
    return classes_first(
        op,
        op.ScatterND(
            classes_last(op, zeros, rank(x)),
            rows,
            classes_last(op, gradient, rank(node.outputs[0])),
            reduction="add",
        ),
        rank(x),
    )


def _whole_rows(op: Op, node: ir.Node) -> ir.Value:
    """Return a GatherND's indices with the coordinates along its batch axes written out."""
    indices = operand(node, 1)
    batch_axes = node.attributes.get_int("batch_dims", 0)
    if batch_axes == 0:
        return indices
    axes = rank(indices)
    places = op.Concat(op.Shape(indices, end=axes - 1), [1], axis=0)
    columns = []
    for axis in range(batch_axes):
        size = op.Squeeze(op.Shape(indices, start=axis, end=axis + 1), [0])
        numbers = numbers_to(op, size)
        columns.append(op.Expand(op.Reshape(numbers, [-1] + [1] * (axes - 1 - axis)), places))
    return op.Concat(*columns, indices, axis=-1)


def classes_last(op: Op, gradient: ir.Value, axes: int) -> ir.Value:
    """Move the classes behind the axes of a gradient, so that indices count from the first of these."""
    return op.Transpose(gradient, perm=[*range(1, axes + 1), 0])


def classes_first(op: Op, value: ir.Value, axes: int) -> ir.Value:
    """Move the classes back to where a gradient has them."""
    return op.Transpose(value, perm=[axes, *range(axes)])
