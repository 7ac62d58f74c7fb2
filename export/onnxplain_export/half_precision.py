"""Half precision: the network's own nodes in float16, all that was added to explain it in float32.

Which nodes stay in float32 is decided as PyTorch's autocast decides it: sums, powers, exponentials and
normalisations, which overflow or cancel in float16, and what follows them up to the next convolution or
product of matrices. So does a node whose numbers don't fit: that takes in or puts out larger or smaller ones,
as far as noise can tell, or whose constants would lose more than their last digits.

A gradient of 1e-6 has four bits in float16, and a sum over the places of a map soon exceeds 65504. So the
backward pass is in float32, at the activations and weights as they are in float16: the gradient remains that
of the rounded network, exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, TopologicalSortPass

from onnxplain_export.assemble import CLASS_INDEX, INPUT, LOGITS, TracedModel
from onnxplain_export.graph import is_half, operand, skip_identities
from onnxplain_export.onnx_session import run_graph
from onnxplain_export.probe import Probe
from onnxplain_export.reference_graph import Array, ReferenceGraph

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

#: Convolutions and products of matrices: in float16 whatever comes in.
_IN_HALF = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
#: What autocast keeps in float32, under its names in ONNX, and what has no float16 on most engines.
_IN_FLOAT = {
    *("Acos", "Asin", "Cosh", "CumSum", "Exp", "Log", "Pow", "Reciprocal", "Sinh", "Softplus", "Tan"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSum"),
    *("ReduceSumSquare", "GlobalLpPool", "LpPool", "LogSoftmax", "Softmax"),
    *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
    *("LpNormalization", "LRN", "MeanVarianceNormalization"),
    *("GRU", "LSTM", "RNN"),
}
#: An eighth of the largest number of float16 and eight times that with all its digits' smallest, and more:
#: pictures may go further than the noise that is tried.
_LARGEST, _SMALLEST = 2.0**13, 2.0**-10
#: The attributes that say what a node puts out.
_TO_HALF = {("to", HALF.value), ("dtype", HALF.value)}
#: Rounding to float16 moves a tensor by less, unless it holds numbers that don't fit.
_ROUNDING = 1e-3


def has_half_weights(graph: ir.Graph) -> bool:
    """Say whether a network takes images in float16, or has more of its weights in it than in float32."""
    constants = [value.const_value for value in graph.initializers.values()]
    constants += [ir.convenience.get_const_tensor(node.outputs[0]) for node in graph if not node.inputs]
    sizes = dict.fromkeys((FLOAT, HALF), 0)
    for tensor in constants:
        if tensor is not None and tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.size
    return sizes[HALF] > sizes[FLOAT] or any(value.dtype == HALF for value in graph.inputs)


def widen(graph: ir.Graph) -> None:
    """Turn all that is float16 into float32, in place."""
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    graphs = {graph, *(node.graph for node in nodes if isinstance(node.graph, ir.Graph))}
    values = [value for inner in graphs for value in (*inner.inputs, *inner.initializers.values())]
    for value in [*values, *(value for node in nodes for value in node.outputs)]:
        if value.dtype == HALF:
            _set_type(value, FLOAT)
            if value.const_value is not None:
                value.const_value = _widened(value.const_value)
    for node in nodes:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == HALF:
                node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
            elif attribute.type == ir.AttributeType.INT and (name, attribute.value) in _TO_HALF:
                node.attributes[name] = ir.AttrInt64(name, FLOAT.value)


def _set_type(value: ir.Value, dtype: ir.DataType) -> None:
    """Give a value a type of its own: as an object it may be that of others, and of copies of the graph."""
    value.type = ir.TensorType(dtype)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def as_float32(model: ir.Model) -> ir.Model:
    """Return a model in half precision widened to float32; any other as it is."""
    if not is_half(model.graph):
        return model
    wide = model.clone()
    widen(wide.graph)
    return wide


def halve(traced: TracedModel, own: Collection[ir.Node], largest: Mapping[str, float]) -> None:
    """Turn an explainer into one of half precision, in place; its inputs and outputs stay as they are.

    Parameters
    ----------
    traced
        An explainer in float32.
    own
        The nodes of it that are the network's own.
    largest
        The largest absolute values of what these put out, by name.
    """
    graph = traced.model.graph
    LiftConstantsToInitializersPass(lift_all_constants=True)(traced.model)
    own = set(own)
    half = _chosen([node for node in graph if node in own], largest)
    constants = _constants_of(graph, half)
    # Of the weights a class's row is read: it is gathered first, and then widened.
    half |= {node for node in graph if node.op_type == "Gather" and node.inputs[0] in constants}
    for value in constants:
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
    computed = (value for node in graph if node in half for value in node.outputs)
    narrow = [*constants, *(value for value in computed if value.dtype == FLOAT)]
    _cast(graph, half, narrow, {skip_identities(value) for value in traced.targets.values()})
    TopologicalSortPass()(traced.model)


def largest_numbers(model: ir.Model, nodes: Iterable[ir.Node], probe: Probe) -> dict[str, float]:
    """Return the largest absolute value of what each node puts out in float32, by name."""
    copy = model.clone()
    values = ir.convenience.create_value_mapping(copy.graph)
    names = [value.name for node in nodes for value in node.outputs if value.dtype == FLOAT]
    measured = {}
    for name in names:
        if name in values:
            sizes = ir.node("Abs", [values[name]])
            largest = ir.node("ReduceMax", sizes.outputs, {"keepdims": 0})
            copy.graph.extend([sizes, largest])
            sizes.outputs[0].name = f"{name}.sizes"
            (result,) = largest.outputs
            result.name, result.dtype = f"{name}.largest", FLOAT
            measured[name] = result.name
    found = run_graph(copy, list(measured.values()), {INPUT: probe.image, CLASS_INDEX: probe.class_index})
    return {name: float(found[result]) for name, result in measured.items()}


def logits_in_half(model: ir.Model, probe: Probe) -> Array:
    """Return the logits of a probe's first image where every number in float16 is rounded to it.

    onnxruntime's CPU provider doesn't: what it has no kernels for in float16, it runs in float32.
    """
    feeds = {INPUT: probe.image[:1], CLASS_INDEX: probe.class_index[:1]}
    return ReferenceGraph(model, list(feeds), [LOGITS], {}, in_float64=False).run(feeds)[LOGITS]


def _chosen(nodes: Iterable[ir.Node], largest: Mapping[str, float]) -> set[ir.Node]:
    """Return the nodes that are to run in float16."""
    half: set[ir.Node] = set()
    wide: set[ir.Value] = set()  # of these float32 numbers, float16 would lose more than the last digits
    for node in nodes:
        taken = [value for value in node.inputs if value is not None and value.dtype == FLOAT]
        computed = [value for value in taken if value.const_value is None]
        if (
            _has_half_kind(node)
            and all(_fits(value, largest) for value in [*computed, *node.outputs])
            and all(_keeps_digits(value) for value in taken if value.const_value is not None)
            and (node.op_type in _IN_HALF or wide.isdisjoint(computed))
        ):
            half.add(node)
        elif computed:
            wide.update(node.outputs)
    return half


def _has_half_kind(node: ir.Node) -> bool:
    """Say whether the standard has a node's operator in float16, and autocast would run it so."""
    if node.op_type in _IN_FLOAT or node.domain not in ("", "ai.onnx") or not _half_inputs(node):
        return False
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return False
    schema = _schema(node)
    kinds = {_kind(schema.inputs, index) for index in _half_inputs(node)}
    # What a Cast puts out, its attribute says.
    return all(
        _kind(schema.outputs, index) in kinds
        for index, value in enumerate(node.outputs)
        if value.dtype == FLOAT
    )


def _half_inputs(node: ir.Node) -> list[int]:
    """Return the positions of a node's float inputs that may be float16; a Resize's scales may not."""
    schema = _schema(node)
    allowed = {kind.type_param_str: kind.allowed_type_strs for kind in schema.type_constraints}
    kinds = {kind for kind, types in allowed.items() if "tensor(float16)" in types}
    return [
        index
        for index, value in enumerate(node.inputs)
        if value is not None and value.dtype in (FLOAT, HALF) and _kind(schema.inputs, index) in kinds
    ]


def _schema(node: ir.Node) -> onnx.defs.OpSchema:
    assert node.graph is not None
    return onnx.defs.get_schema(node.op_type, node.graph.opset_imports[""], "")


def _kind(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    """Return the name of the type of an input or output; the last one may stand for several."""
    return parameters[min(index, len(parameters) - 1)].type_str


def _fits(value: ir.Value, largest: Mapping[str, float]) -> bool:
    found = largest.get(str(value.name), 0.0)
    return found == 0 or _SMALLEST <= found <= _LARGEST


def _keeps_digits(constant: ir.Value) -> bool:
    assert constant.const_value is not None
    exact = constant.const_value.numpy()
    exact = exact[np.isfinite(exact)].astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float16)
    return bool(np.linalg.norm(rounded - exact) <= _ROUNDING * np.linalg.norm(exact))


def _constants_of(graph: ir.Graph, half: Iterable[ir.Node]) -> list[ir.Value]:
    """Return the constants that nodes in float16 read."""
    read = {operand(node, index).name for node in half for index in _half_inputs(node)}
    return [value for name, value in graph.initializers.items() if value.dtype == FLOAT and name in read]


def _cast(
    graph: ir.Graph, half: Collection[ir.Node], narrow: Iterable[ir.Value], targets: Collection[ir.Value]
) -> None:
    """Make values float16, and put a Cast wherever a reader takes the other precision."""
    places = {node: _half_inputs(node) for node in graph if node in half}

    def takes_half(node: ir.Node, index: int) -> bool:
        return node in places and index in places[node]

    for value in narrow:
        _set_type(value, HALF)
        uses = list(value.uses())
        # The layer's own nodes, too, take it as the file puts it out: there the gradient is taken.
        readers = [use for use in uses if value in targets or not takes_half(*use)]
        if readers or value.is_graph_output():
            wide = _casted(graph, value, FLOAT)
            for node, index in readers:
                node.replace_input_with(index, wide)
            for index, output in enumerate(graph.outputs):
                if output is value:
                    name, value.name = value.name, f"{value.name}.half"
                    graph.outputs[index], wide.name = wide, name
    casts: dict[ir.Value, ir.Value] = {}
    for node, indices in places.items():
        for index in indices:
            value = operand(node, index)
            if value.dtype == FLOAT:
                if value not in casts:
                    casts[value] = _casted(graph, value, HALF)
                node.replace_input_with(index, casts[value])


def _casted(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    node = ir.node("Cast", [value], {"to": dtype.value})
    graph.append(node)
    (result,) = node.outputs
    result.name, result.dtype, result.shape = f"{value.name}.{dtype.name.lower()}", dtype, value.shape
    return result
