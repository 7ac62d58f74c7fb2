"""Operators that pick elements by index; their gradients are scattered back to where they came from."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain_export.graph import operand, rank
from onnxplain_export.rules.registry import Op, vjp
from onnxplain_export.rules.shapes import zeros_like


@vjp("Gather")
def gather(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x at the indices along an axis: dx = the sum of g over the places that an element was copied to."""
    x, indices = operand(node, 0), operand(node, 1)
    axis = node.attributes.get_int("axis", 0) % rank(x)
    before = op.Shape(gradient, start=0, end=axis + 1)
    after = op.Shape(x, start=axis + 1, end=rank(x))
    # They may be int32, and sizes are int64.
    flat = op.Cast(op.Reshape(indices, [-1]), to=ir.DataType.INT64)
    # A negative index counts from the end.
    size = op.Shape(x, start=axis, end=axis + 1)
    flat = op.Where(op.Less(flat, 0), op.Add(flat, size), flat)
    updates = op.Reshape(gradient, op.Concat(before, op.Shape(flat), after, axis=0), allowzero=1)
    places = op.Reshape(flat, [-1] + [1] * (rank(x) - axis - 1))
    places = op.Expand(places, op.Shape(updates))
    return op.ScatterElements(zeros_like(op, gradient, x), places, updates, axis=axis + 1, reduction="add")
