"""The code in the README and the docs runs, and says what the product says."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import onnx
import pytest
import skimage.data
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
    program, _ = code_blocks(README, "python")
    exec(program, {})  # the document's own code
    manifest = Explainer("resnet50.onnx").manifest
    assert manifest.layers[0].name == "layer4"
    assert manifest.labels is not None
    assert manifest.labels[:2] == ("tench", "goldfish")


def test_the_readmes_second_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, explain = code_blocks(README, "python")
    exec(explain, {})  # the document's own code
    assert "Box" in capsys.readouterr().out
    assert (folder / "why.png").stat().st_size > 0


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
