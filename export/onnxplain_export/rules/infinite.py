"""Gradients that may be infinite: where they come from, and what keeps a zero a zero there.

sqrt(x) has an infinite slope at 0. Behind a ReLU that zero is one that the ReLU made, through which no
gradient goes back; but 0 times infinity isn't a number. So a zero that stands for "not from here" must be
chosen, not multiplied by. A product is faster and as exact where all numbers are finite: which form it takes
is decided for each value, from the operators that stand between it and the logits.

A zero that is a number, as the slope of abs(x) at 0, is multiplied by, as in PyTorch: there the gradient is
no number either.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import constant, has_gradient, operand, upstream
from onnxplain_export.rules.registry import Op, constant_like

#: Under this key it is noted on a value that its gradient may be infinite.
_KEY = "onnxplain.infinite"
#: Their slopes have no bound, and Div's and Pow's neither. Those of a norm and of a normalisation that adds
#: something to the variance have one. An overflow isn't foreseen.
_UNBOUNDED = frozenset(
    ("Acos", "Acosh", "Asin", "Atanh", "Log", "LpNormalization", "Reciprocal", "ReduceLogSum", "Sqrt")
)


def note_infinite(graph: ir.Graph, logits: ir.Value) -> None:
    """Note on each value before the logits whether its gradient may be infinite."""
    sources = upstream([logits])
    for node in reversed(list(graph)):
        if sources.isdisjoint(node.outputs):
            continue
        if _is_unbounded(node) or any(map(may_be_infinite, node.outputs)):
            for value in node.inputs:
                if value is not None and has_gradient(value):
                    value.meta[_KEY] = True


def may_be_infinite(value: ir.Value) -> bool:
    """Say whether a value's gradient may be infinite, or not a number."""
    return _KEY in value.meta


def _is_unbounded(node: ir.Node) -> bool:
    """Say whether an operator's slope can be infinite."""
    if node.op_type == "Div":
        divisor = constant(node.inputs[1])
        return divisor is None or not divisor.all()
    if node.op_type == "Pow":
        exponents = constant(node.inputs[1])
        return exponents is None or any(number < 1 for number in exponents[exponents != 0].tolist())
    return node.op_type in _UNBOUNDED


def kept_where(op: Op, condition: ir.Value, gradient: ir.Value, y: ir.Value) -> ir.Value:
    """Return a gradient of the type of y, 0 where the condition doesn't hold.

    As a product where it is finite: onnxruntime's CPU provider takes longer for Where (in 1.32, at
    [256, 14, 14], twice as long for one class and four times for three).

    Parameters
    ----------
    y
        The output of the operator whose rule this is; of a quantiser, what it quantises.
    """
    if may_be_infinite(y):
        return op.Where(condition, gradient, 0.0)
    return op.Mul(gradient, op.Cast(condition, to=y.dtype))


def infinite_apart(
    op: Op,
    node: ir.Node,
    gradients: Sequence[ir.Value | None],
    rule: Callable[[Sequence[ir.Value | None]], ir.Value | None],
) -> ir.Value | None:
    """Apply a rule that multiplies by zeros which stand for nothing to gradients that may be infinite.

    A rule is linear in the gradients. It is applied to the finite part, to the places of what isn't finite,
    and to the signs there, as if these were classes more: what no such place reaches is finite.

    Parameters
    ----------
    gradients
        Those of the node's outputs, None for one that has none.
    """
    like = operand(node, 0)
    result = rule([None if gradient is None else _divided(op, gradient, like) for gradient in gradients])
    if result is None:
        return None
    classes = op.Shape(next(gradient for gradient in gradients if gradient is not None), start=0, end=1)
    bounds = [[0], classes, op.Mul(classes, [2]), op.Mul(classes, [3])]
    finite, reached, signs = (op.Slice(result, start, end, [0]) for start, end in itertools.pairwise(bounds))
    # Where several meet, infinity less infinity isn't a number.
    infinite = op.Mul(signs, constant_like(op, np.inf, like))
    return op.Where(op.Equal(reached, constant_like(op, 0.0, like)), finite, infinite)


def _divided(op: Op, gradient: ir.Value, like: ir.Value) -> ir.Value:
    """Return a gradient's finite part, ones where it isn't finite, and its signs there, as more classes."""
    is_finite = op.Less(op.Abs(gradient), constant_like(op, np.inf, like))
    parts = [
        op.Where(is_finite, gradient, 0.0),
        op.Cast(op.Not(is_finite), to=like.dtype),
        op.Where(is_finite, 0.0, op.Sign(gradient)),
    ]
    return op.Concat(*parts, axis=0)
