"""Constant weights that the backward pass reads in another order than the forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant, operand, rank, static_dims
from onnxplain_export.rules.registry import Op

#: Through these a constant stays one.
_KEEP_CONSTANT = {"Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"}


def apart(op: Op, weights: ir.Value, lengths: Sequence[int | None]) -> ir.Value:
    """Return weights for a use in which some axes change places, against the forward pass.

    OpenVINO's CPU plugin (2026.4) packs weights once for each address and packed layout. A constant that one
    MatMul or convolution takes as it is, and another with two equally long axes swapped, is packed for one of
    them and wrong for the other. The maximum of a constant and itself is a constant of its own: engines fold
    it at load, and in the file it takes no place.

    Parameters
    ----------
    lengths
        Those of the axes that change places.
    """
    longer = [length for length in lengths if length != 1]
    if len(set(longer)) == len(longer) or not _is_constant(weights):
        return weights
    copy = op.Max(weights, weights)
    copy.type, copy.shape = weights.type, weights.shape
    return copy


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    while producer is not None and producer.op_type in _KEEP_CONSTANT:
        value = operand(producer, 0)
        producer = value.producer()
    return ir.convenience.get_const_tensor(value) is not None


def swapped(op: Op, weights: ir.Value, groups: int, taps: Sequence[Sequence[int]]) -> ir.Value:
    """Return constant weights of a convolution with, in each group, its channels swapped.

    It is emitted as nodes on the weights: engines fold them at load, and in the file there is one copy.

    Parameters
    ----------
    groups
        Those of the convolution.
    taps
        The places of the kernel to keep along each axis, from the last to the first and evenly spaced.
    """
    kept = _taps(op, _dequantised(op, weights), taps)
    axes, (outputs, inputs) = list(range(2, rank(weights))), static_dims(weights)[:2]
    if groups == 1:
        return op.Transpose(kept, perm=[1, 0, *axes])
    if outputs == groups and inputs == 1:
        return kept
    assert outputs is not None
    assert inputs is not None
    sizes = [len(along) for along in taps]
    grouped = op.Reshape(kept, [groups, outputs // groups, inputs, *sizes])
    turned = op.Transpose(grouped, perm=[0, 2, 1, *(axis + 1 for axis in axes)])
    return op.Reshape(turned, [groups * inputs, outputs // groups, *sizes])


def _taps(op: Op, weights: ir.Value, taps: Sequence[Sequence[int]]) -> ir.Value:
    """Return the named places of a kernel."""
    starts, ends, axes, steps = [], [], [], []
    for axis, (along, size) in enumerate(zip(taps, static_dims(weights)[2:], strict=True), start=2):
        assert size is not None
        if size > 1:
            starts.append(along[0])
            # One before the first place is counted from the end, as -1 would be the last place.
            ends.append(along[-1] - 1 if along[-1] else -1 - size)
            axes.append(axis)
            steps.append(along[1] - along[0] if len(along) > 1 else -1)
    return op.Slice(weights, starts, ends, axes, steps) if axes else weights


def _dequantised(op: Op, weights: ir.Value) -> ir.Value:
    """Return weights as floating-point numbers that engines fold; DequantizeLinear they leave as it is."""
    node = weights.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return weights
    numbers, scale, zero = operand(node, 0), operand(node, 1), [*node.inputs, None][2]
    counted = op.Cast(numbers, to=scale.dtype)
    own = node.attributes.get_int("axis", 1) % rank(numbers)
    others = [axis for axis in range(rank(numbers)) if axis != own]

    def along(parameter: ir.Value) -> ir.Value:
        return op.Unsqueeze(parameter, others) if rank(parameter) == 1 else parameter

    if zero is not None and np.any(constant(zero)):
        counted = op.Sub(counted, along(op.Cast(zero, to=scale.dtype)))
    result = op.Mul(counted, along(scale))
    result.type, result.shape = weights.type, weights.shape
    return result
