"""The range that a value can't leave, as far as the nodes before it say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant, operand


class Range(NamedTuple):
    """All numbers from one to another."""

    low: float
    high: float


UNBOUNDED = Range(-np.inf, np.inf)

#: What they put out are elements of their first input, or means of some and of zeros.
_KEEPING = {
    "AveragePool",
    "Cast",
    "Flatten",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "MaxPool",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


def range_of(value: ir.Value) -> Range:
    """Return a range that a value lies in; where it is bounded, 0 is in it."""
    node = value.producer()
    if node is None:
        return UNBOUNDED
    if node.op_type in _KEEPING:
        return range_of(operand(node, 0))
    if node.op_type == "Concat":
        parts = [range_of(operand(node, index)) for index in range(len(node.inputs))]
        return Range(min(part.low for part in parts), max(part.high for part in parts))
    if node.op_type in ("HardSigmoid", "Sigmoid", "Softmax"):
        return Range(0.0, 1.0)
    if node.op_type == "Relu":
        return Range(0.0, max(range_of(operand(node, 0)).high, 0.0))
    if node.op_type == "DequantizeLinear":
        return quantised_range(node) or UNBOUNDED
    return UNBOUNDED


def quantised_range(node: ir.Node) -> Range | None:
    """Return the range of the numbers that a quantiser's or dequantiser's whole numbers stand for.

    It is None where it isn't the same for all of them, or is only known at run time.
    """
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2] if len(node.inputs) > 2 else None)
    quantised = node.outputs[0] if node.op_type == "QuantizeLinear" else operand(node, 0)
    if scale is None or scale.size != 1 or quantised.dtype is None or not quantised.dtype.is_integer():
        return None
    limits = np.iinfo(quantised.dtype.numpy())
    offset = 0 if zero is None else int(zero.item())
    low, high = ((limit - offset) * float(scale.item()) for limit in (limits.min, limits.max))
    return Range(low, high)
