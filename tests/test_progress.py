"""How far an export is: what a callback is told, and what is shown on a terminal and on a pipe."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import nn

from graphs import parse
from onnxplain import VerificationError
from onnxplain_export import Step, export, exporter, progress
from onnxplain_export.progress import Steps, expected_seconds, in_words, shown
from test_onnx_source import keras_like
from test_terminal import on_terminal

EXAMPLE = torch.zeros(1, 3, 16, 16)


def network() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), *head).eval()


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


def percents(said: str) -> list[int]:
    return [int(found) for found in re.findall(r"(\d+)%", said)]


@pytest.mark.parametrize("fp16", [False, True])
def test_a_callback_is_told_the_steps(fp16: bool, tmp_path: Path) -> None:
    told: list[str] = []
    export(network(), EXAMPLE, tmp_path / "e.onnx", layer="0", fp16=fp16, progress=told.append)
    assert told == [
        "running the model",
        "tracing it to ONNX",
        "differentiating back to 0",
        "verifying the gradient rules in float64",
        "verifying the file against PyTorch",
        *(["turning it to float16, and verifying that"] if fp16 else []),
    ]
    steps = [step for step in told if isinstance(step, Step)]
    assert len(steps) == len(told)
    assert steps[0].done == 0
    assert steps[0].seconds_left is None
    assert all(step.seconds_left is not None and step.seconds_left > 0 for step in steps[1:])
    # Each begins where the one before it ends, once the network's size is known; the last ends at 1.
    for before, after in pairwise(steps[2:]):
        assert after.done == pytest.approx(before.done + before.share)
    assert steps[-1].done + steps[-1].share == pytest.approx(1)


def test_nothing_on_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(network(), EXAMPLE, tmp_path / "e.onnx")
    assert capsys.readouterr() == ("", "")


def test_a_long_export_in_python_is_shown_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 1e9)
    export(network(), EXAMPLE, tmp_path / "e.onnx")
    assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    export(network(), EXAMPLE, tmp_path / "e.onnx")
    said = stream.getvalue()
    assert percents(said) == sorted(percents(said))
    assert "tracing it to ONNX" in said
    assert re.search(r"about .* left  verifying", said)
    assert said.endswith("\r")  # nothing is left in the line
    assert not said.split("\r")[-2].strip()


def test_the_line_goes_where_an_export_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise VerificationError("no")

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(exporter, "check_rules", refuse)
    with pytest.raises(VerificationError):
        export(network(), EXAMPLE, tmp_path / "e.onnx")
    said = stream.getvalue()
    assert said
    assert not said.split("\r")[-2].strip()
    time.sleep(0.02)
    assert stream.getvalue() == said  # nor does it come back


def test_a_step_goes_on_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_REFRESHED_SECONDS", 0.01)
    stream = Terminal()
    with shown(stream, quiet=0) as tell:
        tell(Step("working", 0.2, 0.5, 0.8))
        time.sleep(0.3)
        tell(Step("working on less than was thought", 0.1, 0.9, 9.0))
    said = percents(stream.getvalue())
    assert said[0] == 20
    assert len(set(said)) > 4
    assert said == sorted(said)
    assert said[-1] < 70


def test_names_of_a_file_do_not_reach_the_terminal_as_they_are() -> None:
    stream = Terminal()
    with shown(stream, quiet=0) as tell:
        tell(Step("to \x1b]0;pwned\x07\nb", 0.2, 0.5, 0.8))
        tell("working on \x1b[2J\r")
    said = stream.getvalue()
    assert r"to \x1b]0;pwned\x07 b" in said
    assert re.search(r"20%  about a second left  to ", said)
    assert r"working on \x1b[2J" in said
    assert said.replace("\r", "").isprintable()


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_no_terminal(stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with shown(quiet=0) as tell:
        tell("words")
    assert not stream or stream.getvalue() == ""


def test_the_command_on_a_terminal(tmp_path: Path) -> None:
    keras_like(tmp_path / "source.onnx")
    out, said = on_terminal("export", str(tmp_path / "source.onnx"), "-o", str(tmp_path / "e.onnx"))
    assert percents(said) == sorted(percents(said))
    assert re.search(r"\[#*-+\] +\d+%(  about .* left)?  differentiating back to", said)
    bars = [line for line in re.split(r"[\r\n]", said) if line.startswith("[")]
    assert max(map(len, bars)) < 80
    assert "%" not in out
    assert "\nnodes" in out


def test_the_command_on_a_pipe(tmp_path: Path) -> None:
    keras_like(tmp_path / "source.onnx")
    command = [sys.executable, "-m", "onnxplain", "export", str(tmp_path / "source.onnx"), "-o"]
    done = subprocess.run([*command, str(tmp_path / "e.onnx")], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if " ..." in line]
    assert lines[:2] == [f"Loading {tmp_path / 'source.onnx'} ...", "Running the model ..."]
    assert re.fullmatch(r"Tracing it to ONNX \.\.\. \d+%", lines[2])
    found = percents("".join(lines))
    assert len(found) == len(lines) - 2
    assert found[1:] == sorted(found[1:])
    assert "%" not in done.stderr


def seconds(model: ir.Model, layers: Sequence[str]) -> dict[str, float]:
    values = {value.name: value for node in model.graph for value in node.outputs}
    return expected_seconds(list(model.graph), model.graph, [values[name] for name in layers], is_half=False)


def test_work_grows_with_the_network_and_with_what_is_behind_the_layer() -> None:
    def convolved(width: int) -> ir.Model:
        return parse(
            f"""g (float[N, 64, {width}, {width}] x) => (float[N, 64, {width}, {width}] logits) {{
                first = Conv <pads = [1, 1, 1, 1]> (x, w)
                on = Relu (first)
                logits = Conv <pads = [1, 1, 1, 1]> (on, w)
            }}""",
            w=torch.zeros(64, 64, 3, 3).numpy(),
        )

    small, large = seconds(convolved(64), ["first"]), seconds(convolved(256), ["first"])
    assert large["rules"] > 5 * small["rules"]
    assert large["differentiate"] > small["differentiate"]
    at_the_end = seconds(convolved(256), ["logits"])
    assert at_the_end["rules"] < large["rules"] / 4
    assert at_the_end["trace"] == large["trace"]
    assert seconds(convolved(256), ["first", "on"])["rules"] > 1.3 * large["rules"]


def test_time_that_remains_follows_the_time_that_went() -> None:
    told: list[Step] = []
    steps = Steps(lambda step: told.append(step) if isinstance(step, Step) else None)
    steps.begin("run", "one")
    time.sleep(0.1)
    steps.begin("trace", "two")
    assert told[1].seconds_left == pytest.approx(0.1 * (1 - told[1].done) / told[1].done, rel=0.2)


def test_times_in_words() -> None:
    assert [in_words(seconds) for seconds in (0.2, 7.4, 89, 100, 600)] == [
        "a second",
        "7 s",
        "89 s",
        "2 min",
        "10 min",
    ]
