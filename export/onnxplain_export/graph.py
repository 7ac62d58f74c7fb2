"""Questions about values and nodes of an `onnx_ir` graph that several modules ask."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxplain_export.quantised_numbers import dequantised

#: Under this key a front end notes on a node the module of the source that it came from.
MODULE_KEY = "onnxplain.module"


def rank(value: ir.Value) -> int:
    """Return the number of dimensions of a value whose rank is known."""
    if value.shape is None:
        raise ValueError(f"the rank of {value.name!r} is unknown")
    return len(value.shape)


def static_dims(value: ir.Value) -> list[int | None]:
    """Return a value's dimensions, None for each that is only known at run time."""
    shape = value.shape
    return [] if shape is None else [dim if isinstance(dim, int) else None for dim in shape]


def static_dim(value: ir.Value, axis: int) -> int | None:
    """Return one dimension of a value, None where it is only known at run time."""
    return static_dims(value)[axis]


def operand(node: ir.Node, index: int) -> ir.Value:
    """Return an input that a node can't be without."""
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"node {node.name!r} lacks input {index}")
    return value


def is_float(value: ir.Value) -> bool:
    """Say whether a value is of a floating-point type."""
    return value.dtype is not None and value.dtype.is_floating_point()


def has_gradient(value: ir.Value) -> bool:
    """Say whether a gradient can come back through a value.

    It is a floating-point number, or a whole number that a quantiser made of one and that stands for it.
    """
    producer = value.producer()
    return is_float(value) or (producer is not None and producer.op_type == "QuantizeLinear")


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """Return the array behind an initializer or a Constant node, None for anything computed.

    What is kept in whole numbers comes dequantised.
    """
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == "DequantizeLinear":
        numbers, scale, zero = (constant(source) for source in [*node.inputs, None][:3])
        if numbers is None or scale is None:
            return None
        return dequantised(numbers, scale, zero, node.attributes.get_int("axis", 1))
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_ints(value: ir.Value | None) -> list[int] | None:
    """Return a constant's whole numbers as a flat list, None for anything computed or absent."""
    array = constant(value)
    return None if array is None else [int(number) for number in array.reshape(-1)]


def ints(node: ir.Node, name: str, default: Iterable[int]) -> list[int]:
    """Return a node's attribute that is a list of whole numbers."""
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else [int(number) for number in attribute.as_ints()]


def skip_identities(value: ir.Value) -> ir.Value:
    """Follow a value back through Identity nodes to the one that was computed."""
    producer = value.producer()
    while producer is not None and producer.op_type == "Identity" and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value


def before_quantiser(value: ir.Value) -> ir.Value:
    """Return the number that a value is the quantised form of; the value itself where it is none."""
    dequantiser = value.producer()
    if dequantiser is None or dequantiser.op_type != "DequantizeLinear":
        return value
    quantiser = operand(dequantiser, 0).producer()
    if quantiser is None or quantiser.op_type != "QuantizeLinear":
        return value
    return operand(quantiser, 0)


def behind_quantiser(value: ir.Value) -> ir.Value | None:
    """Return the quantised form of a number that is read in no other; None for any other value."""
    quantisers = [use.node for use in value.uses()]
    if not quantisers or any(node.op_type != "QuantizeLinear" for node in quantisers):
        return None
    readers = (use.node for use in quantisers[0].outputs[0].uses())
    return next((node.outputs[0] for node in readers if node.op_type == "DequantizeLinear"), None)


def is_quantised(graph: ir.Graph) -> bool:
    """Say whether any number of a graph is quantised when it runs."""
    return any(node.op_type == "QuantizeLinear" for node in graph)


def is_half(graph: ir.Graph) -> bool:
    """Say whether anything in a graph is in float16."""
    values = (value for node in graph for value in (*node.inputs, *node.outputs) if value is not None)
    return any(value.dtype == ir.DataType.FLOAT16 for value in values)


def taken_by_branches(node: ir.Node) -> set[ir.Value]:
    """Return the values that a node's branches or loop body take, those from around the node among them."""
    return {
        value
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for inner in ir.traversal.RecursiveGraphIterator(attribute.as_graph())
        for value in inner.inputs
        if value is not None
    }


def downstream(graph: ir.Graph, sources: Iterable[ir.Value], *, with_gradient: bool = False) -> set[ir.Value]:
    """Return every value that is computed from any of `sources`, themselves included.

    Parameters
    ----------
    with_gradient
        Follow only the values that a gradient can come back through.
    """
    reached: set[ir.Value | None] = set(sources)
    for node in graph:
        if not reached.isdisjoint([*node.inputs, *taken_by_branches(node)]):
            reached.update(output for output in node.outputs if not with_gradient or has_gradient(output))
    return {value for value in reached if value is not None}


def upstream(targets: Iterable[ir.Value]) -> set[ir.Value]:
    """Return every value that any of `targets` is computed from, themselves included."""
    reached: set[ir.Value] = set()
    waiting = list(targets)
    while waiting:
        value = waiting.pop()
        if value in reached:
            continue
        reached.add(value)
        producer = value.producer()
        if producer is not None:
            waiting.extend(source for source in producer.inputs if source is not None)
            waiting.extend(taken_by_branches(producer))
    return reached
