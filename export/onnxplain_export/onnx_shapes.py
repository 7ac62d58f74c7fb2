"""Make every shape in a graph as known as it can be: by inference, and by runs where that stops."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxplain_export.graph import is_float, operand
from onnxplain_export.onnx_session import run_graph
from onnxplain_export.reference_graph import Array
from onnxplain_export.rules.windows import Window, known_spatial_size, rounds_up


def infer_shapes(model: ir.Model) -> None:
    """Infer types and shapes with onnx, as far as it can."""
    _infer(model)
    while _drop_idle_ceil_modes(model.graph):
        for node in model.graph:
            for value in node.outputs:
                value.shape = None
        _infer(model)


def _infer(model: ir.Model) -> None:
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    finally:
        logger.setLevel(level)


def _drop_idle_ceil_modes(graph: ir.Graph) -> bool:
    """Drop the `ceil_mode` of poolings where it has no effect, and say whether there were any.

    onnx's inference would count a window more there: one that begins behind the input, and so is none. Where
    it has an effect along some axes, the padding that no window reaches is taken away along the others.
    """
    found = False
    for node in graph:
        if node.op_type not in ("AveragePool", "LpPool", "MaxPool") or not rounds_up(node):
            continue
        size = known_spatial_size(operand(node, 0))
        if size is None:
            continue
        window = Window.of(node)
        idle = [
            up == down
            for up, down in zip(window.counts(size, rounds_up=True), window.counts(size), strict=True)
        ]
        unread = window.unread(size)
        ends = [
            end - spare if is_idle and spare <= end else end
            for end, spare, is_idle in zip(window.ends, unread, idle, strict=True)
        ]
        if all(idle):
            node.attributes.pop("ceil_mode")
        elif ends != window.ends:
            node.attributes["pads"] = ir.AttrInt64s("pads", [*window.starts, *ends])
        else:
            continue
        found = True
    return found


def complete_shapes(model: ir.Model, batches: Sequence[Array]) -> None:
    """Fill in the types and dimensions that inference leaves open, from a run of each of some batches.

    A dimension that is the same in all of them is static, so they differ in what is dynamic.
    """
    open_values = [
        value
        for node in model.graph
        for value in node.outputs
        if value.name and (value.dtype is None or (is_float(value) and _is_open(value)))
    ]
    if not open_values:
        return
    names = [str(value.name) for value in open_values]
    feed = str(model.graph.inputs[0].name)
    runs = [run_graph(model, names, {feed: images}) for images in batches]
    for value, name in zip(open_values, names, strict=True):
        arrays = [run[name] for run in runs]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            continue
        value.dtype = ir.DataType.from_numpy(arrays[0].dtype)
        if len({array.ndim for array in arrays}) == 1:
            sizes = zip(*(array.shape for array in arrays), strict=True)
            value.shape = ir.Shape(
                [
                    dims[0] if len(set(dims)) == 1 else "batch" if dims == tuple(map(len, batches)) else None
                    for dims in sizes
                ]
            )


def _is_open(value: ir.Value) -> bool:
    if value.shape is None:
        return True
    return any(not isinstance(dim, int) and dim.value != "batch" for dim in value.shape)
