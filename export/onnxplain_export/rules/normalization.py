"""Normalisation layers as they are at inference."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain_export.graph import operand, rank
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, vjp


@vjp("BatchNormalization")
def batch_normalization(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = (x - mean) / sqrt(var + eps) scale + bias, a channel each: dx = g scale / sqrt(var + eps)."""
    if wrt != 0:
        raise UnsupportedCaseError("a BatchNormalization whose statistics or scale depend on the layer")
    if node.attributes.get_int("training_mode", 0):
        raise UnsupportedCaseError("a BatchNormalization in training mode")
    x, scale, variance = operand(node, 0), operand(node, 1), operand(node, 4)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    factor = op.Div(scale, op.Sqrt(op.Add(variance, epsilon)))
    places = list(range(1, rank(x) - 1))
    return op.Mul(gradient, op.Unsqueeze(factor, places) if places else factor)


@vjp("LayerNormalization")
def layer_normalization(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = n scale + bias, n = (x - mean) / deviation over the last axes.

    With h = g scale: dx = (h - mean(h) - n mean(h n)) / deviation.
    """
    if wrt != 0:
        raise UnsupportedCaseError("a LayerNormalization whose scale or bias depends on the layer")
    x, scale = operand(node, 0), operand(node, 1)
    axis = node.attributes.get_int("axis", -1) % rank(x)
    # Counted from the end, the axes are the same with and without the classes in front.
    axes = list(range(axis - rank(x), 0))

    def mean(value: ir.Value) -> ir.Value:
        return op.ReduceMean(value, axes, keepdims=1)

    centered = op.Sub(x, mean(x))
    variance = mean(op.Mul(centered, centered))
    deviation = op.Sqrt(op.Add(variance, node.attributes.get_float("epsilon", 1e-5)))
    normalized = op.Div(centered, deviation)
    h = op.Mul(gradient, scale)
    projected = op.Add(mean(h), op.Mul(normalized, mean(op.Mul(h, normalized))))
    return op.Div(op.Sub(h, projected), deviation)
