"""Quantisers: the gradient goes straight through, but none to what was cut off at the ends of the range.

A whole number stands for the number that it is dequantised to, and its gradient is counted in that one's
unit: so neither rule has the scale in it.

What was cut off is read off the whole numbers, which lie at an end of their type's range, and not off the
numbers before: that would keep the operator before from running in whole numbers. So what lies within half a
step of an end is taken for cut off, too; where a ReLU was left to its quantiser, these are its zeros. Where
nothing can lie beyond an end, as after a pooling of what was quantised, nothing was cut off there.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant, operand
from onnxplain_export.ranges import quantised_range, range_of
from onnxplain_export.rules.infinite import kept_where
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, vjp


@vjp("QuantizeLinear")
def quantize(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = round(x / scale) + zero, cut off at the ends of its type's range: dx = g between the ends."""
    x, y = operand(node, 0), node.outputs[0]
    _check_scale(node, wrt)
    if y.dtype is None or not y.dtype.is_integer():
        raise UnsupportedCaseError(f"a QuantizeLinear to {y.dtype}")
    ends, given, kept = np.iinfo(y.dtype.numpy()), range_of(x), quantised_range(node)
    # Older onnxruntimes don't compare whole numbers of eight bits.
    number = op.Cast(y, to=x.dtype)
    inside = []
    if kept is None or given.low < kept.low:
        inside.append(op.Greater(number, float(ends.min)))
    if kept is None or given.high > kept.high:
        inside.append(op.Less(number, float(ends.max)))
    if not inside:
        return gradient
    return kept_where(op, functools.reduce(op.And, inside), gradient, x)


@vjp("DequantizeLinear")
def dequantize(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = scale (x - zero): dx = g, counted in the unit of y."""
    _check_scale(node, wrt)
    quantiser = operand(node, 0).producer()
    if quantiser is None or not _have_one_scale(quantiser, node):
        raise UnsupportedCaseError("a DequantizeLinear of another scale than its QuantizeLinear's")
    return gradient


def _check_scale(node: ir.Node, wrt: int) -> None:
    if wrt == 1:
        raise UnsupportedCaseError(f"a {node.op_type} whose scale depends on the layer")


def _have_one_scale(quantiser: ir.Node, dequantiser: ir.Node) -> bool:
    one, other = operand(quantiser, 1), operand(dequantiser, 1)
    axes = {node.attributes.get_int("axis", 1) for node in (quantiser, dequantiser)}
    known, other_known = constant(one), constant(other)
    if known is None or other_known is None:
        return one is other and len(axes) == 1
    return np.array_equal(known, other_known) and (known.size == 1 or len(axes) == 1)
