"""Pooling: the gradient of a maximum goes to where it stood, that of a mean to the whole window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxplain_export.graph import operand, static_dims
from onnxplain_export.rules.convolution import Window, spatial_size, transposed_conv
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, constant_like, vjp
from onnxplain_export.rules.shapes import reshape_like, zeros_like


@vjp("MaxPool")
def max_pool(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = the maximum of each window: dx = the sum of g over the windows whose maximum stood there."""
    x = operand(node, 0)
    if node.attributes.get_int("storage_order", 0):
        raise UnsupportedCaseError("a MaxPool of storage order 1")
    # The forward node stays as it is: asked for its indices, it would run slower in every prediction.
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    _, indices = cast("Sequence[ir.Value]", op.MaxPool(x, _outputs=2, **attributes))
    flat = op.Flatten(gradient, axis=1)
    places = op.Expand(op.Reshape(indices, [1, -1]), op.Shape(flat))
    zeros = op.Flatten(zeros_like(op, gradient, x), axis=1)
    return reshape_like(op, op.ScatterElements(zeros, places, flat, axis=1, reduction="add"), x)


@vjp("AveragePool")
def average_pool(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = the mean of each window of n places: dx = the sum of g / n over the windows around a place."""
    x = operand(node, 0)
    window = Window.of(node)
    if all(size == 1 for size in [*window.kernel, *window.strides]) and not any(window.pads):
        return gradient
    if node.attributes.get_int("ceil_mode", 0):
        # The last window may reach beyond the padding, and what it then counts differs between engines.
        raise UnsupportedCaseError("an AveragePool with ceil_mode")
    if node.attributes.get_int("count_include_pad", 0) or not any(window.pads):
        counts = np.array(np.prod(window.kernel))
    else:
        counts = _counts(x, window)
    # One channel at a time: the window of ones is the same for all of them.
    share = op.Div(gradient, constant_like(op, counts, x))
    single = op.Reshape(share, [-1, 1, *_spatial_dims(node.outputs[0])])
    ones = constant_like(op, np.ones([1, 1, *window.kernel]), x)
    return reshape_like(op, transposed_conv(op, single, ones, window, spatial_size(op, x)), x)


def _spatial_dims(value: ir.Value) -> list[int]:
    dims = static_dims(value)[2:]
    known = [dim for dim in dims if dim is not None]
    if len(known) != len(dims):
        raise UnsupportedCaseError("an AveragePool over a size that is only known at run time")
    return known


def _counts(x: ir.Value, window: Window) -> npt.NDArray[Any]:
    """Return how many places of each window lie inside the input, of the spatial shape of the output."""
    counts = np.ones(())
    for size, kernel, stride, dilation, start, end in zip(
        _spatial_dims(x),
        window.kernel,
        window.strides,
        window.dilations,
        window.starts,
        window.ends,
        strict=True,
    ):
        span = 1 + dilation * (kernel - 1)
        firsts = np.arange(-start, size + end - span + 1, stride)
        places = firsts[:, None] + dilation * np.arange(kernel)
        counts = counts[..., None] * ((places >= 0) & (places < size)).sum(axis=1)
    return counts
