"""`onnxplain web`: what it writes, what it refuses, and that it leaves nothing half-written."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cli_helpers import assert_one_line_error, run, write_explainer
from onnxplain import Preprocessing, web_page
from onnxplain.overlay import overlay
from onnxplain_export import export
from test_heatmap_outputs import network

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
LABELS = [HOSTILE, "</script><b>bold</b>", "plain", "été 猫\u202e\u2028", "\"quotes' & ${more}"]
WEB = Path(web_page.__file__).parent / "web"
SPEC = Preprocessing(height=20, width=28, resize=24)
FILES = {
    "index.html",
    "page.css",
    "page.js",
    "worker.js",
    "service-worker.js",
    "explainer.json",
    "explainer.onnx",
    "ort/ort.wasm.bundle.min.js",
    "ort/ort-wasm-simd-threaded.wasm",
}


def write_model(path: Path, **options: Any) -> Path:
    """Export a small network to a file that takes pictures and gives heatmaps."""
    options = {"pixels": True, "heatmap": "gradcam", "labels": LABELS} | options
    model = network(nn.Linear(8, 5))
    export(model, torch.zeros(1, 3, 20, 28), path, layer="last", preprocessing=SPEC, **options)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture
def ort_web(tmp_path: Path) -> Path:
    """A folder like that of npm's package."""
    dist = tmp_path / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    (dist / "ort.wasm.bundle.min.mjs").write_text("// a program")
    (dist / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm")
    (dist / "ort-wasm-simd-threaded.jsep.wasm").write_bytes(b"not needed")
    return dist.parent


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """The folder in which pages are written, and which must hold nothing else."""
    (tmp_path / "parent").mkdir()
    return tmp_path / "parent"


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("named", [".", "dist"])
def test_files(model: Path, ort_web: Path, parent: Path, named: str) -> None:
    result = run("web", model, "-o", parent / "page", "--ort-web", ort_web / named)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"python -m http.server --directory {parent / 'page'}" in result.stdout
    written = contents(parent / "page")
    assert written.keys() == FILES
    assert written["explainer.onnx"] == model.read_bytes()
    assert written["ort/ort.wasm.bundle.min.js"] == b"// a program"
    assert [path.name for path in parent.iterdir()] == ["page"]


def test_the_page_knows_the_model(model: Path, ort_web: Path, parent: Path) -> None:
    run("web", model, "-o", parent / "page", "--ort-web", ort_web)
    about = json.loads((parent / "page" / "explainer.json").read_bytes())
    colours = about.pop("colours")
    assert about == {
        "name": "small",
        "bytes": model.stat().st_size,
        "labels": LABELS,
        "activation": "softmax",
        "method": "gradcam",
    }
    hottest = overlay(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), np.float32), alpha=1)
    assert colours[-3:] == hottest.ravel().tolist()
    assert len(colours) == 3 * 256


def test_what_comes_from_the_model_is_in_no_program(model: Path, ort_web: Path, parent: Path) -> None:
    """Whatever its labels are: they are read as data, by the page."""
    hostile = shutil.copyfile(model, model.with_name("<b>'\";.onnx"))
    run("web", hostile, "-o", parent / "page", "--ort-web", ort_web)
    written = contents(parent / "page")
    for name in ("index.html", "page.css", "page.js", "worker.js"):
        assert written[name] == (WEB / name).read_bytes()
    program = (WEB / "service-worker.js").read_bytes()
    assert written["service-worker.js"].endswith(program)
    constants = written["service-worker.js"].removesuffix(program)
    assert re.fullmatch(rb"""[\w\s"={}:;,./+-]*""", constants)
    assert json.loads(written["explainer.json"])["name"] == "<b>'\";"


def service_worker(page: Path) -> tuple[str, dict[str, str]]:
    """Return the version and the hashes that the service worker goes by."""
    text = (page / "service-worker.js").read_text(encoding="utf-8")
    found = re.match(r'const VERSION = "(\w+)";\nconst FILES = (\{.*?\});\n', text, flags=re.DOTALL)
    assert found is not None
    return found[1], json.loads(found[2])


def test_the_service_worker_knows_every_file(model: Path, ort_web: Path, parent: Path) -> None:
    run("web", model, "-o", parent / "page", "--ort-web", ort_web)
    written = contents(parent / "page")
    del written["service-worker.js"]
    written["./"] = written.pop("index.html")
    _, hashes = service_worker(parent / "page")
    assert hashes == {
        name: f"sha256-{base64.b64encode(hashlib.sha256(data).digest()).decode()}"
        for name, data in written.items()
    }


def test_another_model_is_another_version(model: Path, ort_web: Path, parent: Path) -> None:
    """The same is the same, to the byte; an earlier page is replaced."""
    page = parent / "page"
    run("web", model, "-o", page, "--ort-web", ort_web)
    first = contents(page)
    run("web", model, "-o", page, "--ort-web", ort_web)
    assert contents(page) == first
    version, _ = service_worker(page)
    other = write_model(parent.parent / "other.onnx", heatmap="layercam")
    result = run("web", other, "-o", page, "--ort-web", ort_web)
    assert result.exit_code == 0
    assert service_worker(page)[0] != version
    assert contents(page)["explainer.onnx"] == other.read_bytes()
    assert [path.name for path in parent.iterdir()] == ["page"]


def test_an_empty_folder_is_filled(model: Path, ort_web: Path, parent: Path) -> None:
    (parent / "page").mkdir()
    assert run("web", model, "-o", parent / "page", "--ort-web", ort_web).exit_code == 0
    assert contents(parent / "page").keys() == FILES


def test_the_current_folder(
    model: Path, ort_web: Path, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It isn't replaced, nor is a folder around it: a shell would stand in a deleted folder."""
    (parent / "inner").mkdir()
    monkeypatch.chdir(parent / "inner")
    for output in (".", "..", parent):
        result = run("web", model, "-o", output, "--ort-web", ort_web)
        assert_one_line_error(result, 1, "the current folder", "name another folder")
    assert [path.name for path in parent.rglob("*")] == ["inner"]
    assert run("web", model, "-o", "page", "--ort-web", ort_web).exit_code == 0
    assert contents(parent / "inner" / "page").keys() == FILES


def test_a_mount_point(model: Path, ort_web: Path, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == parent / "page")
    result = run("web", model, "-o", parent / "page", "--ort-web", ort_web)
    assert_one_line_error(result, 1, "is a mount point", "name a folder in it")
    assert list(parent.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", "index.html", "ort/notes.txt"])
def test_a_folder_with_other_files_is_left_alone(model: Path, ort_web: Path, parent: Path, name: str) -> None:
    (parent / "page" / name).parent.mkdir(parents=True)
    (parent / "page" / name).write_text("mine")
    result = run("web", model, "-o", parent / "page", "--ort-web", ort_web)
    assert_one_line_error(result, 1, f"holds other files ({name})", "name a folder for the page alone")
    assert contents(parent / "page") == {name: b"mine"}


def test_a_folder_with_what_is_read_is_left_alone(model: Path, ort_web: Path, parent: Path) -> None:
    """The model, or onnxruntime-web, even where all that the folder holds is an earlier page's."""
    page = parent / "page"
    assert run("web", model, "-o", page, "--ort-web", ort_web).exit_code == 0
    (parent / "link.onnx").symlink_to(page / "explainer.onnx")
    before = contents(parent)
    for read in (page / "explainer.onnx", parent / "link.onnx"):
        result = run("web", read, "-o", page, "--ort-web", ort_web)
        assert_one_line_error(result, 1, f"{read} is in {page}, where the outputs go")
    result = run("web", model, "-o", page, "--ort-web", page / "ort")
    assert_one_line_error(result, 1, f"{page / 'ort'} is in {page}, where the outputs go")
    assert_one_line_error(run("web", model, "-o", model.parent, "--ort-web", ort_web), 1, model.name)
    assert contents(parent) == before


@pytest.mark.parametrize("options", [{"pixels": False}, {"heatmap": None}], ids=["no pixels", "no heatmap"])
def test_a_model_that_needs_other_programs(
    options: dict[str, Any], ort_web: Path, parent: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model.onnx", **options)
    result = run("web", model, "-o", parent / "page", "--ort-web", ort_web)
    assert_one_line_error(result, 1, "model.onnx", "--heatmap gradcam --pixels")
    assert list(parent.iterdir()) == []


def test_models_that_are_none(ort_web: Path, parent: Path, tmp_path: Path) -> None:
    call = ("-o", parent / "page", "--ort-web", ort_web)
    assert_one_line_error(run("web", tmp_path / "missing.onnx", *call), 1, "there is no model file")
    (tmp_path / "damaged.onnx").write_bytes(b"damaged")
    assert_one_line_error(run("web", tmp_path / "damaged.onnx", *call), 1, "damaged.onnx")
    plain = write_explainer(tmp_path / "plain.onnx")
    assert_one_line_error(run("web", plain, *call), 1, "--heatmap gradcam --pixels")
    assert list(parent.iterdir()) == []


def test_weights_beside_the_model(
    model: Path, ort_web: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command stands; a file that a model doesn't need is no harm."""
    stale = Path(shutil.copy(model, tmp_path))
    (tmp_path / "small.onnx.data").write_bytes(b"of an earlier model")
    assert run("web", stale, "-o", parent / "page", "--ort-web", ort_web).exit_code == 0
    large = tmp_path / "large.onnx"
    external = {"save_as_external_data": True, "location": "weights", "size_threshold": 500}
    onnx.save(onnx.load(model), large, **external)
    monkeypatch.chdir(tmp_path)
    result = run("web", large, "-o", parent / "other", "--ort-web", ort_web)
    assert_one_line_error(result, 1, "large.onnx has its weights in a file of their own")
    assert [path.name for path in parent.iterdir()] == ["page"]


def test_folders_without_onnxruntime_web(model: Path, ort_web: Path, parent: Path) -> None:
    (ort_web / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    result = run("web", model, "-o", parent / "page", "--ort-web", ort_web)
    assert_one_line_error(result, 1, "lacks ort-wasm-simd-threaded.wasm;", "onnxruntime-web@")
    result = run("web", model, "-o", parent / "page", "--ort-web", ort_web / "missing")
    assert_one_line_error(result, 1, "there is no folder", "--ort-web")
    assert list(parent.iterdir()) == []


def test_a_place_that_does_not_exist(model: Path, ort_web: Path, parent: Path) -> None:
    result = run("web", model, "-o", parent / "missing" / "page", "--ort-web", ort_web)
    assert_one_line_error(result, 1, "there is no folder", "missing", "make it")
    (parent / "file").write_text("")
    result = run("web", model, "-o", parent / "file", "--ort-web", ort_web)
    assert_one_line_error(result, 2, "--output")


def test_no_npm(model: Path, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(parent))
    result = run("web", model, "-o", parent / "page")
    assert_one_line_error(result, 1, "there is no npm", f"npm pack {web_page.ORT_WEB}", "--ort-web")
    assert list(parent.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="npm is replaced by a shell's script")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'npm error code ENOTFOUND' >&2; echo 'npm error syscall' >&2; exit 1", "code ENOTFOUND"),
        ("exec sleep 60", "npm hasn't fetched"),
        ("exit 0", "something else than the package"),
        ("echo damaged > package.tgz", "something else than the package"),
        ("echo . > other; tar czf package.tgz other", "something else than the package"),
    ],
    ids=["no network", "slow network", "nothing", "damaged", "another package"],
)
def test_npm_fails(
    script: str, words: str, model: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(web_page, "_NPM_SECONDS", 1)
    result = run("web", model, "-o", parent / "page")
    assert_one_line_error(result, 1, words, f"npm pack {web_page.ORT_WEB}", "--ort-web")
    assert list(parent.iterdir()) == []


def test_a_failure_leaves_the_page_that_was_there(
    model: Path, ort_web: Path, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = parent / "page"
    run("web", model, "-o", page, "--ort-web", ort_web)
    before = contents(page)
    rename = Path.rename

    def full(source: object, destination: Path) -> None:
        raise OSError(28, "No space left on device", str(destination))

    def stuck(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    other = write_model(parent.parent / "other.onnx", heatmap="layercam")
    for owner, name, failing in ((shutil, "copyfile", full), (Path, "rename", stuck)):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, failing)
            assert_one_line_error(run("web", other, "-o", page, "--ort-web", ort_web), 1)
        assert contents(page) == before
        assert [path.name for path in parent.iterdir()] == ["page"]


@pytest.mark.parametrize("moved", ["page", "new"])
def test_an_interrupt_loses_no_page(
    model: Path, ort_web: Path, parent: Path, moved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after the old page was moved aside, or the new one into its place."""
    page = parent / "page"
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        rename(self, target)
        if self.name == moved:
            raise KeyboardInterrupt
        return target

    run("web", model, "-o", page, "--ort-web", ort_web)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        assert run("web", model, "-o", page, "--ort-web", ort_web).exit_code != 0
    assert contents(page).keys() == FILES
    assert [path.name for path in parent.iterdir()] == ["page"]
