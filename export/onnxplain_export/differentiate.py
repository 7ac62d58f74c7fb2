"""Reverse-mode differentiation of an ONNX graph: the driver that applies the rules.

The nodes between the target layers and the logits are walked backwards. Each one's rule turns the gradient
of its output into those of its inputs; what arrives at a value over several branches is added up.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxplain.errors import UnsupportedOperatorError
from onnxplain_export.graph import (
    MODULE_KEY,
    downstream,
    is_float,
    operand,
    rank,
    static_dims,
    taken_by_branches,
    upstream,
)
from onnxplain_export.rules import NO_GRADIENT, RULES, SELECTION_RULES, Entry
from onnxplain_export.rules.infinite import infinite_apart, may_be_infinite, note_infinite
from onnxplain_export.rules.parts import Part, part_of_node, part_read
from onnxplain_export.rules.registry import Op, Selection, UnsupportedCaseError

Gradient = ir.Value | Selection | Part


def differentiate(
    op: Op,
    graph: ir.Graph,
    logits: ir.Value,
    classes: ir.Value,
    targets: Sequence[ir.Value],
    rules: Mapping[str, Entry] = RULES,
) -> list[ir.Value]:
    """Append the nodes that compute the gradients of the selected logits.

    Parameters
    ----------
    op
        Builder of the graph.
    graph
        The forward pass, its nodes in topological order.
    logits
        Float value [batch, num_classes].
    classes
        int64 value [classes, batch]: the logits to differentiate, all of them in range.
    targets
        The values to differentiate with respect to; the logits depend on each of them.
    rules
        The table of rules; `GUIDED_RULES` for guided backpropagation.

    Returns
    -------
    list of Value
        For each target d logits[b, classes[k, b]] / d target, of the shape ``[classes, *target.shape]``.

    Raises
    ------
    UnsupportedOperatorError
        An operator between a target and the logits has no rule.
    """
    wanted = downstream(graph, targets, with_gradient=True)
    _check_known(graph, logits, wanted)
    note_infinite(graph, logits)
    arrived: dict[ir.Value, list[Gradient]] = {logits: [Selection(classes, logits)]}
    totals: dict[ir.Value, Gradient] = {}
    for node in reversed(list(graph)):
        outputs = [_total(op, output, arrived, totals) for output in node.outputs]
        if all(output is None for output in outputs):
            continue
        if node.op_type in NO_GRADIENT:
            continue
        for wrt, value in enumerate(node.inputs):
            if value in wanted:
                gradient = _apply_rule(op, node, wrt, outputs, rules)
                if gradient is not None:
                    arrived.setdefault(value, []).append(gradient)
    gradients = []
    for target in targets:
        gradient = _total(op, target, arrived, totals)
        if gradient is None:
            raise UnsupportedOperatorError(f"no gradient comes back to {target.name!r}; choose a later layer")
        gradients.append(_dense(op, gradient))
    return gradients


def _total(
    op: Op, value: ir.Value, arrived: dict[ir.Value, list[Gradient]], totals: dict[ir.Value, Gradient]
) -> Gradient | None:
    """Return the sum of the gradients that have arrived at a value, computed once."""
    if value not in totals and value in arrived:
        # Those of the same part first: their sum is one too.
        parts_first = sorted(arrived[value], key=lambda gradient: not isinstance(gradient, Part))
        totals[value] = functools.reduce(functools.partial(_sum, op), parts_first)
    return totals.get(value)


def _sum(op: Op, one: Gradient, other: Gradient) -> Gradient:
    if isinstance(one, Part) and isinstance(other, Part) and one.is_beside(other):
        return replace(one, gradient=op.Add(one.gradient, other.gradient))
    total: ir.Value = op.Add(_dense(op, one), _dense(op, other))
    return total


def _dense(op: Op, gradient: Gradient) -> ir.Value:
    if isinstance(gradient, Selection):
        return gradient.one_hot(op)
    return gradient.dense(op) if isinstance(gradient, Part) else gradient


def _apply_rule(
    op: Op, node: ir.Node, wrt: int, outputs: Sequence[Gradient | None], rules: Mapping[str, Entry]
) -> Gradient | None:
    """Return the gradient of a node's input, of the shape ``[classes, *input.shape]``."""
    entry = _rule_of(node, rules)
    try:
        if isinstance(outputs[0], Selection) and node.op_type in SELECTION_RULES:
            selected = SELECTION_RULES[node.op_type](op, node, wrt, outputs[0])
            if selected is not None:
                return selected
        is_first_alone = all(output is None for output in outputs[1:])
        if not entry.many_outputs and not is_first_alone:
            raise UnsupportedCaseError(f"a {node.op_type} of which more than the first output is used")
        if isinstance(outputs[0], Part) and is_first_alone:
            there = part_of_node(op, node, outputs[0])
            if there is not None:
                alone = [outputs[0].gradient, *[None] * (len(outputs) - 1)]
                gradient = _call(op, entry, there.node, wrt, alone)
                return None if gradient is None else there.returned(wrt, gradient)
        dense = [None if output is None else _dense(op, output) for output in outputs]
        read = None if dense[0] is None else part_read(op, node, wrt, dense[0])
        return read or _call(op, entry, node, wrt, dense)
    except UnsupportedCaseError as case:
        raise UnsupportedOperatorError(f"there is no gradient rule for {case} ({_place(node)})") from None


def _call(
    op: Op, entry: Entry, node: ir.Node, wrt: int, outputs: Sequence[ir.Value | None]
) -> ir.Value | None:
    """Call a rule with the gradients of a node's outputs, and undo broadcasting."""

    def rule(gradients: Sequence[ir.Value | None]) -> ir.Value | None:
        return entry.rule(op, node, wrt, gradients if entry.many_outputs else gradients[0])  # type: ignore[arg-type]

    if entry.sparse and any(map(may_be_infinite, node.outputs)):
        gradient = infinite_apart(op, node, outputs, rule)
    else:
        gradient = rule(outputs)
    if gradient is not None and entry.broadcasts:
        gradient = _undo_broadcast(op, gradient, operand(node, wrt), node.outputs[0])
    return gradient


def _check_known(graph: ir.Graph, logits: ir.Value, wanted: set[ir.Value]) -> None:
    """Check that nothing on the way to the logits hides from the walk.

    A value of unknown type could carry a gradient or not, one of unknown rank doesn't say along which axes an
    input was repeated, and a branch or loop takes values from around it that aren't its node's inputs.
    """
    sources = upstream([logits])
    for node in graph:
        if sources.isdisjoint(node.outputs):
            continue
        if not wanted.isdisjoint(taken_by_branches(node)):
            raise _missing_rule(node)
        if node.op_type != "DequantizeLinear" and _takes_quantised(node, wanted):
            raise UnsupportedOperatorError(
                f"there is no gradient rule for {node.op_type} of quantised numbers ({_place(node)}); "
                "choose a layer after it, or quantise in the QDQ format"
            )
        if not wanted.isdisjoint(node.inputs):
            # One that is left out has an empty name.
            for output in (output for output in node.outputs if output.name != ""):
                if output.dtype is None or (is_float(output) and output.shape is None):
                    if node.op_type not in NO_GRADIENT:
                        _rule_of(node)
                    raise UnsupportedOperatorError(
                        f"the type or the rank of {output.name!r} is unknown ({_place(node)}); "
                        "run onnx's shape inference on the model first"
                    )


def _takes_quantised(node: ir.Node, wanted: set[ir.Value]) -> bool:
    return any(value in wanted and not is_float(value) for value in node.inputs if value is not None)


def _rule_of(node: ir.Node, rules: Mapping[str, Entry] = RULES) -> Entry:
    if node.domain not in ("", "ai.onnx") or node.op_type not in rules:
        raise _missing_rule(node)
    return rules[node.op_type]


def _missing_rule(node: ir.Node) -> UnsupportedOperatorError:
    domain = f"{node.domain}::" if node.domain else ""
    return UnsupportedOperatorError(
        f"there is no gradient rule for the operator {domain}{node.op_type} ({_place(node)}); "
        "choose a layer after it, or add a rule in onnxplain_export/rules"
    )


def _place(node: ir.Node) -> str:
    module = node.metadata_props.get(MODULE_KEY)
    if module is None:
        return f"node {node.name!r}"
    return f"node {node.name!r} in " + (f"module {module!r}" if module else "the model's own forward")


def _undo_broadcast(op: Op, gradient: ir.Value, value: ir.Value, output: ir.Value) -> ir.Value:
    """Sum a gradient of an operator's output over the axes along which an input was repeated."""
    added = rank(output) - rank(value)
    if added < 0:
        # A matrix by a vector: the output lacks an axis of the matrix, which isn't repeated.
        return gradient
    if added:
        gradient = op.ReduceSum(gradient, list(range(1, 1 + added)), keepdims=0)
    repeated = [
        1 + axis
        for axis, (size, result) in enumerate(
            zip(static_dims(value), static_dims(output)[added:], strict=True)
        )
        if size == 1 and result != 1
    ]
    return op.ReduceSum(gradient, repeated, keepdims=1) if repeated else gradient
