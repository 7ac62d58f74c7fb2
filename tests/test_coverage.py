"""The sweep over networks: what it records, and what it survives."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from torch import nn

from onnxplain.manifest import Layer
from onnxplain_export import ExportReport, export
from redraw import redraw

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    # By path: another package is named coverage too.
    spec = spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


coverage = load("coverage")
network = load("coverage_network")

WORKER = """
import json, os, signal, subprocess, sys, time
_, name, result, *options = sys.argv
behaviour = name.partition(":")[2]
if behaviour == "crashes":
    sys.exit("first line\\nno room left")
if behaviour == "is_killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "hangs":
    child = subprocess.Popen(["sleep", "600"])
    open(os.environ["CHILD"], "w").write(str(child.pid))
    time.sleep(600)
record = {"network": name, "verified": behaviour.startswith("works")}
record |= {"parameters": 1_234_567, "size": [64, 32]}
record |= {"layer": "stem" if options else "last", "operators": {"Conv": 2, "Gemm": 1}, "nodes_added": 9}
record |= {"logits": 1e-6, "gradients": 2e-6, "rules": 3e-9, "seconds": 1.4}
if behaviour == "differs":
    record["reason"] = "this | that"
open(result, "w").write(json.dumps(record))
open(os.environ["CALLS"], "a").write(name + "\\n")
"""


class Sweep:
    """The command with a worker that does as the network's name says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "docs" / "coverage.md"
        self.calls = folder / "calls"

    def run(self, names: str, *options: str) -> Result:
        names_file = self.folder / "names.txt"
        names_file.write_text(names)
        arguments = [str(names_file), "-o", str(self.output), *options]
        result = CliRunner().invoke(coverage.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        return result

    def called(self) -> list[str]:
        return self.calls.read_text().split() if self.calls.exists() else []

    def records(self, suffix: str = ".jsonl") -> dict[str, Any]:
        lines = self.output.with_suffix(suffix).read_text().splitlines()
        return {record["network"]: record for record in map(json.loads, lines)}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(coverage, "WORKER", worker)
    made = Sweep(tmp_path)
    monkeypatch.setenv("CALLS", str(made.calls))
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    return made


def test_survives_crashes_and_writes_the_table(sweep: Sweep) -> None:
    names = "timm:works torchvision:crashes timm:is_killed torchvision:differs torchvision:works"
    result = sweep.run(names, "--jobs", "2")
    summary = "1 of 3 torchvision networks verified, 1 of 2 timm networks verified"
    assert summary in result.output
    reasons = {name: record.get("reason") for name, record in sweep.records().items()}
    assert reasons == {
        "timm:works": None,
        "torchvision:works": None,
        "torchvision:crashes": "the process ended with exit code 1: no room left",
        "timm:is_killed": "the process was ended by SIGKILL",
        "torchvision:differs": "this | that",
    }
    text = sweep.output.read_text()
    assert f"**{summary}.**" in text
    row = "| 1.2 M | 64×32 | `last` | 3: 2 Conv, Gemm | 9 | 1e-06 | 2e-06 | 3e-09 | 1 |"
    rows = [line for line in text.splitlines() if line.startswith(("| torchvision:", "| timm:"))]
    assert rows == [
        f"| torchvision:works {row}",
        f"| timm:works {row}",
        "| torchvision:crashes |  | the process ended with exit code 1: no room left |",
        "| torchvision:differs | `last` | this \\| that |",
        "| timm:is_killed |  | the process was ended by SIGKILL |",
    ]


def test_a_time_out_ends_the_process_and_its_children(sweep: Sweep, tmp_path: Path) -> None:
    sweep.run("timm:hangs timm:works", "--timeout", "2")
    assert sweep.records()["timm:hangs"]["reason"] == "not through after 2 s"
    assert sweep.records()["timm:works"]["verified"]
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        if has_ended(child):
            break
        time.sleep(0.1)
    assert has_ended(child)


def has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    # Nobody may have collected it.
    return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"


def test_resumes_where_it_was_stopped(sweep: Sweep) -> None:
    sweep.run("timm:works1 timm:differs", "--only", "timm:works*")
    with sweep.output.with_suffix(".jsonl").open("a") as file:
        file.write('{"network": "timm:differs", "verif')
    sweep.run("timm:works1 timm:differs timm:works2")
    assert sorted(sweep.called()) == ["timm:differs", "timm:works1", "timm:works2"]
    assert list(coverage.read_records(sweep.output.with_suffix(".jsonl"))) == [
        "timm:works1",
        "timm:differs",
        "timm:works2",
    ]


def test_runs_failures_again_when_told_to(sweep: Sweep) -> None:
    sweep.run("timm:works timm:differs")
    sweep.run("timm:works timm:differs")
    sweep.run("timm:works timm:differs", "--retry")
    assert Counter(sweep.called()) == {"timm:works": 1, "timm:differs": 2}


def test_the_sweep_from_the_first_layer_stands_beside(sweep: Sweep) -> None:
    sweep.run("timm:works")
    sweep.run("timm:works", "--stem")
    assert sweep.records(".jsonl")["timm:works"]["layer"] == "last"
    assert sweep.records(".stem.jsonl")["timm:works"]["layer"] == "stem"
    text = sweep.output.read_text()
    assert text.index("## At the automatic layer") < text.index("`last`") < text.index("## From the first")
    assert text.index("## From the first layer") < text.index("`stem`")


@pytest.mark.parametrize("stem", [False, True])
def test_measures_a_real_network(tmp_path: Path, stem: bool) -> None:
    record: dict[str, Any] = {}
    network.measure("torchvision:squeezenet1_1", tmp_path / "explainer.onnx", record, stem=stem)
    assert record["parameters"] == 1_235_496
    assert record["rules"] < 1e-7
    assert 0 < record["logits"] < 1e-4
    assert record["gradients"] < (2e-2 if stem else 1e-4)
    if stem:
        assert (record["layer"], list(record["size"])) == ("features.0", [64, 64])
        # All but the first of its 26 convolutions.
        assert (record["operators"]["Conv"], record["operators"]["MaxPool"]) == (25, 3)
    else:
        assert (record["layer"], list(record["size"])) == ("features", [224, 224])
        assert record["operators"]["Conv"] == 1


def test_a_network_that_does_not_exist_is_a_row(tmp_path: Path) -> None:
    (record,) = coverage.run_all(["torchvision:no_such_network"], stem=False, timeout=120, jobs=1)
    assert not record["verified"]
    assert record["reason"] == "ValueError: Unknown model no_such_network"


class Scaled(torch.autograd.Function):
    """The identity, with a gradient that is 0.1 % too large."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 1.001


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.mode = "right"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "wrong gradients":
            x = Scaled.apply(x)
        if self.mode == "no gradients":
            x = x.detach() + 0 * x
        return self.linear(x.mean((2, 3)).tanh())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ExportReport]:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), Head())
    example = torch.zeros(1, 3, 16, 16)
    redraw(model, example, seed=1)
    return model, export(model, example, tmp_path_factory.mktemp("coverage") / "explainer.onnx")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("wrong gradients", "the gradients differ from PyTorch's by 1.0e-03"),
        ("no gradients", "PyTorch's gradients of the predicted class are zero"),
    ],
)
def test_sees_what_is_wrong(exported: tuple[nn.Module, ExportReport], mode: str, message: str) -> None:
    model, report = exported
    record: dict[str, Any] = {}
    network.compare(model, report, (3, 16, 16), record)
    assert record["gradients"] < 1e-6
    model[1].mode = mode
    with pytest.raises(network.MismatchError, match=message):
        network.compare(model, report, (3, 16, 16), {})
    model[1].mode = "right"


def test_folds_tokens_and_channels_last_maps() -> None:
    maps = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    last = Layer("x", "activations", "gradients", 4, 5, 6, tokens={"layout": "NHWC"})
    np.testing.assert_array_equal(network.folded(np.moveaxis(maps, 2, -1), last), maps)
    tokens = np.stack([maps[:, :, :, i, j] for i in range(5) for j in range(6)], axis=2)
    tokens = np.concatenate([np.full((2, 3, 2, 4), -1), tokens], axis=2)
    row = Layer("x", "activations", "gradients", 4, 5, 6, tokens={"layout": "BNC", "prefix": 2})
    np.testing.assert_array_equal(network.folded(tokens, row), maps)


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_32", "swin_v2_t", "maxvit_t", "mobilenet_v3_small"])
def test_redraws_every_parameter_so_that_it_counts(name: str) -> None:
    """In fresh networks heads, layer scales and biases are nothing, or next to it."""
    model = torchvision.models.get_model(name, weights=None)
    redraw(model, torch.zeros(1, 3, 224, 224), seed=1)
    logits = model(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2)))
    gradients = torch.autograd.grad(logits[:, 0].sum(), list(model.parameters()))
    share = {
        path: (gradient.norm() * tensor.norm() / logits[:, 0].norm()).item()
        for (path, tensor), gradient in zip(model.named_parameters(), gradients, strict=True)
    }
    assert min(share.values()) > 1e-3, min(share, key=share.__getitem__)
    assert 1e-2 < logits.abs().max() < 1e3
