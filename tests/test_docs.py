"""The code in the README and the docs runs, and says what the product says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from onnxplain import Explainer, Layer, Manifest, Preprocessing
from onnxplain_models import explainer_file, samples

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


def test_grad_cam_in_numpy_is_the_runtimes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = code_blocks(FORMAT, "python")
    names: dict[str, object] = {}
    exec(program, names)  # the document's own code
    first, second = Explainer("vgg_mlp.onnx").explain_classes("scene.png", top=2)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [first.label, second.label]
    assert abs(names["cams"][0] - first.cam).max() < 1e-5
    assert abs(names["heatmap"] - second.heatmap).max() < 1e-3


def test_the_documented_manifest_is_one(folder: Path) -> None:
    (example,) = code_blocks(FORMAT, "json")
    manifest = Manifest.from_json(example)
    assert manifest.input == Preprocessing()
    assert manifest.layers == (Layer("layer4", "activations", "gradients", 2048, 7, 7, head="gap_linear"),)
    real = json.loads(Explainer("vgg_mlp.onnx").manifest.to_json())
    assert json.loads(example).keys() == real.keys()
    assert json.loads(example)["input"].keys() == real["input"].keys()
    assert json.loads(example)["layers"][0].keys() == real["layers"][0].keys()


def test_the_readmes_second_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, explain = code_blocks(README, "python")
    exec(explain, {})  # the document's own code
    assert "Box" in capsys.readouterr().out
    assert (folder / "why.png").stat().st_size > 0


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), (page.name, link)


def test_the_command_line_has_the_readmes_commands() -> None:
    from onnxplain.cli import main

    documented = set(re.findall(r"^\| `onnxplain (\w+)", README, flags=re.MULTILINE))
    assert documented == set(main.commands)
