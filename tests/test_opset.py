"""Models of other opsets compute the same at opset 20."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxplain.errors import SourceError
from onnxplain_export.opset import OPSET, to_design_opset

Array = npt.NDArray[Any]

NEWEST = onnx.defs.onnx_opset_version()


def model_of(text: str, opset: int, constants: dict[str, Array] | None = None, **imports: int) -> ModelProto:
    """Make a model of a graph in ONNX's text format, and of functions after it."""
    domains = ", ".join(f'"{domain}": {version}' for domain, version in {"": opset, **imports}.items())
    model = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{domains}]>\n{text}")
    for name, array in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
        node.metadata_props.add(key="module", value=f"module_{index}")
    for output in model.graph.output:
        output.ClearField("type")
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for output in model.graph.output:
        # onnx doesn't infer those of a GroupNormalization, the same as its input's.
        if output.type.WhichOneof("value") is None:
            output.type.CopyFrom(model.graph.input[0].type)
    return model


def random_feeds(model: ModelProto) -> dict[str, Array]:
    """Draw the inputs of a model, two images a batch; whole numbers are 0 or 1."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value or 2 for dim in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        whole = np.issubdtype(dtype, np.integer) or dtype == np.bool_
        drawn = rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)
        feeds[value.name] = np.asarray(drawn, dtype=dtype)
    return feeds


def by_onnxruntime(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def by_reference(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    return list(ReferenceEvaluator(model).run(None, feeds))


def check(model: ModelProto, evaluate: Any = by_onnxruntime) -> ModelProto:
    """Check that a model becomes a valid one of opset 20 with the same outputs, and return that."""
    before = model.SerializeToString()
    converted = to_design_opset(model)
    assert model.SerializeToString() == before
    assert [(entry.domain, entry.version) for entry in converted.opset_import if not entry.domain] == [
        ("", OPSET)
    ]
    assert not converted.functions
    onnx.checker.check_model(converted, full_check=True)
    feeds = random_feeds(model)
    expected = evaluate(model, feeds)
    for result in (by_onnxruntime(converted, feeds), by_reference(converted, feeds)):
        for ours, theirs in zip(result, expected, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
    return converted


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


IMAGE = "float[N, 4, 6, 6] x"
SCALES = {"scales": np.array([1, 1, 1.5, 2], dtype=np.float32)}
STATISTICS = {
    name: np.linspace(low, high, 4, dtype=np.float32)
    for name, low, high in [("scale", 0.5, 2), ("bias", -1, 1), ("mean", -0.5, 0.5), ("var", 0.5, 3)]
}
# Operators and their gates.
RECURRENT = [("RNN", 1), ("GRU", 3), ("LSTM", 4)]


def recurrent(opset: int, operator: str, gates: int) -> tuple[int, str, str]:
    """Return the opset, inputs and node of a layer of both directions."""
    inputs = f"float[5, N, 3] x, float[2, {4 * gates}, 3] w, float[2, {4 * gates}, 4] r"
    return opset, inputs, f'{operator} <hidden_size = 4, direction = "bidirectional"> (x, w, r)'


REDUCTIONS = ["L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

# Opset, inputs, node and constants: operators whose form changed later.
OLD = [
    *(
        (opset, IMAGE, f"{name} <axis = {axis}> (x)", {})
        for opset in (7, 11, 12)
        for name in ("Softmax", "LogSoftmax", "Hardmax")
        for axis in (0, 1, 2, 3)
    ),
    (11, IMAGE, "Softmax (x)", {}),
    (12, IMAGE, "Softmax <axis = -2> (x)", {}),
    (11, "float[N, 10] x", "Softmax (x)", {}),
    (11, "float[1, 4, 1, 6] x", "Squeeze <axes = [0, 2]> (x)", {}),
    (12, "float[1, 4, 1, 6] x", "Squeeze (x)", {}),
    (11, IMAGE, "Unsqueeze <axes = [0, -1]> (x)", {}),
    *((11, IMAGE, f"Reduce{name} <axes = [2, -1], keepdims = 0> (x)", {}) for name in REDUCTIONS),
    *((15, IMAGE, f"Reduce{name} <axes = [1]> (x)", {}) for name in REDUCTIONS if name != "Sum"),
    (17, IMAGE, "ReduceMean (x)", {}),
    (12, IMAGE, "ReduceSum (x)", {}),
    *((opset, IMAGE, "Clip <min = -0.5, max = 0.25> (x)", {}) for opset in (7, 9, 10)),
    (10, IMAGE, "Clip <max = 0.25> (x)", {}),
    (10, IMAGE, "Clip (x)", {}),
    (11, IMAGE, "Clip (x, , limit)", {"limit": np.array(0.5, dtype=np.float32)}),
    (10, IMAGE, "Dropout (x)", {}),
    (11, IMAGE, "Dropout <ratio = 0.25> (x)", {}),
    (12, IMAGE, "Dropout (x)", {}),
    *((10, IMAGE, f'Resize <mode = "{mode}"> (x, scales)', SCALES) for mode in ("nearest", "linear")),
    *((9, IMAGE, f'Upsample <mode = "{mode}"> (x, scales)', SCALES) for mode in ("nearest", "linear")),
    (7, IMAGE, 'Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (x)', {}),
    *(
        (
            opset,
            IMAGE,
            f'Resize <mode = "{mode}", coordinate_transformation_mode = "{placed}"> (x, none, scales)',
            SCALES | {"none": np.zeros(0, dtype=np.float32)},
        )
        for opset in (11, 13, 17)
        for mode in ("nearest", "linear", "cubic")
        for placed in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    (
        11,
        IMAGE,
        'Resize <mode = "linear"> (x, none, none, sizes)',
        {"none": np.zeros(0, dtype=np.float32), "sizes": np.array([2, 4, 9, 11])},
    ),
    *(
        (opset, IMAGE, f'Pad <mode = "{mode}", pads = [0, 0, 1, 2, 0, 0, 0, 1], value = {value}> (x)', {})
        for opset, mode, value in [(7, "constant", 0.5), (10, "constant", 0.0), (10, "reflect", 0.0)]
    ),
    (11, IMAGE, "Pad (x, pads)", {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1])}),
    (15, IMAGE, "Pad (x, pads)", {"pads": np.array([0, 0, 0, 2, 0, 0, 3, 1])}),
    *(
        (opset, IMAGE, "BatchNormalization <epsilon = 0.1> (x, scale, bias, mean, var)", STATISTICS)
        for opset in (7, 9, 12, 14, 15)
    ),
    (8, IMAGE, "BatchNormalization <spatial = 1> (x, scale, bias, mean, var)", STATISTICS),
    (9, IMAGE, "Slice <starts = [1, -4], ends = [3, 1000], axes = [1, 3]> (x)", {}),
    (9, IMAGE, "Slice <starts = [0, 1], ends = [1, 3]> (x)", {}),
    (16, IMAGE + ", float[N, 5, 5, 2] grid", 'GridSample <mode = "bicubic"> (x, grid)', {}),
    (16, IMAGE + ", float[N, 5, 5, 2] grid", 'GridSample <mode = "bilinear"> (x, grid)', {}),
    (19, IMAGE + ", float[N, 5, 5, 2] grid", 'GridSample <mode = "nearest"> (x, grid)', {}),
    (19, IMAGE + ", float[N, 5, 5, 2] grid", "GridSample (x, grid)", {}),
    (
        11,
        IMAGE,
        "RoiAlign <output_height = 3, output_width = 2, sampling_ratio = 2> (x, rois, batch)",
        {"rois": np.array([[0, 1, 4.5, 5], [1, 0.5, 3, 4]], np.float32), "batch": np.array([1, 0])},
    ),
    (
        9,
        IMAGE + ", float[1, 2, 1, 1] updates",
        "Scatter <axis = 1> (x, indices, updates)",
        {"indices": np.array([2, 0]).reshape(1, 2, 1, 1)},
    ),
    (7, IMAGE, "AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)", {}),
    (8, "float[N, 6] x, float[6, 3] w, float[3] b", "Gemm (x, w, b)", {}),
    (8, IMAGE, "Flatten (x)", {}),
    *((*recurrent(opset, *layer), {}) for opset in (7, 13) for layer in RECURRENT),
    (17, "float[N, 8, 4, 1] x", "DFT (x)", {}),
    (17, "float[N, 8, 4, 1] x", "DFT <axis = 2, onesided = 1> (x)", {}),
]


@pytest.mark.parametrize(("opset", "inputs", "node", "constants"), OLD)
def test_older(opset: int, inputs: str, node: str, constants: dict[str, Array]):
    check(model_of(f"g ({inputs}) => (float y) {{ y = {node} }}", opset, constants))


def test_old_node_keeps_its_place():
    """Names and metadata of what replaces a node are those of the node."""
    converted = check(
        model_of(
            "g (float[N, 4, 6] x) => (float y) { a = Relu (x)\n b = Softmax <axis = 1> (a)\n y = Neg (b) }",
            11,
        )
    )
    assert ops(converted) == ["Relu", "Shape", "Flatten", "Softmax", "Reshape", "Neg"]
    modules = [{entry.value for entry in node.metadata_props} for node in converted.graph.node if node.input]
    assert modules == [{"module_0"}, *[{"module_1"}] * 4, {"module_2"}]
    assert [node.name for node in converted.graph.node][::5] == ["node_0", "node_2"]
    assert {"a", "b", "y"} <= {name for node in converted.graph.node for name in node.output}


def test_softmax_over_the_last_axis_is_one_node():
    converted = to_design_opset(model_of("g (float[N, 10] x) => (float y) { y = Softmax (x) }", 11))
    assert ops(converted) == ["Softmax"]


def test_names_do_not_collide():
    text = """g (float[N, 4, 6] x) => (float y) {
        "node_1/Flatten" = Relu (x)
        y = Softmax <axis = 1> ("node_1/Flatten")
    }"""
    check(model_of(text, 11))


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 15, 18])
def test_split(opset: int):
    split = "" if opset >= 18 else "a, b = Split <axis = 1> (x)"
    split = split or "a, b = Split <axis = 1, num_outputs = 2> (x)"
    check(model_of(f"g ({IMAGE}) => (float a, float b) {{ {split} }}", opset))


def test_split_in_parts():
    check(
        model_of(f"g ({IMAGE}) => (float a, float b) {{ a, b = Split <axis = 1, split = [1, 3]> (x) }}", 11)
    )
    parts = {"parts": np.array([1, 3])}
    text = f"g ({IMAGE}) => (float a, float b) {{ a, b = Split <axis = 1> (x, parts) }}"
    check(model_of(text, 13, parts))


def test_branches():
    """What stands in a branch is raised too."""
    text = """g (float[1, 4, 6] x, bool which) => (float[4, 6] y) {
        y = If (which) <
            then_branch = one () => (float[4, 6] a) { a = Squeeze <axes = [0]> (x) },
            else_branch = two () => (float[4, 6] b) { c = Neg (x) b = Squeeze <axes = [0]> (c) }
        >
    }"""
    model = model_of(text, 11)
    for which in (True, False):
        feeds = random_feeds(model) | {"which": np.array(which)}
        (ours,), (theirs,) = (by_onnxruntime(each, feeds) for each in (to_design_opset(model), model))
        np.testing.assert_array_equal(ours, theirs)


def test_half_precision():
    """Bounds and pads have the type of what they bound."""
    text = """g (float16[N, 3] x) => (float16 y) {
        a = Clip <min = -0.5, max = 0.5> (x)
        y = Pad <pads = [0, 1, 0, 0], value = 2.0> (a)
    }"""
    converted = to_design_opset(model_of(text, 10))
    onnx.checker.check_model(converted, full_check=True)
    x = np.array([[-1, 0.25, 1]], dtype=np.float16)
    np.testing.assert_array_equal(by_reference(converted, {"x": x})[0], [[2, -0.5, 0.25, 0.5]])


def test_local_functions():
    """Functions are inlined, those of an older opset than the model's too."""
    text = """g (float[N, 4, 6, 6] x) => (float y) { y = local.pooled (x) }
    <domain: "local", opset_import: ["": 18, "local": 1]>
    pooled (a) => (c) {
        b = local.active (a)
        axes = Constant <value_ints = [2, 3]> ()
        c = ReduceMean (b, axes)
    }
    <domain: "local", opset_import: ["": 18]>
    active (a) => (b) { b = Relu (a) }"""
    converted = check(model_of(text, 18, local=1))
    assert ops(converted) == ["Relu", "ReduceMean"]


def test_types_after_group_normalization():
    """The rank of what follows is known, though onnx doesn't infer it."""
    text = """g (float[N, 4, 6, 6] x, float[4] s, float[4] b) => (float y) {
        a = GroupNormalization <num_groups = 2> (x, s, b)
        c = Relu (a)
        y = GroupNormalization <num_groups = 4> (c, s, b)
    }"""
    check(model_of(text, 21))


# --- Newer opsets ---

QKV = "float[N, 5, 8] q, float[N, 5, 8] k, float[N, 5, 8] v"
HEADS = "float[N, 2, 5, 4] q, float[N, 2, 7, 4] k, float[N, 2, 7, 3] v"
GROUPED = "float[N, 4, 5, 4] q, float[N, 2, 7, 4] k, float[N, 2, 7, 3] v"
ROTARY = "float[N, 2, 4, 8] x, float[4, 4] cosines, float[4, 4] sines, int64[N, 4] places"

# Opset, inputs, node, and the operators that it becomes, None where they are the standard's body.
NEW: list[tuple[int, str, str, list[str] | None]] = [
    *(
        (
            opset,
            f"float[N, 4, {sizes}] x, float[4] s, float[4] b",
            "GroupNormalization <num_groups = 2, epsilon = 0.1> (x, s, b)",
            ["Shape", "Reshape", "InstanceNormalization", "Reshape", "Unsqueeze", "Mul", "Unsqueeze", "Add"],
        )
        for opset in (21, 23)
        for sizes in ("5", "3, 5", "2, 3, 2")
    ),
    (24, "float[N, 6] x", "Swish (x)", ["Sigmoid", "Mul"]),
    (24, "float[N, 6] x", "Swish <alpha = 1.5> (x)", ["Mul", "Sigmoid", "Mul"]),
    *(
        (23, "float[N, 3, 4] x, float[4] s", f"RMSNormalization <epsilon = {epsilon}> (x, s)", None)
        for epsilon in (1e-5, 0.5)
    ),
    (23, "float[N, 3, 4] x, float[3, 4] s", "RMSNormalization <axis = 1> (x, s)", None),
    (23, "float[N, 3, 4] x, float[3, 4] s", "RMSNormalization <axis = -2> (x, s)", None),
    (23, QKV, "Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)", None),
    (23, QKV + ", float[5, 5] m", "Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v, m)", None),
    (23, HEADS, "Attention (q, k, v)", ["Transpose", "Mul", "MatMul", "Softmax", "MatMul"]),
    (24, HEADS, "Attention <scale = 0.3> (q, k, v)", None),
    (23, HEADS + ", float[N, 1, 5, 7] m", "Attention (q, k, v, m)", None),
    (23, HEADS + ", bool[5, 7] m", "Attention (q, k, v, m)", None),
    (23, QKV, "Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (q, k, v)", None),
    (23, HEADS, "Attention <softcap = 0.5> (q, k, v)", None),
    (23, GROUPED, "Attention (q, k, v)", None),
    (23, ROTARY, "RotaryEmbedding (x, cosines, sines, places)", None),
    (23, ROTARY, "RotaryEmbedding <interleaved = 1> (x, cosines, sines, places)", None),
    (
        23,
        "float[N, 4, 16] x, float[N, 4, 2] cosines, float[N, 4, 2] sines",
        "RotaryEmbedding <num_heads = 2, rotary_embedding_dim = 4> (x, cosines, sines)",
        None,
    ),
    *(
        (opset, IMAGE, node, [node.split()[0]])
        for opset in (21, 22, 23, 24, 25)
        for node in (
            "Flatten (x)",
            "AveragePool <kernel_shape = [3, 3]> (x)",
            "GlobalAveragePool (x)",
            "Dropout (x)",
            "HardSwish (x)",
            "Transpose <perm = [0, 2, 3, 1]> (x)",
            "Cast <to = 11> (x)",
            "Shape <start = 1> (x)",
        )
    ),
    *((*recurrent(opset, *layer), [layer[0]]) for opset in (21, 22, 24) for layer in RECURRENT),
]


@pytest.mark.parametrize(("opset", "inputs", "node", "expected"), NEW)
def test_newer(opset: int, inputs: str, node: str, expected: list[str] | None):
    converted = check(model_of(f"g ({inputs}) => (float y) {{ y = {node} }}", opset))
    assert expected is None or ops(converted) == expected


# onnxruntime doesn't know the newest opsets yet.
NEWEST_NODES = [
    (IMAGE, "Celu <alpha = 2.0> (x)"),
    (IMAGE, "ReduceLogSumExp <keepdims = 0> (x)"),
    (IMAGE, "DepthToSpace <blocksize = 2> (x)"),
    (IMAGE, "SpaceToDepth <blocksize = 2> (x)"),
    ("float[N, 6] x, float[6, 3] w", 'Einsum <equation = "ij,jk->ik"> (x, w)'),
    (IMAGE, "Elu <alpha = 0.5> (x)"),
    (IMAGE, "Cast <to = 1> (x)"),
    ("float[N, 6] x, float[N, 6] b", "SwiGLU <alpha = 2.0> (x, b)"),
    ("float[N, 6] x, float[N, 6] b", "SwiGLU (x, b)"),
    (QKV, "Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)"),
    ("float[N, 6] x", "Swish <alpha = 2.0> (x)"),
]


@pytest.mark.skipif(NEWEST < 28, reason="the installed onnx doesn't know opset 28")
@pytest.mark.parametrize(("inputs", "node"), NEWEST_NODES)
def test_newest(inputs: str, node: str):
    check(model_of(f"g ({inputs}) => (float y) {{ y = {node} }}", NEWEST), by_reference)


SCALAR = {"s": np.array(0.05, dtype=np.float32)}


def test_top_k():
    text = f"g ({IMAGE}) => (float y, int64 at) {{ y, at = TopK <k = 3, axis = 1> (x) }}"
    check(model_of(text, 9))


def test_logarithm_of_a_sum():
    check(model_of(f"g ({IMAGE}) => (float y) {{ a = Abs (x) y = ReduceLogSum <axes = [1, -1]> (a) }}", 13))


def test_bodies_are_short():
    """What the standard's bodies do with a Range and casts is known beforehand."""
    text = "g (float[N, 3, 4] x, float[4] s) => (float y) { y = RMSNormalization (x, s) }"
    assert ops(to_design_opset(model_of(text, 23))) == ["Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
    text = f"g ({ROTARY}) => (float y) {{ y = RotaryEmbedding (x, cosines, sines, places) }}"
    converted = to_design_opset(model_of(text, 23))
    expected = ["Gather", "Gather", "Unsqueeze", "Unsqueeze", "Split"]
    assert ops(converted) == [*expected, "Mul", "Mul", "Sub", "Mul", "Mul", "Add", "Concat"]


def test_attributes_that_say_nothing():
    """New attributes go where they only matter for types that opset 20 lacks, or say what was so."""
    text = """g (float[N, 6] x, int64[6] w) => (double y, float z) {
        y = Cast <to = 11, round_mode = "nearest"> (x)
        z = CastLike (w, x)
    }"""
    # onnxruntime refuses the attribute there.
    assert ops(check(model_of(text, 24), by_reference)) == ["Cast", "Cast"]
    if NEWEST >= 27:
        text = "g (float x) => (float y) { y = Range <stash_type = 0> (x, end, step) }"
        bounds = {"end": np.array(9, dtype=np.float32), "step": np.array(1, dtype=np.float32)}
        check(model_of(text, 27, bounds), by_reference)


def test_dequantizer_with_an_output_type():
    text = f"""g (int8[N, 6] x) => (float y) {{
        y = DequantizeLinear <output_dtype = {TensorProto.FLOAT}> (x, s)
    }}"""
    check(model_of(text, 23, SCALAR))


def test_quantizers():
    text = """g (float[N, 6] x) => (float y) {
        a = QuantizeLinear (x, s, zero)
        y = DequantizeLinear (a, s, zero)
    }"""
    for opset in (10, 13, 19, 21, 23):
        converted = check(model_of(text, opset, SCALAR | {"zero": np.array(3, dtype=np.int8)}))
        assert ops(converted) == ["QuantizeLinear", "DequantizeLinear"]


def test_quantizer_with_an_output_type():
    text = f"""g (float[N, 6] x) => (float y) {{
        a = QuantizeLinear <output_dtype = {TensorProto.INT8}> (x, s)
        y = DequantizeLinear (a, s)
    }}"""
    check(model_of(text, 21, SCALAR))


# --- What onnxruntime's optimizer fuses ---

CONV = "float[N, 4, 6, 6] x, float[4, 2, 3, 3] w, float[4] b"
WINDOW = "group = 2, kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
SQUARE = "float[N, 3, 4, 4] x, float[N, 3, 4, 4] w"

FUSED = [
    (IMAGE, "Gelu (x)"),
    (IMAGE, "FastGelu (x)"),
    ("float[N, 6] x, float[6] b", "FastGelu (x, b)"),
    ("float[N, 6] x, float[6] b", "BiasGelu (x, b)"),
    (IMAGE, "QuickGelu (x)"),
    (IMAGE, "QuickGelu <alpha = 1.0> (x)"),
    *(
        (CONV, f'FusedConv <{WINDOW}, activation = "{name}"> (x, w, b)')
        for name in ("Relu", "Tanh", "Sigmoid")
    ),
    (CONV, f'FusedConv <{WINDOW}, activation = "LeakyRelu", activation_params = [0.3]> (x, w, b)'),
    (CONV, f'FusedConv <{WINDOW}, activation = "Clip", activation_params = [-0.5, 0.25]> (x, w)'),
    (CONV, f'FusedConv <{WINDOW}, activation = "HardSigmoid", activation_params = [0.3, 0.4]> (x, w)'),
    (CONV + ", float[N, 4, 6, 6] z", f'FusedConv <{WINDOW}, activation = "Relu"> (x, w, b, z)'),
    (
        "float[N, 6] x, float[6, 6] w, float[6] b",
        'FusedGemm <transB = 1, alpha = 0.5, activation = "LeakyRelu", activation_alpha = 0.2> (x, w, b)',
    ),
    (SQUARE, "FusedMatMul (x, w)"),
    (SQUARE, "FusedMatMul <transA = 1, alpha = 0.25> (x, w)"),
    (SQUARE, "FusedMatMul <transB = 1> (x, w)"),
    ("float[N, 5, 6] x, float[N, 5, 6] r, float[6] s, float[6] b", "SkipLayerNormalization (x, r, s, b)"),
    (
        "float[N, 5, 6] x, float[N, 5, 6] r, float[6] s, float[6] b, float[6] c",
        "SkipLayerNormalization <epsilon = 0.1> (x, r, s, b, c)",
    ),
]


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize(("inputs", "node"), FUSED)
def test_fused(inputs: str, node: str, opset: int):
    text = f"g ({inputs}) => (float y) {{ y = com.microsoft.{node} }}"
    converted = check(model_of(text, opset, None, **{"com.microsoft": 1}))
    assert [entry.domain for entry in converted.opset_import] == [""]


def test_fused_sum():
    text = """g (float[N, 5, 6] x, float[N, 5, 6] r, float[6] s) => (float y, float total) {
        y, , , total = com.microsoft.SkipLayerNormalization (x, r, s)
    }"""
    check(model_of(text, 17, None, **{"com.microsoft": 1}))


@pytest.mark.parametrize("opset", [13, 21])
def test_fused_quantizers(opset: int):
    """They came before the standard's took a scale for each channel."""
    text = """g (float[N, 6] x) => (float y) {
        a = com.microsoft.QuantizeLinear <axis = 1> (x, scales, zeros)
        y = com.microsoft.DequantizeLinear <axis = 1> (a, scales, zeros)
    }"""
    scales = {"scales": np.linspace(0.01, 0.02, 6, dtype=np.float32), "zeros": np.arange(6, dtype=np.int8)}
    converted = check(model_of(text, opset, scales, **{"com.microsoft": 1}))
    assert ops(converted) == ["QuantizeLinear", "DequantizeLinear"]
    scales["zeros"] = np.arange(6, dtype=np.int16)
    with pytest.raises(SourceError, match=r"com\.microsoft::QuantizeLinear .*INT16"):
        to_design_opset(model_of(text, opset, scales, **{"com.microsoft": 1}))


def test_early_layer_normalization():
    """An optimised file has it before opset 17, where the standard got it."""
    text = "g (float[N, 5, 6] x, float[6] s) => (float y) { y = LayerNormalization <epsilon = 0.1> (x, s) }"
    model = model_of(text, 17)
    model.opset_import[0].version = 12
    assert ops(check(model)) == ["LayerNormalization"]


# --- What can't be done ---

REFUSED = [
    (8, IMAGE, "BatchNormalization <spatial = 0> (x, x, x, x, x)", "spatial=0"),
    (
        11,
        IMAGE,
        'Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (x, s, s)',
        "tf_half_pixel_for_nn",
    ),
    (21, "float[4, 6] x, float[2, 6] s", "QuantizeLinear <block_size = 2, axis = 0> (x, s)", "by blocks"),
    (21, "float[4, 6] x, float[] s", "QuantizeLinear <output_dtype = 22> (x, s)", "INT4"),
    (21, "float[4, 6] x, float[] s", "QuantizeLinear <output_dtype = 5> (x, s)", "INT16"),
    (21, "float[4, 6] x, float[] s, uint16 zero", "QuantizeLinear (x, s, zero)", "UINT16"),
    (21, "int16[4, 6] x, float[] s", "DequantizeLinear (x, s)", "INT16"),
    (26, "float[4] x, int64 axis", "CumProd (x, axis)", "is newer"),
    (28, IMAGE, 'SpaceToDepth <blocksize = 2, mode = "CRD"> (x)', "mode=CRD"),
]


@pytest.mark.parametrize(("opset", "inputs", "node", "why"), REFUSED)
def test_refused(opset: int, inputs: str, node: str, why: str):
    if opset > NEWEST:
        pytest.skip(f"the installed onnx doesn't know opset {opset}")
    model = model_of(f"g ({inputs}) => (float y) {{ y = {node} }}", opset)
    with pytest.raises(SourceError) as raised:
        to_design_opset(model)
    message = str(raised.value)
    assert why in message
    assert node.split()[0] in message
    assert "'node_0'" in message
    assert "\n" not in message


def test_training_mode_is_refused():
    text = f"g ({IMAGE}) => (float y) {{ y, m, v, a, b = BatchNormalization (x, scale, bias, mean, var) }}"
    with pytest.raises(SourceError, match=r"'node_0'.*evaluation mode"):
        to_design_opset(model_of(text, 9, STATISTICS))


def test_four_bits_are_refused():
    model = model_of("g (float[2] x) => (float y) { y = Relu (x) }", 21)
    model.graph.initializer.append(helper.make_tensor("weights", TensorProto.INT4, [2], [1, 2]))
    with pytest.raises(SourceError, match="'weights' is of type INT4"):
        to_design_opset(model)


def test_opset_is_unknown():
    model = model_of("g (float[2] x) => (float y) { y = Relu (x) }", 20)
    model.opset_import[0].version = NEWEST + 1
    with pytest.raises(SourceError, match=f"opset {NEWEST + 1}.*knows 1 to {NEWEST}"):
        to_design_opset(model)
    del model.opset_import[:]
    with pytest.raises(SourceError, match="which opset"):
        to_design_opset(model)


def test_operator_is_unknown():
    for opset in (11, 20):
        model = model_of("g (float[2] x) => (float y) { y = Relu (x) }", opset)
        model.graph.node[0].op_type = "Foo"
        with pytest.raises(SourceError, match=f"Foo \\(node 'node_0'\\) in opset {opset}"):
            to_design_opset(model)


def test_domain_is_unknown():
    text = "g (float[2] x) => (float y) { y = my.Foo (x) }"
    with pytest.raises(SourceError, match=r"my::Foo \(node 'node_0'\) is no operator of ONNX"):
        to_design_opset(model_of(text, 17, my=1))


def test_design_opset_is_left_alone():
    model = model_of("g (float[N, 4] x) => (float y) { a = Relu (x) y = Softmax (a) }", OPSET)
    assert to_design_opset(model) == model


def test_opset_before_seven():
    """What is older than our adapters goes through onnx's first."""
    text = "g (float[2, 3, 4] x, float[4] b) => (float y) { y = Add <broadcast = 1> (x, b) }"
    converted = to_design_opset(model_of(text, 6))
    feeds = random_feeds(converted)
    np.testing.assert_array_equal(by_onnxruntime(converted, feeds)[0], feeds["x"] + feeds["b"])
