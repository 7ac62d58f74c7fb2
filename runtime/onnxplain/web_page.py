"""The browser's page: a folder with an explainer, onnxruntime-web, and the page around them.

The page's own files are in `web/`. The model runs in the browser: any server that hands out files will do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from onnxplain.errors import ModelError, OnnxplainError, OutputError
from onnxplain.files import folder_moved_into_place
from onnxplain.outputs import check_outside
from onnxplain.overlay import colours_of
from onnxplain.session import create_session, model_name, read_manifest

ORT_WEB = "onnxruntime-web@1.30.0"
"""The npm package that the page runs on; the version is the one that the tests run with."""

_NPM_SECONDS = 300

# Of that package, the build for the CPU alone. Some servers don't know that an .mjs file is JavaScript.
_ORT_FILES = {
    "ort.wasm.bundle.min.mjs": "ort/ort.wasm.bundle.min.js",
    "ort-wasm-simd-threaded.wasm": "ort/ort-wasm-simd-threaded.wasm",
}
_PAGE_FILES = ("index.html", "page.css", "page.js", "worker.js")
_MODEL, _ABOUT, _SERVICE_WORKER = "explainer.onnx", "explainer.json", "service-worker.js"
_ALL_FILES = {*_PAGE_FILES, *_ORT_FILES.values(), _MODEL, _ABOUT, _SERVICE_WORKER}


def write_page(
    model: Path,
    output: Path,
    ort_web: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> None:
    """Write a page that explains pictures with a model, in the browser.

    Parameters
    ----------
    model
        An explainer that takes pictures and gives heatmaps: exported with ``heatmap`` and ``pixels``.
    output
        The folder to write; an earlier page there is replaced.
    ort_web
        The folder of npm's package onnxruntime-web, or its ``dist``. By default npm fetches the package.
    progress
        Called with a few words as each step begins.

    Raises
    ------
    ModelError
        The model is no such explainer, or is more than one file.
    OutputError
        The output folder holds other files, or what is read.
    OnnxplainError
        The output folder can't be replaced, or onnxruntime-web isn't to be had.
    OSError
        The folder can't be written to.
    """
    check_outside(output, [model, ort_web])
    about = _about(model)
    _check_free(output)
    with folder_moved_into_place(output) as folder, TemporaryDirectory() as fetched:
        shutil.copyfile(model, folder / _MODEL)
        _check_whole(folder / _MODEL, model)
        if ort_web is None:
            progress(f"fetching {ORT_WEB} with npm")
            ort_web = fetch_ort_web(Path(fetched))
        progress("writing the page")
        _copy_ort(ort_web, folder)
        for name in _PAGE_FILES:
            (folder / name).write_text(_source(name), encoding="utf-8")
        (folder / _ABOUT).write_text(json.dumps(about), encoding="ascii")
        (folder / _SERVICE_WORKER).write_text(_service_worker(folder), encoding="utf-8")


def _about(model: Path) -> dict[str, Any]:
    """Return what the page needs to know of a model that it can show."""
    manifest = read_manifest(create_session(model, "cpu", None), model_name(model))
    if not (manifest.pixels and manifest.heatmap):
        raise ModelError(
            f"{model} doesn't take pictures and give heatmaps by itself; "
            "export it with the options --heatmap gradcam --pixels"
        )
    return {
        "name": model.stem,
        "bytes": model.stat().st_size,
        "labels": manifest.labels,
        "activation": manifest.activation,
        "method": manifest.heatmap,
        "colours": _colours(),
    }


def _check_whole(copy: Path, model: Path) -> None:
    """Check that a copy of a model that loads does so where no other file of it is."""
    try:
        create_session(copy, "cpu", None)
    except ModelError:
        raise ModelError(
            f"{model} has its weights in a file of their own; a browser can't hold so many"
        ) from None


def _colours() -> list[int]:
    """Return the colours of an overlay from heat 0 to heat 1: red, green and blue in turn."""
    levels = np.arange(256, dtype=np.uint8)[None]
    return [int(channel) for channel in colours_of(levels).ravel()]


def _check_free(output: Path) -> None:
    """Check that a folder holds nothing, or an earlier page alone, which may be replaced."""
    if not output.is_dir():
        return
    held = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    foreign = sorted(held - _ALL_FILES) or (sorted(held) if _ABOUT not in held else [])
    if foreign:
        raise OutputError(f"{output} holds other files ({foreign[0]}); name a folder for the page alone")


def _source(name: str) -> str:
    return files("onnxplain").joinpath("web", name).read_text(encoding="utf-8")


def _service_worker(folder: Path) -> str:
    """Return the service worker's program, which names the page's files and their hashes."""
    hashes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        hashes[path.relative_to(folder).as_posix()] = f"sha256-{base64.b64encode(digest).decode('ascii')}"
    hashes["./"] = hashes.pop("index.html")
    listed = json.dumps(hashes, indent=2)
    version = hashlib.sha256(listed.encode()).hexdigest()[:16]
    return f'const VERSION = "{version}";\nconst FILES = {listed};\n\n{_source(_SERVICE_WORKER)}'


def _copy_ort(package: Path, folder: Path) -> None:
    if not package.is_dir():
        raise OnnxplainError(f"there is no folder {package}; --ort-web takes that of npm's onnxruntime-web")
    dist = package / "dist" if (package / "dist").is_dir() else package
    missing = [name for name in _ORT_FILES if not (dist / name).is_file()]
    if missing:
        raise OnnxplainError(
            f"{dist} lacks {' and '.join(missing)}; "
            f"--ort-web takes the folder of npm's {ORT_WEB}, or its dist"
        )
    for name, destination in _ORT_FILES.items():
        (folder / destination).parent.mkdir(exist_ok=True)
        shutil.copyfile(dist / name, folder / destination)


def fetch_ort_web(folder: Path) -> Path:
    """Have npm fetch onnxruntime-web into a folder, and return where its files are.

    Raises
    ------
    OnnxplainError
        There is no npm, it has no network, or what it gives isn't the package.
    """
    other_way = (
        f"or run `npm pack {ORT_WEB}` on a machine that can, unpack it, and name the folder with --ort-web"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise OnnxplainError(f"there is no npm to fetch {ORT_WEB} with; install it, {other_way}")
    options = ["--ignore-scripts", "--loglevel=error", "--fetch-retries=1", f"--pack-destination={folder}"]
    try:
        finished = subprocess.run(
            [npm, "pack", ORT_WEB, *options],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_NPM_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise OnnxplainError(
            f"npm hasn't fetched {ORT_WEB} in {_NPM_SECONDS} s; try again with a faster network, {other_way}"
        ) from None
    if finished.returncode != 0:
        reason = (finished.stderr.strip() or "no reason given").splitlines()[0]
        raise OnnxplainError(f"npm can't fetch {ORT_WEB} ({reason}); try again with a network, {other_way}")
    try:
        _unpack(folder)
    except (StopIteration, KeyError, tarfile.TarError, EOFError):
        raise OnnxplainError(
            f"npm gave something else than the package {ORT_WEB}; check npm's registry, {other_way}"
        ) from None
    return folder


def _unpack(folder: Path) -> None:
    """Unpack what the page needs of the package that lies in a folder."""
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for name in _ORT_FILES:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())
