"""Convolutions: the data gradient of one is a transposed one with the same weights, and the reverse."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxplain_export.graph import constant, ints, operand, rank, static_dims
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, vjp
from onnxplain_export.rules.shapes import fold_classes, reshape_like


@vjp("Conv")
def conv(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x * w + b: dx = g * w transposed (Dumoulin and Visin 2016, section 4), db = the sum of g."""
    if wrt == 1:
        raise UnsupportedCaseError("a Conv whose weights depend on the layer")
    if wrt == 2:
        return _bias_gradient(op, node, gradient)
    x, weights = operand(node, 0), operand(node, 1)
    window = Window.of(node, kernel=static_dims(weights)[2:])
    groups = node.attributes.get_int("group", 1)
    folded = fold_classes(op, gradient, node.outputs[0])
    flipped_pads = window.pads_of_flipped()
    kernel = constant(weights)
    if kernel is not None and flipped_pads is not None and _is_faster_flipped(kernel, groups):
        flipped = _flipped_weights(op, node, kernel, groups)
        result = op.Conv(folded, flipped, dilations=window.dilations, pads=flipped_pads, group=groups)
    else:
        result = transposed_conv(op, folded, weights, window, spatial_size(op, x), groups)
    return reshape_like(op, result, x)


@vjp("ConvTranspose")
def conv_transpose(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = x * w transposed, + b: dx = g * w, of the same weights and strides, db = the sum of g."""
    if wrt == 1:
        raise UnsupportedCaseError("a ConvTranspose whose weights depend on the layer")
    if wrt == 2:
        return _bias_gradient(op, node, gradient)
    x, weights = operand(node, 0), operand(node, 1)
    window = Window.of_transposed(node, kernel=static_dims(weights)[2:])
    result = op.Conv(
        fold_classes(op, gradient, node.outputs[0]),
        weights,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        group=node.attributes.get_int("group", 1),
    )
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
        window = cls._unpadded(node, kernel)
        auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
        if auto_pad == "VALID":
            return window
        if auto_pad == "NOTSET":
            return window._padded(ints(node, "pads", window.pads))
        # Such padding lets the windows begin at every stride-th place.
        excess = [
            (-(-size // stride) - 1) * stride + span - size
            for size, stride, span in zip(_known_size(node), window.strides, window.spans, strict=True)
        ]
        return window._padded(_shared_pads(excess, auto_pad == "SAME_UPPER"))

    @classmethod
    def of_transposed(cls, node: ir.Node, kernel: list[int | None]) -> Window:
        """Read a ConvTranspose's attributes; its pads are what is cut off."""
        window = cls._unpadded(node, kernel)
        axes = len(window.kernel)
        auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
        shape, spare = ints(node, "output_shape", []), ints(node, "output_padding", [0] * axes)
        if shape:
            excess = [
                stride * (size - 1) + extra + span - length
                for size, stride, extra, span, length in zip(
                    _known_size(node), window.strides, spare, window.spans, shape[-axes:], strict=True
                )
            ]
        elif auto_pad.startswith("SAME"):
            # The output is the stride times as large as the input, whatever the input's size.
            excess = [
                extra + span - stride
                for stride, extra, span in zip(window.strides, spare, window.spans, strict=True)
            ]
        else:
            return window._padded(ints(node, "pads", window.pads))
        return window._padded(_shared_pads(excess, auto_pad == "SAME_UPPER"))

    @classmethod
    def _unpadded(cls, node: ir.Node, kernel: list[int | None] | None) -> Window:
        sizes = ints(node, "kernel_shape", [size or 0 for size in kernel or []])
        if not sizes or 0 in sizes:
            raise UnsupportedCaseError(f"a {node.op_type} whose kernel's size is only known at run time")
        axes = len(sizes)
        strides, dilations = ints(node, "strides", [1] * axes), ints(node, "dilations", [1] * axes)
        return cls(sizes, strides, dilations, [0] * (2 * axes))

    def _padded(self, pads: list[int]) -> Window:
        return Window(self.kernel, self.strides, self.dilations, pads)

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


def _known_size(node: ir.Node) -> list[int]:
    """Return the spatial size of a node's input, on which its padding depends."""
    sizes = [size for size in static_dims(operand(node, 0))[2:] if size is not None]
    if len(sizes) != rank(operand(node, 0)) - 2:
        raise UnsupportedCaseError(
            f"a {node.op_type} that pads by a size that is only known at run time "
            "(export with a fixed height and width)"
        )
    return sizes


def _shared_pads(excess: list[int], is_upper: bool) -> list[int]:
    """Divide each axis's padding between its two ends; the end gets the odd place of upper padding."""
    totals = [max(0, total) for total in excess]
    smaller = [total // 2 for total in totals]
    larger = [total - half for total, half in zip(totals, smaller, strict=True)]
    return [*smaller, *larger] if is_upper else [*larger, *smaller]


def _is_faster_flipped(kernel: npt.NDArray[np.generic], groups: int) -> bool:
    """Say whether onnxruntime runs the data gradient faster as a Conv of flipped weights.

    It does but for a 1x1 that goes from many channels back to few, where ConvTranspose is a bare matrix
    product. Milliseconds of ConvTranspose and Conv in onnxruntime 1.32, 2 threads, batch 1 (lower quartiles):

        3x3  512 to 512, 7x7    1.37  1.16      1x1  512 to 2048, 7x7    0.66  0.41
        3x3  256 to 256, 14x14  1.05  0.92      1x1  256 to 1024, 14x14  0.50  0.29
        3x3   64 to 64, 56x56   1.14  0.94      1x1  2048 to 512, 7x7    0.43  0.44
        3x3  960 groups, 7x7    0.22  0.04      1x1  1024 to 256, 14x14  0.31  0.45

    With a stride, ConvTranspose is faster than zeros put between (1.4 against 4.2 for 3x3, 256 to 256,
    14x14 to 28x28), and about as fast as one convolution for each phase (1.3).
    """
    channels_out, channels_in = len(kernel), kernel.shape[1] * groups
    return groups > 1 or kernel[0, 0].size > 1 or channels_in >= channels_out


def _flipped_weights(op: Op, node: ir.Node, kernel: npt.NDArray[np.generic], groups: int) -> ir.Value:
    """Return weights with the kernel flipped and, in each group, its channels swapped: made once a graph."""
    assert node.graph is not None
    name = f"{operand(node, 1).name}.flipped.{groups}"
    known = node.graph.initializers.get(name)
    if known is not None:
        return known
    size = kernel.shape[2:]
    grouped = kernel.reshape(groups, len(kernel) // groups, kernel.shape[1], *size)
    swapped = grouped.swapaxes(1, 2).reshape(-1, len(kernel) // groups, *size)
    flipped = np.flip(swapped, axis=tuple(range(2, swapped.ndim)))
    return op.initializer(ir.tensor(np.ascontiguousarray(flipped), name=name))


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


def spatial_size(op: Op, x: ir.Value) -> list[int] | ir.Value:
    """Return a feature map's spatial size: a constant where it is known."""
    dims = [dim for dim in static_dims(x)[2:] if dim is not None]
    return dims if len(dims) == rank(x) - 2 else op.Shape(x, start=2)
