"""`export` on small PyTorch models: outputs, layers, heads, the manifest, the file, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from autograd import autograd
from graphs import Array
from onnxplain import (
    LayerError,
    OnnxplainError,
    OutputError,
    SourceError,
    UnsupportedOperatorError,
    VerificationError,
)
from onnxplain.manifest import METADATA_KEY, Preprocessing
from onnxplain_export import export, files, list_layers, verify
from onnxplain_export.rules import RULES
from test_onnx_source import keras_like

EXAMPLE = torch.zeros(1, 3, 12, 12)
IMAGES = torch.from_numpy(np.random.default_rng(5).standard_normal((3, 3, 12, 12)).astype(np.float32))
CLASSES = torch.tensor([[0, 3], [1, 1], [2, 0]])


class Small(nn.Module):
    """Two convolutions, global average pooling, a linear layer; four classes."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()
        )
        self.head = nn.Linear(8, 4)
        self.wrap = wrap

    def forward(self, image: torch.Tensor) -> Any:
        return self.wrap(self.head(self.features(image).mean((2, 3))))


def small_tail(**modules: nn.Module) -> nn.Sequential:
    """Return a convolution to six maps [5, 5], and what comes behind it."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 6, 4, stride=2), nn.Tanh())
    return nn.Sequential(OrderedDict(first=first, **modules))


def classifier(width: int = 150) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 4))


def run(path: Path, images: torch.Tensor = IMAGES, classes: torch.Tensor = CLASSES) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feeds = {"image": images.numpy(), "class_index": classes.numpy()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def manifest_of(path: Path) -> dict[str, Any]:
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return json.loads(properties[METADATA_KEY])


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    export(Small(), EXAMPLE, path)
    return path


@dataclass
class Output:
    aux: torch.Tensor
    logits: torch.Tensor


class NamedOutput(NamedTuple):
    aux: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda logits: (logits, logits * 2), id="tuple"),
        pytest.param(lambda logits: [logits, logits * 2], id="list"),
        pytest.param(lambda logits: {"aux": logits * 2, "logits": logits}, id="dict with logits"),
        pytest.param(lambda logits: {"out": logits, "aux": logits * 2}, id="dict without"),
        pytest.param(lambda logits: Output(logits * 2, logits), id="dataclass"),
        pytest.param(lambda logits: NamedOutput(logits * 2, logits), id="named tuple"),
        pytest.param(lambda logits: SimpleNamespace(logits=logits), id="object"),
    ],
)
def test_outputs(wrap, small_file, tmp_path):
    """Whatever the logits come in, the file is the one of the model that returns them bare."""
    export(Small(wrap), EXAMPLE, tmp_path / "model.onnx")
    found, plain = run(tmp_path / "model.onnx"), run(small_file)
    for name in ("logits", "gradients"):
        np.testing.assert_allclose(found[name], plain[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda logits: "cat", "the model returns str, in which there is no tensor of logits"),
        (lambda logits: None, "the model returns NoneType, in which there is no tensor"),
        (
            lambda logits: logits[:, :, None, None],
            r"returns the shape \[batch, 4, 1, 1\], and logits",
        ),
    ],
)
def test_outputs_without_logits(wrap, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        export(Small(wrap), EXAMPLE, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_against_autograd(small_file):
    found = run(small_file)
    logits, gradients = autograd(Small(), ["features"], IMAGES, CLASSES)
    np.testing.assert_allclose(found["logits"], logits.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["gradients"], gradients["features"].numpy(), rtol=0, atol=1e-7)
    np.testing.assert_allclose(
        found["activations"], Small().features(IMAGES).detach().numpy(), rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(found["explained_class"], CLASSES.numpy())


@pytest.mark.parametrize("shape", [(), (1,)], ids=["[batch]", "[batch, 1]"])
def test_single_logit(shape, tmp_path):
    model = Small(lambda logits: logits[:, 0].reshape(-1, *shape))
    export(model, EXAMPLE, tmp_path / "model.onnx", activation="sigmoid", labels=["cat"])
    found = run(tmp_path / "model.onnx", classes=torch.tensor([[0, -1]] * 3))
    np.testing.assert_allclose(
        found["logits"], model(IMAGES).detach().numpy().reshape(3, 1), rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(found["explained_class"], 0)
    np.testing.assert_array_equal(found["gradients"][:, 0], found["gradients"][:, 1])
    assert manifest_of(tmp_path / "model.onnx")["activation"] == "sigmoid"


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [
            len(hooks)
            for module in model.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ],
        "gradients": [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        "state": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
    }


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(fails, tmp_path):
    """Modules in both modes, frozen weights: all stay, and the file is that of evaluation mode."""
    model = small_tail(norm=nn.BatchNorm2d(6), drop=nn.Dropout(0.5), head=classifier())
    model.train()
    model.norm.eval()
    model.first[0].weight.requires_grad_(False)
    before = state_of(model)
    path = tmp_path / "model.onnx"
    if fails:
        with pytest.raises(LayerError):
            export(model, EXAMPLE, path, layer="head.0")
    else:
        export(model, EXAMPLE, path)
        assert "Dropout" not in {node.op_type for node in onnx.load(path).graph.node}
        with torch.no_grad():
            np.testing.assert_allclose(run(path)["logits"], model.eval()(IMAGES).numpy(), rtol=0, atol=1e-6)
            model.train()
            model.norm.eval()
    assert state_of(model) == before


class ClassMaps(Small):
    """A 1x1 convolution to a map a class, and their averages."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image))


@pytest.mark.parametrize(("model", "last"), [(Small(), "Div"), (ClassMaps(), "Mul")])
def test_what_is_repeated_over_the_places_is_copied_before(model, last, tmp_path):
    """A gradient that is a few numbers a channel is turned and marked before it is as large as the maps."""
    path = tmp_path / "model.onnx"
    export(model, EXAMPLE, path, layer="features")
    proto = onnx.load(path)
    makers = {name: node for node in proto.graph.node for name in node.output}
    repeat = makers["gradients"]
    assert (repeat.op_type, makers[repeat.input[0]].op_type) == (last, "Add")
    proto.graph.output.append(onnx.ValueInfoProto(name=repeat.input[0]))
    feeds = {"image": IMAGES.numpy(), "class_index": torch.cat([CLASSES, CLASSES[:, :1] + 9], 1).numpy()}
    *_, small = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    assert small.shape == (3, 3, 8, 1, 1)
    found = run(path, IMAGES, torch.from_numpy(feeds["class_index"]))["gradients"]
    _, expected = autograd(model, ["features"], IMAGES, CLASSES)
    np.testing.assert_allclose(found[:, :2], expected["features"].numpy(), rtol=1e-5, atol=1e-8)
    assert np.isnan(found[:, 2]).all()


def test_in_place_module_behind_the_layer(tmp_path):
    """The activations are what the layer put out, not what the ReLU made of it, and so is the gradient."""
    model = small_tail(maps=nn.Conv2d(6, 5, 3), relu=nn.ReLU(inplace=True), head=classifier(45))
    export(model, EXAMPLE, tmp_path / "model.onnx", layer="maps")
    found = run(tmp_path / "model.onnx")
    maps = model.maps(model.first(IMAGES)).detach()
    np.testing.assert_allclose(found["activations"], maps.numpy(), rtol=0, atol=1e-6)
    gate = (maps > 0).numpy()[:, None]
    weights = model.head[1].weight.detach()[CLASSES].numpy().reshape(3, 2, 5, 3, 3)
    np.testing.assert_allclose(found["gradients"], weights * gate, rtol=0, atol=1e-7)


class Pair(nn.Module):
    """A module that returns maps and something else."""

    def __init__(self, wrap: Callable[..., Any] = lambda *tensors: tensors) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 5, 3)
        self.wrap = wrap

    def forward(self, maps: torch.Tensor) -> Any:
        maps = self.conv(maps)
        return self.wrap(maps, maps.mean((2, 3)))


class PairHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(50, 4)

    def forward(self, pair: Any) -> torch.Tensor:
        maps, mean = pair.values() if isinstance(pair, dict) else pair
        return self.linear(torch.cat([maps.tanh().flatten(1), mean], dim=1))


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda *tensors: tensors, id="tuple"),
        pytest.param(lambda *tensors: list(tensors), id="list"),
        pytest.param(lambda maps, mean: {"maps": maps, "mean": mean}, id="dict"),
        pytest.param(NamedOutput, id="named tuple"),
    ],
)
def test_layer_that_returns_more_than_maps(wrap, tmp_path):
    """The mean is another output of the layer: what reaches the logits through it isn't the maps' share."""
    model = small_tail(pair=Pair(wrap), head=PairHead())
    export(model, EXAMPLE, tmp_path / "model.onnx", layer="pair")
    found = run(tmp_path / "model.onnx")
    maps = model.pair.conv(model.first(IMAGES)).detach()
    np.testing.assert_allclose(found["activations"], maps.numpy(), rtol=0, atol=1e-6)
    expected = autograd(model, ["pair"], IMAGES, CLASSES)[1]["pair"]
    np.testing.assert_allclose(found["gradients"], expected.numpy(), rtol=0, atol=1e-6)


class Odd(nn.Module):
    """Layers that can't be explained, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)
        self.features_late = nn.Conv2d(4, 4, 3)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.aside = nn.Conv2d(4, 2, 3)
        self.unused = nn.Conv2d(4, 2, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.features_late(self.features(image))
        self.aside(maps)
        maps = self.shared(self.shared(maps).tanh())
        return self.head(self.pool(maps).flatten(1))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("featuers", r"no layer 'featuers' \(did you mean features or features_late\?\)"),
        ("zzz", r"no layer 'zzz'; list them with: onnxplain layers SOURCE"),
        ("", r"no layer ''"),
        ("shared", r"'shared' is called 2 times .*shared#1 \[batch, 4, 8, 8\], shared#2 \[batch, 4, 8, 8\]"),
        ("aside", r"the logits don't depend on the layer 'aside'"),
        ("unused", r"the layer 'unused' is not called"),
        ("pool", r"'pool' puts out the shape \[batch, 4, 1, 1\], which has no spatial extent"),
        ("head", r"'head' puts out the shape \[batch, 3\], which has no spatial extent"),
        (["features", "features"], r"'features' is named twice"),
        (["features", "nowhere"], r"no layer 'nowhere'"),
        ([], r"no layer is named"),
    ],
)
def test_layers_refused(layer, message, tmp_path):
    with pytest.raises(LayerError, match=message) as caught:
        export(Odd(), EXAMPLE, tmp_path / "model.onnx", layer=layer)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_layers_listed():
    found = list_layers(Odd(), EXAMPLE)
    assert [(layer.name, layer.kind, layer.channels, layer.height, layer.width) for layer in found] == [
        ("features", "Conv2d", 4, 10, 10),
        ("features_late", "Conv2d", 4, 8, 8),
    ]


def test_several_layers(tmp_path):
    model = Small().eval()
    names = ["features", "features.0"]
    report = export(model, EXAMPLE, tmp_path / "model.onnx", layer=names)
    found = run(tmp_path / "model.onnx")
    _, expected = autograd(model, names, IMAGES, CLASSES)
    maps = {"features.0": model.features[0](IMAGES), "features": model.features(IMAGES)}
    assert {name for name in found if "." in name} == {
        f"{output}.{name}" for output in ("activations", "gradients") for name in names
    }
    for name in names:
        np.testing.assert_allclose(
            found[f"activations.{name}"], maps[name].detach().numpy(), rtol=0, atol=1e-6
        )
        np.testing.assert_allclose(
            found[f"gradients.{name}"], expected[name].numpy(), rtol=0, atol=1e-6, err_msg=name
        )
    layers = manifest_of(tmp_path / "model.onnx")["layers"]
    assert [(layer["name"], layer["activations"], layer["gradients"]) for layer in layers] == [
        (name, f"activations.{name}", f"gradients.{name}") for name in names
    ]
    assert [layer["head"] for layer in layers] == ["gap_linear", None]
    assert not report.automatic


def test_two_layers_that_put_out_the_same(tmp_path):
    export(Small(), EXAMPLE, tmp_path / "model.onnx", layer=["features.3", "features"])
    found = run(tmp_path / "model.onnx")
    for output in ("activations", "gradients"):
        np.testing.assert_array_equal(found[f"{output}.features"], found[f"{output}.features.3"])


class Mean(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean((2, 3))


MEAN = Mean()


@pytest.mark.parametrize(
    ("model", "picked"),
    [
        pytest.param(lambda: Small(), "features", id="the outermost of nested modules"),
        pytest.param(lambda: small_tail(drop=nn.Dropout(), head=classifier()), "first", id="dropout"),
        pytest.param(lambda: small_tail(drop=nn.Dropout2d(), head=classifier()), "first", id="2-D dropout"),
        pytest.param(
            lambda: small_tail(pool=nn.AdaptiveAvgPool2d(5), head=classifier()), "first", id="idle pooling"
        ),
        pytest.param(lambda: small_tail(pool=nn.MaxPool2d(1), head=classifier()), "first", id="1x1 pooling"),
        pytest.param(lambda: small_tail(same=nn.Identity(), head=classifier()), "first", id="identity"),
        pytest.param(
            lambda: small_tail(pool=nn.MaxPool2d(2), head=classifier(24)), "pool", id="pooling that pools"
        ),
        pytest.param(
            lambda: small_tail(late=nn.Conv2d(6, 5, 3), classes=nn.Conv2d(5, 4, 1), head=MEAN),
            "late",
            id="class maps",
        ),
        pytest.param(
            lambda: small_tail(
                classes=nn.Conv2d(6, 4, 1),
                relu=nn.ReLU(inplace=True),
                drop=nn.Dropout(),
                head=MEAN,
            ),
            "first",
            id="class maps behind modules that keep them",
        ),
        pytest.param(
            lambda: small_tail(
                conv=nn.Conv2d(6, 5, 3),
                norm=nn.BatchNorm2d(5),
                relu=nn.ReLU(inplace=True),
                head=classifier(45),
            ),
            "relu",
            id="an in-place module",
        ),
        pytest.param(
            lambda: small_tail(
                relu=nn.ReLU(), flat=nn.Flatten(), back=nn.Unflatten(1, (6, 5, 5)), head=classifier()
            ),
            "relu",
            id="reshapes",
        ),
        pytest.param(Odd, "features_late", id="a module that is called twice"),
    ],
)
def test_automatic_layer(model, picked):
    assert [layer.name for layer in list_layers(model(), EXAMPLE) if layer.automatic] == [picked]


def test_automatic_layer_is_exported(small_file):
    assert manifest_of(small_file)["layers"][0]["name"] == "features"


def test_no_layer_to_pick(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.Tanh(), nn.Linear(8, 4))
    with pytest.raises(LayerError, match="has no feature maps or tokens"):
        export(model, EXAMPLE, tmp_path / "model.onnx")


class Head(nn.Module):
    """A linear layer on what a function makes of the maps."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor], width: int = 6) -> None:
        super().__init__()
        self.pool = pool
        self.linear = nn.Linear(width, 4)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.linear(self.pool(maps).flatten(1))


class ProductAndSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.bias + maps.mean((2, 3)) @ self.weight


class BilinearHead(nn.Module):
    """The product's weights are computed from the maps, so it isn't linear."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        mean = maps.mean((2, 3))
        return (mean[:, None] @ mean[:, :, None].expand(-1, 6, 4))[:, 0]


GAP = nn.AdaptiveAvgPool2d
GAP_LINEAR: dict[str, Callable[[], nn.Module]] = {
    "adaptive pooling": lambda: Head(GAP(1)),
    "mean": lambda: Head(lambda maps: maps.mean((2, 3))),
    "mean, negative axes": lambda: Head(lambda maps: maps.mean((-1, -2))),
    "mean, axes kept": lambda: Head(lambda maps: maps.mean((2, 3), keepdim=True)),
    "dropout": lambda: nn.Sequential(GAP(1), nn.Dropout(), nn.Flatten(), nn.Dropout(), nn.Linear(6, 4)),
    "squeezed": lambda: Head(lambda maps: GAP(1)(maps).squeeze(3).squeeze(2)),
    "reshaped": lambda: Head(lambda maps: GAP(1)(maps).view(-1, 6)),
    "no bias": lambda: nn.Sequential(GAP(1), nn.Flatten(), nn.Linear(6, 4, bias=False)),
    "product and sum": ProductAndSum,
    "no linear layer": lambda: MEAN,
}
NOT_GAP_LINEAR: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: nn.Sequential(GAP(1), nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)),
    "ReLU before the mean": lambda: Head(lambda maps: maps.relu().mean((2, 3))),
    "ReLU behind the mean": lambda: Head(lambda maps: maps.mean((2, 3)).relu()),
    "a norm before the mean": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6), Head(GAP(1))),
    "max pooling": lambda: Head(nn.MaxPool2d(5)),
    "mean over one axis": lambda: Head(lambda maps: maps.mean(2), 30),
    "mean over the channels": lambda: Head(lambda maps: maps.mean(1), 25),
    "pooling of a part": lambda: Head(nn.AvgPool2d(4)),
    "flattened": lambda: Head(lambda maps: maps, 150),
    "probabilities": lambda: nn.Sequential(Head(GAP(1)), nn.Softmax(1)),
    "weights from the maps": BilinearHead,
}


def head_of(head: nn.Module, path: Path) -> str | None:
    return export(small_tail(head=head), EXAMPLE, path, layer="first").manifest.layers[0].head


@pytest.mark.parametrize("head", GAP_LINEAR)
def test_gap_linear(head, tmp_path):
    """The head is recognised; and as the word promises, its gradients are the same everywhere."""
    path = tmp_path / "model.onnx"
    assert head_of(GAP_LINEAR[head](), path) == "gap_linear"
    gradients = run(path, classes=torch.zeros(3, 1, dtype=torch.int64))["gradients"]
    np.testing.assert_allclose(gradients, np.broadcast_to(gradients[:1, :, :, :1, :1], gradients.shape))


@pytest.mark.filterwarnings("ignore:the model ends in Softmax")
@pytest.mark.parametrize("head", NOT_GAP_LINEAR)
def test_other_heads(head, tmp_path):
    assert head_of(NOT_GAP_LINEAR[head](), tmp_path / "model.onnx") is None


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(nn.AvgPool2d(5), id="pooling over the whole map"),
        pytest.param(lambda maps: maps.flatten(2).mean(2), id="mean of the flattened map"),
    ],
)
def test_gap_linear_written_otherwise(pool, tmp_path):
    assert head_of(Head(pool), tmp_path / "model.onnx") == "gap_linear"


@pytest.mark.parametrize(
    ("keywords", "example", "message"),
    [
        ({"labels": ["a", "b"]}, EXAMPLE, "the labels are 2, and the classes of the model 4"),
        (
            {"preprocessing": Preprocessing(3, 16, 12)},
            EXAMPLE,
            "gives height 16, and the model takes height 12",
        ),
        ({"activation": "Softmax"}, EXAMPLE, "no activation 'Softmax'; choose one of softmax, sigmoid, none"),
        ({}, EXAMPLE[0], r"tensor of \[batch, channels, height, width\]"),
        ({}, EXAMPLE[:0], r"tensor of \[batch, channels, height, width\]"),
        ({}, EXAMPLE.numpy(), r"tensor of \[batch, channels, height, width\]"),
        ({}, EXAMPLE.double(), "the example input is torch.float64; make it float32"),
        ({}, torch.zeros(1, 5, 12, 12), "input.channels is 5, but a picture gives 3"),
    ],
)
def test_arguments_that_do_not_fit(keywords, example, message, tmp_path):
    with pytest.raises(SourceError, match=message) as caught:
        export(Small(), example, tmp_path / "model.onnx", **keywords)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_softmax_of_a_single_logit_is_refused(tmp_path: Path) -> None:
    """It is 1 for every picture."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1))
    with pytest.raises(SourceError, match="softmax of a single logit is 1"):
        export(small_tail(head=head), EXAMPLE, tmp_path / "model.onnx", activation="softmax")
    assert list(tmp_path.iterdir()) == []


class Wave(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.sin(maps)


def test_operator_without_a_rule(tmp_path, monkeypatch):
    monkeypatch.delitem(RULES, "Sin")
    model = small_tail(block=nn.Sequential(OrderedDict(wave=Wave())), head=classifier())
    with pytest.raises(
        UnsupportedOperatorError, match=r"operator Sin \(node '[^']+' in module 'block.wave'\)"
    ):
        export(model, EXAMPLE, tmp_path / "model.onnx", layer="first")
    assert list(tmp_path.iterdir()) == []
    export(model, EXAMPLE, tmp_path / "model.onnx", layer="block.wave")


class Branching(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.cond(maps.sum() > 0, torch.tanh, torch.relu, (maps,))


def test_control_flow(tmp_path):
    with pytest.raises(UnsupportedOperatorError, match=r"operator If \(node '[^']+' in module 'branch'\)"):
        export(small_tail(branch=Branching(), head=classifier()), EXAMPLE, tmp_path / "m.onnx", layer="first")
    assert list(tmp_path.iterdir()) == []


def test_standard_operators_only(small_file):
    model = onnx.load(small_file)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions


def test_interface(small_file):
    def described(values: Any) -> dict[str, tuple[int, list[Any]]]:
        return {
            value.name: (
                value.type.tensor_type.elem_type,
                [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        }

    graph = onnx.load(small_file).graph
    floats, ints = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    assert described(graph.input) == {
        "image": (floats, ["batch", 3, 12, 12]),
        "class_index": (ints, ["batch", "classes"]),
    }
    assert described(graph.output) == {
        "logits": (floats, ["batch", 4]),
        "activations": (floats, ["batch", 8, 4, 4]),
        "gradients": (floats, ["batch", "classes", 8, 4, 4]),
        "explained_class": (ints, ["batch", "classes"]),
    }


def test_manifest(tmp_path):
    path = tmp_path / "model.onnx"
    preprocessing = Preprocessing(3, 12, 12, resize=14, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    labels = ["cat", "dog", "Füchse", "cat"]
    export(Small(), EXAMPLE, path, labels=labels, preprocessing=preprocessing, source_name="here:Small")
    manifest = manifest_of(path)
    assert list(manifest) == [
        "schema", "producer", "source", "input", "labels", "activation", "layers", "verification"
    ]  # fmt: skip
    assert manifest["schema"] == 1
    assert set(manifest["producer"]) == {"onnxplain", "torch", "onnx"}
    assert manifest["source"] == {
        "kind": "torch", "name": "here:Small", "sha256": manifest["source"]["sha256"]
    }  # fmt: skip
    assert len(bytes.fromhex(manifest["source"]["sha256"])) == 32
    assert manifest["input"] == {
        "channels": 3,
        "height": 12,
        "width": 12,
        "color": "RGB",
        "resize": 14,
        "crop": "center",
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "stated": {"resize": True, "crop": True, "mean": True, "std": True},
    }
    assert manifest["labels"] == labels
    assert manifest["activation"] == "softmax"
    assert manifest["layers"] == [
        {
            "name": "features",
            "activations": "activations",
            "gradients": "gradients",
            "channels": 8,
            "height": 4,
            "width": 4,
            "tokens": None,
            "head": "gap_linear",
        }
    ]
    verification = manifest["verification"]
    assert set(verification) == {"reference", "inputs", "logits", "gradients"}
    assert verification["reference"] == "float64 directional derivatives"
    assert verification["inputs"] == 3
    assert 0 <= verification["logits"] < 1e-5
    assert 0 <= verification["gradients"] < 1e-7


def test_default_preprocessing(small_file):
    assert manifest_of(small_file)["input"] == {
        "channels": 3,
        "height": 12,
        "width": 12,
        "color": "RGB",
        "resize": None,
        "crop": "none",
        "interpolation": "bilinear",
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "stated": {"resize": False, "crop": False, "mean": False, "std": False},
    }


def test_weights_digest(tmp_path, small_file):
    model = Small()
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    export(model, EXAMPLE, tmp_path / "model.onnx")
    other, first = manifest_of(tmp_path / "model.onnx"), manifest_of(small_file)
    assert other["source"]["sha256"] != first["source"]["sha256"]


def test_no_local_path(small_file):
    data = small_file.read_bytes()
    root = Path(__file__).resolve().parents[1]
    paths = [root, Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix), small_file.parent]
    for path in [*map(str, paths), ".py", "site-packages", "stack_trace", Path(__file__).stem]:
        if path != "/":
            assert path.encode() not in data, path


def test_same_bytes_from_another_process(small_file, tmp_path):
    other = tmp_path / "elsewhere" / "named otherwise.onnx"
    other.parent.mkdir()
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_export import EXAMPLE, Small, export\n"
        "export(Small(), EXAMPLE, sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(other)],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert other.read_bytes() == small_file.read_bytes()


def test_failing_export_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an earlier file")
    entry = RULES["ReduceMean"]
    monkeypatch.setitem(
        RULES, "ReduceMean", replace(entry, rule=lambda op, *rest: op.Neg(entry.rule(op, *rest)))
    )
    with pytest.raises(VerificationError):
        export(Small(), EXAMPLE, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"an earlier file"


def test_export_replaces_the_old_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an earlier file")
    report = export(Small(), EXAMPLE, path)
    assert list(tmp_path.iterdir()) == [path]
    assert report.size == path.stat().st_size
    assert verify(path).logits < 1e-5


def test_no_folder_to_write_to(tmp_path):
    with pytest.raises(OnnxplainError, match=r"there is no folder .*nowhere"):
        export(Small(), EXAMPLE, tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(OnnxplainError, match="is a folder; name a file"):
        export(Small(), EXAMPLE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_in_a_file_of_their_own(monkeypatch, small_file, tmp_path):
    monkeypatch.setattr(files, "EXTERNAL_DATA_THRESHOLD", 1000)
    path = tmp_path / "model.onnx"
    report = export(Small(), EXAMPLE, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert report.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert path.stat().st_size < small_file.stat().st_size
    found, plain = run(path), run(small_file)
    for name, array in plain.items():
        np.testing.assert_array_equal(found[name], array)
    onnx.checker.check_model(path, full_check=True)


def test_verify_with_weights_in_a_file_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "EXTERNAL_DATA_THRESHOLD", 1000)
    path = tmp_path / "model.onnx"
    export(Small(), EXAMPLE, path)
    assert verify(path).rules < 1e-7


def test_stale_weights_are_removed(monkeypatch, tmp_path):
    """A model that fits in one file takes the place of one that didn't, weights included."""
    path = tmp_path / "model.onnx"
    with monkeypatch.context() as context:
        context.setattr(files, "EXTERNAL_DATA_THRESHOLD", 1000)
        export(Small(), EXAMPLE, path)
    export(Small(), EXAMPLE, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_weights_beside_that_are_anothers_stay(tmp_path):
    """Whatever the file in this place was: another exporter gives a model's weights that name too."""
    data = tmp_path / "model.onnx.data"
    data.write_bytes(b"not ours")
    for earlier in (None, b"not a model", keras_like(tmp_path / "keras.onnx").read_bytes()):
        path = tmp_path / "model.onnx"
        path.unlink(missing_ok=True)
        if earlier is not None:
            path.write_bytes(earlier)
        report = export(Small(), EXAMPLE, path)
        assert report.size == path.stat().st_size
        assert data.read_bytes() == b"not ours"


def test_an_explainer_that_does_not_refer_to_the_weights_beside_it(tmp_path):
    export(Small(), EXAMPLE, tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").write_bytes(b"not ours")
    export(Small(), EXAMPLE, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").read_bytes() == b"not ours"


def test_large_weights_replace_no_others(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "EXTERNAL_DATA_THRESHOLD", 1000)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(b"not ours")
    with pytest.raises(OutputError, match=r"model\.onnx\.data.*another model's; name another file"):
        export(Small(), EXAMPLE, tmp_path / "model.onnx")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {data.name: b"not ours"}
    data.unlink()
    for _ in range(2):  # its own are replaced
        export(Small(), EXAMPLE, tmp_path / "model.onnx")
    assert run(tmp_path / "model.onnx")
