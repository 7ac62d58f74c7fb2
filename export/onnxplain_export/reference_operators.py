"""Operators for onnx's reference evaluator, where its own are wrong, imprecise, or too slow for a network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_max_pool

Array = npt.NDArray[Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])
# Its code has no types.
_MaxPool: Any = op_max_pool.MaxPool


class GatherElements(OpRun):
    """The evaluator's own fails where the indexed axis is longer than numpy's `choose` can take."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Any, ...]:
        return (np.take_along_axis(data, indices, axis=axis),)


class Erf(OpRun):
    """The evaluator's own rounds to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Any, ...]:
        return (_erf(x).astype(x.dtype),)


class Gelu(OpRun):
    """The evaluator's own calls its own Erf."""

    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Any, ...]:
        if approximate == "tanh":
            cumulative = (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        else:
            cumulative = (1 + _erf(x / math.sqrt(2))) / 2
        return ((x * cumulative).astype(x.dtype),)


class ConvTranspose(OpRun):
    """The evaluator's own is wrong where a group has several output channels, and slow.

    This one knows what the gradient rules emit: neither `output_shape` nor `auto_pad`.
    """

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
        batch, channels = len(x), groups * w.shape[1]
        result = np.zeros((batch, channels, *full), dtype=x.dtype)
        columns = x.reshape(batch, groups, x.shape[1] // groups, math.prod(size))
        # Each place of the kernel adds its share to the places that the windows put it at.
        for place in np.ndindex(*kernel):
            weights = w[(..., *place)].reshape(groups, -1, w.shape[1]).swapaxes(1, 2)
            shares = np.matmul(weights, columns).reshape(batch, channels, *size)
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


class MaxPool(_MaxPool):  # type: ignore[misc]
    """The evaluator's own gives wrong indices where the strides are 1, and is slow elsewhere."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Any, ...]:
        is_plain = attributes["auto_pad"] in (None, "NOTSET") and not attributes["storage_order"]
        if not is_plain or not np.issubdtype(x.dtype, np.floating):
            result: tuple[Any, ...] = self._max_pool(x, **attributes)
            return result
        kernel, size = attributes["kernel_shape"], x.shape[2:]
        axes = len(kernel)
        strides, dilations = (attributes[name] or [1] * axes for name in ("strides", "dilations"))
        pads = attributes["pads"] or [0] * (2 * axes)
        margins, spans, counts = [(0, 0), (0, 0)], [], []
        for length, width, stride, dilation, start, end in zip(
            size, kernel, strides, dilations, pads[:axes], pads[axes:], strict=True
        ):
            span = dilation * (width - 1) + 1
            room = length + start + end - span
            count = 1 + (-(-room // stride) if attributes["ceil_mode"] else room // stride)
            # A window that begins behind the input is none.
            if (count - 1) * stride >= length + start:
                count -= 1
            margins.append((start, max(0, (count - 1) * stride + span - length - start)))
            spans.append(span)
            counts.append(count)
        padded = np.pad(x, margins, constant_values=-np.inf)
        windows: Any = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + axes)))
        firsts = [slice(0, stride * count, stride) for stride, count in zip(strides, counts, strict=True)]
        inside = [slice(None, None, dilation) for dilation in dilations]
        windows = windows[(..., *firsts, *inside)].reshape(*x.shape[:2], *counts, -1)
        places = windows.argmax(axis=-1)
        largest = np.take_along_axis(windows, places[..., None], axis=-1)[..., 0]
        if len(self.output) == 1:
            return (largest,)
        image, channel, *numbers = np.indices(places.shape)
        coordinates = [
            number * stride - start + dilation * offset
            for number, stride, start, dilation, offset in zip(
                numbers, strides, pads[:axes], dilations, np.unravel_index(places, kernel), strict=True
            )
        ]
        return largest, np.ravel_multi_index((image, channel, *coordinates), x.shape)


OPERATORS = [ConvTranspose, Erf, GatherElements, Gelu, MaxPool]
