"""Convolution: its data gradient is a transposed convolution with the same weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant, ints, operand, rank, static_dims
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, vjp
from onnxplain_export.rules.shapes import reshape_like


@vjp("Conv")
def conv(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x * w: dx = g convolved with w transposed (Dumoulin and Visin 2016, section 4).

    With stride 1 that is itself a convolution of g, with the kernel flipped and its channels swapped, which
    onnxruntime runs faster than ConvTranspose for kernels larger than 1.
    """
    if wrt != 0:
        raise UnsupportedCaseError("a Conv whose weights depend on the layer")
    x, weights = operand(node, 0), operand(node, 1)
    window = Window.of(node, kernel=static_dims(weights)[2:])
    groups = node.attributes.get_int("group", 1)
    folded = fold_classes(op, gradient, node.outputs[0])
    array = constant(weights)
    is_pointwise = all(size == 1 for size in window.kernel)
    flipped_pads = window.pads_of_flipped()
    if array is not None and not is_pointwise and groups == 1 and flipped_pads is not None:
        flipped = np.ascontiguousarray(np.flip(array.swapaxes(0, 1), axis=tuple(range(2, array.ndim))))
        kernel = op.initializer(ir.tensor(flipped, name=f"{weights.name}.flipped.{node.outputs[0].name}"))
        result = op.Conv(folded, kernel, dilations=window.dilations, pads=flipped_pads)
    else:
        result = transposed_conv(op, folded, weights, window, spatial_size(op, x), groups)
    return reshape_like(op, result, x)


class Window:
    """The window of a convolution or a pooling: how it slides over the spatial axes."""

    def __init__(self, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int]) -> None:
        self.kernel = kernel
        self.strides = strides
        self.dilations = dilations
        self.pads = pads
        axes = len(kernel)
        self.starts, self.ends = pads[:axes], pads[axes:]

    @classmethod
    def of(cls, node: ir.Node, kernel: list[int | None] | None = None) -> Window:
        """Read a node's attributes; a convolution's kernel may only be known from its weights."""
        if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise UnsupportedCaseError(f"a {node.op_type} with auto_pad")
        sizes = ints(node, "kernel_shape", [size or 0 for size in kernel or []])
        if 0 in sizes:
            raise UnsupportedCaseError(f"a {node.op_type} whose kernel's size is only known at run time")
        axes = len(sizes)
        return cls(
            sizes,
            ints(node, "strides", [1] * axes),
            ints(node, "dilations", [1] * axes),
            ints(node, "pads", [0] * (2 * axes)),
        )

    @property
    def spans(self) -> list[int]:
        """How many places of the input a window reaches over, along each axis."""
        return [1 + dilation * (size - 1) for dilation, size in zip(self.dilations, self.kernel, strict=True)]

    def pads_of_flipped(self) -> list[int] | None:
        """Return the pads of the gradient's own convolution; None where it isn't one.

        It isn't where the stride is above 1, or where the pads are wider than the window.
        """
        if any(stride != 1 for stride in self.strides):
            return None
        pads = [span - 1 - pad for span, pad in zip(self.spans * 2, [*self.starts, *self.ends], strict=True)]
        return pads if all(pad >= 0 for pad in pads) else None


def fold_classes(op: Op, gradient: ir.Value, output: ir.Value) -> ir.Value:
    """Fold a gradient's classes into its batch, for operators that take one batch axis."""
    dims = static_dims(output)[1:]
    if None in dims:
        return op.Reshape(gradient, op.Concat([-1], op.Shape(output, start=1), axis=0))
    return op.Reshape(gradient, [-1, *dims])


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


def spatial_size(op: Op, x: ir.Value) -> list[int] | ir.Value:
    """Return a feature map's spatial size: a constant where it is known."""
    dims = [dim for dim in static_dims(x)[2:] if dim is not None]
    return dims if len(dims) == rank(x) - 2 else op.Shape(x, start=2)
