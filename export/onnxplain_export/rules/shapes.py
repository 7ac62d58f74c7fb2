"""Operators that move elements or take them as they are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant, operand, rank, static_dim, static_dims
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
    return op.Reshape(gradient, op.Concat([-1], *_shape(op, primal), axis=0))


def _shape(op: Op, value: ir.Value) -> list[list[int | None] | ir.Value]:
    """Return a value's shape in parts, known lengths as constants."""
    dims = static_dims(value)
    parts: list[list[int | None] | ir.Value] = []
    start = 0
    source = _input_of_same_batch(value)
    if source is not None:
        parts.append(op.Shape(source, start=0, end=1))
        start = 1
    for is_known, group in itertools.groupby(dims[start:], lambda size: size is not None):
        run = list(group)
        parts.append(run if is_known else op.Shape(value, start=start, end=start + len(run)))
        start += len(run)
    return parts


def _input_of_same_batch(value: ir.Value) -> ir.Value | None:
    """Return the graph's input whose first axis has the name of a value's: one batch for all of them."""
    batch = value.shape and value.shape[0]
    if value.graph is None or not isinstance(batch, ir.SymbolicDim) or batch.value is None:
        return None
    return next((given for given in value.graph.inputs if given.shape and given.shape[0] == batch), None)


def for_classes(op: Op, primal: ir.Value, gradient: ir.Value, axes: int) -> ir.Value:
    """Return a primal that a gradient is multiplied with: one for all classes, none where there are none.

    It gets the gradient's number of axes. onnxruntime before 1.32 doesn't multiply one matrix by a stack of
    none, and a plain prediction would fail.
    """
    stacked = op.Unsqueeze(primal, list(range(axes - rank(primal))))
    return op.Slice(stacked, [0], op.Min(op.Shape(gradient, end=1), [1]), [0])


def fold_classes(op: Op, gradient: ir.Value, output: ir.Value) -> ir.Value:
    """Fold a gradient's classes into its batch, for operators that take one batch axis."""
    dims = static_dims(output)[1:]
    if None in dims:
        return op.Reshape(gradient, op.Concat([-1], op.Shape(output, start=1), axis=0))
    return op.Reshape(gradient, [-1, *dims])


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
    same = rank(value) == 2 and static_dims(value) == static_dims(node.outputs[0])
    return replace(selection, logits=value) if same else None


@vjp("Cast", "CastLike")
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
    shape = _with_classes(op, gradient, primal)
    return op.Expand(constant_like(op, 0.0, primal), shape)


def repeated(op: Op, gradient: ir.Value, primal: ir.Value) -> ir.Value:
    """Return a gradient repeated along axes of length 1 to the shape ``[classes, *primal.shape]``.

    With the primal's shape alone OpenVINO fails where there are no classes.
    """
    return op.Expand(gradient, _with_classes(op, gradient, primal))


def _with_classes(op: Op, gradient: ir.Value, primal: ir.Value) -> ir.Value:
    return op.Concat(op.Shape(gradient, start=0, end=1), op.Shape(primal), axis=0)


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
    folded = fold_classes(op, gradient, node.outputs[0])
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
    folded = fold_classes(op, gradient, node.outputs[0])
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
