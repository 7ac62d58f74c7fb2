"""Evaluate a graph in float64 with onnx's reference evaluator: the arithmetic that verification relies on.

In float32 a directional derivative of a deep network drowns in rounding; in float64 it is exact to eight
digits and more, and every operator runs as the ONNX standard defines it, in plain numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_conv_transpose, op_max_pool

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


class GatherElements(OpRun):
    """The evaluator's own fails where the indexed axis is longer than numpy's `choose` can take."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Any, ...]:
        return (np.take_along_axis(data, indices, axis=axis),)


class Erf(OpRun):
    """The evaluator's own rounds to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Any, ...]:
        return (np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype),)


class ConvTranspose(op_conv_transpose.ConvTranspose):  # type: ignore[misc]
    """The evaluator's own is wrong where a group has several output channels, and slow."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Any, ...]:
        if attributes["output_shape"] is not None or attributes["auto_pad"] not in (None, "NOTSET"):
            return super()._run(x, w, b, **attributes)  # type: ignore[no-any-return]
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
        batch, outputs = len(x), groups * w.shape[1]
        result = np.zeros((batch, outputs, *full), dtype=x.dtype)
        columns = x.reshape(batch, groups, -1, math.prod(size))
        # Each place of the kernel adds its share to the places that the windows put it at.
        for place in np.ndindex(*kernel):
            weights = w[(..., *place)].reshape(groups, -1, w.shape[1]).swapaxes(1, 2)
            shares = np.matmul(weights, columns).reshape(batch, outputs, *size)
            reached = tuple(
                slice(dilation * offset, dilation * offset + stride * (length - 1) + 1, stride)
                for dilation, offset, stride, length in zip(dilations, place, strides, size, strict=True)
            )
            result[(..., *reached)] += shares
        cut = tuple(
            slice(start, length - end)
            for start, end, length in zip(pads[:axes], pads[axes:], full, strict=True)
        )
        result = result[(..., *cut)]
        return (result if b is None else result + b.reshape(-1, *[1] * axes),)


class MaxPool(op_max_pool.MaxPool):  # type: ignore[misc]
    """The evaluator's own returns wrong indices where the strides are 1, and is slow elsewhere."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Any, ...]:
        is_plain = attributes["auto_pad"] in (None, "NOTSET") and not attributes["storage_order"]
        if not is_plain or not np.issubdtype(x.dtype, np.floating):
            return self._max_pool(x, **attributes)  # type: ignore[no-any-return]
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
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + axes)))
        starts = [slice(0, stride * count, stride) for stride, count in zip(strides, counts, strict=True)]
        windows = windows[(..., *starts, *[slice(None, None, dilation) for dilation in dilations])]
        windows = windows.reshape(*x.shape[:2], *counts, -1)
        places = windows.argmax(axis=-1)
        largest = np.take_along_axis(windows, places[..., None], axis=-1)[..., 0]
        if len(self.output) == 1:
            return (largest,)
        image, channel, *firsts = np.indices(places.shape)
        offsets = np.unravel_index(places, kernel)
        coordinates = [
            first * stride - start + dilation * offset
            for first, stride, start, dilation, offset in zip(
                firsts, strides, pads[:axes], dilations, offsets, strict=True
            )
        ]
        return largest, np.ravel_multi_index((image, channel, *coordinates), x.shape)


# Where onnx's reference evaluator is wrong, imprecise, or too slow for a network.
OWN_OPERATORS = [ConvTranspose, Erf, GatherElements, MaxPool]


class Float64Graph:
    """A part of a graph, evaluated in float64.

    Parameters
    ----------
    model
        Where the part stands. It isn't changed.
    inputs, outputs
        Names of the values that the part starts and ends with.
    weights
        Widened weights by name, kept between the parts of one model; those that are missing are added.
    """

    def __init__(self, model: ir.Model, inputs: list[str], outputs: list[str], weights: Arrays) -> None:
        part = ir.convenience.extract(model.graph, inputs, outputs)
        self._outputs = outputs
        self._weights: Arrays = {}
        # As inputs the weights are widened once, and not copied into a protobuf message and out of it again.
        for name, value in list(part.initializers.items()):
            if name not in weights and value.const_value is not None:
                weights[name] = _widened(value.const_value.numpy())
            self._weights[name] = weights[name]
            del part.initializers[name]
            part.inputs.append(value)
        proto = ir.to_proto(ir.Model(part, ir_version=model.ir_version))
        self._evaluator = ReferenceEvaluator(_widen(proto), new_ops=OWN_OPERATORS)

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Evaluate the part; float32 inputs are widened, and outputs come by name."""
        wide = {name: _widened(array) for name, array in feeds.items()}
        with np.errstate(all="ignore"):
            results = self._evaluator.run(None, {**self._weights, **wide})
        return dict(zip(self._outputs, results, strict=True))


def _widened(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _widen(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Turn every float32 of a model without initializers into float64, in place."""
    graph = proto.graph
    # The inferred types of the values in between no longer hold, and the evaluator doesn't need them.
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                wide = numpy_helper.to_array(attribute.t).astype(np.float64)
                attribute.t.CopyFrom(numpy_helper.from_array(wide, attribute.t.name))
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    return proto
