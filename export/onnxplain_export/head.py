"""Recognise the head that CAM needs: global average pooling and one linear layer."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain_export.graph import constant, constant_ints, ints, operand, rank, skip_identities, static_dims

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
    return node is not None and _averaged_maps(node) is skip_identities(activations)


def _averaged_maps(node: ir.Node) -> ir.Value | None:
    """Return the feature maps whose spatial mean a node computes; None if it computes something else."""
    maps = skip_identities(operand(node, 0))
    dimensions = rank(maps)
    if node.op_type == "ReduceMean":
        axes = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or sorted(axis % dimensions for axis in axes) != list(range(2, dimensions)):
            return None
        return _before_flattening(maps) if dimensions == 3 else maps
    if node.op_type == "AveragePool":
        window = ints(node, "kernel_shape", [])
        is_whole = window == static_dims(maps)[2:] and not any(ints(node, "pads", []))
        return maps if is_whole else None
    return maps if node.op_type == "GlobalAveragePool" else None


def _before_flattening(flat: ir.Value) -> ir.Value:
    """Return the maps [batch, channels, height, width] of which a value is [batch, channels, places]."""
    node = flat.producer()
    if node is None or node.op_type != "Reshape":
        return flat
    maps = skip_identities(operand(node, 0))
    return maps if rank(maps) == 4 and static_dims(maps)[1] == static_dims(flat)[1] else flat
