"""The fused operators that onnxruntime's optimizer writes, in terms of the standard's."""

from __future__ import annotations

from collections.abc import Callable

from onnxplain_export.opset_newer import check_quantised
from onnxplain_export.opset_nodes import Adapter, Emitter

CONTRIB_DOMAIN = "com.microsoft"

_CONTRIB: dict[str, Adapter] = {}


def _fused(op_type: str) -> Callable[[Adapter], Adapter]:
    def register(adapter: Adapter) -> Adapter:
        _CONTRIB[op_type] = adapter
        return adapter

    return register


def unfuse_node(op: Emitter) -> None:
    """Replace a fused node; one of the standard stays."""
    if op.node.domain == CONTRIB_DOMAIN and op.node.op_type in _CONTRIB:
        _CONTRIB[op.node.op_type](op)
    else:
        op.keep()


@_fused("Gelu")
def _gelu(op: Emitter) -> None:
    op("Gelu", op.input(0), outputs=op.node.output)


@_fused("FastGelu")
def _fast_gelu(op: Emitter) -> None:
    data = op("Add", op.input(0), op.input(1))[0] if op.input(1) else op.input(0)
    op("Gelu", data, outputs=op.node.output, approximate="tanh")


@_fused("BiasGelu")
def _bias_gelu(op: Emitter) -> None:
    op("Gelu", *op("Add", *op.node.input), outputs=op.node.output)


@_fused("QuickGelu")
def _quick_gelu(op: Emitter) -> None:
    op.swish(op.input(0), op.attributes.get("alpha", 1.702), op.node.output)


@_fused("FusedConv")
def _fused_conv(op: Emitter) -> None:
    activation, parameters = op.take("activation", b"").decode(), op.take("activation_params", [])
    attributes = {name: value for name, value in op.attributes.items() if not name.startswith("activation")}
    operands = [op.input(index) for index in range(3)]
    (result,) = op("Conv", *(operands if operands[2] else operands[:2]), **attributes)
    if op.input(3):
        (result,) = op("Add", result, op.input(3))
    _activate(op, result, activation, parameters)


@_fused("FusedGemm")
def _fused_gemm(op: Emitter) -> None:
    attributes = {name: value for name, value in op.attributes.items() if not name.startswith("activation")}
    (result,) = op("Gemm", *op.node.input, **attributes)
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = [op.attributes[name] for name in names if name in op.attributes]
    _activate(op, result, op.attributes.get("activation", b"").decode(), parameters)


def _activate(op: Emitter, data: str, activation: str, parameters: list[float]) -> None:
    names = {"Relu": (), "Tanh": (), "Sigmoid": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}
    if activation == "Clip":
        bounds = [op.constant_like(value, data) for value in parameters]
        op("Clip", data, *bounds, outputs=op.node.output)
    elif activation in names:
        given = dict(zip(names[activation], parameters, strict=False))
        op(activation, data, outputs=op.node.output, **given)
    else:
        raise op.refused(f"its activation {activation!r} is unknown")


@_fused("FusedMatMul")
def _fused_mat_mul(op: Emitter) -> None:
    if op.attributes.get("transBatchA") or op.attributes.get("transBatchB"):
        raise op.refused("it transposes batches")
    operands = []
    for index, name in enumerate(("transA", "transB")):
        operand = op.input(index)
        if op.attributes.get(name) and (rank := op.known_rank(operand)) > 1:
            perm = [*range(rank - 2), rank - 1, rank - 2]
            (operand,) = op("Transpose", operand, perm=perm)
        operands.append(operand)
    alpha = op.attributes.get("alpha", 1.0)
    if alpha == 1.0:
        op("MatMul", *operands, outputs=op.node.output)
    else:
        (product,) = op("MatMul", *operands)
        op("Mul", product, op.constant_like(alpha, op.input(0)), outputs=op.node.output)


@_fused("QuantizeLinear")
def _quantize_linear(op: Emitter) -> None:
    _quantised(op, op.element_type(op.input(2)))


@_fused("DequantizeLinear")
def _dequantize_linear(op: Emitter) -> None:
    _quantised(op, op.element_type(op.input(0)))


def _quantised(op: Emitter, kind: int) -> None:
    """Take the standard's, which came later, in place of one that quantises to bytes alike."""
    check_quantised(op, kind)
    op.node.domain = ""
    op.keep()


@_fused("SkipLayerNormalization")
def _skip_layer_normalization(op: Emitter) -> None:
    if any(op.node.output[1:3]):
        raise op.refused("its mean or deviation is used")
    data, skip, scale, bias, extra = (op.input(index) for index in range(5))
    if extra:
        (data,) = op("Add", data, extra)
    # The sum is the fourth output, where it is wanted.
    total = str(op.node.output[3]) if len(op.node.output) > 3 and op.node.output[3] else op.fresh("sum")
    op("Add", data, skip, outputs=[total])
    operands = [total, scale, bias] if bias else [total, scale]
    epsilon = op.attributes.get("epsilon", 1e-12)
    op("LayerNormalization", *operands, outputs=op.node.output[:1], axis=-1, epsilon=epsilon)
