"""Bringing an ONNX model to the design's opset, so that each operator has one form.

Older models are raised one opset at a time, newer ones lowered in one step. onnx's own converter won't do: it
gives an old Resize other pixels, loses metadata, and lowers hardly anything. Nodes whose form is the same
in both opsets stay as they are; the others are replaced where they stand, each by an adapter of a few lines.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, inliner

from onnxplain.errors import SourceError
from onnxplain_export.onnx_file import first_line

OPSET = 20
# From here on the adapters below know every form; what is older goes through onnx's converter first.
_OLDEST = 7
# The tensor types of opset 20 end here; later ones are those of two and four bits.
_LAST_TYPE = TensorProto.FLOAT8E5M2FNUZ
# Operators that onnxruntime's optimizer writes into older opsets than the standard's.
_EARLY = frozenset({"LayerNormalization"})
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def to_design_opset(model: ModelProto) -> ModelProto:
    """Return a model at opset 20 that computes the same.

    Parameters
    ----------
    model
        A model of the standard domain, at any opset that the installed onnx knows; it is left as it is. Large
        weights may be inputs instead of initializers: their values aren't looked at.

    Returns
    -------
    ModelProto
        A copy without local functions. Every tensor that the main graph had keeps its name, and nodes that
        replace others take over their metadata.

    Raises
    ------
    SourceError
        The opset is unknown, or a node can't be expressed in opset 20.
    """
    model = _inlined(model)
    version = _opset(model)
    if version < _OLDEST:
        model, version = _raised_by_onnx(model), _OLDEST
    _check_nodes(model.graph, version)
    rewriting = _Rewriting(model, version)
    for step in range(version + 1, OPSET + 1):
        rewriting.run(lambda op, step=step: _raise(op, step))  # type: ignore[misc]
    if version > OPSET:
        _check_types(model.graph)
        rewriting.run(_lower)
    others = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx")]
    imports = [helper.make_opsetid("", OPSET), *others]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    # Older versions of the format have no initializers beside the inputs, and fewer types.
    model.ir_version = max(model.ir_version, 9)
    return model


def _inlined(model: ModelProto) -> ModelProto:
    """Return a copy whose local functions are replaced by their bodies."""
    if not model.functions:
        copy = ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        inlined = inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:
        raise SourceError(f"the model's local functions can't be inlined: {first_line(error)}") from error
    assert isinstance(inlined, ModelProto)
    return inlined


def _opset(model: ModelProto) -> int:
    versions: set[int] = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    newest = onnx.defs.onnx_opset_version()
    if not versions:
        raise SourceError("the model doesn't say which opset it is written in; convert it with onnx first")
    if len(versions) > 1:
        raise SourceError(f"the model is written in two opsets at once: {sorted(versions)}")
    version = versions.pop()
    if not 1 <= version <= newest:
        raise SourceError(
            f"the model is written in opset {version}, but the installed onnx knows 1 to {newest}; "
            "install a newer onnx, or export the model at an older opset"
        )
    return version


def _raised_by_onnx(model: ModelProto) -> ModelProto:
    try:
        raised = onnx.version_converter.convert_version(model, _OLDEST)
    except Exception as error:
        raise SourceError(
            f"the model's opset {_opset(model)} can't be raised to {OPSET}: {first_line(error)}"
        ) from error
    assert isinstance(raised, ModelProto)
    return raised


def _check_nodes(graph: GraphProto, version: int) -> None:
    """Check that each operator exists in the model's opset."""
    for node in graph.node:
        if node.domain == "ai.onnx":
            node.domain = ""
        if not node.domain and node.op_type not in _EARLY:
            try:
                onnx.defs.get_schema(node.op_type, version, "")
            except onnx.defs.SchemaError:
                raise SourceError(f"there is no operator {_place(node)} in opset {version}") from None
        for subgraph in _subgraphs(node):
            _check_nodes(subgraph, version)


def _check_types(graph: GraphProto) -> None:
    """Check that no tensor has a type that opset 20 lacks."""
    typed = [(tensor.name, tensor.data_type) for tensor in graph.initializer]
    typed += [(value.name, value.type.tensor_type.elem_type) for value in graph.input]
    typed += [
        (node.output[0], attribute.t.data_type)
        for node in graph.node
        for attribute in node.attribute
        if attribute.type == AttributeProto.TENSOR
    ]
    for name, kind in typed:
        if kind > _LAST_TYPE:
            raise SourceError(
                f"the tensor {name!r} is of type {TensorProto.DataType.Name(kind)}, which opset {OPSET} "
                "lacks; export the model without it"
            )
    for node in graph.node:
        for subgraph in _subgraphs(node):
            _check_types(subgraph)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for subgraph in _subgraphs(node):
            yield from _graphs(subgraph)


def _place(node: NodeProto) -> str:
    name = f"node {node.name!r}" if node.name else f"the node of {next(iter(node.output), '')!r}"
    return f"{node.domain}::{node.op_type} ({name})" if node.domain else f"{node.op_type} ({name})"


class _Rewriting:
    """The nodes of a model, replaced pass by pass."""

    def __init__(self, model: ModelProto, version: int) -> None:
        self.model = model
        self.version = version
        self.types = _types(model)
        self.taken = {
            name
            for graph in _graphs(model.graph)
            for name in [
                *(value.name for value in graph.input),
                *(tensor.name for tensor in graph.initializer),
                *(name for node in graph.node for name in (*node.input, *node.output)),
                *(node.name for node in graph.node),
            ]
        }

    def run(self, adapt: Callable[[_Emitter], None]) -> None:
        for graph in _graphs(self.model.graph):
            nodes: list[NodeProto] = []
            for node in graph.node:
                if node.domain:
                    nodes.append(node)
                    continue
                op = _Emitter(node, self)
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


class _Emitter:
    """What takes the place of one node."""

    def __init__(self, node: NodeProto, rewriting: _Rewriting) -> None:
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
        return self.rewriting.fresh(f"{self.node.name or self.node.output[0]}/{suffix}")

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
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
        self.take(name)
        self.node.attribute.append(helper.make_attribute(name, value))

    def input(self, index: int) -> str:
        """Return the name of an input, empty where it is left out."""
        return str(self.node.input[index]) if index < len(self.node.input) else ""

    def set_input(self, index: int, name: str) -> None:
        inputs = list(self.node.input)
        inputs += [""] * (index + 1 - len(inputs))
        inputs[index] = name
        while inputs and not inputs[-1]:
            inputs.pop()
        del self.node.input[:]
        self.node.input.extend(inputs)

    def element_type(self, name: str) -> int:
        """Return the element type of a tensor; float where nothing tells."""
        kind = self.rewriting.types.get(name)
        return kind.tensor_type.elem_type if kind and kind.tensor_type.elem_type else TensorProto.FLOAT

    def rank(self, name: str) -> int | None:
        kind = self.rewriting.types.get(name)
        return len(kind.tensor_type.shape.dim) if kind and kind.tensor_type.HasField("shape") else None

    def known_rank(self, name: str) -> int:
        rank = self.rank(name)
        if rank is None:
            raise self.refused(
                f"the rank of {name!r} is unknown; run onnx's shape inference on the model first"
            )
        return rank

    def refused(self, why: str) -> SourceError:
        return SourceError(f"{_place(self.node)} can't be expressed in opset {OPSET}: {why}")


def _types(model: ModelProto) -> Mapping[str, TypeProto]:
    """Return the types of all tensors that onnx's shape inference can tell."""
    inferred = ModelProto()
    inferred.CopyFrom(model)
    for graph in _graphs(inferred.graph):
        for node in graph.node:
            # onnx infers nothing of it, and so nothing after it.
            if node.op_type == "GroupNormalization":
                node.op_type = "Identity"
                del node.input[1:], node.attribute[:]
    # What can't be inferred is refused where it is needed.
    with contextlib.suppress(Exception):
        inferred = onnx.shape_inference.infer_shapes(inferred)
    types: dict[str, TypeProto] = {}
    for graph in _graphs(inferred.graph):
        for tensor in graph.initializer:
            types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        for value in (*graph.input, *graph.value_info, *graph.output):
            types[value.name] = value.type
    return types


# --- Raising: what each opset changed -----------------------------------------------------------------------

_Adapter = Callable[[_Emitter], None]
_RAISE: dict[tuple[str, int], _Adapter] = {}


def _raises(opset: int, *op_types: str) -> Callable[[_Adapter], _Adapter]:
    def register(adapter: _Adapter) -> _Adapter:
        for op_type in op_types:
            _RAISE[op_type, opset] = adapter
        return adapter

    return register


def _raise(op: _Emitter, opset: int) -> None:
    adapter = _RAISE.get((op.node.op_type, opset))
    if adapter is None:
        op.keep()
    else:
        adapter(op)


def _attribute_to_input(name: str, index: int) -> _Adapter:
    """Return an adapter of an integer attribute, a number or a list, that became an input."""

    def adapt(op: _Emitter) -> None:
        value = op.take(name)
        if value is not None:
            op.set_input(index, op.constant(value))
        op.keep()

    return adapt


@_raises(9, "BatchNormalization")
def _batch_normalization_9(op: _Emitter) -> None:
    if op.take("spatial", 1) != 1:
        raise op.refused("its statistics are those of single pixels (spatial=0)")
    op.keep()


@_raises(9, "Upsample")
def _upsample_9(op: _Emitter) -> None:
    op.set_input(1, op.constant(op.take("scales"), np.float32))
    op.keep()


@_raises(9, "Scan")
def _scan_9(op: _Emitter) -> None:
    raise op.refused("this form of Scan is gone; export the model at opset 9 or newer")


@_raises(10, "Upsample")
def _upsample_10(op: _Emitter) -> None:
    op.node.op_type = "Resize"
    op.keep()


@_raises(10, "TopK")
def _top_k_10(op: _Emitter) -> None:
    op.set_input(1, op.constant([op.take("k")]))
    op.keep()


@_raises(10, "Slice")
def _slice_10(op: _Emitter) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), start=1):
        value = op.take(name)
        if value is not None:
            op.set_input(index, op.constant(value))
    op.keep()


@_raises(11, "Clip")
def _clip_11(op: _Emitter) -> None:
    for index, name in enumerate(("min", "max"), start=1):
        value = op.take(name)
        if value is not None:
            op.set_input(index, op.constant_like(value, op.input(0)))
    op.keep()


@_raises(11, "Pad")
def _pad_11(op: _Emitter) -> None:
    op.set_input(1, op.constant(op.take("pads")))
    value = op.take("value", 0.0)
    if value:
        op.set_input(2, op.constant_like(value, op.input(0)))
    op.keep()


@_raises(11, "Resize")
def _resize_11(op: _Emitter) -> None:
    """Before opset 11 pixels were aligned at their corners, and the nearest one was that before."""
    op.set_input(2, op.input(1))
    op.set_input(1, "")
    op.set("coordinate_transformation_mode", "asymmetric")
    op.set("nearest_mode", "floor")
    op.keep()


@_raises(11, "Scatter")
def _scatter_11(op: _Emitter) -> None:
    op.node.op_type = "ScatterElements"
    op.keep()


@_raises(12, "Dropout")
def _dropout_12(op: _Emitter) -> None:
    # Only training reads the ratio.
    op.take("ratio")
    op.keep()


@_raises(13, "Softmax", "LogSoftmax", "Hardmax")
def _softmax_13(op: _Emitter) -> None:
    """Flatten what the old form is over, all axes from the given one on: the new one is over one alone."""
    axis, rank = op.take("axis", 1), op.rank(op.input(0))
    if axis == -1 or (rank is not None and axis == rank - 1):
        op.set("axis", -1)
        op.keep()
        return
    data, output = op.input(0), str(op.node.output[0])
    (shape,) = op("Shape", data)
    (flat,) = op("Flatten", data, axis=axis)
    (result,) = op(op.node.op_type, flat, axis=-1)
    op("Reshape", result, shape, outputs=[output])


for _op_type in ("Squeeze", "Unsqueeze", "ReduceSum"):
    _RAISE[_op_type, 13] = _attribute_to_input("axes", 1)
_RAISE["Split", 13] = _attribute_to_input("split", 1)


@_raises(13, "Resize")
def _resize_13(op: _Emitter) -> None:
    mode = op.attributes.get("coordinate_transformation_mode", b"half_pixel")
    if mode == b"tf_half_pixel_for_nn":
        raise op.refused("its pixels are placed as in tf_half_pixel_for_nn")
    # Inputs that weren't meant had to be given, empty; now they are left out.
    if mode != b"tf_crop_and_resize":
        op.set_input(1, "")
    if op.input(3):
        op.set_input(2, "")
    op.keep()


@_raises(14, "BatchNormalization")
def _batch_normalization_14(op: _Emitter) -> None:
    if any(op.node.output[1:]):
        raise op.refused("it is in training mode; export the model in evaluation mode")
    op.keep()


@_raises(16, "RoiAlign")
def _roi_align_16(op: _Emitter) -> None:
    op.set("coordinate_transformation_mode", "output_half_pixel")
    op.keep()


for _op_type in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"):
    _RAISE[f"Reduce{_op_type}", 18] = _attribute_to_input("axes", 1)


@_raises(18, "Split")
def _split_18(op: _Emitter) -> None:
    if not op.input(1):
        op.set("num_outputs", len(op.node.output))
    op.keep()


@_raises(20, "GridSample")
def _grid_sample_20(op: _Emitter) -> None:
    mode = op.attributes.get("mode", b"bilinear").decode()
    op.set("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))
    op.keep()


@_raises(20, "DFT")
def _dft_20(op: _Emitter) -> None:
    op.set_input(2, op.constant(op.take("axis", 1)))
    op.keep()


# --- Lowering: what came after opset 20 ---------------------------------------------------------------------

_LOWER: dict[str, _Adapter] = {}


def _lowers(op_type: str) -> Callable[[_Adapter], _Adapter]:
    def register(adapter: _Adapter) -> _Adapter:
        _LOWER[op_type] = adapter
        return adapter

    return register


def _lower(op: _Emitter) -> None:
    """Replace a node whose form is newer; one that only takes more types is the same node."""
    if op.node.op_type in _EARLY or _schema(op).since_version <= OPSET:
        op.keep()
    elif op.node.op_type in _LOWER:
        _LOWER[op.node.op_type](op)
    else:
        _relabel(op)


def _schema(op: _Emitter) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(op.node.op_type, op.rewriting.version, "")


def _relabel(op: _Emitter) -> None:
    """Keep a node as it is, less those new attributes that only say what was always so."""
    try:
        old = onnx.defs.get_schema(op.node.op_type, OPSET, "")
    except onnx.defs.SchemaError:
        _expand(op)
        return
    for name, value in op.attributes.items():
        if name not in old.attributes:
            default = _default(_schema(op), name)
            if value != default:
                raise op.refused(f"its {name}={_shown(value)}")
            op.take(name)
    # An attribute that is left out means what it meant in the model's own opset.
    for name in _schema(op).attributes:
        if name in old.attributes and name not in op.attributes:
            default = _default(_schema(op), name)
            if default is not None and default != _default(old, name):
                op.set(name, default)
    if len(op.node.input) > old.max_input or len(op.node.output) > old.max_output:
        raise op.refused("it has more inputs or outputs than there")
    op.keep()


def _default(schema: onnx.defs.OpSchema, name: str) -> Any:
    value = schema.attributes[name].default_value
    return helper.get_attribute_value(value) if value.type != AttributeProto.UNDEFINED else None


def _shown(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _expand(op: _Emitter) -> None:
    """Replace a node by the body that the standard gives its operator."""
    node, version = NodeProto(), op.rewriting.version
    node.CopyFrom(op.node)
    schema = _schema(op)
    given = {name for name in (*node.input, *node.output) if name}
    # The body leaves the place of an attribute empty that has a default but isn't given.
    for name in schema.attributes:
        default = _default(schema, name)
        if name not in op.attributes and default is not None:
            node.attribute.append(helper.make_attribute(name, default))
    inputs = [
        onnx.ValueInfoProto(name=name, type=op.rewriting.types[name])
        for name in dict.fromkeys(node.input)
        if name in op.rewriting.types
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    model = helper.make_model(
        helper.make_graph([node], "body", inputs, outputs), opset_imports=[helper.make_opsetid("", version)]
    )
    try:
        inlined = inliner.inline_selected_functions(model, [("", node.op_type)], inline_schema_functions=True)
    except Exception as error:
        raise op.refused(first_line(error)) from error
    body = inlined.graph.node
    if any(inner.op_type == node.op_type for inner in body):
        raise op.refused("the operator is newer, and the standard gives no body for it")
    names: dict[str, str] = {name: name for name in given} | {"": ""}
    for inner in body:
        renamed = _Emitter(inner, op.rewriting)
        for values in (inner.input, inner.output):
            for index, name in enumerate(values):
                values[index] = names.setdefault(name, name if name in given else op.fresh(name))
        inner.name = op.fresh(inner.op_type)
        inner.metadata_props.extend(op.node.metadata_props)
        _lower(renamed)
        op.nodes += renamed.nodes


@_lowers("GroupNormalization")
def _group_normalization(op: _Emitter) -> None:
    """Scale and shift each channel: the older form has a scale and bias for each group."""
    data, scale, bias = op.node.input
    groups = op.attributes["num_groups"]
    (shape,) = op("Shape", data)
    (grouped,) = op("Reshape", data, op.constant([0, groups, -1]))
    (normal,) = op(
        "InstanceNormalization",
        grouped,
        op.constant_like([1.0] * groups, data),
        op.constant_like([0.0] * groups, data),
        epsilon=op.attributes.get("epsilon", 1e-5),
    )
    (whole,) = op("Reshape", normal, shape)
    rank = op.known_rank(data)
    # From [channels] to [channels, 1, ...], as it is broadcast.
    axes = op.constant(range(1, rank - 1))
    (scaled,) = op("Mul", whole, *op("Unsqueeze", scale, axes))
    op("Add", scaled, *op("Unsqueeze", bias, axes), outputs=op.node.output)


@_lowers("QuantizeLinear")
def _quantize_linear(op: _Emitter) -> None:
    kind = op.take("output_dtype", 0)
    if kind > _LAST_TYPE:
        raise op.refused(f"its output is of type {TensorProto.DataType.Name(kind)}")
    if kind and not op.input(2):
        if op.rank(op.input(1)) != 0:
            raise op.refused("it has an output_dtype and no zero point; give it one")
        op.set_input(2, op.constant(0, helper.tensor_dtype_to_np_dtype(kind)))
    op.attributes.pop("output_dtype", None)
    _quantized(op)


@_lowers("DequantizeLinear")
def _dequantize_linear(op: _Emitter) -> None:
    kind = op.take("output_dtype", 0)
    if kind and kind != op.element_type(op.input(1)):
        raise op.refused("its output is of another type than its scale")
    op.attributes.pop("output_dtype", None)
    _quantized(op)


def _quantized(op: _Emitter) -> None:
    if op.attributes.get("block_size"):
        raise op.refused("it quantises by blocks; quantise by tensor or channel")
    _relabel(op)


@_lowers("Cast")
@_lowers("CastLike")
def _cast(op: _Emitter) -> None:
    # Only a cast to FLOAT8E8M0, which opset 20 lacks, reads it.
    op.take("round_mode")
    op.attributes.pop("round_mode", None)
    _relabel(op)


@_lowers("Range")
def _range(op: _Emitter) -> None:
    # Only ranges of 16 bits read it.
    op.take("stash_type")
    op.attributes.pop("stash_type", None)
    _relabel(op)


@_lowers("Swish")
def _swish(op: _Emitter) -> None:
    _emit_swish(op, op.input(0), op.attributes.get("alpha", 1.0), op.node.output)


def _emit_swish(op: _Emitter, data: str, alpha: float, outputs: Sequence[str] | int = 1) -> list[str]:
    inner = data if alpha == 1.0 else op("Mul", data, op.constant_like(alpha, data))[0]
    return op("Mul", data, *op("Sigmoid", inner), outputs=outputs)


@_lowers("SwiGLU")
def _swi_glu(op: _Emitter) -> None:
    gate, data = op.node.input
    (swish,) = _emit_swish(op, gate, op.attributes.get("alpha", 1.0))
    op("Mul", swish, data, outputs=op.node.output)


@_lowers("RMSNormalization")
def _rms_normalization(op: _Emitter) -> None:
    data, scale = op.node.input
    kind, axis = op.element_type(data), op.attributes.get("axis", -1)
    if axis >= 0:
        rank = op.known_rank(data)
        axis -= rank
    cast = kind in _HALVES and op.attributes.get("stash_type", 1) == TensorProto.FLOAT
    wide = op("Cast", data, to=TensorProto.FLOAT)[0] if cast else data
    epsilon = op.attributes.get("epsilon", 1e-5)
    small = op.constant(epsilon, np.float32) if cast else op.constant_like(epsilon, data)
    (square,) = op("Mul", wide, wide)
    (mean,) = op("ReduceMean", square, op.constant(range(axis, 0)), keepdims=1)
    (rms,) = op("Sqrt", *op("Add", mean, small))
    (normal,) = op("Div", wide, rms)
    if cast:
        (normal,) = op("Cast", normal, to=kind)
    op("Mul", normal, scale, outputs=op.node.output)


@_lowers("Attention")
def _attention(op: _Emitter) -> None:
    """Write what exporters use in a dozen nodes at most; all else gets the standard's body, of sixty."""
    query, key, value, mask = (op.input(index) for index in range(4))
    attributes, rank = op.attributes, op.rank(query)
    heads, others = (int(attributes.get(name, 0)) for name in ("q_num_heads", "kv_num_heads"))
    width = _size(op, query, -1)
    plain = (
        rank in (3, 4)
        and width is not None
        and (heads == others if rank == 3 else _size(op, query, 1) == _size(op, key, 1) is not None)
        and not any(op.node.input[4:])
        and not any(op.node.output[1:])
        and (not mask or op.element_type(mask) == op.element_type(query))
        and op.element_type(query) not in _HALVES
        and not (attributes.get("is_causal") or attributes.get("softcap"))
        and attributes.get("softmax_precision", TensorProto.FLOAT) == TensorProto.FLOAT
        and attributes.get("left_window_size", -1) == attributes.get("right_window_size", -1) == -1
    )
    if not plain:
        _expand(op)
        return
    assert width is not None
    if rank == 3:
        split = op.constant([0, 0, heads, -1])
        query, key, value = (
            op("Transpose", *op("Reshape", tensor, split), perm=perm)[0]
            for tensor, perm in ((query, [0, 2, 1, 3]), (key, [0, 2, 3, 1]), (value, [0, 2, 1, 3]))
        )
        width //= heads
    else:
        (key,) = op("Transpose", key, perm=[0, 1, 3, 2])
    scale = attributes.get("scale") or 1 / math.sqrt(width)
    (scaled,) = op("Mul", query, op.constant_like(scale, op.input(0)))
    (scores,) = op("MatMul", scaled, key)
    if mask:
        (scores,) = op("Add", scores, mask)
    (weights,) = op("Softmax", scores, axis=-1)
    if rank == 4:
        op("MatMul", weights, value, outputs=op.node.output[:1])
        return
    (result,) = op("Transpose", *op("MatMul", weights, value), perm=[0, 2, 1, 3])
    op("Reshape", result, op.constant([0, 0, -1]), outputs=op.node.output[:1])


def _size(op: _Emitter, name: str, axis: int) -> int | None:
    """Return the size of a tensor along an axis, None where it isn't fixed."""
    if not op.rank(name):
        return None
    dim = op.rewriting.types[name].tensor_type.shape.dim[axis]
    return int(dim.dim_value) if dim.HasField("dim_value") else None
