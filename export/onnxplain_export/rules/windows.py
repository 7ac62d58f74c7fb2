"""The windows of convolutions and poolings: how they slide over the spatial axes, and what they pad."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import ints, operand, rank, static_dims
from onnxplain_export.rules.registry import Op, UnsupportedCaseError, constant_like


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
            for size, stride, span in zip(_size_padded(node), window.strides, window.spans, strict=True)
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
                    _size_padded(node), window.strides, spare, window.spans, shape[-axes:], strict=True
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

    def unread(self, size: Sequence[int]) -> list[int]:
        """Return how many places at each axis's end no window reaches."""
        return [
            (length + start + end - span) % stride
            for length, span, stride, start, end in zip(
                size, self.spans, self.strides, self.starts, self.ends, strict=True
            )
        ]

    def counts(self, size: Sequence[int], *, rounds_up: bool = False) -> list[int]:
        """Return how many windows there are along each axis of an input of some spatial size.

        Parameters
        ----------
        rounds_up
            A last window may reach beyond the padding, as `ceil_mode` has it; but one that would begin behind
            the input is none, neither in onnxruntime nor in PyTorch. onnx's shape inference counts it.
        """
        numbers = []
        for length, span, stride, start, end in zip(
            size, self.spans, self.strides, self.starts, self.ends, strict=True
        ):
            room = length + start + end - span
            number = 1 + room // stride
            if rounds_up and room % stride and number * stride < length + start:
                number += 1
            numbers.append(number)
        return numbers


def rounds_up(node: ir.Node) -> bool:
    """Say whether a pooling's last window may reach beyond its padding."""
    return bool(node.attributes.get_int("ceil_mode", 0))


def _size_padded(node: ir.Node) -> list[int]:
    """Return the spatial size of a node's input, on which its padding depends."""
    sizes = known_spatial_size(operand(node, 0))
    if sizes is None:
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


def blocks_of(op: Op, maps: ir.Value, window: Window, like: ir.Value) -> ir.Value:
    """Return the blocks of maps [count, 1, *size] that windows read, [count, places of a window, *windows].

    They are cut out by a convolution with a kernel for each place of a window: a one there, zeros around it.
    """
    kernels = np.eye(math.prod(window.kernel)).reshape(-1, 1, *window.kernel)
    return op.Conv(
        maps,
        constant_like(op, kernels, like),
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
    )


def known_spatial_size(x: ir.Value) -> list[int] | None:
    """Return a feature map's spatial size, None where it is only known at run time."""
    dims = [dim for dim in static_dims(x)[2:] if dim is not None]
    return dims if len(dims) == rank(x) - 2 else None


def spatial_size(op: Op, x: ir.Value) -> list[int] | ir.Value:
    """Return a feature map's spatial size: a constant where it is known."""
    known = known_spatial_size(x)
    return op.Shape(x, start=2) if known is None else known
