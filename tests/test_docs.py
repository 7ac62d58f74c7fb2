"""The code in the README and the docs runs, and says what the product says."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import onnx
import pytest
import skimage.data
import torch
import torchvision
from PIL import Image

from cli_helpers import run
from onnxplain import Explainer, Layer, Manifest, Preprocessing
from onnxplain.image_methods import IMAGE_METHODS
from onnxplain.manifest import METADATA_KEY
from onnxplain.maps import METHODS
from onnxplain_models import explainer_file, samples
from tiny_explainer import Network, tiny_manifest, tiny_model, two_layers

ROOT = Path(__file__).resolve().parents[1]
FORMAT = (ROOT / "docs" / "file-format.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the documents' code names."""
    explainer = explainer_file("vgg_mlp").read_bytes()
    for name in ("vgg_mlp.onnx", "resnet50.onnx"):
        (tmp_path / name).write_bytes(explainer)
    picture = samples()[0].picture.read_bytes()
    for name in ("scene.png", "photo.jpg"):
        (tmp_path / name).write_bytes(picture)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change_preprocessing(path: Path, **changes: object) -> None:
    model = onnx.load(path)
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    manifest = json.loads(entry.value)
    manifest["input"] |= changes
    entry.value = json.dumps(manifest)
    onnx.save(model, path)


def write_picture(path: Path, height: int, width: int) -> None:
    """Write a photograph with all its detail, so that one resize can be told from another."""
    Image.fromarray(skimage.data.chelsea()[:height, :width]).save(path)


def assert_program_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    """Run the document's program, and compare all that comes out with the runtime."""
    (program,) = code_blocks(FORMAT, "python")
    found: dict[str, Any] = {}
    exec(program, found)  # the document's own code
    expected = Explainer("vgg_mlp.onnx").explain_classes("scene.png", top=2)
    printed = capsys.readouterr().out.splitlines()
    for line, one in zip(printed, expected, strict=True):
        assert line.startswith(f"{one.label} ")
    assert found["explained"].tolist() == [one.index for one in expected]
    for row, one in enumerate(expected):
        assert one.heatmap.max() == 1  # the network looked somewhere
        assert abs(found["logits"][one.index] - one.logit) < 1e-3
        assert abs(found["cams"][row] - one.cams[-1]).max() < 1e-3 * one.cams[-1].max()
        assert abs(found["heatmaps"][row] - one.heatmap).max() < 2e-3


@pytest.mark.parametrize(
    ("height", "width", "changes"),
    [
        (96, 96, {}),
        (97, 151, {}),
        (300, 451, {"resize": 110, "crop": "center"}),
        (291, 130, {"resize": 111, "crop": "center", "interpolation": "bicubic", "color": "BGR"}),
        (80, 45, {"resize": 51, "crop": "center", "interpolation": "nearest"}),  # padded at both sides
        (300, 451, {"resize": [107, 85], "crop": "center"}),
    ],
)
def test_grad_cam_in_numpy_is_the_runtimes(
    folder: Path, capsys: pytest.CaptureFixture[str], height: int, width: int, changes: dict[str, object]
) -> None:
    change_preprocessing(folder / "vgg_mlp.onnx", **changes)
    write_picture(folder / "scene.png", height, width)
    assert_program_agrees(capsys)


def test_grad_cam_of_several_layers_and_grey_in_numpy_is_the_runtimes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Network.random()
    grey = replace(
        tiny_manifest().input, channels=1, color="L", mean=(0.4,), std=(0.3,), resize=30, crop="center"
    )
    manifest = two_layers(replace(tiny_manifest(), input=grey))
    model = tiny_model(replace(network, kernel=network.kernel[:, :1]), manifest)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1  # it is made for three channels
    onnx.save(model, folder / "vgg_mlp.onnx")
    write_picture(folder / "scene.png", 75, 110)
    assert_program_agrees(capsys)


def test_the_documented_manifest_is_one(folder: Path) -> None:
    (example,) = code_blocks(FORMAT, "json")
    manifest = Manifest.from_json(example)
    assert manifest.input == Preprocessing()
    assert manifest.layers == (Layer("layer4", "activations", "gradients", 2048, 7, 7, head="gap_linear"),)
    real = json.loads(Explainer("vgg_mlp.onnx").manifest.to_json())
    assert json.loads(example).keys() == real.keys()
    assert json.loads(example)["input"].keys() == real["input"].keys()
    assert json.loads(example)["layers"][0].keys() == real["layers"][0].keys()


def test_the_readmes_first_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights that need no download."""
    state = torchvision.models.resnet50(weights=None).state_dict()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda *_, **__: state)
    program = code_blocks(README, "python")[0]
    exec(program, {})  # the document's own code
    manifest = Explainer("resnet50.onnx").manifest
    assert manifest.layers[0].name == "layer4"
    assert manifest.labels is not None
    assert manifest.labels[:2] == ("tench", "goldfish")


def test_the_readmes_second_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explain = code_blocks(README, "python")[1]
    exec(explain, {})  # the document's own code
    assert "Box" in capsys.readouterr().out
    assert (folder / "why.png").stat().st_size > 0


MY_NETWORKS = """
import torch
from torch import nn

def build(channels=1):
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what somebody with a network of their own has."""
    (folder / "my_networks.py").write_text(MY_NETWORKS)
    (folder / "labels.txt").write_text("\n".join(f"class {number}" for number in range(10)))
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2(num_classes=10).state_dict(), folder / "ft10.pth")
    monkeypatch.syspath_prepend(folder)
    import my_networks

    torch.save(my_networks.build().state_dict(), folder / "weights.pth")
    torch.onnx.export(
        my_networks.build(3).eval(), (torch.zeros(1, 3, 32, 32),), folder / "classifier.onnx", verbose=False
    )
    yield folder
    del sys.modules["my_networks"]


def test_the_readmes_lines_for_an_own_network(own: Path) -> None:
    section = README.partition("## Your own network\n")[2].partition("\n## ")[0]
    lines = re.findall(r"\| `onnxplain (export .*?)` \|", section)
    assert len(lines) == 3
    for line in lines:
        (own / "mine.onnx").unlink(missing_ok=True)
        result = run(*line.split())
        assert result.exit_code == 0, result.stderr
        manifest = Explainer("mine.onnx").manifest
        assert ("--labels" in line) == (manifest.labels is not None)


def test_the_readmes_grey_network(own: Path) -> None:
    program = code_blocks(README, "python")[2]
    exec(program, {})  # the document's own code
    explainer = Explainer("mine.onnx")
    assert explainer.manifest.input.in_words() == "L, resized to 28x28, mean 0.1307, std 0.3081"
    assert explainer.manifest.input.guessed == ()
    assert str(explainer.explain("scene.png").label).startswith("digit ")


def test_the_readmes_service(folder: Path) -> None:
    from fastapi.testclient import TestClient

    (folder / "mine.onnx").write_bytes(explainer_file("vgg_mlp").read_bytes())
    names: dict[str, Any] = {}
    exec(code_blocks(README, "python")[3], names)  # the document's own code
    client = TestClient(names["app"])
    picture = (folder / "scene.png").read_bytes()
    expected = names["explainer"].explain(picture)
    answer = client.post("/explain", content=picture)
    assert answer.json() == {
        "label": expected.label,
        "probability": expected.probability,
        "boxes": [list(box) for box in expected.boxes()],
    }
    assert expected.boxes()
    refused = client.post("/explain", content=picture[:100])
    assert refused.status_code == 400
    assert "\n" not in refused.json()["detail"]


def test_the_record_has_the_documented_keys(folder: Path) -> None:
    table = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    keys = [
        key
        for row in re.findall(r"^\| (`.*?) \| ", table, flags=re.MULTILINE)
        for key in re.findall("`(\\w+)`", row)
    ]
    (folder / "bad.png").write_text("no picture")
    run("explain", "vgg_mlp.onnx", "scene.png", "bad.png", "-o", "why")
    rows = [json.loads(line) for line in (folder / "why" / "explanations.jsonl").open(encoding="utf-8")]
    assert [list(row) for row in rows] == [keys] * 2


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), (page.name, link)


def test_the_command_line_has_the_readmes_commands() -> None:
    from onnxplain.cli import main

    documented = set(re.findall(r"^\| `onnxplain (\w+)", README, flags=re.MULTILINE))
    assert documented == set(main.list_commands(click.Context(main)))


def test_the_table_of_operators_is_that_of_the_rules():
    program = runpy.run_path(str(ROOT / "docs" / "make_operators.py"))
    assert (ROOT / "docs" / "operators.md").read_text(encoding="utf-8") == program["page"]()


def test_the_table_of_methods_has_them_all() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \| [^|]+ \| ", page, flags=re.MULTILINE)
    assert set(rows) == {*METHODS, *IMAGE_METHODS}
