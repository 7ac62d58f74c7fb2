"""Constant weights that the backward pass reads in another order than the forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxplain_export.graph import operand
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
