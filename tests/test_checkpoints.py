"""Weights from the files that training leaves, for networks of as many classes as they were trained for."""

from __future__ import annotations

import argparse
import errno
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from onnxplain import SourceError
from onnxplain_export import export, load_source

FACTORY = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, classes)

    def forward(self, image):
        return self.fc(self.features(image).mean((2, 3)))

def network():
    return Net()

def changed():
    net = Net()
    net.fc = nn.Sequential(nn.Dropout(), nn.Linear(8, 4))
    return net
"""


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("factories")
    (folder / "checkpoint_networks.py").write_text(FACTORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield "checkpoint_networks"


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def trained(factory: str, name: str = "network", seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    model = load_source(f"{factory}:{name}").model
    model.features[1].running_mean.normal_()
    return model


WRAPPERS = {
    "bare": lambda state: state,
    "training": lambda state: {"epoch": 3, "model": state, "optimizer": {"lr": 0.1}},
    "state_dict": lambda state: {"state_dict": state, "arch": "net"},
    "model_state_dict": lambda state: {"model_state_dict": state, "args": argparse.Namespace(lr=1)},
    "DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "compiled, parallel": lambda state: {
        f"module._orig_mod.{name}": tensor for name, tensor in state.items()
    },
    "Lightning": lambda state: {
        "pytorch-lightning_version": "2.5",
        "state_dict": {
            "criterion.weight": torch.ones(4),
            **{f"net.{name}": tensor for name, tensor in state.items()},
            "metric.fc.weight": torch.ones(2),
        },
        "hyper_parameters": {"lr": 0.1},
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_weights(wrapper: str, factory: str, tmp_path: Path) -> None:
    model = trained(factory)
    torch.save(WRAPPERS[wrapper](model.state_dict()), tmp_path / "w.ckpt")
    assert equal(load_source(f"{factory}:network", checkpoint=tmp_path / "w.ckpt").model, model)


@pytest.mark.parametrize(
    "wrap", [lambda model: model, nn.DataParallel, lambda model: {"model": model, "epoch": 2}]
)
def test_a_whole_module_of_the_network_s_own_classes(wrap: object, factory: str, tmp_path: Path) -> None:
    model = trained(factory)
    torch.save(wrap(model), tmp_path / "whole.pth")  # type: ignore[operator]
    assert equal(load_source(f"{factory}:network", checkpoint=tmp_path / "whole.pth").model, model)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
def test_a_whole_network_of_torchvision(name: str, tmp_path: Path) -> None:
    torch.manual_seed(6)
    model = torchvision.models.get_model(name, weights=None, num_classes=7)
    torch.save(model, tmp_path / "whole.pth")
    source = load_source(f"torchvision:{name}", checkpoint=tmp_path / "whole.pth")
    assert equal(source.model, model)


def test_a_module_of_other_classes_is_not_unpickled(factory: str, tmp_path: Path) -> None:
    class Spy(nn.Identity):
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    model = trained(factory)
    model.spy = Spy()
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(
        SourceError, match=r"safely: beside tensors it holds code \(.*state_dict\(\), FILE\)"
    ) as caught:
        load_source(f"{factory}:network", checkpoint=tmp_path / "whole.pth")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
    # Nor is a class of the user's network called where another network is asked for.
    torch.save(trained(factory), tmp_path / "whole.pth")
    with pytest.raises(SourceError, match=r"code \(checkpoint_networks\.Net\)"):
        load_source("torchvision:resnet18", checkpoint=tmp_path / "whole.pth")


class Notes:
    """What a training script keeps beside its weights."""


def test_code_in_a_file_of_before_pytorch_1_6(factory: str, tmp_path: Path) -> None:
    """It is a checkpoint, and no damaged one."""
    content = {"model": trained(factory).state_dict(), "notes": Notes()}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(SourceError, match=r"safely: .* code \(test_checkpoints\.Notes\)") as caught:
        load_source(f"{factory}:network", checkpoint=tmp_path / "old.pth")
    assert "\n" not in str(caught.value)
    del content["notes"]
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert equal(load_source(f"{factory}:network", checkpoint=tmp_path / "old.pth").model, trained(factory))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (MemoryError(), "there is too little memory for it"),
    ],
)
def test_what_is_not_the_checkpoints_fault(
    error: Exception, reason: str, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    torch.save(trained(factory).state_dict(), tmp_path / "good.pth")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(SourceError, match=rf"can't read the checkpoint '.*good\.pth': {reason}$"):
        load_source(f"{factory}:network", checkpoint=tmp_path / "good.pth")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0, 100, 5000, -10])
def test_a_checkpoint_that_is_cut_off(legacy: bool, kept: int, factory: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"w": torch.zeros(20000)}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SourceError, match="is no checkpoint of PyTorch, or is damaged"):
        load_source(f"{factory}:network", checkpoint=path)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        "resnet18",
        "vgg11",
        "densenet121",
        "squeezenet1_1",
        "convnext_tiny",
        "vit_b_32",
        "googlenet",
    ],
)
def test_fine_tuned_networks_of_torchvision(name: str, tmp_path: Path) -> None:
    """With a head of ten classes, as fine-tuning leaves them."""
    torch.manual_seed(7)
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    torch.save(model.state_dict(), tmp_path / "ft10.pth")
    source = load_source(f"torchvision:{name}", checkpoint=tmp_path / "ft10.pth")
    assert equal(source.model, model)
    assert source.labels is None
    assert source.preprocessing.guessed == ("resize", "crop", "mean", "std")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_fine_tuned_networks_of_timm(name: str, tmp_path: Path) -> None:
    torch.manual_seed(8)
    model = timm.create_model(name, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "ft3.pth")
    source = load_source(f"timm:{name}", checkpoint=tmp_path / "ft3.pth")
    assert equal(source.model, model)
    assert source.labels is None


def test_a_fine_tuned_network_exports(tmp_path: Path) -> None:
    torch.manual_seed(9)
    model = torchvision.models.mobilenet_v2(num_classes=10)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "ft10.pth")
    source = load_source("torchvision:mobilenet_v2", checkpoint=tmp_path / "ft10.pth", size=(64, 64))
    with pytest.warns(UserWarning, match=r"nobody stated .*as its source usually takes them"):
        report = export(
            source.model,
            source.example_input,
            tmp_path / "e.onnx",
            labels=list("abcdefghij"),
            preprocessing=source.preprocessing,
            source_name=source.name,
        )
    assert report.manifest.labels == tuple("abcdefghij")
    spec = report.manifest.input
    # As torchvision's newest weights of it take pictures, in proportion.
    assert (spec.height, spec.resize, spec.mean) == (64, round(232 * 64 / 224), (0.485, 0.456, 0.406))


def test_the_transform_of_pretrained_weights_is_a_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda *_, **__: state)
    assert load_source("torchvision:squeezenet1_1").preprocessing.guessed == ()


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("network", 6, r"'fc.weight' is \[6, 8\] in place of \[4, 8\], 'fc.bias' is \[6\] in place of \[4\]"),
        (
            "changed",
            4,
            r"it lacks 'fc.1.weight', 'fc.1.bias'; it has 'fc.weight', 'fc.bias', which the model hasn't",
        ),
    ],
)
def test_what_does_not_fit_is_said_whole(
    name: str, classes: int, message: str, factory: str, tmp_path: Path
) -> None:
    model = trained(factory)
    model.fc = nn.Linear(8, classes)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(SourceError, match=message + ".*package.module:factory$") as caught:
        load_source(f"{factory}:{name}", checkpoint=tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_layers_are_listed_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("weights are downloaded")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    from cli_helpers import run

    for source, picked in (("torchvision:squeezenet1_1", "features"), ("timm:test_resnet", "layer4")):
        result = run("layers", source, "--size", "64")
        assert result.exit_code == 0
        (line,) = [line for line in result.stdout.splitlines() if "picked automatically" in line]
        assert line.split()[0] == picked


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("whole.pth", r"holds weights, .* --checkpoint whole.pth"),
        ("last.ckpt", r"holds weights, .* --checkpoint last.ckpt"),
        ("w.safetensors", r"holds weights, .* --checkpoint w.safetensors"),
        ("squeezenet1_1", r"did you mean torchvision:squeezenet1_1\?"),
        ("resnet18", r"did you mean torchvision:resnet18 or timm:resnet18\?"),
        ("test_vit", r"did you mean timm:test_vit\?"),
        (
            "no_such",
            r"name one as torchvision:NAME, timm:NAME, package.module:factory, model.pt2 or model.onnx",
        ),
        ("net.onnx", r"no module, and needs none: export it as it is, without PyTorch"),
    ],
)
def test_words_that_are_no_source(spec: str, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SourceError, match=message) as caught:
            load_source(spec)
    assert "\n" not in str(caught.value)
