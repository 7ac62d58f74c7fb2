"""Matrix products and other fixed linear maps.

For the product that computes the logits, the requested class's weights are gathered.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant, constant_ints, ints, operand, rank, static_dims
from onnxplain_export.rules.registry import (
    Op,
    Selection,
    UnsupportedCaseError,
    selection_vjp,
    vjp,
)
from onnxplain_export.rules.shapes import for_classes, reshape_like
from onnxplain_export.rules.weights import apart
from onnxplain_export.rules.windows import Window, blocks_of


@vjp("MatMul", broadcasts=True)
def matmul(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value | None:
    """Z = x y: dx = g yᵀ, dy = xᵀ g.

    A vector is a matrix of one row or column; the output lacks its axis of length 1.
    """
    x, y = operand(node, 0), operand(node, 1)
    x_is_vector, y_is_vector = rank(x) == 1, rank(y) == 1
    if y_is_vector:
        y, gradient = op.Unsqueeze(y, [1]), op.Unsqueeze(gradient, [-1])
    if x_is_vector:
        x, gradient = op.Unsqueeze(x, [0]), op.Unsqueeze(gradient, [-2])
    axes = 1 + max(rank(x), rank(y))
    if wrt == 0:
        right = _transposed(op, y)
        # One matrix on the right is multiplied as a whole, by a stack of any height.
        right = right if rank(y) == 2 else for_classes(op, right, gradient, axes)
        result = op.MatMul(gradient, right)
        return op.Squeeze(result, [-2]) if x_is_vector else result
    result = op.MatMul(for_classes(op, _transposed(op, x), gradient, axes), gradient)
    return op.Squeeze(result, [-1]) if y_is_vector else result


@vjp("Gemm", broadcasts=True)
def gemm(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Z = alpha a b + beta c, a or b transposed on request: da = alpha g bᵀ, db = alpha aᵀ g, dc = beta g."""
    a, b = operand(node, 0), operand(node, 1)
    if wrt == 2:
        return _scaled(op, gradient, node.attributes.get_float("beta", 1.0))
    a_is_transposed, b_is_transposed = (
        bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB")
    )
    gradient = _scaled(op, gradient, node.attributes.get_float("alpha", 1.0))
    if wrt == 0:
        result = op.MatMul(gradient, apart(op, b, static_dims(b)) if b_is_transposed else _transposed(op, b))
        return _swapped(op, result) if a_is_transposed else result
    left = apart(op, a, static_dims(a)) if a_is_transposed else _transposed(op, a)
    result = op.MatMul(for_classes(op, left, gradient, 3), gradient)
    return _swapped(op, result) if b_is_transposed else result


@selection_vjp("Gemm", "MatMul")
def selected_row(op: Op, node: ir.Node, wrt: int, selection: Selection) -> ir.Value | None:
    """logits = x w: d logit_c / dx = column c of w, gathered instead of multiplied out."""
    weights = operand(node, 1)
    attributes = node.attributes
    plain = wrt == 0 and constant(weights) is not None and rank(weights) == 2
    if not plain or rank(node.outputs[0]) != 2 or bool(attributes.get_int("transA", 0)):
        return None
    if attributes.get_int("transB", 0):
        rows = _gathered(op, weights, selection.classes, axis=0)
    else:
        rows = op.Transpose(_gathered(op, weights, selection.classes, axis=1), perm=[1, 2, 0])
    return _scaled(op, rows, attributes.get_float("alpha", 1.0))


def _gathered(op: Op, weights: ir.Value, indices: ir.Value, axis: int) -> ir.Value:
    """Gather rows or columns of constant weights.

    Of weights kept in whole numbers, what is gathered is dequantised; else all would be, in every run.
    """
    node = weights.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return op.Gather(weights, indices, axis=axis)
    numbers, scale, zero = [*node.inputs, None][:3]
    known = constant(scale)
    if known is not None and known.size == 1:
        return op.DequantizeLinear(op.Gather(numbers, indices, axis=axis), scale, zero)
    if node.attributes.get_int("axis", 1) % 2 != axis or np.any(constant(zero)):
        return op.Gather(weights, indices, axis=axis)
    gathered = op.Cast(op.Gather(numbers, indices, axis=axis), to=weights.dtype)
    scales = op.Gather(scale, indices)
    return op.Mul(gathered, op.Unsqueeze(scales, [-1]) if axis == 0 else scales)


def _scaled(op: Op, value: ir.Value, factor: float) -> ir.Value:
    return value if factor == 1.0 else op.Mul(value, factor)


def _transposed(op: Op, matrix: ir.Value) -> ir.Value:
    """Swap a forward value's last two axes; a Transpose of a weight is folded or fused at load."""
    axes = list(range(rank(matrix)))
    own = apart(op, matrix, static_dims(matrix)[-2:])
    return op.Transpose(own, perm=[*axes[:-2], axes[-1], axes[-2]])


def _swapped(op: Op, gradient: ir.Value) -> ir.Value:
    """Swap the last two axes of a matrix's gradient, [classes, rows, columns]."""
    return op.Transpose(gradient, perm=[0, 2, 1])


@vjp("Col2Im", sparse=True)
def col2im(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = the sum of overlapping blocks, a column of x each: dx = the blocks of g."""
    x, block = operand(node, 0), constant_ints(operand(node, 2))
    if block is None:
        raise UnsupportedCaseError("a Col2Im whose block shape is only known at run time")
    axes = len(block)
    strides, dilations = ints(node, "strides", [1] * axes), ints(node, "dilations", [1] * axes)
    window = Window(block, strides, dilations, ints(node, "pads", [0] * (2 * axes)))
    image = op.Reshape(gradient, op.Concat([-1, 1], operand(node, 1), axis=0))
    return reshape_like(op, blocks_of(op, image, window, x), x)
