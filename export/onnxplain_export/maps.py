"""The CAM methods as nodes of the graph: the equations of `onnxplain.maps`, in the same order.

Each takes activations [batch, channels, h, w] and gradients [batch, classes, channels, h, w], and returns
maps [batch, classes, h, w].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxplain.errors import MethodError
from onnxplain.maps import check_method
from onnxplain_export.rules.registry import Op

Maps = Callable[[Op, ir.Value, ir.Value], ir.Value]

SPACE = [3, 4]
CHANNELS = [2]


def cam(op: Op, activations: ir.Value, gradients: ir.Value) -> ir.Value:
    """Emit CAM: the weights are the gradients' sums."""
    return _weighted_sum(op, op.ReduceSum(gradients, SPACE, keepdims=0), activations)


def gradcam(op: Op, activations: ir.Value, gradients: ir.Value) -> ir.Value:
    """Emit Grad-CAM: the weights are the gradients' means."""
    return op.Relu(gradcam_signed(op, activations, gradients))


def gradcam_plusplus(op: Op, activations: ir.Value, gradients: ir.Value) -> ir.Value:
    """Emit Grad-CAM++: the weights are sums of positive gradients, each over 2 + g sum A."""
    sums = op.ReduceSum(_beside(op, activations), SPACE, keepdims=1)
    shares = _ratio(op, op.Relu(gradients), op.Add(op.Mul(gradients, sums), 2.0))
    return op.Relu(_weighted_sum(op, op.ReduceSum(shares, SPACE, keepdims=0), activations))


def xgradcam(op: Op, activations: ir.Value, gradients: ir.Value) -> ir.Value:
    """Emit XGrad-CAM: the weights are the gradients' means, each place by its share of the activations."""
    paired = _beside(op, activations)
    weighted = op.ReduceSum(op.Mul(paired, gradients), SPACE, keepdims=0)
    weights = _ratio(op, weighted, op.ReduceSum(paired, SPACE, keepdims=0))
    return _weighted_sum(op, weights, activations)


def hirescam(op: Op, activations: ir.Value, gradients: ir.Value) -> ir.Value:
    """Emit HiResCAM: activations times gradients, place by place."""
    return op.ReduceSum(op.Mul(gradients, _beside(op, activations)), CHANNELS, keepdims=0)


def layercam(op: Op, activations: ir.Value, gradients: ir.Value) -> ir.Value:
    """Emit LayerCAM: activations times positive gradients, place by place."""
    weighted = op.Mul(op.Relu(gradients), _beside(op, activations))
    return op.Relu(op.ReduceSum(weighted, CHANNELS, keepdims=0))


def gradcam_elementwise(op: Op, activations: ir.Value, gradients: ir.Value) -> ir.Value:
    """Emit elementwise Grad-CAM: what is positive of activations times gradients, place by place."""
    terms = op.Relu(op.Mul(gradients, _beside(op, activations)))
    return op.ReduceSum(terms, CHANNELS, keepdims=0)


def gradcam_signed(op: Op, activations: ir.Value, gradients: ir.Value) -> ir.Value:
    """Emit Grad-CAM before its ReLU."""
    return _weighted_sum(op, op.ReduceMean(gradients, SPACE, keepdims=0), activations)


def counterfactual(op: Op, activations: ir.Value, gradients: ir.Value) -> ir.Value:
    """Emit counterfactual Grad-CAM: Grad-CAM of the negative gradients."""
    return op.Relu(op.Neg(gradcam_signed(op, activations, gradients)))


#: By the names of `onnxplain.maps.METHODS`; for principal components ONNX has no operator, and Finer-CAM
#: needs other classes than those that are asked for.
METHODS: Mapping[str, Maps] = {
    "cam": cam,
    "gradcam": gradcam,
    "gradcam++": gradcam_plusplus,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "layercam": layercam,
    "gradcam_elementwise": gradcam_elementwise,
    "gradcam_signed": gradcam_signed,
    "counterfactual": counterfactual,
}


def check_emitted(method: str, heads: Mapping[str, str | None]) -> None:
    """Check that a graph can compute a method's maps of layers whose heads are given by name.

    Raises
    ------
    MethodError
        There is no such method, it isn't defined for a layer, or a graph can't compute it.
    """
    check_method(method, heads)
    if method not in METHODS:
        raise MethodError(f"{method} can't be computed in the file; choose one of {', '.join(METHODS)}")


def _weighted_sum(op: Op, weights: ir.Value, activations: ir.Value) -> ir.Value:
    """Emit sum_k weights_k A_k for weights [batch, classes, channels]."""
    flat = op.Reshape(activations, [0, 0, -1])
    shape = op.Concat(op.Shape(weights, end=2), op.Shape(activations, start=2), axis=0)
    # With no classes, 0 is a length of its own and not that of the input.
    return op.Reshape(op.MatMul(weights, flat), shape, allowzero=1)


def _beside(op: Op, activations: ir.Value) -> ir.Value:
    """Emit activations with an axis of one class."""
    return op.Unsqueeze(activations, [1])


def _ratio(op: Op, numerator: ir.Value, denominator: ir.Value) -> ir.Value:
    """Emit the quotient, and 0 where the denominator is."""
    is_zero = op.Equal(denominator, 0.0)
    return op.Where(is_zero, 0.0, op.Div(numerator, denominator))
