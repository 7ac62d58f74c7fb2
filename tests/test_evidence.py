"""How pictures become inputs where nobody states it: what a source says, what it shows, and what is usual."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import skimage
import torch
from onnx import helper, numpy_helper
from torch import nn

from cli_helpers import run
from onnxplain import Explainer, Preprocessing, SourceError
from onnxplain.manifest import IMAGENET
from onnxplain_export import export
from onnxplain_export.evidence import Evidence, settle
from onnxplain_export.metadata import labels_said
from onnxplain_export.module_evidence import evidence_of

WHOLE = {"resize": None, "crop": "none"}
GUESS = "nobody stated"


def settled(
    statement: Preprocessing | None, *evidence: Evidence, size: tuple[int, int] = (32, 32)
) -> Preprocessing:
    return settle(statement, 3, *size, evidence)


def test_what_is_stated_counts_most_then_the_evidence_in_its_order() -> None:
    first = Evidence({"mean": (0.1,) * 3, "std": (0.2,) * 3}, "first", is_stated=True)
    second = Evidence({"mean": (0.3,) * 3, "resize": 40, "crop": "center"}, "second")
    spec = settled(None, first, second)
    assert (spec.mean, spec.std, spec.resize, spec.crop) == ((0.1,) * 3, (0.2,) * 3, 40, "center")
    assert spec.guessed == ("resize", "crop")
    spec = settled(Preprocessing(mean=(0.5,) * 3), first, second)
    assert (spec.mean, spec.std, spec.resize) == ((0.5,) * 3, (0.2,) * 3, 40)


@pytest.mark.parametrize("said", [{"resize": None}, {"resize": 36}, {"crop": "none"}, {"crop": "center"}])
def test_a_stated_resize_or_crop_is_not_mixed_with_another_ones(said: Mapping[str, Any]) -> None:
    spec = settled(Preprocessing(**said), Evidence({"resize": 40, "crop": "center"}, "another"))
    alone = Preprocessing(3, 32, 32, **said)
    assert (spec.resize, spec.crop) == (alone.resize, alone.crop)


def test_a_statement_of_another_size_is_refused(tmp_path: Path) -> None:
    grey = "gives channels 1, and the model takes channels 3;"
    for statement, message in (
        (Preprocessing(height=16), "gives height 16, and the model takes height 32;"),
        (Preprocessing(mean=(0.5,), std=(0.5,)), grey),
        (Preprocessing(color="L"), grey),
    ):
        with pytest.raises(SourceError, match=message):
            export(Small(), torch.zeros(1, 3, 32, 32), tmp_path / "e.onnx", preprocessing=statement)


class Small(nn.Module):
    """A network of the user's own."""

    def __init__(self, channels: int = 3, normalisation: nn.Module | None = None) -> None:
        super().__init__()
        self.normalisation = normalisation or nn.Identity()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 8, 3),
            nn.ReLU(),
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(self.normalisation(x)).mean((2, 3)))


class Affine(nn.Module):
    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.shift


class Normalised(nn.Module):
    """Normalise pixels in [0, 1], as torchvision's Normalize inside a network does."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, scale * torch.tensor(IMAGENET[name])[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


@pytest.mark.parametrize(
    ("normalisation", "std"),
    [
        (Affine(1 / 255, 0), 1 / 255),
        (Affine(1 / 127.5, -1), 1 / 255),
        (Normalised(255), 1 / 255),
        (Affine(2, -1), 1),
        (Normalised(), 1),
    ],
)
def test_a_network_that_normalises_its_pixels_itself(
    normalisation: nn.Module, std: float, tmp_path: Path
) -> None:
    model = Small(normalisation=normalisation)
    with pytest.warns(UserWarning, match="the network normalises them itself"):
        report = export(model, torch.zeros(1, 3, 160, 160), tmp_path / "e.onnx")
    spec = report.manifest.input
    assert (spec.mean, spec.std) == ((0,) * 3, (std,) * 3)
    assert spec.guessed == ("resize", "crop", "mean", "std")


def photographs() -> torch.Tensor:
    """Return crops of photographs in [0, 1], [batch, 3, 64, 64]."""
    crops = [
        picture[row : row + 64, column : column + 64]
        for picture in (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee())
        for row in range(0, 256, 64)
        for column in range(0, 384, 64)
    ]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), (0.5, 0.5), (None, None), (0.0, 1 / 255), (None, 1 / 255)]
)
def test_what_a_batch_normalisation_has_seen_tells_the_normalisation(
    mean: float | None, std: float | None, channels: int
) -> None:
    """None stands for the pictures' own statistics, which only they know."""
    pictures = photographs()[:, :channels]
    m = pictures.mean() if mean is None else mean
    s = pictures.std() if std is None else std
    for seed in range(4):
        torch.manual_seed(seed)
        model = Small(channels)
        model.features[1].momentum = None  # all of what it has seen counts alike
        with torch.no_grad():
            model((pictures - m) / s)
        (found,) = evidence_of(model, channels, 64, 64)
        usual = IMAGENET if channels == 3 else {"mean": (0.45,), "std": (0.225,)}
        expected = {
            "mean": usual["mean"] if mean is None else (mean,) * channels,
            "std": usual["std"] if std is None else (std,) * channels,
        }
        assert found.values == expected
        assert not found.is_stated


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5), (0.0, 1 / 255)])
def test_a_grey_network_answers_as_in_its_training_without_any_option(
    mean: float, std: float, tmp_path: Path
) -> None:
    """What it answers to pictures of 32x32 that are normalised as in its training are their classes."""
    levels = torch.nn.functional.interpolate(photographs()[:, :1], (32, 32), mode="area")
    pictures = (255 * levels).round()
    torch.manual_seed(2)
    model = Small(1)
    model.features[1].momentum = None
    with torch.no_grad():
        model((pictures / 255 - mean) / std)
        model.eval()
        maps = model.features((pictures / 255 - mean) / std).mean((2, 3))
        model.head.bias -= model.head(maps).median(dim=0).values
        classes = model.head(maps).argmax(1).tolist()
    assert len(set(classes)) > 2

    def right(statement: Preprocessing | None) -> int:
        export(model, torch.zeros(1, 1, 32, 32), tmp_path / "e.onnx", preprocessing=statement)
        explainer = Explainer(tmp_path / "e.onnx")
        greys = pictures[:, 0].numpy().astype(np.uint8)
        answers = [explanation.index for explanation in explainer.explain_batch(list(greys))]
        return sum(index == known for index, known in zip(answers, classes, strict=True))

    stated = right(Preprocessing(resize=None, crop="none", mean=(mean,), std=(std,)))
    assert right(None) == stated == len(classes)
    other = 0.3 if mean == 0.5 else 0.5
    assert right(Preprocessing(mean=(other,), std=(other,))) < stated


def test_a_batch_normalisation_that_has_seen_nothing_tells_nothing() -> None:
    fresh = Small()
    assert evidence_of(fresh, 3, 32, 32) == []
    for seed in range(8):
        torch.manual_seed(seed)
        nn.init.normal_(fresh.features[1].running_mean)
        nn.init.uniform_(fresh.features[1].running_var, 0.5, 2)
        assert evidence_of(fresh, 3, 32, 32) == []


def test_a_library_s_network_takes_pictures_as_its_library_makes_them() -> None:
    models = pytest.importorskip("torchvision.models")
    timm = pytest.importorskip("timm")
    (found,) = evidence_of(nn.Sequential(models.resnet18(num_classes=5)), 3, 64, 64)
    assert found.values == {"resize": 73, "crop": "center", **IMAGENET}
    (found,) = evidence_of(timm.create_model("vit_tiny_patch16_224", num_classes=5), 3, 224, 224)
    half = (0.5,) * 3
    expected = {"resize": 248, "crop": "center", "interpolation": "bicubic", "mean": half, "std": half}
    assert found.values == expected


def test_export_says_what_it_guessed_and_how_to_state_it(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=GUESS) as caught:
        export(Small(1), torch.zeros(1, 1, 28, 28), tmp_path / "e.onnx")
    (line,) = [str(one.message) for one in caught if GUESS in str(one.message)]
    assert "\n" not in line
    assert "L, resized to 28x28, levels in [0, 1]" in line
    statement = json.loads(line[line.index("{") :])
    guess = {"resize": None, "crop": "none", "mean": [0.0], "std": [1.0]}
    assert statement == {"height": 28, "width": 28, **guess}
    spec = Explainer(tmp_path / "e.onnx").manifest.input
    assert spec.guessed == ("resize", "crop", "mean", "std")
    # What the line proposes, stated, is no guess.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        stated = Preprocessing(resize=None, crop="none", mean=(0.0,), std=(1.0,))
        report = export(Small(1), torch.zeros(1, 1, 28, 28), tmp_path / "e.onnx", preprocessing=stated)
    assert report.manifest.input == spec
    assert report.manifest.input.guessed == ()


def test_python_and_json_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields that stand in a file and the same in Python lead to the same."""
    monkeypatch.chdir(tmp_path)
    torch.onnx.export(Small(1).eval(), (torch.zeros(1, 1, 32, 32),), "net.onnx", dynamo=True, verbose=False)
    for fields in (
        {"mean": [0.3], "std": [0.2]},
        {"channels": 1, "color": "L", "height": 32, "width": 32, "mean": [0.3], "std": [0.2]},
        {"resize": 40},
        {"crop": "center"},
        {},
    ):
        Path("how.json").write_text(json.dumps(fields))
        args = ["export", "net.onnx", "-o", "cli.onnx", "--preprocessing", "how.json"]
        assert run(*args).exit_code == 0
        said = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        export("net.onnx", None, "python.onnx", preprocessing=Preprocessing(**said))
        python, cli = (Explainer(name).manifest.input for name in ("python.onnx", "cli.onnx"))
        assert python == cli
        assert python.guessed == cli.guessed


def onnx_file(path: Path, channels: int = 3, size: int | str = 32, **metadata: str) -> str:
    """Write a classifier of four classes whose metadata say something of its pictures."""
    generator = np.random.default_rng(0)
    weights = {
        "w": generator.standard_normal((8, channels, 3, 3)) / 5,
        "fc": generator.standard_normal((8, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["data", "w"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, ["N", channels, size, size])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {key.replace("__", "."): value for key, value in metadata.items()})
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"Image__BitmapPixelFormat": "Bgr8"}, {"color": "BGR"}),
        ({"image__bitmappixelformat": "RGB8"}, {"color": "RGB"}),
        (
            {"Image__BitmapPixelFormat": "Bgr8", "Image__NominalPixelRange": "NominalRange_0_255"},
            {"color": "BGR", "mean": (0.0,) * 3, "std": (1 / 255,) * 3},
        ),
        ({"Image__NominalPixelRange": "Normalized_0_1"}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({"Image__NominalPixelRange": "normalized_1_1"}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
        (
            {"Image__NominalPixelRange": "NominalRange_16_235"},
            {"mean": (-16 / 219,) * 3, "std": (1 / 219,) * 3},
        ),
        (
            {"author": "Ultralytics", "task": "classify", "imgsz": "[32, 32]"},
            {"resize": 32, "crop": "center", "mean": (0.0,) * 3, "std": (1.0,) * 3},
        ),
    ],
)
def test_what_a_file_says_of_its_pictures_is_taken(
    metadata: dict[str, str], expected: dict[str, Any], tmp_path: Path
) -> None:
    report = export(onnx_file(tmp_path / "net.onnx", **metadata), None, tmp_path / "e.onnx")
    spec = report.manifest.input
    assert {name: getattr(spec, name) for name in expected} == expected
    assert expected.keys() <= report.taken.keys()
    assert set(spec.guessed).isdisjoint(expected)
    # Who gives an option has the last word.
    stated = Preprocessing(color="RGB", resize=40, mean=(0.1,) * 3, std=(0.2,) * 3)
    own = export(str(tmp_path / "net.onnx"), None, tmp_path / "e.onnx", preprocessing=stated)
    assert own.manifest.input == Preprocessing(3, 32, 32, "RGB", 40, mean=(0.1,) * 3, std=(0.2,) * 3)


def test_levels_from_16_to_235() -> None:
    spec = Preprocessing(1, 8, 8, mean=(-16 / 219,), std=(1 / 219,))
    black, white = ((level - spec.mean[0]) / spec.std[0] for level in (0, 1))
    assert (round(black, 6), round(white, 6)) == (16, 235)


@pytest.mark.parametrize("value", ["Gray8", "Yuv", ""])
def test_a_pixel_format_that_does_not_fit_is_left_out(value: str, tmp_path: Path) -> None:
    source = onnx_file(tmp_path / "net.onnx", Image__BitmapPixelFormat=value)
    report = export(source, None, tmp_path / "e.onnx")
    assert report.manifest.input.color == "RGB"
    assert report.taken == {}


def test_the_size_of_a_file_that_leaves_it_open(tmp_path: Path) -> None:
    source = onnx_file(tmp_path / "net.onnx", size="side", imgsz="[24, 40]", task="classify")
    assert export(source, None, tmp_path / "e.onnx").manifest.input.height == 24
    spec = export(source, None, tmp_path / "e.onnx", preprocessing=Preprocessing(height=16)).manifest.input
    assert (spec.height, spec.width) == (16, 16)


NAMES = ("tench", "goldfish", "shark, great white", "hen")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("names", str(dict(enumerate(NAMES)))),
        ("names", json.dumps(dict(enumerate(NAMES)))),
        ("id2label", json.dumps(dict(reversed(list(enumerate(NAMES)))))),
        ("labels", json.dumps(NAMES)),
        ("classes", str(list(NAMES))),
        ("Class_Names", "\n".join(NAMES) + "\n"),
    ],
)
def test_labels_in_the_metadata_are_taken(key: str, text: str, tmp_path: Path) -> None:
    source = onnx_file(tmp_path / "net.onnx", **{key: text})
    report = export(source, None, tmp_path / "e.onnx")
    assert report.manifest.labels == NAMES
    assert report.taken == {"labels": f"the file's metadata ({key})"}
    assert export(source, None, tmp_path / "e.onnx", labels=["abcd"][0:1] * 4).manifest.labels == (
        ("abcd",) * 4
    )


def test_labels_with_commas(tmp_path: Path) -> None:
    source = onnx_file(tmp_path / "net.onnx", labels="a, b,c ,d")
    assert export(source, None, tmp_path / "e.onnx").manifest.labels == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "text", ["['a', 'b']", "{}", "[1, 2, 3, 4]", "{'a': 'b'}", "(" * 100_000, "__import__('os')"]
)
def test_labels_that_can_not_be_are_left_out_and_said(text: str, tmp_path: Path) -> None:
    source = onnx_file(tmp_path / "net.onnx", names=text)
    with pytest.warns(
        UserWarning, match="metadata have .*'names', and there are 4 classes: they are left out"
    ):
        report = export(source, None, tmp_path / "e.onnx")
    assert report.manifest.labels is None


def test_names_of_another_key_are_taken_where_the_first_ones_do_not_fit() -> None:
    found, remark = labels_said({"names": "['a']", "labels": "['a', 'b']"}, 2)
    assert found is not None
    assert (found.names, remark) == (("a", "b"), None)


def test_the_command_line_says_what_was_taken_and_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx_file(tmp_path / "net.onnx", Image__BitmapPixelFormat="Bgr8", names=str(list(NAMES)))
    with pytest.warns(UserWarning, match="nobody stated resize, crop, mean and std"):
        result = run("export", "net.onnx", "-o", "e.onnx")
    assert result.exit_code == 0
    for line in (
        "color           from the file's metadata (Image.BitmapPixelFormat: Bgr8)",
        "labels          from the file's metadata (names)",
        "picture         BGR, resized to 32x32, levels in [0, 1]",
    ):
        assert line in result.stdout
    assert "guessed     resize, crop, mean, std (onnxplain check" in run("inspect", "e.onnx").stdout


def test_what_torchvision_s_weights_say_can_be_passed_on(tmp_path: Path) -> None:
    presets = pytest.importorskip("torchvision.transforms._presets")
    transform = presets.ImageClassification(crop_size=32, resize_size=40)
    report = export(Small(), torch.zeros(1, 3, 32, 32), tmp_path / "e.onnx", preprocessing=transform)
    assert report.manifest.input == Preprocessing(3, 32, 32, "RGB", 40, "center", **IMAGENET)
    assert report.manifest.input.guessed == ()
