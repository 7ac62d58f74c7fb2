"""Gradients that are zero but for some places along one axis: those of tokens, if the head reads but one.

Operators that compute each place by itself keep such a gradient: their rules then see the operator as it is
at those places, and none of the zeros is multiplied. Of the backward pass of a transformer's last block that
leaves a single token's, up to the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant_ints, operand, rank, static_dim, static_dims
from onnxplain_export.rules.placing import pad_axes
from onnxplain_export.rules.registry import Op

#: Of each input the axis along which a place of the output is a place of it; None where it is the same, whole
#: input for every place.
InputAxes = list[int | None]
#: ``axes(node, axis)`` returns them for an axis of the node's output, or None where places aren't apart.
AxesOf = Callable[[ir.Node, int], InputAxes | None]


@dataclass(frozen=True)
class Part:
    """A gradient that is zero but for places that stand one after another along an axis."""

    gradient: ir.Value
    """[classes, *shape], with those places alone."""
    whole: ir.Value
    """What it is the gradient of."""
    axis: int
    """The axis of it, counted from 0."""
    start: int
    size: int

    def dense(self, op: Op) -> ir.Value:
        """Return it written out, ``[classes, *whole.shape]``."""
        length = static_dim(self.whole, self.axis)
        assert length is not None
        widths = [self.start, length - self.start - self.size]
        return pad_axes(op, self.gradient, self.whole, widths, [self.axis])

    def is_beside(self, other: Part) -> bool:
        """Say whether another is of the same places."""
        return (self.whole, self.axis, self.start, self.size) == (
            other.whole,
            other.axis,
            other.start,
            other.size,
        )


def part_read(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> Part | None:
    """Return the gradient of what a Gather or Slice reads a small part of; None for any other node."""
    if wrt != 0 or node.op_type not in ("Gather", "Slice"):
        return None
    x, found = operand(node, 0), _gathered(node) if node.op_type == "Gather" else _sliced(node)
    length = None if found is None else static_dim(x, found[0])
    if found is None or length is None:
        return None
    axis, first, size = found
    # More is better left whole: the values that meet it would be copied for little.
    if not 0 < size <= length // 2:
        return None
    start = first % length
    if start + size > length:
        return None
    if rank(node.outputs[0]) < rank(x):
        gradient = op.Unsqueeze(gradient, [axis + 1])
    return Part(gradient, x, axis, start, size)


def _gathered(node: ir.Node) -> tuple[int, int, int] | None:
    """Return axis, first place and number of the places that a Gather reads, where they are neighbours."""
    x, indices = operand(node, 0), constant_ints(node.inputs[1])
    if not indices or rank(operand(node, 1)) > 1:
        return None
    if not np.array_equal(indices, np.arange(indices[0], indices[0] + len(indices))):
        return None
    return node.attributes.get_int("axis", 0) % rank(x), indices[0], len(indices)


def _sliced(node: ir.Node) -> tuple[int, int, int] | None:
    """Return axis, first place and number of the places that a Slice of one axis reads."""
    x = operand(node, 0)
    starts, ends, axes, steps = (
        _input_ints(node, index, default) for index, default in ((1, None), (2, None), (3, [0]), (4, [1]))
    )
    if starts is None or ends is None or len(starts) != 1 or not axes or steps != [1]:
        return None
    axis = axes[0] % rank(x)
    length = static_dim(x, axis)
    if length is None:
        return None
    start, end, _ = slice(starts[0], ends[0]).indices(length)
    return axis, start, end - start


def _input_ints(node: ir.Node, index: int, default: list[int] | None) -> list[int] | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return default if value is None else constant_ints(value)


@dataclass(frozen=True)
class PartNode:
    """A node as it is at a part of the places."""

    node: ir.Node
    """The operator on those parts; where its rule doesn't use the output, nobody does."""
    part: Part
    axes: InputAxes
    inputs: Sequence[ir.Value | None]
    """The whole inputs."""

    def returned(self, wrt: int, gradient: ir.Value) -> Part | ir.Value:
        """Return the gradient of a whole input, given that of its part.

        Where every place reads all of the input, that of the part is all there is: the others add zeros.
        """
        axis, whole = self.axes[wrt], self.inputs[wrt]
        if axis is None:
            return gradient
        assert whole is not None
        return replace(self.part, gradient=gradient, whole=whole, axis=axis)


def part_of_node(op: Op, node: ir.Node, part: Part) -> PartNode | None:
    """Return a node at the places of its output's gradient; None where its places aren't apart."""
    if node.op_type not in INPUT_AXES:
        return None
    axes = INPUT_AXES[node.op_type](node, part.axis)
    if axes is None or not _are_as_long(node, axes, part):
        return None

    def cut(value: ir.Value, axis: int) -> ir.Value:
        taken: ir.Value = op.Slice(value, [part.start], [part.start + part.size], [axis])
        return _described(taken, value, axis, part.size)

    inputs = [
        value if value is None or axis is None else cut(value, axis)
        for value, axis in zip(node.inputs, axes, strict=True)
    ]
    if node.op_type in _RESHAPES:
        inputs[1:] = [op.Shape(cut(node.outputs[0], part.axis))]
    operator = "Reshape" if node.op_type in _RESHAPES else node.op_type
    attributes = {} if node.op_type in _RESHAPES else dict(node.attributes)
    output: ir.Value = getattr(op, operator)(*inputs, **attributes)
    copy = _described(output, node.outputs[0], part.axis, part.size).producer()
    assert copy is not None
    copy.metadata_props.update(node.metadata_props)
    return PartNode(copy, part, axes, node.inputs)


def _are_as_long(node: ir.Node, axes: InputAxes, part: Part) -> bool:
    """Say whether the inputs' axes are known to be as long as the output's."""
    length = static_dim(part.whole, part.axis)
    return all(
        axis is None or (value is not None and static_dim(value, axis) == length)
        for value, axis in zip(node.inputs, axes, strict=True)
    )


def _described(part: ir.Value, whole: ir.Value, axis: int, size: int) -> ir.Value:
    """Note a part's type and shape: those of the whole but for one axis; and what else is noted on that."""
    assert whole.shape is not None
    part.meta.update(whole.meta)
    part.type = whole.type
    part.shape = ir.Shape([*whole.shape[:axis], size, *whole.shape[axis + 1 :]])
    return part


def _elementwise(node: ir.Node, axis: int) -> InputAxes | None:
    """Every input broadcasts: the axis is counted from the end."""
    return _broadcast(node, axis, list(node.inputs))


def _broadcast(node: ir.Node, axis: int, inputs: Sequence[ir.Value | None]) -> InputAxes | None:
    output = node.outputs[0]
    axes: InputAxes = []
    for value in inputs:
        own = -1 if value is None else axis - rank(output) + rank(value)
        length = 1 if value is None or own < 0 else static_dim(value, own)
        if length not in (1, static_dim(output, axis)):
            return None
        axes.append(None if length == 1 else own)
    return axes


def _matmul(node: ir.Node, axis: int) -> InputAxes | None:
    """Z = x y: a row of z is one of x, a column one of y, and matrices of a stack broadcast."""
    x, y, z = operand(node, 0), operand(node, 1), node.outputs[0]
    if rank(x) < 2 or rank(y) < 2:
        return None
    if axis == rank(z) - 2:
        return [rank(x) - 2, None]
    return [None, rank(y) - 1] if axis == rank(z) - 1 else _broadcast(node, axis, [x, y])


def _gemm(node: ir.Node, axis: int) -> InputAxes | None:
    """Z = a b + c: a row of z is one of a and of c."""
    if axis != 0 or bool(node.attributes.get_int("transA", 0)):
        return None
    rows = _broadcast(node, axis, list(node.inputs[2:]))
    return None if rows is None else [0, None, *rows]


def _normalised_behind(node: ir.Node, axis: int) -> InputAxes | None:
    """Of a LayerNormalization over the last axes, every place before them."""
    if axis >= _axis(node, operand(node, 0)):
        return None
    # Scale and bias may differ from place to place.
    others = _broadcast(node, axis, node.inputs[1:])
    return None if others is None or any(own is not None for own in others) else [axis, *others]


def _softmax(node: ir.Node, axis: int) -> InputAxes | None:
    return [axis] if axis != _axis(node, operand(node, 0)) else None


def _axis(node: ir.Node, x: ir.Value) -> int:
    return node.attributes.get_int("axis", -1) % rank(x)


def _reduced_elsewhere(node: ir.Node, axis: int) -> InputAxes | None:
    """Of a mean or sum over other axes that keeps them."""
    x, axes = operand(node, 0), constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if not axes or not node.attributes.get_int("keepdims", 1) or axis in [one % rank(x) for one in axes]:
        return None
    return [axis, None]


def _transposed(node: ir.Node, axis: int) -> InputAxes | None:
    axes = rank(operand(node, 0))
    return [node.attributes.get_ints("perm", list(reversed(range(axes))))[axis]]


def _kept_in_reshape(node: ir.Node, axis: int) -> InputAxes | None:
    """Of a reshape that leaves the axis as it is: as many elements stand behind it as before."""
    x = operand(node, 0)
    behind = _elements(static_dims(node.outputs[0])[axis:])
    for own in range(rank(x)):
        lengths = static_dims(x)[own:]
        if lengths[0] == static_dim(node.outputs[0], axis) and behind == _elements(lengths) is not None:
            return [own, *[None] * (len(node.inputs) - 1)]
    return None


def _elements(lengths: Sequence[int | None]) -> int | None:
    return None if None in lengths else int(np.prod([length or 0 for length in lengths]))


_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Reciprocal", "Exp", "Erf", "Abs"),
    *("Relu", "LeakyRelu", "Gelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Softplus", "Clip"),
    *("Identity", "Dropout", "Cast"),
)

INPUT_AXES: dict[str, AxesOf] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_RESHAPES, _kept_in_reshape),
    **dict.fromkeys(("ReduceMean", "ReduceSum"), _reduced_elsewhere),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "LayerNormalization": _normalised_behind,
    "Softmax": _softmax,
    "Transpose": _transposed,
}
"""The operators that compute places apart."""
