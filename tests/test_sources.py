"""Sources by name, their checkpoints, and what is answered where they don't load."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from torch import nn

from onnxplain import Preprocessing, extras
from onnxplain.errors import MissingDependencyError, SourceError
from onnxplain.preprocessing import preprocess
from onnxplain_export import Source, export, load_source

FACTORY = """
import torch
from torch import nn

def network():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head)

def broken():
    raise RuntimeError("no such weights")

def number():
    return 3

instance = network()
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder; its name."""
    (tmp_path / "factory_of_tests.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    yield "factory_of_tests"
    sys.modules.pop("factory_of_tests", None)


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


@pytest.mark.parametrize("name", ["network", "instance"])
def test_a_factory_in_the_current_folder(factory: str, name: str) -> None:
    before = list(sys.path)
    source = load_source(f"{factory}:{name}")
    assert sys.path == before
    assert source.name == f"{factory}:{name}"
    assert source.model(source.example_input).shape == (1, 5)
    assert source.preprocessing == Preprocessing()


def test_the_size_is_the_callers(factory: str) -> None:
    source = load_source(f"{factory}:network", size=(70, 140))
    assert source.example_input.shape == (1, 3, 70, 140)
    assert (source.preprocessing.height, source.preprocessing.width) == (70, 140)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "training", "parallel"])
def test_checkpoints(factory: str, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    trained = load_source(f"{factory}:network").model
    state = trained.state_dict()
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(state, file)
    elif kind == "training":
        torch.save({"epoch": 3, "state_dict": state}, file)
    elif kind == "parallel":
        torch.save({f"module.{key}": value for key, value in state.items()}, file)
    else:
        torch.save(state, file)
    torch.manual_seed(2)
    loaded = load_source(f"{factory}:network", checkpoint=file).model
    assert torch.equal(parameters(loaded), parameters(trained))


def test_a_checkpoint_that_holds_code_is_not_run(factory: str, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"weight": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(SourceError, match="can't read the checkpoint"):
        load_source(f"{factory}:network", checkpoint=tmp_path / "bad.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (None, "there is no checkpoint"),
        (lambda file: file.write_bytes(b""), "is no checkpoint of PyTorch, or is damaged"),
        (lambda file: file.write_text("cat\ndog\n"), "is no checkpoint of PyTorch, or is damaged"),
        (lambda file: torch.save({"other": torch.zeros(2)}, file), "doesn't fit the model"),
        (lambda file: torch.save([1, 2], file), "doesn't fit the model"),
    ],
)
def test_checkpoints_that_fail(factory: str, tmp_path: Path, write: object, message: str) -> None:
    file = tmp_path / "w.pth"
    if write is not None:
        write(file)
    with pytest.raises(SourceError, match=message) as caught:
        load_source(f"{factory}:network", checkpoint=file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet50", "is no source"),
        ("torchvision:", "is no source"),
        ("torchvision:resnet51", r"did you mean .*resnet50"),
        ("no_such_package_at_all:network", "can't import"),
        ("factory_of_tests:netwrk", r"did you mean network"),
        ("factory_of_tests:broken", "fails: no such weights"),
        ("factory_of_tests:number", "returns int, not a torch.nn.Module"),
        ("folder/model.pt2", "there is no program"),
        ("timm:resnet51", r"timm has no network .*did you mean .*resnet50"),
        ("timm:resnet50.no_such_tag", r"timm has no network .*did you mean .*resnet50\."),
        ("timm:botnet50ts_256", "has no weights of botnet50ts_256; give a file with --checkpoint"),
    ],
)
def test_names_that_fail(factory: str, spec: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        load_source(spec)
    assert "\n" not in str(caught.value)


def test_torchvision_with_a_local_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = torchvision.models.squeezenet1_1(weights=None)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    source = load_source("torchvision:squeezenet1_1", checkpoint=tmp_path / "w.pth")
    assert torch.equal(parameters(source.model), parameters(trained))
    assert source.preprocessing == Preprocessing()
    assert source.labels is not None
    assert (len(source.labels), source.labels[0]) == (1000, "tench")
    report = export(
        source.model, source.example_input, tmp_path / "e.onnx", labels=source.labels, source_name=source.name
    )
    assert report.manifest.source["name"] == "torchvision:squeezenet1_1"


def test_torchvision_knows_each_networks_own_preprocessing(tmp_path: Path) -> None:
    trained = torchvision.models.efficientnet_b1(weights=None)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    source = load_source("torchvision:efficientnet_b1", checkpoint=tmp_path / "w.pth")
    wanted = torchvision.models.EfficientNet_B1_Weights.DEFAULT.transforms()
    assert [source.preprocessing.resize, source.preprocessing.height] == [
        wanted.resize_size[0],
        wanted.crop_size[0],
    ]


def test_torchvision_weights_that_can_not_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(SourceError, match=r"can't download the weights .*no route to host.*--checkpoint"):
        load_source("torchvision:squeezenet1_1")


def test_torchvision_pretrained_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = torchvision.models.squeezenet1_1(weights=None)
    monkeypatch.setattr(
        torchvision.models._api.WeightsEnum, "get_state_dict", lambda *_, **__: trained.state_dict()
    )
    assert torch.equal(parameters(load_source("torchvision:squeezenet1_1").model), parameters(trained))


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        load_source("torchvision:resnet18")


def test_a_torchvision_that_does_not_fit_its_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(SourceError, match=r"torchvision::nms does not exist.*install the build"):
        load_source("torchvision:resnet18")


def timm_source(folder: Path, name: str, **options: object) -> Source:
    """A source of timm's with weights of ours, as no test downloads any."""
    network = timm.create_model(name, **{"img_size": options["size"]} if "vit" in name and options else {})
    torch.save(network.state_dict(), folder / "timm.pth")
    return load_source(f"timm:{name}", checkpoint=folder / "timm.pth", **options)


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet.r160_in1k",  # cropped from the centre
        "convnext_tiny.in12k_ft_in1k_384",  # squashed
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",  # normalised in a way of its own
        "res2net50_14w_8s.in1k",  # bilinear
        "mobilenetv4_conv_small_050.e3000_r224_in1k",  # its size / 0.95 is no whole number
    ],
)
def test_timm_sees_a_picture_as_with_its_own_transform(tmp_path: Path, name: str) -> None:
    source = timm_source(tmp_path, name)
    wanted = timm.data.create_transform(**timm.data.resolve_model_data_config(source.model))
    pixels = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    # Small and smooth, so that a wrong filter, size or crop shows and rounding to bytes doesn't.
    picture = Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC)
    expected = wanted(picture).numpy()
    found, _ = preprocess(np.asarray(picture), source.preprocessing)
    assert found.shape == expected.shape
    byte = 1 / 255 / min(source.preprocessing.std)
    np.testing.assert_allclose(found, expected, atol=2 * byte)
    assert np.abs(found - expected).mean() < 0.1 * byte


def test_timm_with_a_local_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(4)
    trained = timm.create_model("test_resnet")
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    source = load_source("timm:test_resnet", checkpoint=tmp_path / "w.pth")
    assert source.name == "timm:test_resnet"
    assert torch.equal(parameters(source.model), parameters(trained))
    assert source.example_input.shape == (1, 3, 160, 160)


def test_timm_labels_are_those_of_torchvision_but_for_two(tmp_path: Path) -> None:
    own = timm_source(tmp_path, "test_resnet").labels
    others = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    assert own is not None
    # torchvision tells the two cranes and the two swimsuits apart.
    assert [index for index in range(1000) if own[index] != others[index]] == [134, 639]


def test_timm_networks_are_made_for_the_callers_size(tmp_path: Path) -> None:
    source = timm_source(tmp_path, "vit_tiny_patch16_224", size=(96, 128))
    assert source.model(source.example_input).shape == (1, 1000)
    assert source.example_input.shape == (1, 3, 96, 128)
    # Only the size changes: these weights know pixels from -1 to 1.
    assert source.preprocessing.mean == (0.5, 0.5, 0.5)
    assert source.preprocessing.interpolation == "bicubic"
    convolutional = timm_source(tmp_path, "test_resnet", size=(96, 128))
    assert convolutional.model(convolutional.example_input).shape == (1, 1000)


def test_a_size_that_a_timm_network_can_not_have() -> None:
    with pytest.raises(SourceError, match=r"timm can't make xcit_nano_12_p16_224: .*divide") as caught:
        load_source("timm:xcit_nano_12_p16_224", checkpoint="unread.pth", size=(5, 5))
    assert "\n" not in str(caught.value)


def test_timm_networks_without_a_classifier() -> None:
    with pytest.raises(SourceError, match="puts out features, no logits"):
        load_source("timm:vit_small_patch14_dinov2", checkpoint="unread.pth")


def test_timm_weights_that_can_not_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise LocalEntryNotFoundError("no route to host\nand a long explanation")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    with pytest.raises(
        SourceError, match=r"can't download the weights .*no route to host.*--checkpoint"
    ) as caught:
        load_source("timm:test_resnet.r160_in1k")
    assert "\n" not in str(caught.value)


def test_timm_pretrained_weights_are_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained = timm.create_model("test_resnet")
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "timm.models._hub.hf_hub_download", lambda *_, **__: str(tmp_path / "model.safetensors")
    )
    assert torch.equal(parameters(load_source("timm:test_resnet.r160_in1k").model), parameters(trained))


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"timm .*pip install .*\[timm\]"):
        load_source("timm:resnet18")
