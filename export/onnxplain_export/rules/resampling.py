"""Resampling: linear along each axis, so that the gradient is a product with a matrix for each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxplain_export.graph import constant, ints, operand, rank, static_dims
from onnxplain_export.reference_operators import OPERATORS
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, constant_like, vjp
from onnxplain_export.rules.shapes import for_classes, reshape_like

Matrix = npt.NDArray[np.float64]


@vjp("Resize", sparse=True)
def resize(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = M_0 x M_1ᵀ ..., with the interpolation's weights of each axis: dx = M_0ᵀ g M_1 ..."""
    x, y = operand(node, 0), node.outputs[0]
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise UnsupportedCaseError("a Resize that crops")
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedCaseError("a Resize that keeps the aspect ratio")
    scales = _scales(node)
    is_folded = False
    # From the last axis to the first: what stands behind an axis has the size of x by then.
    for axis in sorted(_axes(node), reverse=True):
        if scales.get(axis) == 1.0 or (not scales and _same_size(x, y, axis)):
            continue
        if axis == rank(x) - 1:
            gradient = op.MatMul(gradient, _weights(op, node, axis, scales.get(axis), transposed=True))
            continue
        if axis < rank(x) - 2 or is_folded:
            after, behind = static_dims(y)[axis], static_dims(x)[axis + 1 :]
            known = [size for size in behind if size is not None]
            if after is None or len(known) < len(behind):
                raise UnsupportedCaseError(
                    "a Resize along other axes than the last two, of a size that is only known at run time"
                )
            gradient, is_folded = op.Reshape(gradient, [-1, after, math.prod(known)]), True
        weights = _weights(op, node, axis, scales.get(axis))
        weights = for_classes(op, weights, gradient, 3 if is_folded else 1 + rank(x))
        gradient = op.MatMul(weights, gradient)
    return reshape_like(op, gradient, x) if is_folded else gradient


def _same_size(x: ir.Value, y: ir.Value, axis: int) -> bool:
    """Say whether an axis is left as it is; a first axis of unknown length is the batch."""
    before, after = static_dims(x)[axis], static_dims(y)[axis]
    return before == after and (before is not None or axis == 0)


def _axes(node: ir.Node) -> list[int]:
    """Return the axes that a node names: all by default."""
    axes = rank(operand(node, 0))
    return [axis % axes for axis in ints(node, "axes", range(axes))]


def _scales(node: ir.Node) -> dict[int, float]:
    """Return the scale of each axis, nothing where the output's size is given instead."""
    axes = _axes(node)
    given = node.inputs[2] if len(node.inputs) > 2 else None
    scales = constant(given)
    if given is not None and scales is None:
        raise UnsupportedCaseError("a Resize whose scales are only known at run time")
    if scales is None or scales.size == 0:
        return {}
    return {axis: float(scale) for axis, scale in zip(axes, scales.reshape(-1), strict=True)}


def _weights(op: Op, node: ir.Node, axis: int, scale: float | None, *, transposed: bool = False) -> ir.Value:
    """Return one axis's weights [before, after], or transposed: the operator applied to each unit vector.

    They are worked out at export where the sizes are known.
    """
    x, y = operand(node, 0), node.outputs[0]
    attributes: dict[str, Any] = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if name not in ("axes", "keep_aspect_ratio_policy")
    }
    before, after = static_dims(x)[axis], static_dims(y)[axis]
    if before is not None and after is not None:
        known = _known_weights(attributes, before, after, scale)
        return constant_like(op, known.T if transposed else known, x)
    side = op.Shape(x, start=axis, end=axis + 1)
    unit_vectors = op.EyeLike(op.Expand(constant_like(op, 0.0, x), op.Concat(side, side, axis=0)))
    if scale is not None:
        factors = op.Constant(value_floats=[1.0, scale])
        weights = op.Resize(unit_vectors, None, factors, **attributes)
    else:
        size = op.Concat(side, op.Shape(y, start=axis, end=axis + 1), axis=0)
        weights = op.Resize(unit_vectors, None, None, size, **attributes)
    return op.Transpose(weights, perm=[1, 0]) if transposed else weights


def _known_weights(attributes: dict[str, Any], before: int, after: int, scale: float | None) -> Matrix:
    scaled = scale is not None
    size = np.array([1.0, scale], np.float32) if scaled else np.array([before, after], np.int64)
    inputs = ["x", "", "size"] if scaled else ["x", "", "", "size"]
    graph = helper.make_graph(
        [helper.make_node("Resize", inputs, ["y"], **attributes)],
        "axis",
        [
            helper.make_tensor_value_info("x", TensorProto.DOUBLE, [before, before]),
            helper.make_tensor_value_info("size", TensorProto.FLOAT if scaled else TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
    (result,) = evaluator.run(None, {"x": np.eye(before), "size": size})
    weights: Matrix = np.asarray(result)
    return weights
