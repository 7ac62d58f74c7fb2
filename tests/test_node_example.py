"""The example for Node, with the packages that it names, against Python on the same pictures."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from cli_helpers import run as onnxplain
from onnxplain import Explainer
from onnxplain.images import read_image
from onnxplain_export import export
from test_pixels import SPECS, network, write

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).resolve().parents[1] / "examples" / "node"
LABELS = ["cat", "tasse à café", "rocket", "astronaut", "page"]
CHELSEA = skimage.data.chelsea()
# Writes what the example's functions return, for a list of pictures.
PROBE = """
import { writeFileSync } from "node:fs";
import { decode, explain, load } from "./explain.mjs";
const [model, ...pictures] = process.argv.slice(2);
const loaded = await load(model);
for (const path of pictures) {
  const picture = await decode(path);
  const { logits, heatmap } = await explain(loaded, picture);
  writeFileSync(`${path}.pixels`, picture.data);
  writeFileSync(`${path}.logits`, new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength));
  writeFileSync(`${path}.heatmap`, new Uint8Array(heatmap.buffer, heatmap.byteOffset, heatmap.byteLength));
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the example with its packages; skip where they can't be had."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("Node and its npm are not here")
    copy = tmp_path_factory.mktemp("node") / "example"
    shutil.copytree(SOURCE, copy)
    options = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund", "--fetch-retries=1"]
    installed = subprocess.run(["npm", "install", *options], cwd=copy, capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(f"npm can't install the example's packages: {installed.stderr.splitlines()[:1]}")
    (copy / "probe.mjs").write_text(PROBE)
    return copy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    head = torch.nn.Linear(8, 5)
    return write(path, SPECS["usual"], network(head), layer="last", heatmap="gradcam", labels=LABELS)


def node(folder: Path, program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["node", program, *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def pictures(folder: Path) -> list[Path]:
    """Write pictures of several sizes and kinds."""
    alpha = np.dstack([CHELSEA, np.linspace(0, 255, 300 * 451).reshape(300, 451).astype(np.uint8)])
    kinds = {
        "wide.png": Image.fromarray(CHELSEA),
        "tall.png": Image.fromarray(CHELSEA[:, :100]),
        "small.png": Image.fromarray(CHELSEA[100:111, 100:117]),
        "grey.png": Image.fromarray(skimage.data.camera()[:200, :300]),
        "alpha.png": Image.fromarray(alpha),
    }
    for name, picture in kinds.items():
        picture.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(CHELSEA).save(folder / "turned.jpg", exif=exif, quality=95)
    return [folder / name for name in [*kinds, "turned.jpg"]]


def result(path: Path, kind: str) -> NDArray[np.float32]:
    return np.frombuffer(path.with_name(f"{path.name}.{kind}").read_bytes(), np.float32)


def check(folder: Path, model: Path, paths: Sequence[Path]) -> None:
    """Compare pixels, the five top classes and heatmaps with the runtime's."""
    done = node(folder, "probe.mjs", model, *paths)
    assert done.returncode == 0, done.stderr
    explainer = Explainer(model)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for path in paths:
        expected = read_image(path)
        pixels = np.frombuffer(path.with_name(f"{path.name}.pixels").read_bytes(), np.uint8)
        pixels = pixels.reshape(expected.shape)
        # Node's library rounds what is laid over white down, and decodes JPEG in its own way.
        assert np.abs(pixels.astype(int) - expected).max() <= {"alpha.png": 1, "turned.jpg": 3}.get(
            path.name, 0
        )
        feeds = {"image": pixels[None], "class_index": np.array([[-1]])}
        logits, heatmap = session.run(["logits", "heatmap"], feeds)
        np.testing.assert_allclose(result(path, "logits"), logits[0], rtol=0, atol=1e-4)
        np.testing.assert_allclose(result(path, "heatmap"), heatmap.ravel(), rtol=0, atol=1e-4)
        top = [explanation.index for explanation in explainer.explain_classes(pixels, top=5)]
        assert np.argsort(-result(path, "logits"), kind="stable")[:5].tolist() == top


def test_pictures_of_many_kinds(folder: Path, model: Path, tmp_path: Path) -> None:
    check(folder, model, pictures(tmp_path))


def test_what_it_prints_and_paints(folder: Path, model: Path, tmp_path: Path) -> None:
    (path, *_) = pictures(tmp_path)
    copy = shutil.copy(model, tmp_path / "copy.onnx")
    done = node(folder, "explain.mjs", copy, path, tmp_path / "why.png")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "copy.json").write_text(onnxplain("inspect", "--json", str(copy)).stdout, encoding="utf-8")
    named = node(folder, "explain.mjs", copy, path, tmp_path / "why.png")
    explanations = Explainer(copy).explain_classes(path, top=5)
    for explanation, score, name in zip(
        explanations, done.stdout.splitlines(), named.stdout.splitlines(), strict=True
    ):
        assert score.split() == [str(explanation.index), f"{explanation.logit:.4f}"]
        assert name == f"{explanation.index:6d} {explanation.probability:8.4f}  {explanation.label}"
    heat = explanations[0].heatmap[..., None]
    colours = np.concatenate([np.full_like(heat, 255), 255 * heat, np.zeros_like(heat)], axis=2)
    expected = read_image(path) * (1 - 0.8 * heat) + colours * 0.8 * heat
    assert np.abs(read_image(tmp_path / "why.png") - expected).max() < 3


def test_failures(folder: Path, model: Path, tmp_path: Path) -> None:
    (picture, *_) = pictures(tmp_path)
    plain, text = tmp_path / "plain.onnx", tmp_path / "text.png"
    export(network(torch.nn.Linear(8, 5)), torch.zeros(1, 3, 20, 28), plain, layer="last")
    text.write_text("no picture")
    overlay = tmp_path / "why.png"
    for words, problem in [
        (["nothing.onnx", picture, overlay], "can't use nothing.onnx"),
        ([text, picture, overlay], f"can't use {text}"),
        ([plain, picture, overlay], "export it with --heatmap gradcam --pixels"),
        ([model, "nothing.png", overlay], "can't read nothing.png"),
        ([model, text, overlay], f"can't read {text}"),
        ([model, picture, tmp_path / "nowhere" / "why.png"], "can't write"),
    ]:
        done = node(folder, "explain.mjs", *words)
        assert done.returncode == 1, done.stdout
        assert problem in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not overlay.exists()
        assert not list(tmp_path.glob("*.part"))
    assert node(folder, "explain.mjs", model).returncode == 2


def test_the_packages_are_pinned() -> None:
    described = json.loads((SOURCE / "package.json").read_text())
    assert all(version[0].isdigit() for version in described["dependencies"].values())
