"""Replacing nodes of an ONNX model where they stand, by adapters of a few lines each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper

from onnxplain.errors import SourceError

OPSET = 20
# Operators that onnxruntime's optimizer writes into older opsets than the standard's.
EARLY = frozenset({"LayerNormalization"})
# Operators that onnx infers no types of, and so none after them, and what gives the same types.
_STAND_INS = {
    "GroupNormalization": "Identity",
    "FusedConv": "Conv",
    "FusedGemm": "Gemm",
    "FusedMatMul": "MatMul",
    "Gelu": "Identity",
    "FastGelu": "Identity",
    "BiasGelu": "Identity",
    "QuickGelu": "Identity",
    "SkipLayerNormalization": "Identity",
    "QuantizeLinear": "QuantizeLinear",
    "DequantizeLinear": "DequantizeLinear",
}


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the branches and bodies of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all that are nested in it."""
    yield graph
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield from graphs_of(subgraph)


def place(node: NodeProto) -> str:
    """Name a node's operator and the node, for an error."""
    name = f"node {node.name!r}" if node.name else f"the node of {next(iter(node.output), '')!r}"
    return f"{node.domain}::{node.op_type} ({name})" if node.domain else f"{node.op_type} ({name})"


class Rewriting:
    """The nodes of a model, replaced pass by pass."""

    def __init__(self, model: ModelProto, version: int) -> None:
        self.model = model
        self.version = version
        self.types = types_of(model)
        self.taken = {
            name
            for graph in graphs_of(model.graph)
            for name in [
                *(value.name for value in graph.input),
                *(tensor.name for tensor in graph.initializer),
                *(name for node in graph.node for name in (*node.input, *node.output)),
                *(node.name for node in graph.node),
            ]
        }

    def run(self, adapt: Callable[[Emitter], None]) -> None:
        """Replace each node by what an adapter emits for it."""
        for graph in graphs_of(self.model.graph):
            nodes: list[NodeProto] = []
            for node in graph.node:
                op = Emitter(node, self)
                adapt(op)
                nodes += op.nodes
            # Copies, since what the list holds goes with it.
            copies = GraphProto(node=nodes)
            del graph.node[:]
            graph.node.extend(copies.node)

    def fresh(self, name: str) -> str:
        """Return a name that nothing in the model has yet."""
        count, result = 0, name
        while result in self.taken:
            count += 1
            result = f"{name}_{count}"
        self.taken.add(result)
        return result


class Emitter:
    """What takes the place of one node."""

    def __init__(self, node: NodeProto, rewriting: Rewriting) -> None:
        self.node = node
        self.nodes: list[NodeProto] = []
        self.rewriting = rewriting
        self.attributes: dict[str, Any] = {
            attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
        }

    def __call__(
        self, op_type: str, *inputs: str, outputs: Sequence[str] | int = 1, **attributes: Any
    ) -> list[str]:
        """Append a node; it has the metadata of the one that it replaces."""
        names = [self.fresh(op_type) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        node = helper.make_node(op_type, list(inputs), names, self.fresh(op_type), **attributes)
        node.metadata_props.extend(self.node.metadata_props)
        self.nodes.append(node)
        return names

    def fresh(self, suffix: str) -> str:
        """Return a name that nothing in the model has yet, made of the node's."""
        return self.rewriting.fresh(f"{self.node.name or self.node.output[0]}/{suffix}")

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """Append a constant."""
        name = self.fresh("Constant")
        tensor = onnx.numpy_helper.from_array(np.array(value, dtype=dtype), name)
        self.nodes.append(helper.make_node("Constant", [], [name], name, value=tensor))
        return name

    def constant_like(self, value: npt.ArrayLike, other: str) -> str:
        """Append a constant of the type of a tensor."""
        kind = self.element_type(other)
        return self.constant(value, helper.tensor_dtype_to_np_dtype(kind))

    def keep(self) -> None:
        """Append the node itself, as the adapter has left it."""
        self.nodes.append(self.node)

    def take(self, name: str, default: Any = None) -> Any:
        """Remove an attribute from the node and return its value."""
        kept = [attribute for attribute in self.node.attribute if attribute.name != name]
        del self.node.attribute[:]
        self.node.attribute.extend(kept)
        return self.attributes.get(name, default)

    def set(self, name: str, value: Any) -> None:
        """Give the node an attribute, in place of one of that name."""
        self.take(name)
        self.node.attribute.append(helper.make_attribute(name, value))

    def input(self, index: int) -> str:
        """Return the name of an input, empty where it is left out."""
        return str(self.node.input[index]) if index < len(self.node.input) else ""

    def set_input(self, index: int, name: str) -> None:
        """Connect an input; an empty name leaves it out."""
        inputs = list(self.node.input)
        inputs += [""] * (index + 1 - len(inputs))
        inputs[index] = name
        while inputs and not inputs[-1]:
            inputs.pop()
        del self.node.input[:]
        self.node.input.extend(inputs)

    def swish(self, data: str, alpha: float, outputs: Sequence[str] | int = 1) -> list[str]:
        """Append ``data * sigmoid(alpha * data)``."""
        inner = data if alpha == 1.0 else self("Mul", data, self.constant_like(alpha, data))[0]
        return self("Mul", data, *self("Sigmoid", inner), outputs=outputs)

    def element_type(self, name: str) -> int:
        """Return the element type of a tensor; float where nothing tells."""
        kind = self.rewriting.types.get(name)
        return kind.tensor_type.elem_type if kind and kind.tensor_type.elem_type else TensorProto.FLOAT

    def rank(self, name: str) -> int | None:
        """Return a tensor's number of axes, None where it is unknown."""
        kind = self.rewriting.types.get(name)
        return len(kind.tensor_type.shape.dim) if kind and kind.tensor_type.HasField("shape") else None

    def known_rank(self, name: str) -> int:
        """Return a tensor's number of axes; the node is refused where it is unknown."""
        rank = self.rank(name)
        if rank is None:
            raise self.refused(
                f"the rank of {name!r} is unknown; run onnx's shape inference on the model first"
            )
        return rank

    def refused(self, why: str) -> SourceError:
        """Return the error of a node that has no form in the design's opset."""
        return SourceError(f"{place(self.node)} can't be expressed in opset {OPSET}: {why}")


def types_of(model: ModelProto) -> dict[str, TypeProto]:
    """Return the types of all tensors that onnx's shape inference can tell."""
    inferred = ModelProto()
    inferred.CopyFrom(model)
    for graph in graphs_of(inferred.graph):
        for node in graph.node:
            if node.op_type in _STAND_INS:
                node.op_type, node.domain = _STAND_INS[node.op_type], ""
                if node.op_type == "Identity":
                    del node.input[1:], node.output[1:], node.attribute[:]
    # What can't be inferred is refused where it is needed.
    with contextlib.suppress(Exception):
        inferred = onnx.shape_inference.infer_shapes(inferred)
    types: dict[str, TypeProto] = {}
    for graph in graphs_of(inferred.graph):
        for tensor in graph.initializer:
            types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        for value in (*graph.input, *graph.value_info, *graph.output):
            types[value.name] = value.type
    return types


Adapter = Callable[[Emitter], None]
