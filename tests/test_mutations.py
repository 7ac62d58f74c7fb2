"""A wrong gradient rule can't ship: an export on whose path it lies raises, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphs import Array
from mutation_networks import EXAMPLE, TAIL_OF, network, network_with_logits_from, retraced
from onnxplain import VerificationError
from onnxplain_export import export, torch_source
from onnxplain_export.rules import RULES, SELECTION_RULES
from onnxplain_export.rules.registry import Selection

Slip = Callable[..., Any]


class Altered:
    """A builder in which one operator is emitted as something else."""

    def __init__(self, op: Any, operator: str, emit: Callable[..., Any]) -> None:
        self._op, self._operator, self._emit = op, operator, emit

    def __getattr__(self, name: str) -> Any:
        if name == self._operator:
            return lambda *inputs, **attributes: self._emit(self._op, *inputs, **attributes)
        return getattr(self._op, name)


def emitting(operator: str, otherwise: Callable[..., Any]) -> Callable[[Slip], Slip]:
    """Return a mutation under which a rule emits `otherwise` in place of an operator."""

    def mutation(rule: Slip) -> Slip:
        return lambda op, node, wrt, gradient: rule(Altered(op, operator, otherwise), node, wrt, gradient)

    return mutation


def instead(slip: Slip) -> Callable[[Slip], Slip]:
    """Return a mutation that puts another rule in the place of one."""
    return lambda rule: slip


def after(change: Callable[[Any, ir.Value], ir.Value]) -> Callable[[Slip], Slip]:
    """Return a mutation that changes what a rule returns."""

    def mutation(rule: Slip) -> Slip:
        def mutated(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
            result = rule(op, node, wrt, gradient)
            if isinstance(result, Selection):
                result = result.one_hot(op)
            return None if result is None else change(op, result)

        return mutated

    return mutation


GENERAL = {
    "negated": after(lambda op, result: op.Neg(result)),
    "times 1.01": after(lambda op, result: op.Mul(result, 1.01)),
}


def as_it_is(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    return gradient


def first(op: Any, x: Any, *others: Any, **attributes: Any) -> Any:
    return x


def undivided(op: Any, gradient: Any, count: Any) -> Any:
    """The gradient, repeated where the counts are many."""
    return op.Add(gradient, op.Mul(count, 0.0))


def without_adding_up(op: Any, *inputs: Any, **attributes: Any) -> Any:
    return op.ScatterElements(*inputs, **{**attributes, "reduction": "none"})


def unflipped_kernel(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    weights: Array = node.inputs[1].const_value.numpy()
    kernel = op.initializer(ir.tensor(np.ascontiguousarray(weights.swapaxes(0, 1)), name="unflipped"))
    folded = op.Reshape(gradient, [-1, 4, 4, 4])
    result = op.Conv(folded, kernel, pads=[1, 1, 1, 1])
    return op.Reshape(result, op.Concat([-1], op.Shape(node.inputs[0]), axis=0))


def channels_not_swapped(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    swapped = op.Transpose(node.inputs[1], perm=[1, 0, 2, 3])
    result = op.ConvTranspose(op.Reshape(gradient, [-1, 4, 4, 4]), swapped, pads=[1, 1, 1, 1])
    return op.Reshape(result, op.Concat([-1], op.Shape(node.inputs[0]), axis=0))


def without_mean_term(op: Any, node: ir.Node, wrt: int, gradients: Any) -> Any:
    gradient = gradients[0]
    x = node.inputs[0]
    centered = op.Sub(x, op.ReduceMean(x, [-1], keepdims=1))
    variance = op.ReduceMean(op.Mul(centered, centered), [-1], keepdims=1)
    return op.Div(op.Mul(gradient, node.inputs[1]), op.Sqrt(op.Add(variance, 1e-5)))


def forward_permutation(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    return op.Transpose(gradient, perm=[0, *(axis + 1 for axis in node.attributes.get_ints("perm"))])


def other_slice(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    start = 4 * (1 - wrt)
    return op.Slice(gradient, [start], [start + 4], [2])


def by_its_own_factor(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    return op.Mul(gradient, node.inputs[wrt])


def only_dividend(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    return op.Div(gradient, node.inputs[1])


def without_inner_slope(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    """The factor of x itself: y / x."""
    return op.Mul(gradient, op.Div(node.outputs[0], node.inputs[0]))


def without_deviation(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    return op.Mul(gradient, op.Unsqueeze(node.inputs[1], [1, 2]))


def transposed_product(op: Any, gradient: Any, weights: Any) -> Any:
    return op.MatMul(gradient, op.Transpose(weights, perm=[1, 0]))


def columns_for_rows(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    """The maps' width before their height."""
    shape = op.Concat([-1], op.Shape(node.inputs[0]), axis=0)
    return op.Transpose(op.Reshape(gradient, shape), perm=[0, 1, 2, 4, 3])


def last_copy_alone(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
    """Of the places that an element was copied to, only one."""
    places = op.Expand(op.Reshape(node.inputs[1], [1, 1, -1, 1, 1]), op.Shape(gradient))
    return op.ScatterElements(op.Mul(gradient, 0.0), places, gradient, axis=2)


# The slips that each rule's author could have made.
SLIPS: list[tuple[str, str, Callable[[Slip], Slip]]] = [
    ("Relu", "without its mask", instead(as_it_is)),
    ("Clip", "without the upper bound", emitting("Less", lambda op, y, high: op.LessOrEqual(y, high))),
    ("Clip", "without its mask", instead(as_it_is)),
    ("Sigmoid", "y for y (1 - y)", emitting("Sub", lambda op, one, y: op.CastLike(1.0, y))),
    ("Tanh", "1 - y for 1 - y y", emitting("Sub", lambda op, one, square: op.Sub(one, op.Sqrt(square)))),
    ("HardSigmoid", "without its mask", emitting("Where", lambda op, inside, g, zero: g)),
    ("HardSwish", "without the slope of its gate", instead(without_inner_slope)),
    ("Gelu", "without the density's term", instead(without_inner_slope)),
    ("Softmax", "without the sum", emitting("Sub", first)),
    ("Sub", "the second operand's sign", instead(as_it_is)),
    ("Mul", "the wrong factor", instead(by_its_own_factor)),
    ("Div", "a quotient's second half forgotten", instead(only_dividend)),
    ("Neg", "the sign forgotten", instead(as_it_is)),
    ("Conv", "the kernel not flipped", instead(unflipped_kernel)),
    ("Conv", "the channels not swapped", instead(channels_not_swapped)),
    ("MatMul", "not transposed", emitting("Transpose", first)),
    ("Gemm", "not transposed", emitting("MatMul", transposed_product)),
    ("BatchNormalization", "without the deviation", instead(without_deviation)),
    ("LayerNormalization", "without its mean terms", instead(without_mean_term)),
    ("MaxPool", "overlapping windows not added up", emitting("ScatterElements", without_adding_up)),
    ("AveragePool", "undivided", emitting("Div", undivided)),
    ("AveragePool", "divided by the whole window", emitting("Div", lambda op, g, n: op.Div(g, 9.0))),
    ("GlobalAveragePool", "undivided", emitting("Div", undivided)),
    ("ReduceMean", "undivided", emitting("Div", undivided)),
    ("Reshape", "in another order", instead(columns_for_rows)),
    ("Transpose", "the forward permutation", instead(forward_permutation)),
    ("Concat", "slices swapped", instead(other_slice)),
    ("Split", "parts swapped",
     emitting("Concat", lambda op, *parts, axis: op.Concat(*reversed(parts), axis=axis))),
    ("Gather", "without adding up", instead(last_copy_alone)),
]  # fmt: skip


def first_class(rule: Slip) -> Slip:
    def mutated(op: Any, node: ir.Node, wrt: int, selection: Selection) -> Any:
        return rule(op, node, wrt, replace(selection, classes=op.Mul(selection.classes, 0)))

    return mutated


def counted(rule: Slip, calls: list[str]) -> Slip:
    def counting(op: Any, node: ir.Node, wrt: int, gradient: Any) -> Any:
        result = rule(op, node, wrt, gradient)
        if result is not None:
            calls.append(node.op_type)
        return result

    return counting


def check_refused(
    operator: str,
    mutation: Callable[[Slip], Slip],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *,
    selection: bool = False,
) -> None:
    """Export a network with and without a mutated rule."""
    model, proto = network_with_logits_from(operator) if selection else network(operator)
    monkeypatch.setattr(torch_source, "trace", retraced(proto))
    calls: list[str] = []
    if selection:
        monkeypatch.setitem(SELECTION_RULES, operator, counted(mutation(SELECTION_RULES[operator]), calls))
    else:
        entry = RULES[operator]
        monkeypatch.setitem(RULES, operator, replace(entry, rule=counted(mutation(entry.rule), calls)))
    with pytest.raises(VerificationError, match="the gradient rules differ"):
        export(model, EXAMPLE, folder / "model.onnx", layer="features")
    assert calls
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("operator", sorted(TAIL_OF))
def test_right_rule(operator, monkeypatch, tmp_path):
    model, proto = network(operator)
    assert operator in {node.op_type for node in proto.graph.node}
    monkeypatch.setattr(torch_source, "trace", retraced(proto))
    assert export(model, EXAMPLE, tmp_path / "model.onnx", layer="features").verification.rules < 1e-7


@pytest.mark.parametrize("mutation", GENERAL)
@pytest.mark.parametrize("operator", sorted(TAIL_OF))
def test_wrong_rule(operator, mutation, monkeypatch, tmp_path):
    check_refused(operator, GENERAL[mutation], monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("operator", "mutation"),
    [pytest.param(operator, mutation, id=f"{operator}: {slip}") for operator, slip, mutation in SLIPS],
)
def test_typical_slip(operator, mutation, monkeypatch, tmp_path):
    check_refused(operator, mutation, monkeypatch, tmp_path)


@pytest.mark.parametrize("operator", sorted(SELECTION_RULES))
def test_right_selection_rule(operator, monkeypatch, tmp_path):
    model, proto = network_with_logits_from(operator)
    monkeypatch.setattr(torch_source, "trace", retraced(proto))
    assert export(model, EXAMPLE, tmp_path / "model.onnx", layer="features").verification.rules < 1e-7


@pytest.mark.parametrize("mutation", [*GENERAL, "the first class for all"])
@pytest.mark.parametrize("operator", sorted(SELECTION_RULES))
def test_wrong_selection_rule(operator, mutation, monkeypatch, tmp_path):
    change = GENERAL.get(mutation, first_class)
    check_refused(operator, change, monkeypatch, tmp_path, selection=True)
