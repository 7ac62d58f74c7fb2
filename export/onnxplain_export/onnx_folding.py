"""Compute what doesn't depend on a graph's input, so that shapes and axes are known to the rules."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain_export.graph import downstream
from onnxplain_export.onnx_session import run_graph

# Their results are drawn anew each time, or are larger than what they are made of.
_NOT_FOLDED = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "DequantizeLinear",
}


def fold_constants(model: ir.Model) -> None:
    """Compute what doesn't depend on the input, so that shapes and axes are known to the rules."""
    graph = model.graph
    computed = downstream(graph, graph.inputs)
    foldable: list[ir.Node] = []
    folded: set[ir.Value] = set()
    for node in graph:
        is_constant = all(
            value is None or value in folded or value.const_value is not None for value in node.inputs
        )
        nested = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        if (
            node.op_type not in _NOT_FOLDED
            and node.domain in ("", "ai.onnx")
            and is_constant
            and not nested
            and computed.isdisjoint(node.outputs)
        ):
            foldable.append(node)
            folded.update(node.outputs)
    wanted = [
        value
        for node in foldable
        for value in node.outputs
        if value.name and any(use.node not in foldable for use in value.uses())
    ]
    if not wanted:
        return
    names = [str(value.name) for value in wanted]
    part = ir.convenience.extract(graph, [], names)
    results = run_graph(ir.Model(part, ir_version=model.ir_version), names, {})
    for value, name in zip(wanted, names, strict=True):
        constant = ir.val(f"{name}.folded", const_value=ir.tensor(results[name], name=f"{name}.folded"))
        graph.register_initializer(constant)
        ir.convenience.replace_all_uses_with(value, constant, replace_graph_outputs=False)
    graph.remove(
        [node for node in foldable if not any(v.is_graph_output() for v in node.outputs)], safe=False
    )
