"""The driver of differentiation: branches, broadcasting, several targets, non-floats, errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.nn import functional

from graphs import Array, differentiated, gradient_name, in_float64, in_onnxruntime, numeric_gradient, parse
from onnxplain.errors import UnsupportedOperatorError
from onnxplain_export.graph import MODULE_KEY
from onnxplain_export.rules import RULES

CLASSES = np.array([[0, 3], [2, 2], [1, 0]])
BATCH = 2


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


W = drawn(3, 4, seed=1)


def check(body: str, *targets: str, size: int = 3, also_in_float32: bool = True, **constants: Array) -> None:
    """Compare gradients with central differences, for `x` [batch, size] and four logits."""
    text = f"g (float[batch,{size}] x) => (float[batch,4] logits) {{ {body} }}"
    feeds = {"x": drawn(BATCH, size)}
    plain = parse(text, **constants)
    model = differentiated(parse(text, **constants), *targets)
    names = [gradient_name(target) for target in targets]
    found = in_float64(model, {**feeds, "classes": CLASSES}, names)
    for target, name in zip(targets, names, strict=True):
        point = feeds if target == "x" else {**feeds, **in_float64(plain, feeds, [target])}
        expected = numeric_gradient(plain, point, target, CLASSES)
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    if also_in_float32:
        single = in_onnxruntime(model, {**feeds, "classes": CLASSES})
        for name in names:
            np.testing.assert_allclose(single[name], found[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            "a = Relu(x)  b = Tanh(x)  c = Sigmoid(x)  s = Add(a, b)  t = Mul(s, c)  logits = MatMul(t, w)",
            id="three branches",
        ),
        pytest.param("y = Mul(x, x)  logits = MatMul(y, w)", id="a product with itself"),
        pytest.param("y = Add(x, x)  logits = MatMul(y, w)", id="a sum with itself"),
        pytest.param("y = Sub(x, x)  z = Sub(y, x)  logits = MatMul(z, w)", id="a difference with itself"),
        pytest.param(
            "y = Concat<axis=1>(x, x)  a, b = Split<axis=1, num_outputs=2>(y)  z = Mul(a, b)"
            "  logits = MatMul(z, w)",
            id="joined with itself, and parted",
        ),
        pytest.param(
            "a = Tanh(x)  b = Sigmoid(a)  c = Mul(a, b)  d = Add(c, x)  e = Mul(d, b)  logits = MatMul(e, w)",
            id="diamonds in diamonds",
        ),
        pytest.param("a = Gemm(x, w)  b = MatMul(x, w)  logits = Add(a, b)", id="two linear heads, added"),
        pytest.param(
            "a = Gemm(x, w)  b = Tanh(a)  logits = Add(a, b)", id="one linear head, straight and bent"
        ),
        pytest.param("a = MatMul(x, w)  logits = Mul(a, a)", id="logits of a product with itself"),
        pytest.param("a = MatMul(x, w)  b = Identity(a)  logits = Add(a, b)", id="one selection, twice"),
        pytest.param("a = MatMul(x, w)  logits = Softmax(a)", id="no linear head"),
    ],
)
def test_branches(body):
    check(body, "x", w=W)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("u = Unsqueeze(x, zero)  y = Mul(u, column)  z = ReduceSum<keepdims=0>(y, zero)"
                     "  logits = MatMul(z, w)", id="an axis of 1"),
        pytest.param("s = ReduceMean(x, one)  y = Mul(x, s)  logits = MatMul(y, w)", id="squeeze, excite"),
        pytest.param("y = Unsqueeze(x, zero)  z = Add(y, x)  t = Squeeze(z, zero)  logits = MatMul(t, w)",
                     id="an axis more"),
        pytest.param("y = Mul(scale, x)  logits = MatMul(y, w)", id="an axis fewer"),
        pytest.param("s = ReduceMean(x)  y = Div(x, s)  logits = MatMul(y, w)", id="one number for all"),
        pytest.param("s = ReduceMean<keepdims=0>(x)  y = Add(s, x)  logits = MatMul(y, w)", id="a scalar"),
        pytest.param("y = Expand(x, sizes)  z = Tanh(y)  t = ReduceSum<keepdims=0>(z, zero)"
                     "  logits = MatMul(t, w)", id="repeated"),
        pytest.param("y = Reshape(x, merged)  z = MatMul(y, mix)  t = Tanh(z)  u = Reshape(t, apart)"
                     "  logits = MatMul(u, w)", id="the batch merged with another axis"),
    ],
)  # fmt: skip
def test_broadcasting_and_batch(body):
    constants = {
        "column": drawn(5, 1, 3),
        "one": np.array([1]),
        "zero": np.array([0]),
        "scale": drawn(3),
        "sizes": np.array([4, 1, 1]),
        "merged": np.array([-1, 1]),
        "apart": np.array([-1, 3]),
        "mix": drawn(1, 1),
        "w": W,
    }
    check(body, "x", **{name: array for name, array in constants.items() if re.search(rf"\b{name}\b", body)})


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param("s = Slice(t, one, three, two)", id="a part"),
        pytest.param("n = Shape<start=2>(t)  s = Slice(t, one, n, two)", id="a part up to a computed end"),
        pytest.param("s = Gather<axis=2>(t, picked)", id="two places"),
        pytest.param("s = Pad(t, crop)", id="a crop"),
        pytest.param("m = Sub(two, three)  p = Concat<axis=0>(none, m)  s = Pad(t, p)", id="computed widths"),
    ],
)
def test_a_cut_between_transposes(cut):
    """Its gradient is padded between transposes, which onnxruntime's optimizer moves."""
    constants = {
        "one": np.array([1]),
        "two": np.array([2]),
        "three": np.array([3]),
        "picked": np.array([2, 0]),
        "crop": np.array([0, 0, -1, 0, 0, 0]),
        "none": np.array([0, 0, 0, 0, 0]),
        "sizes": np.array([-1, 3, 2]),
        "w": drawn(4, 4),
    }
    body = (
        f"r = Reshape(x, sizes)  t = Transpose<perm=[0,2,1]>(r)  {cut}"
        "  u = Transpose<perm=[0,2,1]>(s)  f = Flatten(u)  logits = MatMul(f, w)"
    )
    used = {name: array for name, array in constants.items() if re.search(rf"\b{name}\b", body)}
    check(body, "x", size=6, **used)


BLOCK = "h = MatMul(t, w1)  g = Gelu(h)  m = MatMul(g, w2)  a = Add(t, m)"
ATTENTION = (
    "u = Transpose<perm=[0,2,1]>(t)  q = MatMul(t, u)  p = Softmax<axis=2>(q)"
    "  v = MatMul(p, t)  a = Add(t, v)"
)


@pytest.mark.parametrize(
    ("read", "pads"),
    [
        pytest.param("r = Gather<axis=1>(n, last)", 1, id="one token"),
        pytest.param("s = Slice(n, zero, one, one)  r = Flatten(s)", 1, id="a slice of one"),
        pytest.param("y = Gather<axis=1>(n, first)  z = Gather<axis=1>(n, last)  r = Mul(y, z)", 2, id="two"),
        pytest.param("y = Gather<axis=1>(n, last)  z = ReduceMean<keepdims=0>(n, one)  r = Mul(y, z)", 1,
                     id="a token, and the mean of all"),
        pytest.param("s = Slice(n, one, four, one)  r = ReduceMean<keepdims=0>(s, one)", 1, id="most tokens"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", [BLOCK, ATTENTION], ids=["MLP", "attention"])
def test_a_head_that_reads_some_tokens(block, read, pads):
    """What only the tokens that are read have a gradient of gets its zeros at the end, not before."""
    constants = {
        "sizes": np.array([-1, 4, 3]),
        "w1": drawn(3, 5),
        "w2": drawn(5, 3),
        "scale": drawn(3),
        "first": np.array(0),
        "last": np.array(-1),
        "zero": np.array([0]),
        "one": np.array([1]),
        "four": np.array([4]),
        "w": drawn(3, 4),
    }
    body = f"t = Reshape(x, sizes)  {block}  n = LayerNormalization(a, scale)  {read}  logits = MatMul(r, w)"
    used = {name: array for name, array in constants.items() if re.search(rf"\b{name}\b", body)}
    check(body, "x", size=12, also_in_float32=False, **used)
    text = f"g (float[batch,12] x) => (float[batch,4] logits) {{ {body} }}"
    model = differentiated(parse(text, **used), "x")
    # In attention a token reads all others, but is one query alone.
    assert sum(node.op_type == "Pad" for node in model.graph) == pads


def test_a_part_of_an_axis_without_places():
    constants = {"zero": np.array([0]), "one": np.array([1]), "w": W}
    body = "a = Slice(x, zero, zero, one)  b = Slice(a, zero, zero, one)  y = Concat<axis=1>(x, b)"
    check(f"{body}  logits = MatMul(y, w)", "x", also_in_float32=False, **constants)


def test_batches_that_depend_on_each_other():
    check("s = ReduceMean(x, zero)  y = Mul(x, s)  logits = MatMul(y, w)", "x", w=W, zero=np.array([0]))


def test_targets_one_behind_the_other():
    check(
        "a = Tanh(x)  b = Mul(a, a)  c = Sigmoid(b)  d = Add(c, a)  logits = MatMul(d, w)",
        "x",
        "c",
        "a",
        w=W,
    )


def test_the_logits_themselves():
    model = differentiated(
        parse("g (float[batch,3] x) => (float[batch,4] logits) { logits = MatMul(x, w) }", w=W), "logits"
    )
    found = in_float64(model, {"x": drawn(BATCH, 3), "classes": CLASSES}, ["gradient.logits"])
    np.testing.assert_array_equal(found["gradient.logits"], np.eye(4)[CLASSES])


def test_operators_beside_the_path_need_no_rule(monkeypatch):
    monkeypatch.delitem(RULES, "Sin")
    check(
        "before = Sin(x)  a = Tanh(before)  unused = Sin(a)  skip = Sin(before)  b = Mul(a, skip)"
        "  logits = MatMul(b, w)",
        "a",
        w=W,
    )


@pytest.mark.parametrize(
    "factor",
    [
        pytest.param("s = Shape(x)  f = Cast<to=1>(s)  m = ReduceMean<keepdims=0>(f)", id="its shape"),
        pytest.param("s = Mul(x, ten)  i = Cast<to=7>(s)  m = Cast<to=1>(i)", id="rounded to whole numbers"),
        pytest.param("s = Greater(x, ten)  n = Not(s)  m = Cast<to=1>(n)", id="a comparison"),
        pytest.param("i = ArgMax<axis=1, keepdims=1>(x)  m = Cast<to=1>(i)", id="the place of the maximum"),
    ],
)
def test_what_is_no_float_carries_no_gradient(factor):
    constants = {"ten": np.float32(10)} if "ten" in factor else {}
    check(
        f"{factor}  a = Tanh(x)  b = Mul(a, m)  c = Add(b, a)  logits = MatMul(c, w)", "x", w=W, **constants
    )


def test_a_network_against_autograd():
    """Residual block, pooling with overlap and a two-layer head, with three targets at once."""
    text = """g (float[batch,2,9,8] x) => (float[batch,4] logits) {
        stem = Conv<pads=[1,1,1,1], strides=[2,1]>(x, w0, b0)
        early = Relu(stem)
        inner = Conv<pads=[1,1,1,1], group=2>(early, w1)
        sum = Add(inner, early)
        late = HardSwish(sum)
        pooled = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(late)
        flat = Flatten(pooled)
        hidden = Gemm<transB=1>(flat, w2, b2)
        active = Relu(hidden)
        logits = Gemm<transB=1>(active, w3)
    }"""
    arrays = {
        "w0": drawn(6, 2, 3, 3),
        "b0": drawn(6),
        "w1": drawn(6, 3, 3, 3),
        "w2": drawn(10, 6 * 3 * 4),
        "b2": drawn(10),
        "w3": drawn(4, 10),
    }
    targets = ("stem", "early", "late")
    model = differentiated(parse(text, **arrays), *targets)
    image = drawn(BATCH, 2, 9, 8)
    found = in_float64(model, {"x": image, "classes": CLASSES}, [gradient_name(name) for name in targets])

    w = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    # The operator's definition has 1/6 as a float32 attribute.
    sixth = float(np.float32(1 / 6))
    stem = functional.conv2d(
        torch.from_numpy(image).double().requires_grad_(), w["w0"], w["b0"], (2, 1), padding=1
    )
    early = functional.relu(stem)
    total = functional.conv2d(early, w["w1"], padding=1, groups=2) + early
    late = total * (total * sixth + 0.5).clamp(0, 1)
    flat = functional.max_pool2d(late, 3, 2, 1).flatten(1)
    logits = functional.relu(flat @ w["w2"].T + w["b2"]) @ w["w3"].T
    for index, classes in enumerate(CLASSES):
        score = logits.gather(1, torch.from_numpy(classes)[:, None]).sum()
        expected = torch.autograd.grad(score, [stem, early, late], retain_graph=True)
        for name, gradient in zip(targets, expected, strict=True):
            actual = found[gradient_name(name)][index]
            np.testing.assert_allclose(actual, gradient.numpy(), rtol=0, atol=1e-12 * gradient.abs().max())


def error_of(body: str, opset: str = '"": 20', inputs: str = "", **constants: Array) -> str:
    text = f"g (float[batch,3] x{inputs}) => (float[batch,4] logits)  {{ {body} }}"
    model = parse(text, opset, **constants)
    for node in model.graph:
        node.metadata_props[MODULE_KEY] = "classifier.odd"
    with pytest.raises(UnsupportedOperatorError) as caught:
        differentiated(model, "x")
    return str(caught.value)


def test_missing_rule(monkeypatch):
    monkeypatch.delitem(RULES, "Sin")
    message = error_of("[the_sine] a = Sin(x)  logits = MatMul(a, w)", w=W)
    assert message == (
        "there is no gradient rule for the operator Sin (node 'the_sine' in module 'classifier.odd'); "
        "choose a layer after it, or add a rule in onnxplain_export/rules"
    )


def test_operator_of_another_domain():
    """It has the name of an operator that has a rule, and none for all that."""
    message = error_of(
        "[mine] a = com.example.Relu(x)  logits = MatMul(a, w)", '"": 20, "com.example": 1', w=W
    )
    assert "the operator com.example::Relu (node 'mine' in module 'classifier.odd')" in message


def test_value_of_unknown_rank():
    message = error_of(
        "[the_reshape] a = Reshape(x, size)  b = Mul(a, x)  logits = MatMul(b, w)",
        inputs=", int64[n] size",
        w=W,
    )
    assert message == (
        "the type or the rank of 'a' is unknown (node 'the_reshape' in module 'classifier.odd'); "
        "run onnx's shape inference on the model first"
    )


def test_case_without_a_rule():
    message = error_of(
        "[the_dropout] a = Dropout(x, ratio, training)  logits = MatMul(a, w)",
        ratio=np.array(0.5, np.float32),
        training=np.array(True),
        w=W,
    )
    assert message == (
        "there is no gradient rule for a Dropout in training mode "
        "(node 'the_dropout' in module 'classifier.odd')"
    )


BRANCHES = """[the_branch] b = If(yes) <
    then_branch = then () => (float[batch,3] t) { t = Tanh(a) },
    else_branch = otherwise () => (float[batch,3] e) { e = Relu(a) }
>"""


@pytest.mark.parametrize(
    "rest", ["logits = MatMul(b, w)", "c = Add(a, b)  logits = MatMul(c, w)"], ids=["alone", "beside another"]
)
def test_control_flow_on_the_path(rest):
    message = error_of(f"a = Sigmoid(x)  {BRANCHES}  {rest}", w=W, yes=np.array(True))
    assert "the operator If (node 'the_branch' in module 'classifier.odd')" in message


def test_control_flow_beside_the_path():
    """What a branch computes from values before the target is a constant, as far as the target goes."""
    check(f"a = Sigmoid(x)  {BRANCHES}  c = Tanh(a)  d = Mul(c, b)  logits = MatMul(d, w)", "c", w=W,
          yes=np.array(True))  # fmt: skip
