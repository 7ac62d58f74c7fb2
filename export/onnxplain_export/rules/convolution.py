"""Convolutions: the data gradient of one is a transposed one with the same weights, and the reverse."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain_export.graph import constant, operand, rank, static_dims
from onnxplain_export.rules.kernels import Maps, kernel_gradient
from onnxplain_export.rules.phases import conv_by_phases
from onnxplain_export.rules.registry import Op, vjp
from onnxplain_export.rules.shapes import fold_classes, reshape_like
from onnxplain_export.rules.weights import apart
from onnxplain_export.rules.windows import Window, known_spatial_size, spatial_size


@vjp("Conv")
def conv(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x * w + b: dx = g * w transposed, dw = x * g, db = the sum of g.

    (Dumoulin and Visin 2016, section 4.)
    """
    if wrt == 2:
        return _bias_gradient(op, node, gradient)
    x, weights = operand(node, 0), operand(node, 1)
    window = Window.of(node, kernel=static_dims(weights)[2:])
    if wrt == 1:
        return kernel_gradient(op, node, window, coarse=Maps(node.outputs[0], gradient), fine=Maps(x))
    folded = fold_classes(op, gradient, node.outputs[0])
    result = None
    if constant(weights) is not None:
        result = conv_by_phases(op, node, folded, window, known_spatial_size(x))
    if result is None:
        groups = node.attributes.get_int("group", 1)
        result = transposed_conv(op, folded, _apart(op, node), window, spatial_size(op, x), groups)
    return reshape_like(op, result, x)


@vjp("ConvTranspose", sparse=True)
def conv_transpose(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x * w transposed, + b: dx = g * w, dw = g * x, db = the sum of g."""
    if wrt == 2:
        return _bias_gradient(op, node, gradient)
    x, weights = operand(node, 0), operand(node, 1)
    window = Window.of_transposed(node, kernel=static_dims(weights)[2:])
    if wrt == 1:
        return kernel_gradient(op, node, window, coarse=Maps(x), fine=Maps(node.outputs[0], gradient))
    result = op.Conv(
        fold_classes(op, gradient, node.outputs[0]),
        _apart(op, node),
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        group=node.attributes.get_int("group", 1),
    )
    return reshape_like(op, result, x)


def _apart(op: Op, node: ir.Node) -> ir.Value:
    """Return a convolution's weights for one in which each group's channels change places."""
    weights = operand(node, 1)
    channels, others = static_dims(weights)[:2]
    groups = node.attributes.get_int("group", 1)
    return apart(op, weights, [channels and channels // groups, others])


def _bias_gradient(op: Op, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Return a bias's gradient: the sum over the images and the places."""
    return op.ReduceSum(gradient, [1, *range(3, 1 + rank(node.outputs[0]))], keepdims=0)


def transposed_conv(
    op: Op,
    gradient: ir.Value,
    weights: ir.Value,
    window: Window,
    size: list[int] | ir.Value,
    groups: int = 1,
) -> ir.Value:
    """Return the transposed convolution of a gradient, cut to the spatial size of the forward pass's input.

    Windows that stride over the input's end leave places that no window reached. A padding of stride - 1 at
    the end makes the result at least as large as the input, whatever its size, and a Slice cuts the rest off.
    """
    axes = len(window.kernel)
    spare = [stride - 1 for stride in window.strides]
    result = op.ConvTranspose(
        gradient,
        weights,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        output_padding=spare,
        group=groups,
    )
    if not any(spare):
        return result
    return op.Slice(result, [0] * axes, size, list(range(2, 2 + axes)))
