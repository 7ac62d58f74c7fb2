"""Questions about values and nodes of an `onnx_ir` graph that several modules ask."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

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
    """Say whether a value is of a floating-point type: only through such values do gradients flow."""
    return value.dtype is not None and value.dtype.is_floating_point()


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """Return the array behind an initializer or a Constant node, None for anything computed."""
    if value is None:
        return None
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


def downstream(graph: ir.Graph, sources: Iterable[ir.Value], *, floats_only: bool = False) -> set[ir.Value]:
    """Return every value that is computed from any of `sources`, themselves included.

    Parameters
    ----------
    floats_only
        Follow floating-point values only: the ones that a gradient can come back through.
    """
    reached: set[ir.Value | None] = set(sources)
    for node in graph:
        if not reached.isdisjoint([*node.inputs, *taken_by_branches(node)]):
            reached.update(output for output in node.outputs if not floats_only or is_float(output))
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
