"""Run model files in several engines: onnxruntime, its JavaScript packages, and OpenVINO's ONNX reader."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
#: Runs a model's file on several feeds.
Runner = Callable[[Path, Sequence[Arrays]], list[Arrays]]

PROGRAM = Path(__file__).with_name("run_engine.mjs")


class EngineError(Exception):
    """An engine failed on a model."""


@dataclass(frozen=True)
class Engine:
    """An engine that is installed here."""

    name: str
    version: str
    run: Runner


def engines() -> list[Engine]:
    """Return the engines that are installed here; the first is onnxruntime on the CPU."""
    found = [Engine("onnxruntime", onnxruntime.__version__, on_provider("CPUExecutionProvider"))]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        cuda = on_provider("CUDAExecutionProvider")
        found.append(Engine("onnxruntime, CUDA", onnxruntime.__version__, cuda))
    for package in ("onnxruntime-node", "onnxruntime-web"):
        place = node_modules(package)
        if place is not None:
            found.append(Engine(package, _package_version(place / package), in_node(package)))
    if importlib.util.find_spec("openvino") is not None:
        found.append(Engine("OpenVINO", version("openvino"), in_openvino))
    return found


def on_provider(provider: str) -> Runner:
    """Return what runs a file in onnxruntime."""

    def run(path: Path, feeds: Sequence[Arrays]) -> list[Arrays]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(names, dict(each)), strict=True)) for each in feeds]

    return run


def in_openvino(path: Path, feeds: Sequence[Arrays]) -> list[Arrays]:
    """Run a file in OpenVINO on the CPU, in float32: by itself it takes bfloat16 where the CPU has that."""
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    runs: list[Arrays] = []
    for each in feeds:
        results = model(dict(each))
        runs.append({name: np.array(results[output]) for output in model.outputs for name in output.names})
    return runs


def in_node(package: str) -> Runner:
    """Return what runs a file in one of npm's packages, in Node."""

    def run(path: Path, feeds: Sequence[Arrays]) -> list[Arrays]:
        (runs,) = many_in_node(package, [(path, feeds)])
        if isinstance(runs, str):
            raise EngineError(f"{package}: {runs}")
        return runs

    return run


def many_in_node(package: str, models: Sequence[tuple[Path, Sequence[Arrays]]]) -> list[list[Arrays] | str]:
    """Run files in one of npm's packages, in one process of Node; of one that fails, return the error."""
    place = node_modules(package)
    assert place is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = [
            {
                "model": str(path),
                "runs": [
                    {key: _write(folder, f"{job}.{run}.{key}", array) for key, array in each.items()}
                    for run, each in enumerate(feeds)
                ],
            }
            for job, (path, feeds) in enumerate(models)
        ]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        environment = {**os.environ, "NODE_PATH": str(place)}
        command = ["node", str(PROGRAM), package, name]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise EngineError(f"{package}: {result.stderr.strip() or result.stdout.strip()}")
        results = json.loads((folder / "results.json").read_text())
        return [one["error"] if isinstance(one, dict) else _read_runs(folder, one) for one in results]


def node_modules(*packages: str) -> Path | None:
    """Return the folder in NODE_PATH that holds npm's packages; None where they, or Node, aren't here."""
    if shutil.which("node") is None:
        return None
    for place in filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)):
        if all((Path(place) / package / "package.json").is_file() for package in packages):
            return Path(place).resolve()
    return None


def node_version() -> str | None:
    """Return the version of Node that is here."""
    if shutil.which("node") is None:
        return None
    return subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _package_version(package: Path) -> str:
    found: str = json.loads((package / "package.json").read_text())["version"]
    return found


def _write(folder: Path, file: str, array: NDArray[Any]) -> dict[str, Any]:
    (folder / file).write_bytes(array.tobytes())
    return {"type": array.dtype.name, "dims": array.shape, "file": file}


def _read_runs(folder: Path, runs: Sequence[Mapping[str, Any]]) -> list[Arrays]:
    return [{key: _read(folder, tensor) for key, tensor in each.items()} for each in runs]


def _read(folder: Path, tensor: Mapping[str, Any]) -> NDArray[Any]:
    numbers = np.frombuffer((folder / tensor["file"]).read_bytes(), tensor["type"])
    return numbers.reshape(tensor["dims"])
