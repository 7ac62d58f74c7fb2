"""What came after the design's opset: adapters that lower a node to it in one step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, inliner

from onnxplain_export.onnx_file import first_line
from onnxplain_export.opset_nodes import EARLY, OPSET, Adapter, Emitter, types_of

# The tensor types of opset 20 end here; later ones are those of two and four bits.
LAST_TYPE = TensorProto.FLOAT8E5M2FNUZ
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_WIDE = frozenset({TensorProto.INT16, TensorProto.UINT16})

_LOWER: dict[str, Adapter] = {}


def _lowers(op_type: str) -> Callable[[Adapter], Adapter]:
    def register(adapter: Adapter) -> Adapter:
        _LOWER[op_type] = adapter
        return adapter

    return register


def lower_node(op: Emitter) -> None:
    """Replace a node whose form is newer; one that only takes more types is the same node."""
    if op.node.domain or op.node.op_type in EARLY or _schema(op).since_version <= OPSET:
        op.keep()
    elif op.node.op_type in _LOWER:
        _LOWER[op.node.op_type](op)
    else:
        _relabel(op)


def _schema(op: Emitter) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(op.node.op_type, op.rewriting.version, "")


def _relabel(op: Emitter) -> None:
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


def _expand(op: Emitter) -> None:
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
    types = types_of(inlined)
    names: dict[str, str] = {name: name for name in given} | {"": ""}
    for inner in body:
        renamed = Emitter(inner, op.rewriting)
        for values in (inner.input, inner.output):
            for index, name in enumerate(values):
                if name not in names:
                    names[name] = op.fresh(name)
                    if name in types:
                        op.rewriting.types[names[name]] = types[name]
                values[index] = names[name]
        inner.name = op.fresh(inner.op_type)
        inner.metadata_props.extend(op.node.metadata_props)
        lower_node(renamed)
        op.nodes += renamed.nodes


@_lowers("GroupNormalization")
def _group_normalization(op: Emitter) -> None:
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
def _quantize_linear(op: Emitter) -> None:
    kind = op.take("output_dtype", 0)
    check_quantised(op, kind or op.element_type(op.input(2)))
    if kind and not op.input(2):
        if op.rank(op.input(1)) != 0:
            raise op.refused("it has an output_dtype and no zero point; give it one")
        op.set_input(2, op.constant(0, helper.tensor_dtype_to_np_dtype(kind)))
    op.attributes.pop("output_dtype", None)
    _relabel(op)


@_lowers("DequantizeLinear")
def _dequantize_linear(op: Emitter) -> None:
    kind = op.take("output_dtype", 0)
    check_quantised(op, op.element_type(op.input(0)))
    if kind and kind != op.element_type(op.input(1)):
        raise op.refused("its output is of another type than its scale")
    op.attributes.pop("output_dtype", None)
    _relabel(op)


def check_quantised(op: Emitter, kind: int) -> None:
    """Check that opset 20 can quantise as a node does, to numbers of a type."""
    if op.attributes.get("block_size"):
        raise op.refused("it quantises by blocks; quantise by tensor or channel")
    if kind in _WIDE or kind > LAST_TYPE:
        raise op.refused(f"it quantises to {TensorProto.DataType.Name(kind)}; quantise to eight bits")


@_lowers("CastLike")
def _cast_like(op: Emitter) -> None:
    # What is cast doesn't depend on the numbers of what it is to be like.
    op("Cast", op.input(0), to=op.element_type(op.input(1)), outputs=op.node.output)


@_lowers("Cast")
def _cast(op: Emitter) -> None:
    # Only a cast to FLOAT8E8M0, which opset 20 lacks, reads it.
    op.take("round_mode")
    op.attributes.pop("round_mode", None)
    _relabel(op)


@_lowers("Range")
def _range(op: Emitter) -> None:
    # Only ranges of 16 bits read it.
    op.take("stash_type")
    op.attributes.pop("stash_type", None)
    _relabel(op)


@_lowers("Swish")
def _swish(op: Emitter) -> None:
    op.swish(op.input(0), op.attributes.get("alpha", 1.0), op.node.output)


@_lowers("SwiGLU")
def _swi_glu(op: Emitter) -> None:
    gate, data = op.node.input
    (swish,) = op.swish(gate, op.attributes.get("alpha", 1.0))
    op("Mul", swish, data, outputs=op.node.output)


@_lowers("RMSNormalization")
def _rms_normalization(op: Emitter) -> None:
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


@_lowers("RotaryEmbedding")
def _rotary_embedding(op: Emitter) -> None:
    data, cosine, sine = (op.input(index) for index in range(3))
    folded = op.known_rank(data) == 3
    heads, rotated = (op.attributes.get(name, 0) for name in ("num_heads", "rotary_embedding_dim"))
    if op.input(3):
        cosine, sine = (op("Gather", cache, op.input(3))[0] for cache in (cosine, sine))
    # From [batch, tokens, features] to [batch, 1, tokens, features]: the same for all heads.
    cosine, sine = (op("Unsqueeze", cache, op.constant([1]))[0] for cache in (cosine, sine))
    if folded:
        (data,) = op("Reshape", data, op.constant([0, 0, heads, -1]))
        (data,) = op("Transpose", data, perm=[0, 2, 1, 3])
    rest: list[str] = []
    if rotated:
        end, last = op.constant([rotated]), op.constant([-1])
        rest = op("Slice", data, end, op.constant([np.iinfo(np.int64).max]), last)
        (data,) = op("Slice", data, op.constant([0]), end, last)
    interleaved = op.attributes.get("interleaved", 0)
    if interleaved:
        (pairs,) = op("Reshape", data, op.constant([0, 0, 0, -1, 2]))
        a, b = (op("Gather", pairs, op.constant(index), axis=-1)[0] for index in (0, 1))
    else:
        a, b = op("Split", data, axis=-1, num_outputs=2, outputs=2)
    turned = [
        op("Sub", *op("Mul", a, cosine), *op("Mul", b, sine))[0],
        op("Add", *op("Mul", a, sine), *op("Mul", b, cosine))[0],
    ]
    if interleaved:
        last = op.constant([-1])
        pairs = op("Concat", *(op("Unsqueeze", half, last)[0] for half in turned), axis=-1)[0]
        turned = op("Reshape", pairs, op.constant([0, 0, 0, -1]))
    if not folded:
        op("Concat", *turned, *rest, axis=-1, outputs=op.node.output)
        return
    (result,) = op("Transpose", *op("Concat", *turned, *rest, axis=-1), perm=[0, 2, 1, 3])
    op("Reshape", result, op.constant([0, 0, -1]), outputs=op.node.output)


@_lowers("Attention")
def _attention(op: Emitter) -> None:
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


def _size(op: Emitter, name: str, axis: int) -> int | None:
    """Return the size of a tensor along an axis, None where it isn't fixed."""
    if not op.rank(name):
        return None
    dim = op.rewriting.types[name].tensor_type.shape.dim[axis]
    return int(dim.dim_value) if dim.HasField("dim_value") else None
