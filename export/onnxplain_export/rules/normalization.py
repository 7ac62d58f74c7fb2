"""Normalisation layers.

Most of them are n = (x - mean) / deviation, then y = n scale + bias. Wherever mean and deviation are taken
over, dx = (h - mean(h) - n mean(h n)) / deviation with h = g scale and the means over the same elements.
Axes are counted from the end, where they are the same with and without the classes in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import ints, operand, rank, static_dims
from onnxplain_export.rules.reductions import element_count
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, constant_like, vjp
from onnxplain_export.rules.shapes import fold_classes, repeated, reshape_like


@vjp("BatchNormalization")
def batch_normalization(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = n scale + bias, n = (x - mean) / sqrt(var + eps), a channel each: dx = g scale / sqrt(var + eps).

    With sums over all but the channels, dscale = sum(g n), dbias = sum(g), dmean = -sum(dx) and
    dvar = -sum(g n) scale / (2 (var + eps)).
    """
    if node.attributes.get_int("training_mode", 0):
        raise UnsupportedCaseError("a BatchNormalization in training mode")
    x, scale, _, mean, variance = (operand(node, index) for index in range(5))
    if wrt == 2:
        return _channel_sum(op, gradient, x)
    widened = op.Add(variance, node.attributes.get_float("epsilon", 1e-5))
    deviation = op.Sqrt(widened)
    if wrt in (0, 3):
        factor = op.Div(scale, deviation)
        if wrt == 0:
            return op.Mul(gradient, _a_channel_each(op, factor, x))
        return op.Neg(op.Mul(_channel_sum(op, gradient, x), factor))
    centered = op.Sub(x, _a_channel_each(op, mean, x))
    projected = op.Div(_channel_sum(op, op.Mul(gradient, centered), x), deviation)
    return projected if wrt == 1 else op.Mul(projected, op.Div(op.Mul(scale, -0.5), widened))


@vjp("LayerNormalization", broadcasts=True, many_outputs=True)
def layer_normalization(
    op: Op, node: ir.Node, wrt: int, gradients: Sequence[ir.Value | None]
) -> ir.Value | None:
    """Y = n scale + bias over the last axes; further outputs are the mean and 1 / deviation.

    dscale = g n and dbias = g, summed over the axes along which they were repeated by the driver.
    """
    to_y, to_mean, to_inverse = [*gradients, None, None][:3]
    if wrt == 2 or (wrt == 1 and to_y is None):
        return to_y
    x, scale = operand(node, 0), operand(node, 1)
    axis = node.attributes.get_int("axis", -1) % rank(x) - rank(x)
    axes = list(range(axis, 0))
    # A second one, without scale and bias, is a single kernel for all that the gradient needs. The forward
    # pass's own can't be asked for them: with the outputs more it would run slower in every prediction.
    outputs = op.LayerNormalization(
        x, _ones_like(op, scale), axis=axis, epsilon=node.attributes.get_float("epsilon", 1e-5), _outputs=3
    )
    normalized, _, inverse = cast("Sequence[ir.Value]", outputs)
    if wrt == 1:
        return op.Mul(to_y, normalized)
    terms = []
    if to_y is not None:
        terms.append(_normalization_gradient(op, op.Mul(to_y, scale), normalized, inverse, axes))
    if to_inverse is not None:
        # d(1 / deviation) / dx = -n / (count deviation²)
        slope = op.Mul(op.Mul(inverse, inverse), normalized)
        terms.append(op.Neg(op.Div(op.Mul(to_inverse, slope), element_count(op, x, axes))))
    if to_mean is not None:
        terms.append(repeated(op, op.Div(to_mean, element_count(op, x, axes)), x))
    total = terms[0]
    for term in terms[1:]:
        total = op.Add(total, term)
    return total


@vjp("InstanceNormalization")
def instance_normalization(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = n scale + bias over the places of each channel: dscale = sum(g n), dbias = sum(g)."""
    x, scale = operand(node, 0), operand(node, 1)
    if wrt == 2:
        return _channel_sum(op, gradient, x)
    axes = list(range(2 - rank(x), 0))
    normalized, inverse = _normalized(op, node, x, axes)
    if wrt == 1:
        return _channel_sum(op, op.Mul(gradient, normalized), x)
    h = op.Mul(gradient, _a_channel_each(op, scale, x))
    return _normalization_gradient(op, h, normalized, inverse, axes)


@vjp("GroupNormalization")
def group_normalization(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = n scale + bias over the elements of each group, of which each has one scale and bias."""
    x, scale = operand(node, 0), operand(node, 1)
    groups = node.attributes["num_groups"].as_int()
    grouped = op.Reshape(x, [0, groups, -1])
    to_groups = reshape_like(op, gradient, grouped)
    if wrt == 2:
        return op.ReduceSum(to_groups, [1, 3], keepdims=0)
    normalized, inverse = _normalized(op, node, grouped, [-1])
    if wrt == 1:
        return op.ReduceSum(op.Mul(to_groups, normalized), [1, 3], keepdims=0)
    h = op.Mul(to_groups, op.Unsqueeze(scale, [-1]))
    return reshape_like(op, _normalization_gradient(op, h, normalized, inverse, [-1]), x)


@vjp("MeanVarianceNormalization")
def mean_variance_normalization(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = n over the named axes, but that 1e-9 is added to the deviation itself."""
    x, y = operand(node, 0), node.outputs[0]
    axes = [axis % rank(x) - rank(x) for axis in ints(node, "axes", [0, 2, 3])]
    centered = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    variance = op.ReduceMean(op.Mul(centered, centered), axes, keepdims=1)
    inverse = op.Reciprocal(op.Add(op.Sqrt(variance), 1e-9))
    return _normalization_gradient(op, gradient, y, inverse, axes)


@vjp("LpNormalization")
def lp_normalization(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x / norm: dx = (g - y sum(g y)) / norm, or for p = 1 with sign(x) for y; 0 where the norm is."""
    x, y = operand(node, 0), node.outputs[0]
    axis = node.attributes.get_int("axis", -1) % rank(x) - rank(x)
    is_l1 = node.attributes.get_int("p", 2) == 1
    norm = (op.ReduceL1 if is_l1 else op.ReduceL2)(x, [axis], keepdims=1)
    along = op.ReduceSum(op.Mul(gradient, y), [axis], keepdims=1)
    across = op.Sub(gradient, op.Mul(op.Sign(x) if is_l1 else y, along))
    return op.Where(op.Greater(norm, 0.0), op.Div(across, norm), 0.0)


@vjp("LRN")
def local_response_normalization(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x / d^beta, d = bias + alpha times the mean of x² over the channels around.

    With the same mean m: dx = g / d^beta - 2 alpha beta x m(g y / d).
    """
    x, y = operand(node, 0), node.outputs[0]
    size = node.attributes["size"].as_int()
    if size % 2 == 0:
        # Its region isn't symmetric, and onnxruntime doesn't run it.
        raise UnsupportedCaseError("an LRN of even size")
    alpha, beta, bias = (
        node.attributes.get_float(name, default)
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    places = rank(x) - 2

    def mean(value: ir.Value) -> ir.Value:
        pads = [size // 2, *[0] * places]
        weights = constant_like(op, np.full([1, 1, size, *[1] * places], 1 / size), x)
        # The channels become the first spatial axis of a map with one channel. An AveragePool would take ten
        # times as long in onnxruntime, and OpenVINO has none of an empty batch.
        return op.Conv(op.Unsqueeze(value, [1]), weights, pads=pads * 2)

    d = op.Add(op.Mul(op.Squeeze(mean(op.Mul(x, x)), [1]), alpha), bias)
    around = mean(fold_classes(op, op.Mul(gradient, op.Div(y, d)), y))
    own = op.Mul(gradient, op.Pow(d, -beta))
    return op.Sub(own, op.Mul(op.Mul(x, 2 * alpha * beta), reshape_like(op, around, x)))


def _normalized(op: Op, node: ir.Node, x: ir.Value, axes: list[int]) -> tuple[ir.Value, ir.Value]:
    """Return n = (x - mean) / deviation and 1 / deviation."""
    centered = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    variance = op.ReduceMean(op.Mul(centered, centered), axes, keepdims=1)
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, node.attributes.get_float("epsilon", 1e-5))))
    return op.Mul(centered, inverse), inverse


def _normalization_gradient(
    op: Op, h: ir.Value, normalized: ir.Value, inverse: ir.Value, axes: list[int]
) -> ir.Value:
    """Return (h - mean(h) - n mean(h n)) / deviation."""

    def mean(value: ir.Value) -> ir.Value:
        return op.ReduceMean(value, axes, keepdims=1)

    projected = op.Add(mean(h), op.Mul(normalized, mean(op.Mul(h, normalized))))
    return op.Mul(op.Sub(h, projected), inverse)


def _a_channel_each(op: Op, value: ir.Value, x: ir.Value) -> ir.Value:
    """Return a vector over the channels of x in a shape that meets them."""
    places = list(range(1, rank(x) - 1))
    return op.Unsqueeze(value, places) if places else value


def _channel_sum(op: Op, gradient: ir.Value, x: ir.Value) -> ir.Value:
    """Return the sum of a gradient of the shape of x over all but its classes and channels."""
    return op.ReduceSum(gradient, [1, *range(3, 1 + rank(x))], keepdims=0)


def _ones_like(op: Op, value: ir.Value) -> ir.Value:
    dims = [dim for dim in static_dims(value) if dim is not None]
    if len(dims) == rank(value):
        return constant_like(op, np.ones(dims), value)
    return op.Expand(constant_like(op, 1.0, value), op.Shape(value))
