"""Einsum: each gradient is an Einsum of the output's gradient and the other operands."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain_export.graph import operand, rank, static_dims
from onnxplain_export.rules.placing import numbers_to
from onnxplain_export.rules.registry import Op, constant_like, vjp
from onnxplain_export.rules.shapes import repeated
from onnxplain_export.rules.weights import apart


@vjp("Einsum", sparse=True)
def einsum(op: Op, node: ir.Node, wrt: int, gradient: ir.Value) -> ir.Value:
    """Y = the sum over products of elements: dx = the same sum with g in the place of x.

    Broadcasting is undone here.
    """
    operands = [operand(node, index) for index in range(len(node.inputs))]
    terms, result = _parsed(node.attributes["equation"].as_string(), [rank(value) for value in operands])
    x = operands[wrt]
    others = [index for index in range(len(operands)) if index != wrt]
    spare = _unused("".join([*terms, result]))
    classes, factors = spare.pop(), [_factor(op, operands[index]) for index in others]
    given = [classes + result, *(terms[index] for index in others)]
    wanted = ""
    for axis, label in enumerate(terms[wrt]):
        # The second of two equal labels stands on the diagonal.
        if label in wanted:
            fresh = spare.pop()
            given.append(label + fresh)
            factors.append(_identity_matrix(op, x, axis))
            label = fresh
        wanted += label
    sizes = _sizes(given[1:], factors, result, terms, operands)
    missing, kept = [], classes
    repeats = False
    for axis, (label, size) in enumerate(zip(wanted, static_dims(x), strict=True)):
        found = sizes.get(label)
        if found is None or (size == 1 and found != {1}):
            missing.append(axis + 1)
        else:
            kept += label
        repeats |= size != 1 and (found is None or found == {1})
    dx = op.Einsum(gradient, *factors, equation=f"{','.join(given)}->{kept}")
    if missing:
        dx = op.Unsqueeze(dx, missing)
    return repeated(op, dx, x) if repeats else dx


def _parsed(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the labels of each operand and of the output, an ellipsis spelt out."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    counts = [max(0, size - len(term.replace("...", ""))) for term, size in zip(terms, ranks, strict=True)]
    dots = "".join(_unused(equation)[: max(counts)])
    if not arrow:
        once = sorted(label for label in set(left) - set(".,") if left.count(label) == 1)
        result = ("..." if "..." in left else "") + "".join(once)
    spelt = [
        term.replace("...", dots[len(dots) - count :]) for term, count in zip(terms, counts, strict=True)
    ]
    return spelt, result.replace("...", dots)


def _unused(labels: str) -> list[str]:
    return [letter for letter in string.ascii_letters if letter not in labels]


def _sizes(
    given: Sequence[str],
    factors: Sequence[ir.Value],
    result: str,
    terms: Sequence[str],
    operands: Sequence[ir.Value],
) -> dict[str, set[int | None]]:
    """Return the sizes under which each label occurs in what the gradient is computed from."""
    occurring: dict[str, set[int | None]] = {}
    for term, factor in zip(given, factors, strict=True):
        for label, size in zip(term, static_dims(factor), strict=True):
            occurring.setdefault(label, set()).add(size)
    # The output's size is the largest of the operands'.
    for term, value in zip(terms, operands, strict=True):
        for label, size in zip(term, static_dims(value), strict=True):
            if label in result:
                occurring.setdefault(label, set()).add(size)
    return {
        label: ({size for size in sizes if size != 1} or {1}) if label in result else sizes
        for label, sizes in occurring.items()
    }


def _factor(op: Op, value: ir.Value) -> ir.Value:
    return apart(op, value, static_dims(value))


def _identity_matrix(op: Op, x: ir.Value, axis: int) -> ir.Value:
    """Return the identity matrix of an axis's size."""
    size = static_dims(x)[axis]
    if size is not None:
        matrix = constant_like(op, np.eye(size), x)
    else:
        length = op.Squeeze(op.Shape(x, start=axis, end=axis + 1), [0])
        places = numbers_to(op, length)
        matrix = op.Cast(op.Equal(op.Unsqueeze(places, [1]), places), to=x.dtype)
    matrix.shape = ir.Shape([size, size])
    return matrix
