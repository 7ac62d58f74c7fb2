"""Logits that are averages of class maps, as in Network in Network: each depends on its own map alone.

From the logits back to the convolution that makes the maps, the gradient has one channel. That convolution's
data gradient is then the class's weights times it, where the general rule would convolve as many channels of
zeros as there are other classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from onnxplain_export.graph import constant, constant_ints, ints, operand, rank, static_dims
from onnxplain_export.rules.reductions import element_count
from onnxplain_export.rules.registry import Op, Selection, constant_like, selection_vjp


@selection_vjp("Reshape", "Flatten", "Squeeze")
def single_places(op: Op, node: ir.Node, wrt: int, selection: Selection) -> Selection | None:
    """Logits [batch, classes] of maps [batch, classes, 1, ...]: the same are selected."""
    x, logits = operand(node, 0), node.outputs[0]
    _, *channels = static_dims(x) or [None]
    flat = rank(logits) == 2 and channels[:1] == static_dims(logits)[1:] and _all_one(channels[1:])
    return replace(selection, logits=x) if flat and channels[:1] != [None] else None


@selection_vjp("ReduceMean", "GlobalAveragePool")
def averaged(op: Op, node: ir.Node, wrt: int, selection: Selection) -> Selection | None:
    """Logits = the mean of each map over its n places: 1 / n at each of the selected one's."""
    x, spatial = operand(node, 0), list(range(2 - rank(operand(node, 0)), 0))
    if selection.channel is not None or not spatial or not _is_spatial(node, spatial):
        return None
    share = op.Div(constant_like(op, 1.0, x), element_count(op, x, spatial))
    return replace(selection, logits=x, channel=op.Expand(share, op.Shape(x, start=2)))


@selection_vjp("Relu")
def rectified(op: Op, node: ir.Node, wrt: int, selection: Selection) -> Selection | None:
    """Y = max(x, 0) of maps: g where the selected class's y > 0.

    As g is a mean's, it isn't negative: guided backpropagation's rule says the same.
    """
    if selection.channel is None:
        return None
    y = node.outputs[0]
    is_positive = op.Cast(_selected(op, y, selection.classes), to=ir.DataType.BOOL)
    kept = op.Mul(selection.channel, op.Cast(is_positive, to=y.dtype))
    return replace(selection, logits=operand(node, 0), channel=kept)


@selection_vjp("Conv")
def class_weights(op: Op, node: ir.Node, wrt: int, selection: Selection) -> ir.Value | None:
    """Y = 1x1 convolution of x: dx = g times the class's weights, at each place."""
    if wrt != 0 or selection.channel is None or not _is_pointwise(node):
        return None
    return op.Mul(op.Gather(operand(node, 1), selection.classes, axis=0), selection.channel)


def _selected(op: Op, maps: ir.Value, classes: ir.Value) -> ir.Value:
    """Return the selected maps of [batch, num_classes, ...]: [classes, batch, 1, ...]."""
    batch, count = (op.Squeeze(op.Shape(maps, start=axis, end=axis + 1), [0]) for axis in (0, 1))
    places = op.Shape(maps, start=2)
    rows = op.Reshape(maps, op.Concat([-1, 1], places, axis=0))
    first = op.Mul(op.Range(0, batch, 1), count)
    return op.Gather(rows, op.Add(classes, first), axis=0)


def _is_spatial(node: ir.Node, spatial: list[int]) -> bool:
    """Say whether a mean is one over each map's places, and over nothing else."""
    if node.op_type == "GlobalAveragePool":
        return True
    axes = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    count = len(spatial) + 2
    return axes is not None and sorted(axis % count - count for axis in axes) == spatial


def _is_pointwise(node: ir.Node) -> bool:
    """Say whether a convolution with constant weights looks at one place for each of its own."""
    weights = operand(node, 1)
    producer = weights.producer()
    is_constant = constant(weights) is not None and (producer is None or producer.op_type == "Constant")
    return (
        is_constant
        and _all_one(static_dims(weights)[2:])
        and _all_one(ints(node, "strides", []))
        and not any(ints(node, "pads", []))
        and node.attributes.get_int("group", 1) == 1
    )


def _all_one(lengths: Iterable[int | None]) -> bool:
    return all(length == 1 for length in lengths)
