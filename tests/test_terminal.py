"""What commands show on a terminal of 80 columns: lines that fit, progress, and errors on their own lines."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from cli_helpers import write_explainer, write_picture
from onnxplain.cli._text import columns_of
from test_onnx_source import keras_like
from tiny_explainer import tiny_explainer, tiny_manifest, two_layers

if sys.platform == "win32":
    pytest.skip("Windows has other terminals", allow_module_level=True)
import fcntl
import pty
import termios

LONG = "a label as ImageNet's synsets have them, with all synonyms that it has, and a remark"
BAR = re.compile(r"Explaining(?: \d+ of \d+)?  \[[#-]{36}\] +\d+%(?:  \d\d:\d\d:\d\d)?")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with explainers, a classifier and pictures, some with long names."""
    write_explainer(tmp_path / "m.onnx", (LONG, "猫猫 " * 30, "crane", "7"))
    (tmp_path / "two.onnx").write_bytes(tiny_explainer(manifest=two_layers(tiny_manifest())))
    keras_like(tmp_path / "source.onnx")
    for number in range(3):
        write_picture(tmp_path / "photos" / f"{number}.png", number)
    write_picture(tmp_path / "photos" / "holiday in the mountains" / "day 1" / f"{'edited ' * 8}.png", 9)
    (tmp_path / "photos" / "1a.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_terminal(*args: str, columns: int = 80, before: str = "") -> tuple[str, str]:
    """Run a command on a terminal; return what it wrote to stdout, and to stderr."""
    code = f"{before}\nfrom onnxplain.cli import main\nmain(prog_name='onnxplain')"
    command = [sys.executable, "-c", code, *args]
    terminals = [pty.openpty() for _ in range(2)]
    for _, slave in terminals:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    said = ["", ""]

    def read(number: int) -> None:
        data = b""
        try:
            while block := os.read(terminals[number][0], 1 << 16):
                data += block
        except OSError:  # the other end is closed
            pass
        said[number] = data.decode().replace("\r\n", "\n")

    process = subprocess.Popen(command, stdout=terminals[0][1], stderr=terminals[1][1])
    for _, slave in terminals:
        os.close(slave)
    readers = [Thread(target=read, args=(number,)) for number in range(2)]
    for reader in readers:
        reader.start()
    process.wait()
    for reader in readers:
        reader.join()
    for master, _ in terminals:
        os.close(master)
    return said[0], said[1]


CALLS = [
    ("explain", "m.onnx", "photos/0.png"),
    ("explain", "m.onnx", "photos", "--top", "3"),
    ("explain", "m.onnx", "photos", "--method", "gradcam", "--method", "gradcam_elementwise"),
    ("evaluate", "m.onnx", "photos", "--method", "gradcam_elementwise"),
    ("layers", "source.onnx"),
    ("export", "source.onnx", "-o", "out.onnx"),
    ("inspect", "m.onnx"),
    ("inspect", "two.onnx"),
    ("bench", "m.onnx", "--rounds", "5", "--threads", "1", "--batch", "1"),
]


@pytest.mark.parametrize("args", CALLS)
def test_lines_are_no_wider_than_the_terminal(args: tuple[str, ...]) -> None:
    shown, _ = on_terminal(*args)
    assert shown
    assert [line for line in shown.splitlines() if columns_of(line) > 80] == []


def test_numbers_are_whole() -> None:
    shown, _ = on_terminal("explain", "m.onnx", "photos", "--top", "3", columns=60)
    lines = [line for line in shown.splitlines() if re.search(r"photos|…", line)]
    assert len(lines) >= 12
    assert all(re.search(r" \d+\.\d%$", line) for line in lines)


def test_on_a_pipe_names_are_whole() -> None:
    command = [sys.executable, "-m", "onnxplain", "explain", "m.onnx", "photos", "--top", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert LONG in done.stdout
    assert "猫猫 " * 29 in done.stdout
    assert "…" not in done.stdout
    assert "edited .png" in done.stdout
    assert done.stderr == "Error: photos/1a.png is damaged, or is not a picture that OpenCV reads\n"


@pytest.mark.parametrize("method", ["gradcam", "rise"])
@pytest.mark.parametrize("paths", [("photos/0.png",), ("photos",)])
def test_progress(method: str, paths: tuple[str, ...]) -> None:
    """A bar, where there is more than a moment's work; within a picture it moves too. Errors are above it."""
    _, said = on_terminal("explain", "m.onnx", *paths, "--method", method)
    if method == "gradcam" and paths == ("photos/0.png",):
        assert said == ""
        return
    bars = BAR.findall(said)
    percents = [int(found) for found in re.findall(r"(\d+)%", said)]
    assert len(bars) == len(percents)
    assert percents[0] == 0
    assert percents[-1] == 100
    assert percents == sorted(percents)
    if method == "rise":
        assert len(set(percents)) > 20
    errors = [line for line in said.split("\n") if "Error" in line]
    if paths == ("photos",):
        assert [re.sub(r"^.*\r\x1b\[K", "", line) for line in errors] == [
            "Error: photos/1a.png is damaged, or is not a picture that OpenCV reads"
        ]
        assert "Explaining 4 of 4" in bars[-1]


WARNING = """
import warnings
from onnxplain import perturbation
masks = perturbation.rise_masks
def with_warning(*args, **options):
    for number, found in enumerate(masks(*args, **options)):
        if number == 99:
            warnings.warn("on the CPU\\nnow", RuntimeWarning)
        yield found
perturbation.rise_masks = with_warning
"""


def test_a_warning_is_on_a_line_of_its_own() -> None:
    _, said = on_terminal("explain", "m.onnx", "photos/0.png", "--method", "rise", before=WARNING)
    assert "\r\x1b[KWarning: on the CPU now\n" in said


def test_an_error_that_ends_a_command_is_on_a_line_of_its_own() -> None:
    _, said = on_terminal("bench", "m.onnx", "photos/1a.png")
    assert said.endswith(
        "Measuring latencies ...\r\x1b[KError: photos/1a.png is damaged, or is not a picture that OpenCV "
        "reads\n"
    )


def test_time_that_remains() -> None:
    """It is there when a second has gone."""
    _, said = on_terminal("explain", "m.onnx", "photos", *["--method", "rise", "--aug-smooth"])
    assert re.search(r"%  00:00:\d\d", said)


def test_progress_of_an_evaluation() -> None:
    _, said = on_terminal("evaluate", "m.onnx", "photos", "--method", "gradcam")
    percents = [int(found) for found in re.findall(r"(\d+)%", said)]
    assert len(set(percents)) > 20
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert "Evaluating 4 of 4" in said
    assert "\r\x1b[KError: photos/1a.png is damaged, or is not a picture that OpenCV reads\n" in said
    _, again = on_terminal("evaluate", "m.onnx", "photos", "--method", "gradcam")
    assert "4 of 5 pictures were measured before." in again
