"""What each opset up to the design's changed: adapters that raise a node by one opset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxplain_export.opset_nodes import Adapter, Emitter

_RAISE: dict[tuple[str, int], Adapter] = {}


def _raises(opset: int, *op_types: str) -> Callable[[Adapter], Adapter]:
    def register(adapter: Adapter) -> Adapter:
        for op_type in op_types:
            _RAISE[op_type, opset] = adapter
        return adapter

    return register


def raise_node(op: Emitter, opset: int) -> None:
    """Replace a node of the opset before by its form in this one."""
    adapter = None if op.node.domain else _RAISE.get((op.node.op_type, opset))
    if adapter is None:
        op.keep()
    else:
        adapter(op)


def _attribute_to_input(name: str, index: int) -> Adapter:
    """Return an adapter of an integer attribute, a number or a list, that became an input."""

    def adapt(op: Emitter) -> None:
        value = op.take(name)
        if value is not None:
            op.set_input(index, op.constant(value))
        op.keep()

    return adapt


@_raises(9, "BatchNormalization")
def _batch_normalization_9(op: Emitter) -> None:
    if op.take("spatial", 1) != 1:
        raise op.refused("its statistics are those of single pixels (spatial=0)")
    op.keep()


@_raises(9, "Upsample")
def _upsample_9(op: Emitter) -> None:
    op.set_input(1, op.constant(op.take("scales"), np.float32))
    op.keep()


@_raises(9, "Scan")
def _scan_9(op: Emitter) -> None:
    raise op.refused("this form of Scan is gone; export the model at opset 9 or newer")


@_raises(10, "Upsample")
def _upsample_10(op: Emitter) -> None:
    op.node.op_type = "Resize"
    op.keep()


@_raises(10, "TopK")
def _top_k_10(op: Emitter) -> None:
    op.set_input(1, op.constant([op.take("k")]))
    op.keep()


@_raises(10, "Slice")
def _slice_10(op: Emitter) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), start=1):
        value = op.take(name)
        if value is not None:
            op.set_input(index, op.constant(value))
    op.keep()


@_raises(11, "Clip")
def _clip_11(op: Emitter) -> None:
    for index, name in enumerate(("min", "max"), start=1):
        value = op.take(name)
        if value is not None:
            op.set_input(index, op.constant_like(value, op.input(0)))
    op.keep()


@_raises(11, "Pad")
def _pad_11(op: Emitter) -> None:
    op.set_input(1, op.constant(op.take("pads")))
    value = op.take("value", 0.0)
    if value:
        op.set_input(2, op.constant_like(value, op.input(0)))
    op.keep()


@_raises(11, "Resize")
def _resize_11(op: Emitter) -> None:
    """Before opset 11 pixels were aligned at their corners, and the nearest one was that before."""
    op.set_input(2, op.input(1))
    op.set_input(1, "")
    op.set("coordinate_transformation_mode", "asymmetric")
    op.set("nearest_mode", "floor")
    op.keep()


@_raises(11, "Scatter")
def _scatter_11(op: Emitter) -> None:
    op.node.op_type = "ScatterElements"
    op.keep()


@_raises(12, "Dropout")
def _dropout_12(op: Emitter) -> None:
    # Only training reads the ratio.
    op.take("ratio")
    op.keep()


@_raises(13, "Softmax", "LogSoftmax", "Hardmax")
def _softmax_13(op: Emitter) -> None:
    """Flatten what the old form is over, all axes from the given one on: the new one is over one alone."""
    axis, rank = op.take("axis", 1), op.rank(op.input(0))
    if axis == -1 or (rank is not None and axis == rank - 1):
        op.set("axis", -1)
        op.keep()
        return
    data, output = op.input(0), str(op.node.output[0])
    (shape,) = op("Shape", data)
    (flat,) = op("Flatten", data, axis=axis)
    (result,) = op(op.node.op_type, flat, axis=-1)
    op("Reshape", result, shape, outputs=[output])


for _op_type in ("Squeeze", "Unsqueeze", "ReduceSum"):
    _RAISE[_op_type, 13] = _attribute_to_input("axes", 1)
_RAISE["Split", 13] = _attribute_to_input("split", 1)


@_raises(13, "Resize")
def _resize_13(op: Emitter) -> None:
    mode = op.attributes.get("coordinate_transformation_mode", b"half_pixel")
    if mode == b"tf_half_pixel_for_nn":
        raise op.refused("its pixels are placed as in tf_half_pixel_for_nn")
    # Inputs that weren't meant had to be given, empty; now they are left out.
    if mode != b"tf_crop_and_resize":
        op.set_input(1, "")
    if op.input(3):
        op.set_input(2, "")
    op.keep()


@_raises(14, "BatchNormalization")
def _batch_normalization_14(op: Emitter) -> None:
    if any(op.node.output[1:]):
        raise op.refused("it is in training mode; export the model in evaluation mode")
    op.keep()


@_raises(16, "RoiAlign")
def _roi_align_16(op: Emitter) -> None:
    op.set("coordinate_transformation_mode", "output_half_pixel")
    op.keep()


for _op_type in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"):
    _RAISE[f"Reduce{_op_type}", 18] = _attribute_to_input("axes", 1)


@_raises(18, "Split")
def _split_18(op: Emitter) -> None:
    if not op.input(1):
        op.set("num_outputs", len(op.node.output))
    op.keep()


@_raises(20, "GridSample")
def _grid_sample_20(op: Emitter) -> None:
    mode = op.attributes.get("mode", b"bilinear").decode()
    op.set("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))
    op.keep()


@_raises(20, "DFT")
def _dft_20(op: Emitter) -> None:
    op.set_input(2, op.constant(op.take("axis", 1)))
    op.keep()
