"""Operators that pick elements by index; their gradients are scattered back to where they came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxplain_export.graph import constant, constant_ints, operand, rank, static_dim, static_dims
from onnxplain_export.rules.placing import numbers_to, put_back
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, vjp
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
    flat = _as(op.Reshape(x, [-1]), x, [static_dims(x)])
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
    """Y = slices of x at rows of indices: dx = the sum of g over the copies of a slice.

    The axes that are indexed are made one. ScatterND would take the rows as they are, but onnxruntime's adds
    up the copies of a slice in several threads at once, and loses some.
    """
    x = operand(node, 0)
    depth = static_dim(operand(node, 1), -1)
    if depth is None:
        raise UnsupportedCaseError("a GatherND with rows of a length that is only known at run time")
    depth += node.attributes.get_int("batch_dims", 0)
    slices = _as(op.Flatten(x, axis=depth), x, [static_dims(x)[:depth], static_dims(x)[depth:]])
    places = _places_of_rows(op, node, depth)
    count = [len(places)] if isinstance(places, np.ndarray) else op.Shape(places)
    shape = op.Concat(op.Shape(gradient, start=0, end=1), count, op.Shape(slices, start=1), axis=0)
    copied = op.Reshape(gradient, shape, allowzero=1)
    return reshape_like(op, put_back(op, copied, slices, 0, places), x)


def _as(merged: ir.Value, x: ir.Value, axes: Sequence[Sequence[int | None]]) -> ir.Value:
    """Note the type and shape of x with some axes made one each."""
    known = [[size for size in sizes if size is not None] for sizes in axes]
    merged.type = x.type
    merged.shape = ir.Shape(
        [math.prod(own) if len(own) == len(sizes) else None for own, sizes in zip(known, axes, strict=True)]
    )
    return merged


def _places_of_rows(op: Op, node: ir.Node, depth: int) -> ir.Value | npt.NDArray[Any]:
    """Return a GatherND's places along its first axes taken as one, a vector."""
    x, indices = operand(node, 0), constant(node.inputs[1])
    sizes = [size for size in static_dims(x)[:depth] if size is not None]
    if indices is not None and indices.shape[-1] == depth == len(sizes):
        columns = np.moveaxis(indices.reshape(-1, depth).astype(np.int64), -1, 0)
        places = np.zeros(columns.shape[1], np.int64)
        for column, size in zip(columns, sizes, strict=True):
            places = places * size + column % size
        return places
    rows, lengths = _whole_rows(op, node), op.Shape(x, end=depth)
    # A negative index counts from the end.
    rows = op.Where(op.Less(rows, 0), op.Add(rows, lengths), rows)
    place = op.Gather(rows, 0, axis=-1)
    for axis in range(1, depth):
        length = op.Shape(x, start=axis, end=axis + 1)
        place = op.Add(op.Mul(place, length), op.Gather(rows, axis, axis=-1))
    return op.Reshape(place, [-1])


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
