"""The command line as a whole: help, errors, exit codes, and how little it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import assert_one_line_error, run, write_explainer, write_picture
from onnxplain import Explainer, __version__
from onnxplain.cli import main
from onnxplain.cli._text import columns_of, facts, file_size, printable, table

COMMANDS = ("demo", "export", "layers", "inspect", "verify", "check", "explain", "evaluate", "bench", "web")
HEAVY = {"numpy", "cv2", "onnxruntime", "onnx", "onnx_ir", "onnxscript", "torch", "onnxplain_export"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_explainer(tmp_path / "model.onnx")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_picture(tmp_path / "picture.png")


def onnxplain(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "onnxplain", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_names_the_commands_in_their_order() -> None:
    result = run("--help")
    assert result.exit_code == 0
    listed = result.stdout.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.strip().splitlines()] == list(COMMANDS)


def test_helps_examples_stand_on_lines_of_their_own() -> None:
    lines = run("--help").stdout.splitlines()
    assert "      onnxplain export torchvision:resnet50 -o resnet50.onnx" in lines
    assert "      onnxplain explain resnet50.onnx photo.jpg --top 3" in lines


def test_a_damaged_picture_is_answered_by_us_alone(model: Path, tmp_path: Path) -> None:
    """OpenCV's own log lines, which it writes for damaged TIFFs, would stand beside ours."""
    (tmp_path / "bad.tiff").write_bytes(b"II*\x00\x08\x00\x00\x00\x05\x00" + bytes(60))
    result = onnxplain("explain", model, tmp_path / "bad.tiff", "--output", tmp_path / "out")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1


def test_no_arguments_is_help() -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (0, run("--help").stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    for flag in ("-h", "--help"):
        result = run(command, flag)
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: onnxplain {command} ")
        assert "--debug" in result.stdout


@pytest.mark.parametrize("args", [["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_and_version_import_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from onnxplain.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:], prog_name='onnxplain')\n"
        "finally:\n"
        "    print(*sys.modules, file=sys.stderr)"
    )
    finished = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    assert "onnxplain" in finished.stdout
    imported = {module.partition(".")[0] for module in finished.stderr.split()}
    assert "click" in imported
    assert not imported & HEAVY


def test_version_in_a_process() -> None:
    finished = onnxplain("--version")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, f"onnxplain {__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["exlpain"], ["exlpain", "`onnxplain --help`"]),
        (["--nonsense"], ["--nonsense", "`onnxplain --help`"]),
        (["explain"], ["MODEL", "`onnxplain explain --help`"]),
        (["explain", "m.onnx"], ["PATH", "`onnxplain explain --help`"]),
        (["explain", "m.onnx", "p.png", "--tpo", "3"], ["--tpo", "--top"]),
        (["explain", "m.onnx", "p.png", "--top", "0"], ["--top", "0"]),
        (["explain", "m.onnx", "p.png", "--top", "many"], ["--top", "many"]),
        (["explain", "m.onnx", "p.png", "--top", "2", "--class", "1"], ["--top", "--class"]),
        (["explain", "m.onnx", "p.png", "--method", "gradcamm"], ["--method", "gradcam"]),
        (["explain", "m.onnx", "p.png", "--device", "tpu"], ["--device", "tpu", "cuda"]),
        (["explain", "m.onnx", "p.png", "--colormap", "grey"], ["--colormap", "inferno"]),
        (["export", "a:b"], ["--output"]),
        (["export", "a:b", "-o", "x.onnx", "--size", "wide"], ["wide", "240x320"]),
        (["export", "a:b", "-o", "x.onnx", "--size", "0"], ["'0'"]),
        (["web", "m.onnx"], ["--output", "`onnxplain web --help`"]),
        (["inspect", "a.onnx", "b.onnx"], ["b.onnx", "`onnxplain inspect --help`"]),
    ],
)
def test_wrong_call(
    args: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(run(*args), 2, *words)
    assert not list(tmp_path.iterdir())


def test_program_is_named_onnxplain_in_errors() -> None:
    finished = onnxplain("explain")
    assert finished.returncode == 2
    assert finished.stderr == "Error: Missing argument 'MODEL'. See `onnxplain explain --help`.\n"


def raising(error: BaseException) -> object:
    def init(self: Explainer, *args: object, **options: object) -> None:
        raise error

    return init


def test_unexpected_error_is_one_line(model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Explainer, "__init__", raising(ZeroDivisionError("two\nlines")))
    assert_one_line_error(run("explain", model, picture), 1, "ZeroDivisionError: two lines", "--debug")


@pytest.mark.parametrize("where", ["before", "after"])
def test_debug_gives_the_traceback(
    where: str, model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Explainer, "__init__", raising(ZeroDivisionError("odd")))
    args = ["explain", model, picture]
    result = run(*(["--debug", *args] if where == "before" else [*args, "--debug"]))
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_debug_keeps_exit_code_of_a_wrong_call() -> None:
    assert run("--debug", "explain").exit_code == 2


def test_interrupt_exits_with_130(model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Explainer, "__init__", raising(KeyboardInterrupt()))
    result = run("explain", model, picture)
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_what_fails_because_of_an_interrupt_is_not_the_news(
    model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(self: Explainer, *args: object, **options: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("cannot join a thread that wasn't started")

    monkeypatch.setattr(Explainer, "__init__", init)
    result = run("explain", model, picture)
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise there")
def test_closed_pipe_is_quiet(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "onnxplain", "inspect", "--json", str(model)]
    finished = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert finished.stderr == ""
    assert finished.returncode == 1


def test_terminal_that_lacks_a_character(tmp_path: Path) -> None:
    model = write_explainer(tmp_path / "model.onnx", ("chat", "été", "猫", "koala"))
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    finished = onnxplain("inspect", model, env=environment, encoding="latin-1")
    assert finished.returncode == 0
    assert "chat, été, \\u732b, koala" in finished.stdout


def test_warning_is_one_line(model: Path, picture: Path, tmp_path: Path) -> None:
    code = (
        "import warnings, sys\n"
        "from onnxplain import Explainer\n"
        "from onnxplain.cli import main\n"
        "init = Explainer.__init__\n"
        "def warn(self, *args, **options):\n"
        "    warnings.warn('on the CPU\\nnow', RuntimeWarning)\n"
        "    init(self, *args, **options)\n"
        "Explainer.__init__ = warn\n"
        "main(sys.argv[1:])"
    )
    args = ["explain", str(model), str(picture), "-o", str(tmp_path / "out")]
    finished = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    assert finished.stderr == "Warning: on the CPU now\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain été 猫", "plain été 猫"),
        ("two\nlines\r\n", "two lines"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("bell\x07", "bell\\x07"),
        ("right\u202eto left", "right\\u202eto left"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_printable_survives_names_that_are_not_unicode() -> None:
    assert printable(os.fsdecode(b"caf\xe9.png")).encode("utf-8")


def test_table() -> None:
    assert table(["NAME", "N"], [["a", "1"], ["long name", "22"]], right=[1]) == (
        "NAME        N\na           1\nlong name  22"
    )


ROWS = [
    ["photos/holiday/day 1.jpg", "281 tabby, tabby cat", "99.9%", "why/day 1.281.png"],
    ["a.jpg", "282 猫猫猫猫猫猫猫猫猫猫猫", "0.1%", "why/a.282.png"],
]


def fit(columns: int | None, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[str]:
    monkeypatch.setattr("onnxplain.cli._text.screen_width", lambda: columns)
    headers = ["PICTURE", "CLASS", "PROBABILITY", "OVERLAY"]
    return table(headers, ROWS, right=[2], paths=[0, 3], texts=[1], **more).splitlines()


def test_a_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are whole; of paths the end is, of texts the start."""
    for columns in range(50, 100):
        for line in fit(columns, monkeypatch):
            assert columns_of(line) <= columns
    narrow = fit(60, monkeypatch)
    assert narrow[1].startswith("…")
    assert "day 1.jpg  281 tabby" in narrow[1]
    assert "99.9%  …" in narrow[1]
    assert narrow[1].endswith(".281.png")


def test_a_column_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit(70, monkeypatch, optional=3) == [
        "PICTURE                   CLASS                       PROBABILITY",
        "photos/holiday/day 1.jpg  281 tabby, tabby cat              99.9%",
        "a.jpg                     282 猫猫猫猫猫猫猫猫猫猫猫         0.1%",
    ]
    assert [line.split()[-1] for line in fit(100, monkeypatch, optional=3)] == [
        "OVERLAY",
        "1.281.png",
        "why/a.282.png",
    ]


def test_elsewhere_a_table_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit(None, monkeypatch, optional=3) == fit(500, monkeypatch)
    assert [cell in "\n".join(fit(None, monkeypatch)) for row in ROWS for cell in row] == [True] * 8


def test_a_table_that_can_not_be_so_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "PROBABILITY" in fit(10, monkeypatch)[0]
    assert "99.9%" in fit(10, monkeypatch)[1]


@pytest.mark.parametrize(
    ("text", "columns"), [("abc", 3), ("été", 3), ("e\u0301te\u0301", 3), ("猫", 2), ("", 0)]
)
def test_columns_of(text: str, columns: int) -> None:
    assert columns_of(text) == columns


def test_facts_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("labels", "one two three four"), ("x", "a_name_that_can_not_be_broken_anywhere")]
    assert facts(pairs) == "labels  one two three four\nx       a_name_that_can_not_be_broken_anywhere"
    monkeypatch.setattr("onnxplain.cli._text.screen_width", lambda: 20)
    assert facts(pairs).splitlines()[:2] == ["labels  one two", "        three four"]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (1_740_000, "1.7 MB"),
        (102_500_000, "102 MB"),
        (3e9, "3.0 GB"),
    ],
)
def test_file_size(count: int, shown: str) -> None:
    assert file_size(count) == shown


def test_main_is_the_entry_point() -> None:
    (script,) = entry_points(group="console_scripts", name="onnxplain")
    assert script.load() is main
