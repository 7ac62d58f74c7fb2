"""What the nodes of a finished graph say about layers: modules, which would say it, are gone."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain_export.graph import (
    before_quantiser,
    constant,
    downstream,
    ints,
    operand,
    rank,
    static_dims,
    upstream,
)

_REARRANGING = {
    "Identity",
    "Dropout",
    "Cast",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Slice",
    "Split",
    "Gather",
    "Pad",
}
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


def same_as_input(node: ir.Node) -> bool:
    """Say whether a node puts out what it takes in, arranged in another way."""
    node = _quantised_node(node)
    if node.op_type in _REARRANGING:
        return True
    # As an adaptive pooling to the size that the maps have already.
    is_pool = node.op_type in ("AveragePool", "MaxPool")
    return is_pool and set(ints(node, "kernel_shape", [0])) == {1} and set(ints(node, "strides", [1])) == {1}


def _quantised_node(node: ir.Node) -> ir.Node:
    """Return the node whose output a node puts out quantised; any other node itself."""
    return before_quantiser(node.outputs[0]).producer() or node


def in_attention(graph: ir.Graph) -> set[ir.Value]:
    """Return the values inside attention: queries, keys, values and scores, which aren't features.

    Attention is a Softmax whose result is multiplied with values. What lies between it and the last value
    that all of it is computed from is inside, and so is a linear projection of that one value to queries,
    keys and values at once.
    """
    inside: set[ir.Value] = set()
    order = {node: index for index, node in enumerate(graph)}
    computed = downstream(graph, graph.inputs, with_gradient=True)
    for node in graph:
        if node.op_type == "MatMul" and _is_of_scores(node):
            source = _dominator(node, order, computed)
            if source is None:
                continue
            source = _before_projection(source)
            between = upstream([node.outputs[0]]) - upstream([source])
            inside |= between
    return inside


def is_final_norm(graph: ir.Graph, node: ir.Node, attention: set[ir.Value]) -> bool:
    """Say whether a node is a transformer's last normalisation: the features are those that it follows."""
    if _quantised_node(node).op_type != "LayerNormalization":
        return False
    reached: set[ir.Value] = {node.outputs[0]}
    for other in graph:
        if not reached.isdisjoint(value for value in other.inputs if value is not None):
            if other.op_type == "LayerNormalization" or not attention.isdisjoint(other.outputs):
                return False
            reached.update(other.outputs)
    return True


def _is_of_scores(node: ir.Node) -> bool:
    """Say whether a product's first factor is a Softmax's result, and its second one is computed too."""
    scores = operand(node, 0)
    producer = scores.producer()
    passing = ("Dropout", "Cast", "Identity", "Reshape", "Where", *_QUANTISERS)
    while producer is not None and producer.op_type in passing:
        scores = operand(producer, 1 if producer.op_type == "Where" else 0)
        producer = scores.producer()
    is_softmax = producer is not None and producer.op_type == "Softmax"
    return is_softmax and constant(operand(node, 1)) is None


def _dominator(node: ir.Node, order: dict[ir.Node, int], computed: set[ir.Value]) -> ir.Value | None:
    """Return the last value that everything a node takes from the image is computed from."""
    # Going back from the node, what is still to be followed; where that is one value, all comes from it.
    waiting = {value for value in node.inputs if value in computed}
    while len(waiting) > 1:
        last = max(waiting, key=lambda value: _position(value, order))
        producer = last.producer() if last is not None else None
        if producer is None:
            return None
        waiting.remove(last)
        waiting.update(value for value in producer.inputs if value in computed)
    return next(iter(waiting), None)


def _position(value: ir.Value, order: dict[ir.Node, int]) -> int:
    producer = value.producer()
    return -1 if producer is None else order[producer]


def _before_projection(value: ir.Value) -> ir.Value:
    """Return what a value is a linear projection of, where it is one; reshapes between don't count."""
    found = value
    node = value.producer()
    while node is not None:
        if node.op_type == "Add":
            factors = [source for source in node.inputs if source is not None and constant(source) is None]
            if len(factors) != 1 or not _is_projection(factors[0].producer()):
                break
            value = factors[0]
        elif _is_projection(node):
            found = value = operand(node, 0)
        elif node.op_type in (*_REARRANGING, *_QUANTISERS) and rank(value) > 0:
            value = operand(node, 0)
        else:
            break
        node = value.producer()
    return found


def _is_projection(node: ir.Node | None) -> bool:
    if node is None:
        return False
    if node.op_type == "Conv":
        return set(static_dims(operand(node, 1))[2:]) == {1}
    return node.op_type in ("MatMul", "Gemm") and constant(operand(node, 1)) is not None
