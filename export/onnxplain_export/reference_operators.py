"""Operators for onnx's reference evaluator, where its own are wrong, imprecise, or too slow for a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_max_pool, op_resize
from scipy.special import erf

from onnxplain_export import reference_recurrent
from onnxplain_export.quantised_numbers import along, dequantised
from onnxplain_export.reference_products import each, product

Array = npt.NDArray[Any]

# Its code has no types.
_MaxPool: Any = op_max_pool.MaxPool
_Resize: Any = op_resize.Resize


class GatherElements(OpRun):
    """The evaluator's own fails where the indexed axis is longer than numpy's `choose` can take."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Any, ...]:
        return (data[_element_places(indices, axis)],)


class GatherND(OpRun):
    """The evaluator's own is slow."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, batch_dims: int = 0) -> tuple[Any, ...]:
        rows: list[Any] = list(np.moveaxis(indices, -1, 0))
        batch: list[Any] = list(np.indices(indices.shape[:-1], sparse=True))[:batch_dims]
        return (data[tuple(batch + rows)],)


class ScatterElements(OpRun):
    """The evaluator's own is slow."""

    op_domain = ""

    def _run(
        self, data: Array, indices: Array, updates: Array, axis: int = 0, reduction: str | None = None
    ) -> tuple[Any, ...]:
        return (_scattered(data, _element_places(indices, axis), updates, reduction),)


class ScatterND(OpRun):
    """The evaluator's own is slow."""

    op_domain = ""

    def _run(
        self, data: Array, indices: Array, updates: Array, reduction: str | None = None
    ) -> tuple[Any, ...]:
        return (_scattered(data, tuple(np.moveaxis(indices, -1, 0)), updates, reduction),)


def _element_places(indices: Array, axis: int) -> tuple[Any, ...]:
    """Return index arrays for each element of `indices`: it stands at its own place but along one axis."""
    places: list[Any] = list(np.indices(indices.shape, sparse=True))
    places[axis] = indices
    return tuple(places)


def _scattered(data: Array, places: tuple[Any, ...], updates: Array, reduction: str | None) -> Array:
    result = data.copy()
    if reduction in (None, "none"):
        result[places] = updates
    else:
        functions: dict[str, Any] = {
            "add": np.add,
            "mul": np.multiply,
            "max": np.maximum,
            "min": np.minimum,
        }
        functions[reduction].at(result, places, updates)
    return result


class Erf(OpRun):
    """The evaluator's own rounds to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Any, ...]:
        return (erf(x).astype(x.dtype),)


class Gelu(OpRun):
    """The evaluator's own calls its own Erf."""

    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Any, ...]:
        if approximate == "tanh":
            cumulative = (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        else:
            cumulative = (1 + erf(x / math.sqrt(2))) / 2
        return ((x * cumulative).astype(x.dtype),)


class Conv(OpRun):
    """The evaluator's own gathers windows number by number, which takes longer than to multiply them."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Any, ...]:
        groups, kernel = attributes["group"], w.shape[2:]
        axes = _axes(x.shape[2:], {**attributes, "kernel_shape": kernel, "ceil_mode": 0})
        margins = [axis.margins for axis in axes]
        padded = np.pad(x, [(0, 0), (0, 0), *margins]) if np.any(margins) else x
        counts = [axis.count for axis in axes]
        kernels = w.reshape(groups, len(w) // groups, -1)
        result = np.empty((len(x), groups, len(w) // groups, math.prod(counts)), x.dtype)

        def convolve(image: Array, numbers: Array) -> None:
            windows = np.moveaxis(_sliding(numbers, axes), range(1, 1 + len(axes)), range(-len(axes), 0))
            np.matmul(kernels, windows.reshape(groups, kernels.shape[2], math.prod(counts)), out=image)

        each(convolve, result, padded)
        result = result.reshape(len(x), len(w), *counts)
        if b is not None:
            result += b.reshape(-1, *[1] * len(axes))
        return (result,)


class ConvTranspose(OpRun):
    """The evaluator's own is wrong where a group has several output channels, and slow."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Any, ...]:
        groups, kernel, size = attributes["group"], w.shape[2:], x.shape[2:]
        axes = len(kernel)
        strides, dilations = (attributes[name] or [1] * axes for name in ("strides", "dilations"))
        pads, spare = attributes["pads"] or [0] * (2 * axes), attributes["output_padding"] or [0] * axes
        full = [
            stride * (length - 1) + dilation * (width - 1) + 1 + extra
            for stride, length, dilation, width, extra in zip(
                strides, size, dilations, kernel, spare, strict=True
            )
        ]
        wanted = attributes["output_shape"]
        if wanted or (attributes["auto_pad"] or "").startswith("SAME"):
            wanted = wanted or [stride * length for stride, length in zip(strides, size, strict=True)]
            full = [max(lengths) for lengths in zip(full, wanted[-axes:], strict=True)]
            pads = _cut_to(full, wanted[-axes:], attributes["auto_pad"] == "SAME_UPPER")
        batch, channels = len(x), groups * w.shape[1]
        result = np.zeros((batch, channels, *full), dtype=x.dtype)
        columns = x.reshape(batch, groups, x.shape[1] // groups, math.prod(size))
        # Each place of the kernel adds its share to the places that the windows put it at.
        for place in np.ndindex(*kernel):
            weights = w[(..., *place)].reshape(groups, -1, w.shape[1]).swapaxes(1, 2)
            shares = product(weights, columns).reshape(batch, channels, *size)
            reached = tuple(
                slice(dilation * offset, dilation * offset + stride * (length - 1) + 1, stride)
                for dilation, offset, stride, length in zip(dilations, place, strides, size, strict=True)
            )
            result[(slice(None), slice(None), *reached)] += shares
        cut = tuple(
            slice(start, length - end)
            for start, end, length in zip(pads[:axes], pads[axes:], full, strict=True)
        )
        return (result[(slice(None), slice(None), *cut)] + (0 if b is None else b.reshape(-1, *[1] * axes)),)


class MatMul(OpRun):
    """The evaluator's own is slower where the machine is busy."""

    op_domain = ""

    def _run(self, a: Array, b: Array) -> tuple[Any, ...]:
        return (product(a, b),)


def _cut_to(full: Sequence[int], wanted: Sequence[int], is_upper: bool) -> list[int]:
    """Return how much a ConvTranspose is cut at its starts and ends, so that it has the wanted size."""
    totals = [length - size for length, size in zip(full, wanted, strict=True)]
    smaller = [total // 2 for total in totals]
    larger = [total - half for total, half in zip(totals, smaller, strict=True)]
    return [*smaller, *larger] if is_upper else [*larger, *smaller]


@dataclass(frozen=True)
class _Axis:
    """How a pooling's windows slide along one axis."""

    length: int
    kernel: int
    stride: int
    dilation: int
    start: int
    """Padding in front of the input."""
    end: int
    """Padding behind it that the attributes name; the last window of `ceil_mode` may reach further."""
    count: int

    @property
    def span(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    @property
    def margins(self) -> tuple[int, int]:
        """Padding such that no window reaches beyond it."""
        return self.start, max(0, (self.count - 1) * self.stride + self.span - self.length - self.start)


def _axes(size: Sequence[int], attributes: dict[str, Any]) -> list[_Axis]:
    """Read a pooling's attributes."""
    number = len(size)
    kernel, auto_pad = attributes["kernel_shape"], attributes["auto_pad"] or "NOTSET"
    strides, dilations = (attributes[name] or [1] * number for name in ("strides", "dilations"))
    pads = attributes["pads"] or [0] * (2 * number)
    axes = []
    for length, width, stride, dilation, start, end in zip(
        size, kernel, strides, dilations, pads[:number], pads[number:], strict=True
    ):
        span = dilation * (width - 1) + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            count = -(-length // stride)
            total = max(0, (count - 1) * stride + span - length)
            start, end = total // 2, total - total // 2
            if auto_pad == "SAME_LOWER":
                start, end = end, start
        else:
            room = length + start + end - span
            count = 1 + (-(-room // stride) if attributes["ceil_mode"] else room // stride)
            # A last window that begins behind the input is none.
            if attributes["ceil_mode"] and (count - 1) * stride >= length + start:
                count -= 1
        axes.append(_Axis(length, width, stride, dilation, start, end, count))
    return axes


def _windows(x: Array, axes: Sequence[_Axis], fill: float) -> Array:
    """Return the elements of each window, [..., *counts, elements]; what lies beyond the input is `fill`."""
    kept = [(0, 0)] * (x.ndim - len(axes))
    windows = _sliding(np.pad(x, [*kept, *(axis.margins for axis in axes)], constant_values=fill), axes)
    return windows.reshape(*windows.shape[: x.ndim], -1)


def _sliding(padded: Array, axes: Sequence[_Axis]) -> Array:
    """Return a view of the windows of something padded, [..., *counts, *kernel]."""
    places = tuple(range(padded.ndim - len(axes), padded.ndim))
    windows: Any = np.lib.stride_tricks.sliding_window_view(padded, [axis.span for axis in axes], axis=places)
    firsts = [slice(0, axis.stride * axis.count, axis.stride) for axis in axes]
    inside = [slice(None, None, axis.dilation) for axis in axes]
    result: Array = windows[(..., *firsts, *inside)]
    return result


class Col2Im(OpRun):
    """The evaluator's own is slow."""

    op_domain = ""

    def _run(self, x: Array, image_shape: Array, block_shape: Array, **attributes: Any) -> tuple[Any, ...]:
        size, block = [int(length) for length in image_shape], [int(length) for length in block_shape]
        axes = len(size)
        strides, dilations = (attributes[name] or [1] * axes for name in ("strides", "dilations"))
        pads = attributes["pads"] or [0] * (2 * axes)
        padded = [length + pads[axis] + pads[axis + axes] for axis, length in enumerate(size)]
        counts = [
            (length - dilation * (width - 1) - 1) // stride + 1
            for length, dilation, width, stride in zip(padded, dilations, block, strides, strict=True)
        ]
        channels = x.shape[1] // math.prod(block)
        columns = x.reshape(len(x), channels, *block, *counts)
        result = np.zeros((len(x), channels, *padded), dtype=x.dtype)
        # Each place of a block is added to the places that the blocks put it at.
        for place in np.ndindex(*block):
            reached = tuple(
                slice(dilation * offset, dilation * offset + stride * (count - 1) + 1, stride)
                for dilation, offset, stride, count in zip(dilations, place, strides, counts, strict=True)
            )
            result[(slice(None), slice(None), *reached)] += columns[(slice(None), slice(None), *place)]
        inside = tuple(slice(pads[axis], pads[axis] + length) for axis, length in enumerate(size))
        return (result[(slice(None), slice(None), *inside)],)


class MaxPool(_MaxPool):  # type: ignore[misc]
    """The evaluator's own gives wrong indices where the strides are 1, and is slow elsewhere."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Any, ...]:
        if not np.issubdtype(x.dtype, np.floating):
            result: tuple[Any, ...] = self._max_pool(x, **attributes)
            return result
        axes = _axes(x.shape[2:], attributes)
        windows = _windows(x, axes, -np.inf)
        places = windows.argmax(axis=-1)
        largest = np.take_along_axis(windows, places[..., None], axis=-1)[..., 0]
        if len(self.output) == 1:
            return (largest,)
        image, channel, *numbers = np.indices(places.shape)
        offsets = np.unravel_index(places, [axis.kernel for axis in axes])
        coordinates = [
            number * axis.stride - axis.start + axis.dilation * offset
            for number, axis, offset in zip(numbers, axes, offsets, strict=True)
        ]
        if not attributes["storage_order"]:
            return largest, np.ravel_multi_index((image, channel, *coordinates), x.shape)
        # Column-major: the first spatial axis runs fastest.
        shape = (*x.shape[:2], *reversed(x.shape[2:]))
        return largest, np.ravel_multi_index((image, channel, *reversed(coordinates)), shape)


class AveragePool(OpRun):
    """The evaluator's own takes a second for each ten thousand windows."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Any, ...]:
        axes = _axes(x.shape[2:], attributes)
        inside = np.ones(x.shape[2:], x.dtype)
        if attributes["count_include_pad"]:
            # The named padding counts, but not what the last window of ceil_mode reaches beyond it.
            inside = np.pad(inside, [(axis.start, axis.end) for axis in axes], constant_values=1)
            sizes: tuple[int, ...] = inside.shape
            beyond = [replace(axis, length=size, start=0) for axis, size in zip(axes, sizes, strict=True)]
            counts = _windows(inside, beyond, 0).sum(axis=-1)
        else:
            counts = _windows(inside, axes, 0).sum(axis=-1)
        return (_windows(x, axes, 0).sum(axis=-1) / counts,)


class LpPool(OpRun):
    """The evaluator's own is wrong where the last window of ceil_mode reaches beyond the input."""

    op_domain = ""

    def _run(self, x: Array, p: int = 2, **attributes: Any) -> tuple[Any, ...]:
        windows = _windows(np.abs(x) ** p, _axes(x.shape[2:], attributes), 0)
        return (windows.sum(axis=-1) ** (1 / p),)


class GlobalLpPool(OpRun):
    """The evaluator has none."""

    op_domain = ""

    def _run(self, x: Array, p: int = 2) -> tuple[Any, ...]:
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class GlobalMaxPool(OpRun):
    """The evaluator's own is wrong but for two spatial axes."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Any, ...]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class MaxUnpool(OpRun):
    """The evaluator's own counts the indices through another shape than the one that it is given.

    As onnxruntime does, and MaxPool, this one counts them through the output.
    """

    op_domain = ""

    def _run(
        self, x: Array, indices: Array, shape: Array | None = None, **attributes: Any
    ) -> tuple[Any, ...]:
        if shape is None:
            kernel = attributes["kernel_shape"]
            number = len(kernel)
            strides, pads = attributes["strides"] or [1] * number, attributes["pads"] or [0] * (2 * number)
            size = [
                (length - 1) * stride + width - start - end
                for length, stride, width, start, end in zip(
                    x.shape[2:], strides, kernel, pads[:number], pads[number:], strict=True
                )
            ]
            shape = np.array([*x.shape[:2], *size])
        result = np.zeros(math.prod(shape), x.dtype)
        result[indices.reshape(-1)] = x.reshape(-1)
        return (result.reshape(shape),)


class LpNormalization(OpRun):
    """The evaluator's own sums x instead of its absolute value for p = 1."""

    op_domain = ""

    def _run(self, x: Array, axis: int = -1, p: int = 2) -> tuple[Any, ...]:
        norm = (np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (1 / p)
        return (np.where(norm == 0, 0, x / norm).astype(x.dtype),)


class LRN(OpRun):
    """The evaluator's own takes the size of the batch for the number of channels."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Any, ...]:
        size = attributes["size"]
        margins = [(0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2)]
        squares: Any = np.lib.stride_tricks.sliding_window_view(np.pad(x * x, margins), size, axis=1)
        divisor = attributes["bias"] + attributes["alpha"] / size * squares.sum(axis=-1)
        return (x / divisor ** attributes["beta"],)


class MeanVarianceNormalization(OpRun):
    """The evaluator's own, the standard's definition, has a constant that is only float32."""

    op_domain = ""

    def _run(self, x: Array, axes: Sequence[int] = (0, 2, 3)) -> tuple[Any, ...]:
        mean, deviation = (measure(x, axis=tuple(axes), keepdims=True) for measure in (np.mean, np.std))
        return ((x - mean) / (deviation + 1e-9),)


class Pad(OpRun):
    """The evaluator's own takes no negative widths, which crop."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        pads: Array,
        value: Array | None = None,
        axes: Array | None = None,
        mode: str = "constant",
    ) -> tuple[Any, ...]:
        named = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
        widths = np.zeros((x.ndim, 2), np.int64)
        widths[list(named)] = np.reshape(pads, (2, -1)).T
        options: dict[str, Any] = {"mode": mode}
        if mode == "constant":
            options["constant_values"] = 0 if value is None or value.size == 0 else value.item()
        padded = np.pad(x, np.maximum(widths, 0), **options)
        inside = tuple(
            slice(max(-before, 0), length - max(-after, 0))
            for (before, after), length in zip(widths.tolist(), padded.shape, strict=True)
        )
        return (padded[inside],)


class Resize(_Resize):  # type: ignore[misc]
    """The evaluator's own fails for negative axes, and places the samples wrongly in two modes.

    Where corners are aligned it takes a scaled size before it is rounded down, and where PyTorch's half
    pixels are resized to a single one it looks half a pixel before the start.
    """

    op_domain = ""

    def _run(self, x: Array, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        _, scales, sizes = [*inputs, None, None, None][:3]
        mode = attributes["coordinate_transformation_mode"]
        policy = attributes["keep_aspect_ratio_policy"] or "stretch"
        axes = attributes.get("axes")
        attributes["axes"] = axes and [axis % x.ndim for axis in axes]
        if mode not in ("align_corners", "pytorch_half_pixel") or policy != "stretch":
            result: tuple[Any, ...] = super()._run(x, *inputs, **attributes)
            return result
        # One axis after the other; for a single place, the start is what aligned corners are.
        for place, axis in enumerate(attributes.pop("axes", None) or range(x.ndim)):
            scaled = sizes is None or not len(sizes)
            length = int(scales[place] * x.shape[axis]) if scaled else int(sizes[place])
            attributes["coordinate_transformation_mode"] = "align_corners" if length == 1 else mode
            if scaled and attributes["coordinate_transformation_mode"] == "pytorch_half_pixel":
                factors = np.ones(x.ndim)
                factors[axis] = scales[place]
                (x,) = super()._run(x, None, factors, None, **attributes)
            else:
                size = np.array(x.shape)
                size[axis] = length
                (x,) = super()._run(x, None, None, size, **attributes)
        return (x,)


class QuantizeLinear(OpRun):
    """Without the rounding, between whose steps nothing would change: what is left is the cut at the ends.

    So are the gradient rules, which go straight through.
    """

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, zero: Array | None = None, axis: int = 1, **attributes: Any
    ) -> tuple[Any, ...]:
        zero = np.zeros((), np.uint8) if zero is None else zero
        ends = np.iinfo(zero.dtype)
        return (np.clip(x / along(scale, x, axis) + along(zero, x, axis), ends.min, ends.max),)


class DequantizeLinear(OpRun):
    """The evaluator's own takes whole numbers alone, and computes in float32."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, zero: Array | None = None, axis: int = 1, **attributes: Any
    ) -> tuple[Any, ...]:
        return (dequantised(x, scale, zero, axis),)


OPERATORS = [
    AveragePool,
    Col2Im,
    Conv,
    ConvTranspose,
    DequantizeLinear,
    Erf,
    GatherElements,
    GatherND,
    Gelu,
    GlobalLpPool,
    GlobalMaxPool,
    LRN,
    LpNormalization,
    LpPool,
    MatMul,
    MaxPool,
    MaxUnpool,
    MeanVarianceNormalization,
    QuantizeLinear,
    Resize,
    ScatterElements,
    ScatterND,
    Pad,
    *reference_recurrent.OPERATORS,
]
