"""Models as their users write them, and calls as their users make them."""

from __future__ import annotations

import dataclasses
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import onnxplain_export.assemble
from onnxplain.errors import SourceError, VerificationError
from onnxplain_export import export, list_layers
from onnxplain_export.selector import Classes, select_classes

EXAMPLE = torch.zeros(1, 3, 16, 16)


def network(**changes: nn.Module) -> nn.Sequential:
    """A small network, some of its modules replaced or added in the order of their names."""
    torch.manual_seed(0)
    modules = {
        "a_features": nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()),
        "m_pool": nn.AdaptiveAvgPool2d(1),
        "n_flatten": nn.Flatten(),
        "o_classifier": nn.Linear(6, 5),
    }
    return nn.Sequential(OrderedDict(sorted({**modules, **changes}.items())))


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class ExtraState(nn.Identity):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: object) -> None:
        pass


class ModelOutput(OrderedDict):
    """A mapping whose keys are attributes too, as the transformers library returns it."""

    def __getattr__(self, name: str) -> object:
        return self[name]


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        return ModelOutput(maps=self.conv(x))


class Maps(nn.Module):
    def forward(self, output: ModelOutput) -> torch.Tensor:
        return output.maps


def in_place(x: torch.Tensor) -> torch.Tensor:
    x.sub_(0.5)
    return x


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_whatever_the_caller_does_with_gradients(mode: Callable[[], object], tmp_path: Path) -> None:
    model = network()
    with mode():
        assert export(model, EXAMPLE, tmp_path / "e.onnx").verification.rules < 1e-8
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: network(a0_input=Function(in_place)), id="changes its input in place"),
        pytest.param(lambda: network(n_flatten=Function(torch.squeeze)), id="squeezes its maps"),
        pytest.param(lambda: network(z_state=ExtraState()), id="has a state that is no tensor"),
        pytest.param(lambda: network(a_features=Backbone(), b_maps=Maps()), id="returns a kind of mapping"),
    ],
)
def test_models(model: Callable[[], nn.Module], tmp_path: Path) -> None:
    report = export(model(), EXAMPLE, tmp_path / "e.onnx", labels=list("abcde"))
    assert report.verification.rules < 1e-8
    assert report.manifest.layers[0].name.startswith("a_features")


def test_the_automatic_layer_does_not_depend_on_the_example() -> None:
    """Without biases every module turns a picture of zeros into zeros."""
    stages = [
        module
        for channels in (3, 4, 4)
        for module in (nn.Conv2d(channels, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    ]
    found = list_layers(
        network(a_features=nn.Identity(), b=nn.Sequential(*stages), o_classifier=nn.Linear(4, 5)), EXAMPLE
    )
    assert [layer.name for layer in found if layer.automatic] == ["b"]


@pytest.mark.parametrize(
    ("classes", "last", "expected"),
    [
        (5, nn.Identity(), "softmax"),
        (1, nn.Identity(), "sigmoid"),
        (5, nn.Softmax(1), "none"),
        (1, nn.Sigmoid(), "none"),
    ],
)
def test_the_usual_activation(classes: int, last: nn.Module, expected: str, tmp_path: Path) -> None:
    model = network(o_classifier=nn.Linear(6, classes), p_last=last)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "nobody stated")
        report = export(model, EXAMPLE, tmp_path / "e.onnx")
    assert report.manifest.activation == expected
    assert [("ends in" in str(warning.message)) for warning in caught if warning.category is UserWarning] == (
        [True] if expected == "none" else []
    )


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda x: x, {}, "the model is a function; pass a torch.nn.Module"),
        (torch.jit.script(network()), {}, "TorchScript"),
        (torch.compile(network()), {}, "given to torch.compile"),
        (network(), {"labels": "abcde"}, "list one a class"),
        (network(), {"activation": "tanh"}, "no activation 'tanh'; choose one of softmax"),
        (network(), {"preprocessing": {}}, "the preprocessing is a dict"),
        (network(p=Function(lambda x: x / 0)), {}, "logits that are not finite"),
        (network(p=Function(lambda x: torch.cumprod(x, 1))), {}, "can't export the model: .*prod"),
        (network(p=Function(lambda x: x + torch.zeros(len(x), 5))), {}, r"use image\.shape\[0\] there"),
        (
            network(p=Function(lambda x: x if x.sum() > 0 else -x)),
            {},
            "can't export the model: .*data-dependent",
        ),
    ],
)
def test_what_can_not_be_exported(
    model: object, options: dict[str, object], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        export(model, EXAMPLE, tmp_path / "e.onnx", **options)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_network_of_which_nothing_can_be_checked(tmp_path: Path) -> None:
    """Its gradients are less than what its logits are rounded by, even in float64."""
    head = nn.Linear(6, 5)
    nn.init.constant_(head.weight, 1e-17)
    nn.init.ones_(head.bias)
    with pytest.raises(VerificationError, match="nothing could be checked at 'a_features'"):
        export(network(o_classifier=head), EXAMPLE, tmp_path / "e.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_whose_hidden_units_are_all_dead(tmp_path: Path) -> None:
    """Every gradient is zero, whatever the rules are."""
    hidden = nn.Linear(6, 4)
    nn.init.constant_(hidden.bias, -1e3)
    model = network(o_classifier=nn.Sequential(hidden, nn.ReLU(), nn.Linear(4, 5)))
    with pytest.warns(UserWarning, match="at a_features every class's gradients are zero"):
        report = export(model, EXAMPLE, tmp_path / "e.onnx")
    assert report.verification.zero == ("a_features",)


@pytest.mark.parametrize("slip", ["ranks reversed", "always class 0"])
def test_a_wrong_selector_does_not_ship(slip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(op: object, class_index: object, logits: object) -> Classes:
        if slip == "ranks reversed":
            return select_classes(op, class_index, op.Neg(logits))
        right = select_classes(op, class_index, logits)
        zero = op.Mul(right.explained, 0)
        return dataclasses.replace(right, explained=zero, index=zero)

    monkeypatch.setattr(onnxplain_export.assemble, "select_classes", wrong)
    with pytest.raises(VerificationError, match="explains other classes"):
        export(network(), EXAMPLE, tmp_path / "e.onnx")
    assert list(tmp_path.iterdir()) == []
