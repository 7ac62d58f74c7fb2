"""Resampling: linear along each axis, so that the gradient is a product with a constant matrix for each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxplain_export.graph import constant, operand, rank, static_dims
from onnxplain_export.reference_operators import OPERATORS
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, constant_like, vjp
from onnxplain_export.rules.shapes import reshape_like

Matrix = npt.NDArray[np.float64]


@vjp("Resize")
def resize(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = M_0 x M_1ᵀ ...: dx = M_0ᵀ g M_1 ..., the interpolation's weights being known at export."""
    x, y = operand(node, 0), node.outputs[0]
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise UnsupportedCaseError("a Resize that crops")
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedCaseError("a Resize that keeps the aspect ratio")
    scales = _scales(node)
    is_folded = False
    # From the last axis to the first: what stands behind an axis has the size of x by then.
    for axis in reversed(range(rank(x))):
        if scales.get(axis) == 1.0 or (not scales and _same_size(x, y, axis)):
            continue
        before, after = static_dims(x)[axis], static_dims(y)[axis]
        behind = static_dims(x)[axis + 1 :]
        if before is None or after is None or None in behind:
            raise UnsupportedCaseError(
                "a Resize of a size that is only known at run time (export with a fixed height and width)"
            )
        weights = _weights(node, before, after, scales.get(axis))
        if axis == rank(x) - 1:
            gradient = op.MatMul(gradient, constant_like(op, weights.T, x))
            continue
        if axis < rank(x) - 2 or is_folded:
            rest = math.prod(size for size in behind if size is not None)
            gradient, is_folded = op.Reshape(gradient, [-1, after, rest]), True
        gradient = op.MatMul(constant_like(op, weights, x), gradient)
    return reshape_like(op, gradient, x) if is_folded else gradient


def _same_size(x: ir.Value, y: ir.Value, axis: int) -> bool:
    """Say whether an axis is left as it is; a first axis of unknown length is the batch."""
    before, after = static_dims(x)[axis], static_dims(y)[axis]
    return before == after and (before is not None or axis == 0)


def _scales(node: ir.Node) -> dict[int, float]:
    """Return the scale of each axis, nothing where the output's size is given instead."""
    axes = list(range(rank(operand(node, 0))))
    if "axes" in node.attributes:
        axes = [int(axis) % len(axes) for axis in node.attributes["axes"].as_ints()]
    given = node.inputs[2] if len(node.inputs) > 2 else None
    scales = constant(given)
    if given is not None and scales is None:
        raise UnsupportedCaseError("a Resize whose scales are only known at run time")
    if scales is None or scales.size == 0:
        return {}
    ones = dict.fromkeys(range(rank(operand(node, 0))), 1.0)
    return ones | {axis: float(scale) for axis, scale in zip(axes, scales.reshape(-1), strict=True)}


def _weights(node: ir.Node, before: int, after: int, scale: float | None) -> Matrix:
    """Return one axis's weights [before, after]: the operator applied to each unit vector."""
    attributes: dict[str, Any] = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if name not in ("axes", "keep_aspect_ratio_policy")
    }
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
