"""Running the command line in this process, and pictures and explainers to run it on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from click.testing import CliRunner, Result

from onnxplain.cli import main
from tiny_explainer import tiny_explainer, tiny_manifest

LABELS = ("tabby cat", "tiger cat", "crane", "crane")


def run(*args: str | Path) -> Result:
    """Run `onnxplain ARGS`."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def assert_one_line_error(result: Result, code: int, *words: str) -> None:
    """Check an exit code, and that stderr is one line, which starts with "Error:" and has these words."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.endswith("\n")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.output


def write_explainer(path: Path, labels: tuple[str, ...] = LABELS) -> Path:
    """Write the tiny explainer of four classes."""
    path.write_bytes(tiny_explainer(manifest=tiny_manifest(labels=labels)))
    return path


def write_picture(path: Path, seed: int = 0) -> Path:
    """Write a picture of noise, in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, noise)[1].tobytes())
    return path
