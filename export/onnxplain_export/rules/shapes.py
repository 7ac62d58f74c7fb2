"""Operators that move elements or take them as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant, constant_ints, operand, rank, static_dim, static_dims
from onnxplain_export.rules.registry import (
    Op,
    Selection,
    UnsupportedCaseError,
    constant_like,
    selection_vjp,
    vjp,
)


def reshape_like(op: Op, gradient: ir.Value, primal: ir.Value) -> ir.Value:
    """Return a gradient in the shape ``[classes, *primal.shape]``.

    The classes are the dimension that Reshape infers: it then stays right when there are none of them.
    """
    return op.Reshape(gradient, op.Concat([-1], op.Shape(primal), axis=0))


@vjp("Identity")
def identity(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x: dx = g."""
    return gradient


@vjp("Dropout")
def dropout(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x in evaluation mode: dx = g."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and constant(training) != np.array(False):
        raise UnsupportedCaseError("a Dropout in training mode")
    return gradient


@selection_vjp("Identity", "Add")
def same_selection(op: Op, node: ir.Node, wrt: int, selection: Selection) -> Selection | None:
    """Logits = x, or x + bias: the same logits are selected in x."""
    value = operand(node, wrt)
    return selection if static_dims(value) == static_dims(node.outputs[0]) else None


@vjp("Cast")
def cast(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x in another floating-point type: dx = g in x's own."""
    return op.Cast(gradient, to=operand(node, 0).dtype)


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y has the elements of x in x's order: dx = g in the shape of x."""
    return reshape_like(op, gradient, operand(node, 0))


@vjp("Transpose")
def transpose(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x with its axes permuted: dx = g with the inverse permutation."""
    axes = rank(operand(node, 0))
    permutation = node.attributes.get_ints("perm", list(reversed(range(axes))))
    inverse = [permutation.index(axis) for axis in range(axes)]
    return op.Transpose(gradient, perm=[0, *(axis + 1 for axis in inverse)])


@vjp("Expand", broadcasts=True)
def expand(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x repeated along axes: dx = g, summed over them by the driver."""
    return gradient


@vjp("Concat")
def concat(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x_0, x_1, ... one after another: dx_i = the part of g that stands where x_i stood."""
    axis = node.attributes["axis"].as_int() % rank(node.outputs[0])
    start = _length(op, node.inputs[:wrt], axis)
    end = _length(op, node.inputs[: wrt + 1], axis)
    return op.Slice(gradient, start, end, [axis + 1])


@vjp("Split", many_outputs=True)
def split(op: Op, node: ir.Node, wrt: int, gradients: Sequence[ir.Value | None]) -> ir.Value:
    """y_0, y_1, ... = parts of x: dx = g_0, g_1, ... one after another, zeros for an unused part."""
    axis = node.attributes.get_int("axis", 0) % rank(operand(node, 0))
    known = next(gradient for gradient in gradients if gradient is not None)
    parts = [
        zeros_like(op, known, output) if gradient is None else gradient
        for gradient, output in zip(gradients, node.outputs, strict=True)
    ]
    return op.Concat(*parts, axis=axis + 1)


def _length(op: Op, values: Sequence[ir.Value | None], axis: int) -> ir.Value | list[int]:
    """Return the sum of the values' sizes along an axis, int64 [1]: a constant where they are known."""
    total: ir.Value | list[int] = [0]
    for value in values:
        assert value is not None
        size = static_dim(value, axis)
        if size is not None and isinstance(total, list):
            total = [total[0] + size]
        else:
            total = op.Add(total, op.Shape(value, start=axis, end=axis + 1))
    return total


def zeros_like(op: Op, gradient: ir.Value, primal: ir.Value) -> ir.Value:
    """Return zeros of the shape ``[classes, *primal.shape]``, with the classes of another gradient."""
    shape = op.Concat(op.Shape(gradient, start=0, end=1), op.Shape(primal), axis=0)
    return op.Expand(constant_like(op, 0.0, primal), shape)


@vjp("Slice")
def slice_(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = a part of x: dx = g there, zeros around it; with steps, zeros between too."""
    x, y = operand(node, 0), node.outputs[0]
    starts = operand(node, 1)
    count = _count_of(starts)
    named = node.inputs[3] if len(node.inputs) > 3 else None
    axes = list(range(count)) if named is None else constant_ints(named)
    stepped = node.inputs[4] if len(node.inputs) > 4 else None
    steps = [1] * count if stepped is None else constant_ints(stepped)
    if axes is None or steps is None:
        raise UnsupportedCaseError("a Slice whose axes or steps are only known at run time")
    for place, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        axis %= rank(x)
        start = _start(op, x, axis, starts, place, step)
        if step == 1:
            gradient = _between_zeros(op, gradient, x, y, axis, start)
        else:
            gradient = _spread(op, gradient, x, y, axis, start, step)
    return gradient


def _count_of(vector: ir.Value) -> int:
    (count,) = static_dims(vector)
    if count is None:
        raise UnsupportedCaseError("a Slice of axes that are only known at run time")
    return count


def _start(op: Op, x: ir.Value, axis: int, starts: ir.Value, place: int, step: int) -> list[int] | ir.Value:
    """Return where a slice begins along an axis, int64 [1], counted from 0 and kept within the axis."""
    known, size = constant_ints(starts), static_dim(x, axis)
    if known is not None and size is not None:
        place_from_0 = known[place] + (size if known[place] < 0 else 0)
        return [min(max(place_from_0, 0), size - (step < 0))]
    length = op.Shape(x, start=axis, end=axis + 1)
    first = op.Slice(starts, [place], [place + 1], [0])
    first = op.Where(op.Less(first, 0), op.Add(first, length), first)
    last = op.Sub(length, 1) if step < 0 else length
    return op.Min(op.Max(first, op.Constant(value_ints=[0])), last)


def _between_zeros(
    op: Op, gradient: ir.Value, x: ir.Value, y: ir.Value, axis: int, start: list[int] | ir.Value
) -> ir.Value:
    size, length = static_dim(x, axis), static_dim(y, axis)
    if isinstance(start, list) and size is not None and length is not None:
        if size == length:
            return gradient
        return op.Pad(gradient, [start[0], size - start[0] - length], None, [axis + 1])
    sizes = [op.Shape(value, start=axis, end=axis + 1) for value in (x, y)]
    behind = op.Sub(op.Sub(sizes[0], sizes[1]), start)
    return op.Pad(gradient, op.Concat(start, behind, axis=0), None, [axis + 1])


def _spread(
    op: Op, gradient: ir.Value, x: ir.Value, y: ir.Value, axis: int, start: list[int] | ir.Value, step: int
) -> ir.Value:
    """Put the places of an axis where a slice with steps took them from, zeros between."""
    count = op.Squeeze(op.Shape(y, start=axis, end=axis + 1), [0])
    places = op.Add(op.Mul(op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1)), step), start)
    places = op.Expand(op.Reshape(places, [-1] + [1] * (rank(x) - axis - 1)), op.Shape(gradient))
    before, after = op.Shape(gradient, start=0, end=axis + 1), op.Shape(gradient, start=axis + 2)
    shape = op.Concat(before, op.Shape(x, start=axis, end=axis + 1), after, axis=0)
    zeros = op.Expand(constant_like(op, 0.0, x), shape)
    return op.ScatterElements(zeros, places, gradient, axis=axis + 1)


@vjp("Pad")
def pad(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x with more around it: dx = g cut back, plus g of the copies of x where those came from."""
    x, y = operand(node, 0), node.outputs[0]
    if wrt != 0:
        raise UnsupportedCaseError("a Pad whose value depends on the layer")
    axes = list(range(rank(x)))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        named = constant_ints(node.inputs[3])
        if named is None:
            raise UnsupportedCaseError("a Pad whose axes are only known at run time")
        axes = [axis % rank(x) for axis in named]
    mode = node.attributes.get_string("mode", "constant")
    pads = operand(node, 1)
    for place, axis in enumerate(axes):
        known = constant_ints(pads)
        if known is not None and known[place] == known[place + len(axes)] == 0:
            continue
        if mode == "constant":
            gradient = _cut_back(op, gradient, x, y, axis, place, pads)
        else:
            if known is None:
                raise UnsupportedCaseError(f"a Pad of mode {mode} whose widths are only known at run time")
            gradient = _folded_back(op, gradient, x, axis, mode, known[place], known[place + len(axes)])
    return gradient


def _cut_back(
    op: Op, gradient: ir.Value, x: ir.Value, y: ir.Value, axis: int, place: int, pads: ir.Value
) -> ir.Value:
    """Return the part of a padded axis that is x: a Pad of the opposite widths, which may be negative."""
    known = constant_ints(pads)
    if known is not None:
        count = len(known) // 2
        return op.Pad(gradient, [-known[place], -known[place + count]], None, [axis + 1])
    first = op.Slice(pads, [place], [place + 1], [0])
    sizes = [op.Shape(value, start=axis, end=axis + 1) for value in (x, y)]
    behind = op.Sub(op.Sub(sizes[1], sizes[0]), first)
    return op.Pad(gradient, op.Neg(op.Concat(first, behind, axis=0)), None, [axis + 1])


def _folded_back(
    op: Op, gradient: ir.Value, x: ir.Value, axis: int, mode: str, before: int, after: int
) -> ir.Value:
    """Multiply an axis by the matrix that says which place of x each place of y was copied from."""
    size = static_dim(x, axis)
    if size is None:
        raise UnsupportedCaseError(f"a Pad of mode {mode} along an axis that is only known at run time")
    numpy_mode: Any = mode  # of the same names
    padded = np.pad(np.arange(size), (max(before, 0), max(after, 0)), mode=numpy_mode)
    padded = padded[max(-before, 0) : len(padded) - max(-after, 0)]
    copied_from = constant_like(op, padded[:, None] == np.arange(size), x)
    last = rank(x)
    return along_axis(op, gradient, axis + 1, last, lambda moved: op.MatMul(moved, copied_from))


def along_axis(
    op: Op, gradient: ir.Value, axis: int, last: int, apply: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    """Apply an operation on the last axis to another axis."""
    if axis == last:
        return apply(gradient)
    permutation = list(range(last + 1))
    permutation[axis], permutation[last] = last, axis
    return op.Transpose(apply(op.Transpose(gradient, perm=permutation)), perm=permutation)


@vjp("Tile")
def tile(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x repeated along its axes: dx = g, summed over the repetitions."""
    x, repeats = operand(node, 0), operand(node, 1)
    axes = rank(x)
    # Each axis of y is one of repetitions and one of x.
    pairs = op.Concat(op.Reshape(repeats, [-1, 1]), op.Reshape(op.Shape(x), [-1, 1]), axis=1)
    shape = op.Concat(op.Shape(gradient, start=0, end=1), op.Reshape(pairs, [-1]), axis=0)
    split = op.Reshape(gradient, shape, allowzero=1)
    return op.ReduceSum(split, [1 + 2 * axis for axis in range(axes)], keepdims=0)


@vjp("DepthToSpace")
def depth_to_space(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = channels moved into blocks of places: dx = g, its blocks moved back into channels."""
    x, size = operand(node, 0), node.attributes["blocksize"].as_int()
    folded = op.Reshape(gradient, op.Concat([-1], op.Shape(node.outputs[0], start=1), axis=0))
    moved = op.SpaceToDepth(folded, blocksize=size)
    if node.attributes.get_string("mode", "DCR") == "CRD":
        # SpaceToDepth puts the place in the block before the channel, CRD has it behind.
        spatial = op.Shape(x, start=2)
        blocks = op.Reshape(moved, op.Concat([-1, size * size], _channels(op, x, size), spatial, axis=0))
        moved = op.Transpose(blocks, perm=[0, 2, 1, 3, 4])
    return reshape_like(op, moved, x)


def _channels(op: Op, x: ir.Value, size: int) -> list[int] | ir.Value:
    channels = static_dim(x, 1)
    if channels is not None:
        return [channels // (size * size)]
    return op.Div(op.Shape(x, start=1, end=2), size * size)


@vjp("SpaceToDepth")
def space_to_depth(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = blocks of places moved into channels: dx = g, moved back."""
    size = node.attributes["blocksize"].as_int()
    folded = op.Reshape(gradient, op.Concat([-1], op.Shape(node.outputs[0], start=1), axis=0))
    return reshape_like(op, op.DepthToSpace(folded, blocksize=size), operand(node, 0))


@vjp("Trilu")
def trilu(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = a triangle of x, zeros elsewhere: dx = the same triangle of g."""
    return op.Trilu(gradient, *node.inputs[1:], upper=node.attributes.get_int("upper", 1))


@vjp("CumSum")
def cumulative_sum(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y_i = the sum of x up to i: dx_i = the sum of g from i on."""
    x, axis = operand(node, 0), operand(node, 1)
    from_the_end = op.Where(op.Less(axis, 0), axis, op.Sub(axis, rank(x)))
    reverse = 1 - node.attributes.get_int("reverse", 0)
    return op.CumSum(
        gradient, from_the_end, exclusive=node.attributes.get_int("exclusive", 0), reverse=reverse
    )
