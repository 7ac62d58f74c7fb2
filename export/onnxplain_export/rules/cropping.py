"""Slice and Pad, each of which undoes the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant_ints, operand, rank, static_dim, static_dims
from onnxplain_export.rules.placing import numbers_to, pad_axes, put_back
from onnxplain_export.rules.registry import Op, constant_like, vjp
from onnxplain_export.rules.shapes import for_classes, reshape_like, zeros_like

_TO_THE_END = 2**63 - 1


@vjp("Slice")
def slice_(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = a part of x: dx = g there, zeros around it; with steps, zeros between too."""
    x, starts, ends = (operand(node, index) for index in range(3))
    named, stepped = (_optional(node, index) for index in (3, 4))
    (count,) = static_dims(starts)
    axes = list(range(count or 0)) if named is None else constant_ints(named)
    steps = [1] * (count or 0) if stepped is None else constant_ints(stepped)
    if count is None or axes is None or steps is None:
        return _by_places(op, gradient, x, op.Slice(_numbers(op, x), *node.inputs[1:]))
    for index, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        axis %= rank(x)
        size, first, last = static_dim(x, axis), constant_ints(starts), constant_ints(ends)
        if size is not None and first is not None and last is not None:
            places = np.arange(size)[slice(first[index], last[index], step)]
            gradient = put_back(op, gradient, x, axis, places)
        elif step == 1:
            gradient = _between_zeros(op, gradient, node, axis, index)
        else:
            length = op.Squeeze(op.Shape(x, start=axis, end=axis + 1), [0])
            bounds = (_bound(op, values, index) for values in (starts, ends))
            numbers = op.Slice(numbers_to(op, length), *bounds, [0], [step])
            gradient = put_back(op, gradient, x, axis, numbers)
    return gradient


@vjp("Pad", sparse=True)
def pad(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value | None:
    """Y = x with more around it: dx = g cut back, plus g of the copies of x where those came from."""
    x, pads, named = operand(node, 0), operand(node, 1), _optional(node, 3)
    mode = node.attributes.get_string("mode", "constant")
    if mode == "constant":
        inside = _cut_back(op, gradient, x, pads, named)
        if wrt == 0:
            return inside
        # The rest is copies of the value.
        axes = list(range(1, rank(x) + 1))
        sums = (op.ReduceSum(part, axes, keepdims=0) for part in (gradient, inside))
        return reshape_like(op, op.Sub(*sums), operand(node, wrt))
    if wrt != 0:
        return None
    known, axes_known = constant_ints(pads), _padded_axes(x, named)
    sizes = None if axes_known is None else [static_dim(x, axis) for axis in axes_known]
    if known is None or axes_known is None or sizes is None or None in sizes:
        copied_from = op.Pad(_numbers(op, x), pads, None, named, mode=mode)
        return _by_places(op, gradient, x, copied_from)
    for index, axis in enumerate(axes_known):
        before, after = known[index], known[index + len(axes_known)]
        if before or after:
            gradient = _fold_back(op, gradient, x, axis, (before, after), mode)
    return gradient


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _padded_axes(x: ir.Value, named: ir.Value | None) -> list[int] | None:
    """Return the axes that a Pad's widths are for, counted from 0; None where they aren't known."""
    if named is None:
        return list(range(rank(x)))
    axes = constant_ints(named)
    return None if axes is None else [axis % rank(x) for axis in axes]


def _bound(op: Op, bounds: ir.Value, index: int) -> ir.Value:
    """Return one of a Slice's starts or ends, int64 [1]; they may be int32."""
    bound = op.Slice(bounds, [index], [index + 1], [0])
    return bound if bounds.dtype == ir.DataType.INT64 else op.Cast(bound, to=ir.DataType.INT64)


def _between_zeros(op: Op, gradient: ir.Value, node: ir.Node, axis: int, index: int) -> ir.Value:
    """Put zeros around a part of an axis whose bounds or size are only known at run time."""
    sizes = [op.Shape(value, start=axis, end=axis + 1) for value in (operand(node, 0), node.outputs[0])]
    first = _bound(op, operand(node, 1), index)
    first = op.Where(op.Less(first, 0), op.Add(first, sizes[0]), first)
    first = op.Min(op.Max(first, op.Constant(value_ints=[0])), sizes[0])
    behind = op.Sub(op.Sub(sizes[0], sizes[1]), first)
    return pad_axes(op, gradient, operand(node, 0), op.Concat(first, behind, axis=0), [axis])


def _cut_back(op: Op, gradient: ir.Value, x: ir.Value, pads: ir.Value, named: ir.Value | None) -> ir.Value:
    """Return the part of a padded x that is x, with zeros where a negative width had cut it."""
    known, axes = constant_ints(pads), _padded_axes(x, named)
    if axes is None:
        assert named is not None
        named = op.Cast(named, to=ir.DataType.INT64)
        counted = op.Where(op.Less(named, 0), op.Add(named, rank(x)), named)
        return pad_axes(op, gradient, x, op.Neg(pads), counted)
    if known is None:
        return pad_axes(op, gradient, x, op.Neg(pads), axes)
    widths = list(zip(axes, known[: len(axes)], known[len(axes) :], strict=True))
    added = [width for width in widths if max(width[1:]) > 0]
    if added:
        starts = [max(before, 0) for _, before, _ in added]
        ends = [-after if after > 0 else _TO_THE_END for _, _, after in added]
        gradient = op.Slice(gradient, starts, ends, [axis + 1 for axis, _, _ in added])
    cut = [width for width in widths if min(width[1:]) < 0]
    if cut:
        zeros = [max(-width[side], 0) for side in (1, 2) for width in cut]
        gradient = pad_axes(op, gradient, x, zeros, [axis for axis, _, _ in cut])
    return gradient


def _fold_back(
    op: Op, gradient: ir.Value, x: ir.Value, axis: int, widths: tuple[int, int], mode: str
) -> ir.Value:
    """Multiply an axis by the matrix that says which place of x each place of y was copied from."""
    size = static_dim(x, axis)
    assert size is not None
    before, after = widths
    numpy_mode: Any = mode  # of the same names
    places = np.pad(np.arange(size), (max(before, 0), max(after, 0)), mode=numpy_mode)
    places = places[max(-before, 0) : len(places) - max(-after, 0)]
    matrix = places[:, None] == np.arange(size)
    last = rank(x)
    if axis + 1 == last:
        return op.MatMul(gradient, constant_like(op, matrix, x))
    left = for_classes(op, constant_like(op, matrix.T, x), gradient, 1 + last)
    if axis + 2 == last:
        return op.MatMul(left, gradient)
    swapped = list(range(last + 1))
    swapped[axis + 1], swapped[last - 1] = last - 1, axis + 1
    return op.Transpose(op.MatMul(left, op.Transpose(gradient, perm=swapped)), perm=swapped)


def _numbers(op: Op, x: ir.Value) -> ir.Value:
    """Return the places of the elements of x, counted through, in the shape of x."""
    return op.Reshape(numbers_to(op, op.Size(x)), op.Shape(x))


def _by_places(op: Op, gradient: ir.Value, x: ir.Value, copied_from: ir.Value) -> ir.Value:
    """Return dx where y is copied from the numbered places of x: the form that needs to know nothing."""
    flat = op.Flatten(gradient, axis=1)
    places = op.Expand(op.Reshape(copied_from, [1, -1]), op.Shape(flat))
    zeros = op.Flatten(zeros_like(op, gradient, x), axis=1)
    return reshape_like(op, op.ScatterElements(zeros, places, flat, axis=1, reduction="add"), x)
