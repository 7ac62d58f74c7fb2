"""Recognise the head that CAM needs: global average pooling and one linear layer."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain_export.graph import constant, constant_ints, operand, rank, skip_identities

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Identity", "Dropout")


def is_gap_linear(activations: ir.Value, logits: ir.Value) -> bool:
    """Say whether the logits are a linear function of the spatial mean of some activations.

    That is the head of *Learning Deep Features for Discriminative Localization* (Zhou et al. 2016), and that
    of *Network in Network* (Lin et al. 2014), whose linear function is the identity. It is read off the
    graph, walking back from the logits: at most one matrix product with constant weights and a constant bias,
    then the mean over height and width of the activations themselves.
    """
    value = skip_identities(logits)
    node = value.producer()
    if node is not None and node.op_type == "Add":
        constants = [constant(source) is not None for source in node.inputs]
        if sum(constants) != 1:
            return False
        value = operand(node, constants.index(False))
        node = value.producer()
    if node is not None and node.op_type in ("Gemm", "MatMul"):
        if any(constant(weights) is None for weights in node.inputs[1:]):
            return False
        value = operand(node, 0)
        node = value.producer()
    while node is not None and node.op_type in _RESHAPES and rank(operand(node, 0)) >= rank(value):
        value = operand(node, 0)
        node = value.producer()
    if node is None or skip_identities(operand(node, 0)) is not skip_identities(activations):
        return False
    return _is_spatial_mean(node)


def _is_spatial_mean(node: ir.Node) -> bool:
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type != "ReduceMean":
        return False
    dimensions = rank(operand(node, 0))
    axes = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    return axes is not None and sorted(axis % dimensions for axis in axes) == list(range(2, dimensions))
