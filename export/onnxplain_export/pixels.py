"""Pictures as a file's input: `onnxplain.preprocessing` as nodes, and the heatmap laid where the crop lay.

Sizes and places are whole numbers, and are computed as such: on every engine they are the runtime's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.errors import SourceError
from onnxplain.manifest import Preprocessing
from onnxplain_export.heatmap import Weights, as_float, weights_at
from onnxplain_export.rules.registry import Op

#: The value that the network takes, in files whose `image` is a picture.
NORMALISED = "normalised_image"

SPACE = [2, 3]
# More than a sum of levels is off by: a half is rounded up on every engine, in whatever order it adds.
_ROUNDING = 2.0**-9
# Attributes of Resize. Pillow's filters leave taps beyond the edge out.
_FILTERS: Mapping[str, Mapping[str, Any]] = {
    "bilinear": {"mode": "linear"},
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
}


def check_takes_pixels(spec: Preprocessing, *, any_size: bool) -> None:
    """Check that a network can take pictures as they are.

    Raises
    ------
    SourceError
        It can't.
    """
    if any_size:
        raise SourceError(
            "pixels and a dynamic size don't go together: pictures of any size are brought to the network's; "
            "leave one of the two out"
        )
    if spec.color == "L":
        raise SourceError(
            "pixels are RGB, and the network takes grey pictures; leave the pixels out, or put a layer that "
            "makes grey of RGB before the model"
        )


@dataclass(frozen=True)
class Picture:
    """The picture that a file takes, and what becomes of it: whole numbers [2], for rows and columns."""

    spec: Preprocessing
    value: ir.Value
    """Uint8 [batch, height, width, 3]."""
    size: ir.Value
    resized: ir.Value
    """The size after the resize."""
    offset: ir.Value
    """Where the crop begins in what was resized: below 0 where it reaches beyond it."""
    crop: ir.Value
    """The size of the crop."""

    @classmethod
    def of(cls, op: Op, name: str, spec: Preprocessing) -> Picture:
        """Make an input of pictures, and emit how they are resized and cropped."""
        value = ir.val(name, dtype=ir.DataType.UINT8, shape=["batch", "height", "width", 3])
        size = op.Shape(value, start=1, end=3)
        if isinstance(spec.resize, int):
            # An empty picture is no number to divide by: some engines would stop the program.
            shorter = op.Max(op.ReduceMin(size, [0], keepdims=1), [1])
            resized = op.Div(op.Mul(size, spec.resize), shorter)
        else:
            resized = op.Constant(value_ints=spec.resize or (spec.height, spec.width))
        crop = op.Constant(value_ints=[spec.height, spec.width])
        return cls(spec, value, size, resized, _crop_offset(op, resized, crop), crop)

    def normalised(self, op: Op) -> ir.Value:
        """Emit what the network takes: float32 [batch, 3, height, width]."""
        spec = self.spec
        planes = op.Transpose(self.value, perm=[0, 3, 1, 2])
        if spec.color == "BGR":
            planes = op.Gather(planes, [2, 1, 0], axis=1)
        if spec.interpolation == "nearest":
            for side, axis in enumerate(SPACE):
                planes = op.Gather(planes, self._nearest(op, side), axis=axis)
            levels = as_float(op, planes)
        else:
            levels = self._filtered_down(op, self._filtered_across(op, planes))
        if _may_be_smaller(spec):
            first, last = self._kept(op)
            levels = _padded(op, levels, op.Sub(first, self.offset), op.Sub(self._end(op), last))
        mean, std = (np.array(numbers).reshape(3, 1, 1) for numbers in (spec.mean, spec.std))
        scale, shift = (numbers.astype(np.float32) for numbers in (1 / (255 * std), -mean / std))
        return op.Add(
            op.Mul(levels, op.Constant(value=ir.tensor(scale))), op.Constant(value=ir.tensor(shift))
        )

    def _filtered_across(self, op: Op, planes: ir.Value) -> ir.Value:
        """Emit the columns that the crop keeps, resized across: uint8 [batch, 3, height, columns].

        Whole levels again after each direction, as Pillow has them. All four sizes: with axes, onnxruntime
        1.32 fails as it moves the Transpose past the Resize.
        """
        width = _at(op, self.resized, 1)
        sizes = op.Concat(op.Shape(planes, end=3), width, axis=0)
        kind = _FILTERS[self.spec.interpolation]
        resized = op.Resize(planes, None, None, sizes, antialias=1, exclude_outside=1, **kind)
        first, last = (_at(op, edge, 1) for edge in self._kept(op))
        return op.Slice(resized, first, last, [SPACE[1]])

    def _filtered_down(self, op: Op, planes: ir.Value) -> ir.Value:
        """Emit the rows that the crop keeps, of columns resized down: whole levels, float32.

        By a product with the filter's weights, and not by Resize: that would make all rows first, and of a
        picture a few pixels wide there are millions.
        """
        height, resized = _at(op, self.size, 0), _at(op, self.resized, 0)
        rows = op.Range(*(_of(op, edge, 0) for edge in self._kept(op)), 1)
        inputs = op.Range(0, _of(op, self.size, 0), 1)
        # How far an input's centre lies from an output's, in taps: whole numbers until the end.
        from_output = op.Sub(
            op.Mul(_centres(op, inputs), resized), op.Unsqueeze(op.Mul(_centres(op, rows), height), [1])
        )
        tap = op.Mul(op.Max(height, resized), 2)
        weights = _KERNELS[self.spec.interpolation](
            op, op.Abs(op.Div(as_float(op, from_output), as_float(op, tap)))
        )
        weights = op.Div(weights, op.ReduceSum(weights, [1], keepdims=1))
        levels = op.MatMul(weights, as_float(op, planes))
        return op.Clip(op.Floor(op.Add(levels, 0.5 + _ROUNDING)), 0.0, 255.0)

    def _nearest(self, op: Op, side: int) -> ir.Value:
        """Emit the picture's pixel under the centre of each that the crop keeps."""
        numbers = op.Range(*(_of(op, edge, side) for edge in self._kept(op)), 1)
        size, resized = _of(op, self.size, side), _of(op, self.resized, side)
        return op.Div(op.Mul(_centres(op, numbers), size), op.Mul(resized, 2))

    def _end(self, op: Op) -> ir.Value:
        return op.Add(self.offset, self.crop)

    def _kept(self, op: Op) -> tuple[ir.Value, ir.Value]:
        """Emit the first of the resized pixels that the crop keeps, and those after the last."""
        return op.Max(self.offset, [0, 0]), op.Min(self.resized, self._end(op))

    def _seen(self, op: Op) -> tuple[ir.Value, ir.Value]:
        """Emit the first of the picture's pixels whose centres the crop holds, and those after the last."""
        return self._after(op, self.offset), op.Min(self.size, self._after(op, self._end(op)))

    def _after(self, op: Op, edge: ir.Value) -> ir.Value:
        """Emit the first pixel whose centre lies behind an edge of the crop.

        The edge e lies at e size / resized of the picture, so that pixel i + 1/2 is the first behind it for
        i = ceil((2 e size - resized) / (2 resized)).
        """
        double = op.Mul(self.resized, 2)
        position = op.Sub(op.Mul(op.Mul(edge, self.size), 2), self.resized)
        return op.Div(op.Add(op.Max(position, [0, 0]), op.Sub(double, 1)), double)

    def weights(self, op: Op) -> tuple[Weights, Weights]:
        """Return the weights of maps that cover the crop, at the picture's pixels in it."""

        def along(side: int) -> Weights:
            shares, axis = self._shares(op, side), SPACE[side]
            return lambda map_: weights_at(op, shares, op.Shape(map_, start=axis, end=axis + 1))

        return along(0), along(1)

    def _shares(self, op: Op, side: int) -> ir.Value:
        """Emit how far along the crop the centre of each pixel in it lies, in parts of 1."""
        numbers = op.Range(*(_of(op, edge, side) for edge in self._seen(op)), 1)
        size, resized, offset, crop = (
            _of(op, vector, side) for vector in (self.size, self.resized, self.offset, self.crop)
        )
        along = op.Sub(op.Mul(_centres(op, numbers), resized), op.Mul(op.Mul(offset, size), 2))
        extent = op.Mul(op.Mul(crop, size), 2)
        return op.Div(as_float(op, along), as_float(op, extent))

    def placed(self, op: Op, heat: ir.Value) -> ir.Value:
        """Emit heatmaps as large as the picture: 0 where the network saw nothing of it."""
        first, last = self._seen(op)
        return _padded(op, heat, first, op.Sub(self.size, last))


def _padded(op: Op, value: ir.Value, before: ir.Value, after: ir.Value) -> ir.Value:
    """Emit zeros around rows and columns.

    The pads of all axes: with axes, onnxruntime 1.32 fails as it moves a Transpose past the Pad.
    """
    return op.Pad(value, op.Concat([0, 0], before, [0, 0], after, axis=0), 0.0)


def _of(op: Op, vector: ir.Value, side: int) -> ir.Value:
    """Emit the number of one side."""
    return op.Gather(vector, side, axis=0)


def _at(op: Op, vector: ir.Value, side: int) -> ir.Value:
    """Emit the number of one side, [1]."""
    return op.Gather(vector, [side], axis=0)


def _centres(op: Op, numbers: ir.Value) -> ir.Value:
    """Emit twice the centres of pixels, which are whole numbers."""
    return op.Add(op.Mul(numbers, 2), 1)


def _triangle(op: Op, distance: ir.Value) -> ir.Value:
    return op.Relu(op.Sub(1.0, distance))


def _cubic(op: Op, distance: ir.Value) -> ir.Value:
    """Emit Keys' cubic convolution kernel with a = -0.5, Pillow's."""
    near = op.Add(op.Mul(op.Mul(op.Sub(op.Mul(distance, 1.5), 2.5), distance), distance), 1.0)
    far = op.Sub(op.Mul(op.Mul(op.Sub(distance, 5.0), distance), distance), op.Mul(distance, -8.0))
    far = op.Mul(op.Sub(far, 4.0), -0.5)
    beyond = op.Where(op.Less(distance, 2.0), far, 0.0)
    return op.Where(op.Less(distance, 1.0), near, beyond)


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}


def _crop_offset(op: Op, resized: ir.Value, crop: ir.Value) -> ir.Value:
    """Emit where a centre crop begins; of two pixels in the middle torchvision takes the even one."""
    margin = op.Sub(resized, crop)
    half = op.Mul(as_float(op, margin), 0.5)
    offset = op.Where(op.Less(margin, 0), op.Ceil(half), op.Round(half))
    return op.Cast(offset, to=ir.DataType.INT64)


def _may_be_smaller(spec: Preprocessing) -> bool:
    """Say whether there are pictures that the resize leaves smaller than the crop."""
    if spec.resize is None:
        return False
    height, width = (spec.resize, spec.resize) if isinstance(spec.resize, int) else spec.resize
    return height < spec.height or width < spec.width
