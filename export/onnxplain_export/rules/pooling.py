"""Pooling: the gradient of a maximum goes to where it stood, that of a mean to the whole window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxplain_export.graph import operand
from onnxplain_export.rules.convolution import transposed_conv
from onnxplain_export.rules.infinite import kept_where
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, constant_like, vjp
from onnxplain_export.rules.shapes import reshape_like, zeros_like
from onnxplain_export.rules.windows import Window, known_spatial_size, rounds_up, spatial_size


@vjp("MaxPool")
def max_pool(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = the maximum of each window: dx = the sum of g over the windows whose maximum stood there."""
    x = operand(node, 0)
    if len(node.outputs) > 1 and node.outputs[1].name and not node.attributes.get_int("storage_order", 0):
        indices = node.outputs[1]
    else:
        # The forward node stays as it is: asked for its indices, it would run slower in every prediction. The
        # order in which it would number the places is of no matter to the maxima.
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        attributes.pop("storage_order", None)
        _, indices = cast("Sequence[ir.Value]", op.MaxPool(x, _outputs=2, **attributes))
    flat = op.Flatten(gradient, axis=1)
    places = op.Expand(op.Reshape(indices, [1, -1]), op.Shape(flat))
    zeros = op.Flatten(zeros_like(op, gradient, x), axis=1)
    return reshape_like(op, op.ScatterElements(zeros, places, flat, axis=1, reduction="add"), x)


@vjp("GlobalMaxPool")
def global_max_pool(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = the maximum over all places: dx = g where it stood first, as in PyTorch's adaptive_max_pool."""
    x = operand(node, 0)
    flat = op.Flatten(x, axis=2)
    depth = op.Squeeze(op.Shape(flat, start=1), [0])
    stands_there = op.Equal(op.ArgMax(flat, axis=1, keepdims=1), op.Range(0, depth, 1))
    return kept_where(op, op.Reshape(stands_there, op.Shape(x)), gradient, node.outputs[0])


@vjp("MaxUnpool")
def max_unpool(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = zeros but for x at the indices, which count through all of y: dx = g gathered there."""
    flat = op.Flatten(gradient, axis=1)
    places = op.Reshape(operand(node, 1), [1, -1])
    classes = op.Shape(gradient, start=0, end=1)
    places = op.Expand(places, op.Concat(classes, [1], axis=0))
    return reshape_like(op, op.GatherElements(flat, places, axis=1), operand(node, 0))


@vjp("AveragePool")
def average_pool(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = the mean of each window of n places: dx = the sum of g / n over the windows around a place."""
    window = _window(node)
    if all(size == 1 for size in [*window.kernel, *window.strides]) and not any(window.pads):
        return gradient
    return _window_sum(op, node, op.Div(gradient, _counts(op, node, window)))


@vjp("LpPool")
def lp_pool(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = (sum of abs(x)^p over each window)^(1/p): dx = sign(x) abs(x)^(p-1) sum(g / y^(p-1))."""
    exponent = node.attributes.get_int("p", 2) - 1
    share = _norm_share(op, gradient, node.outputs[0], exponent)
    return op.Mul(_window_sum(op, node, share), _signed_power(op, operand(node, 0), exponent))


@vjp("GlobalLpPool")
def global_lp_pool(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = (sum of abs(x)^p)^(1/p): dx = g sign(x) abs(x)^(p-1) / y^(p-1)."""
    exponent = node.attributes.get_int("p", 2) - 1
    share = _norm_share(op, gradient, node.outputs[0], exponent)
    return op.Mul(share, _signed_power(op, operand(node, 0), exponent))


def _norm_share(op: Op, gradient: ir.Value, y: ir.Value, exponent: int) -> ir.Value:
    """Return g / y^exponent, 0 where y is."""
    if exponent == 0:
        return gradient
    power = y if exponent == 1 else op.Pow(y, float(exponent))
    return op.Where(op.Greater(y, 0.0), op.Div(gradient, power), 0.0)


def _signed_power(op: Op, x: ir.Value, exponent: int) -> ir.Value:
    """Return sign(x) abs(x)^exponent."""
    if exponent < 2:
        return x if exponent else op.Sign(x)
    return op.Mul(op.Sign(x), op.Pow(op.Abs(x), float(exponent)))


def _window(node: ir.Node) -> Window:
    """Return a pooling's window, where engines agree on it."""
    window = Window.of(node)
    # onnxruntime 1.32 leaves the dilations out of such padding, and crops where the strides leave gaps.
    if node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME") and any(
        dilation > 1 or stride > size + 1
        for size, stride, dilation in zip(window.kernel, window.strides, window.dilations, strict=True)
    ):
        raise UnsupportedCaseError(f"a {node.op_type} with auto_pad, and dilations or strides with gaps")
    return window


def _window_sum(op: Op, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Return for each place of a pooling's input the sum of a gradient over the windows around it."""
    x, window = operand(node, 0), _window(node)
    size = known_spatial_size(x)
    # One channel at a time: the window of ones is the same for all of them.
    if size is None:
        single = op.Reshape(gradient, op.Concat([-1, 1], op.Shape(node.outputs[0], start=2), axis=0))
    else:
        single = op.Reshape(gradient, [-1, 1, *window.counts(size, rounds_up=rounds_up(node))])
    ones = constant_like(op, np.ones([1, 1, *window.kernel]), x)
    return reshape_like(op, transposed_conv(op, single, ones, window, spatial_size(op, x)), x)


def _counts(op: Op, node: ir.Node, window: Window) -> ir.Value:
    """Return how many places each window of an AveragePool counts, in the spatial shape of its output.

    Where padding counts, it is the padding that the node names: what the last window of `ceil_mode` reaches
    beyond that never counts, neither in onnxruntime nor in PyTorch or in onnx's reference evaluator.
    """
    x, y = operand(node, 0), node.outputs[0]
    is_rounded_up = rounds_up(node)
    counts_pads = bool(node.attributes.get_int("count_include_pad", 0))
    if not is_rounded_up and (counts_pads or not any(window.pads)):
        return constant_like(op, np.prod(window.kernel), x)
    size = known_spatial_size(x)
    if size is not None:
        windows = window.counts(size, rounds_up=is_rounded_up)
        return constant_like(op, _known_counts(size, windows, window, counts_pads), x)
    # The same by a convolution of ones: cheap, as it is that of one channel of one image.
    axes = len(window.kernel)
    counted: ir.Value = op.Shape(x, start=2)
    pads = [0] * (2 * axes)
    if counts_pads:
        counted = op.Add(
            counted, [start + end for start, end in zip(window.starts, window.ends, strict=True)]
        )
    else:
        pads = list(window.pads)
    if is_rounded_up:
        pads[axes:] = [pad + stride - 1 for pad, stride in zip(pads[axes:], window.strides, strict=True)]
    places = op.Expand(constant_like(op, 1.0, x), op.Concat([1, 1], counted, axis=0))
    ones = constant_like(op, np.ones([1, 1, *window.kernel]), x)
    counts = op.Conv(places, ones, strides=window.strides, dilations=window.dilations, pads=pads)
    if is_rounded_up:
        # A window that would begin behind the input is none.
        counts = op.Slice(counts, [0] * axes, op.Shape(y, start=2), list(range(2, 2 + axes)))
    return counts


def _known_counts(size: list[int], windows: list[int], window: Window, counts_pads: bool) -> npt.NDArray[Any]:
    counts = np.ones(())
    for length, number, kernel, stride, dilation, start, end in zip(
        size,
        windows,
        window.kernel,
        window.strides,
        window.dilations,
        window.starts,
        window.ends,
        strict=True,
    ):
        places = stride * np.arange(number)[:, None] - start + dilation * np.arange(kernel)
        low, high = (-start, length + end) if counts_pads else (0, length)
        counts = counts[..., None] * ((places >= low) & (places < high)).sum(axis=1)
    return counts
