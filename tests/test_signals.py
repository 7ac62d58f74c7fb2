"""Signals that end the command line: what is done stays, nothing half-written does, and it is said."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli_helpers import run, write_explainer, write_picture
from onnxplain.cli._signals import signals_raised
from onnxplain.files import folder_aside
from test_onnx_source import keras_like

if sys.platform == "win32":
    pytest.skip("Windows has other signals", allow_module_level=True)

SIGNALS = {
    signal.SIGINT: (130, "Interrupted"),
    signal.SIGTERM: (143, "Ended by SIGTERM"),
    signal.SIGHUP: (129, "Ended by SIGHUP"),
}
#: As a shell starts a program: whatever this process was told to ignore.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, {hangup})
{more}
from onnxplain.cli import main
main(prog_name="onnxplain")
"""
SLOW_EXPORT = (
    "import time; from onnxplain_export import exporter; exporter.check_rules = lambda *_: time.sleep(60)"
)
SLOW_DEMO = (
    "import sys; from onnxplain import demo; run = demo.subprocess.run\n"
    "demo.subprocess.run = lambda command, **more: run([sys.executable, '-c', SLOW, command[-1]], **more)\n"
    "SLOW = 'import sys, time; from pathlib import Path; from onnxplain.files import folder_aside\\n"
    'with folder_aside(Path(sys.argv[1]) / "nin.onnx"): time.sleep(60)\'\n'
    "demo.missing_packages = lambda *extras: []\n"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an explainer, a classifier and pictures."""
    write_explainer(tmp_path / "m.onnx")
    keras_like(tmp_path / "source.onnx")
    for number in range(8):
        write_picture(tmp_path / "photos" / f"{number}.png", number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line in a process of its own."""
    started = []

    def start(*args: str, more: str = "", hangup: str = "signal.SIG_DFL") -> subprocess.Popen[str]:
        code = PROGRAM.format(more=more, hangup=hangup)
        command = [sys.executable, "-c", code, *args]
        started.append(subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    start = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - start < 60
        time.sleep(0.005)


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def drafts() -> list[Path]:
    return [path for path in Path().rglob(".onnxplain-*") if path.is_dir()]


@pytest.mark.parametrize("sent", SIGNALS)
def test_explain(sent: signal.Signals, start: Callable[..., subprocess.Popen[str]]) -> None:
    record = "why/explanations.jsonl"
    process = start("explain", "m.onnx", "photos", "--method", "rise", "--report", "-o", "why")
    wait_for(lambda: len(lines(record)) >= 2, process)
    process.send_signal(sent)
    _, errors = process.communicate()
    code, words = SIGNALS[sent]
    rows = [json.loads(line) for line in lines(record)]
    assert process.returncode == code
    assert 1 <= len(rows) < 8  # the last picture of those may have been in the midst of it
    said = f"{words}: {len(rows)} of 8 pictures are done; the same call with --resume goes on."
    assert errors.splitlines() == [said]
    assert {row["overlay"] for row in rows} == {path.name for path in Path("why").glob("*.png")}
    page = Path("why/report.html").read_text()
    assert f"Interrupted: {8 - len(rows)} of 8 pictures weren&#39;t explained." in page
    assert drafts() == []


@pytest.mark.parametrize("sent", SIGNALS)
def test_evaluate(sent: signal.Signals, start: Callable[..., subprocess.Popen[str]]) -> None:
    journal = "evaluation/evaluation.jsonl"
    call = ("evaluate", "m.onnx", "photos", "--method", "rise", "--metric", "drop")
    process = start(*call)
    wait_for(lambda: len(lines(journal)) >= 2, process)
    process.send_signal(sent)
    _, errors = process.communicate()
    code, words = SIGNALS[sent]
    done = len(lines(journal))
    assert process.returncode == code
    assert 2 <= done < 8
    found = re.fullmatch(rf"{words}: (\d) of 8 pictures are measured; the same call goes on.\n", errors)
    assert found
    assert int(found[1]) in (done - 1, done)  # it may have come between the journal and the count
    assert all(json.loads(line)["key"] for line in lines(journal))
    assert {path.name for path in Path("evaluation").iterdir()} == {".onnxplain.jsonl", "evaluation.jsonl"}
    if sent == signal.SIGTERM:
        before = lines(journal)
        assert run(*call).exit_code == 0
        assert lines(journal)[:done] == before
        assert len(lines(journal)) == 8


@pytest.mark.parametrize("sent", SIGNALS)
def test_export(sent: signal.Signals, start: Callable[..., subprocess.Popen[str]], folder: Path) -> None:
    process = start("export", "source.onnx", "-o", "out.onnx", more=SLOW_EXPORT)
    wait_for(lambda: drafts() != [], process)
    process.send_signal(sent)
    _, errors = process.communicate()
    code, words = SIGNALS[sent]
    assert (process.returncode, errors) == (code, f"{words}.\n")
    assert {path.name for path in folder.iterdir()} == {"m.onnx", "source.onnx", "photos"}


def test_demo(start: Callable[..., subprocess.Popen[str]]) -> None:
    """The process that exports is killed, and what it was writing goes."""
    process = start("demo", more=SLOW_DEMO)
    wait_for(lambda: drafts() != [], process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert [path.name for path in Path("onnxplain-demo").iterdir()] == [".onnxplain.jsonl"]


def test_bench(start: Callable[..., subprocess.Popen[str]]) -> None:
    """The process that measures ends too, though it hears nothing of the signal."""
    process = start("bench", "m.onnx", "--rounds", "100000000")

    def children() -> list[int]:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return [int(child) for child in found.read_text().split()] if found.exists() else []

    if not Path(f"/proc/{process.pid}/task/{process.pid}/children").exists():
        pytest.skip("this system doesn't say which processes a process has started")
    wait_for(lambda: len(children()) >= 2, process)  # it, and multiprocessing's own
    started = children()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143, errors
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [child for child in started if Path(f"/proc/{child}").exists()]


def test_killed_exports_leave_nothing_for_ever(
    start: Callable[..., subprocess.Popen[str]], folder: Path
) -> None:
    """The next export to the same file removes what is left, but of one that is under way, or not ours."""
    killed, living = (start("export", "source.onnx", "-o", "out.onnx", more=SLOW_EXPORT) for _ in range(2))
    wait_for(lambda: len(drafts()) == 2, living)
    assert killed.poll() is None
    killed.kill()
    killed.communicate()
    assert len(drafts()) == 2
    foreign = folder / ".onnxplain-out.onnx-mine"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    assert run("export", "source.onnx", "-o", "out.onnx").exit_code == 0
    assert len(drafts()) == 2
    assert (foreign / "notes.txt").read_text() == "mine"
    living.terminate()
    living.communicate()
    assert drafts() == [Path(foreign.name)]


def test_a_folder_aside_is_removed(tmp_path: Path) -> None:
    destination = tmp_path / "a [b] * é.onnx"
    with folder_aside(destination) as draft, folder_aside(destination) as other:
        (draft / "x").write_text("")
        assert draft != other
        assert draft.exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"m.onnx", "source.onnx", "photos"}


def test_nohup(start: Callable[..., subprocess.Popen[str]]) -> None:
    """What ignores SIGHUP when it starts goes on."""
    process = start("explain", "m.onnx", "photos", "--method", "rise", hangup="signal.SIG_IGN")
    wait_for(lambda: len(lines("explanations/explanations.jsonl")) >= 1, process)
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == 0
    assert len(lines("explanations/explanations.jsonl")) == 8


def test_a_signal_that_comes_twice(start: Callable[..., subprocess.Popen[str]]) -> None:
    """As `timeout` sends it, to the process and to its group."""
    process = start("explain", "m.onnx", "photos", "--method", "rise")
    wait_for(lambda: len(lines("explanations/explanations.jsonl")) >= 2, process)
    for _ in range(20):
        process.terminate()
        time.sleep(0.001)
    _, errors = process.communicate()
    assert process.returncode == 143
    assert errors.startswith("Ended by SIGTERM: ")


def test_the_terminal_is_closed() -> None:
    """SIGHUP comes, and nothing can be written there any more: what is done is on record all the same."""
    pty = pytest.importorskip("pty")
    code = PROGRAM.format(more="", hangup="signal.SIG_DFL")
    child, terminal = pty.fork()
    if child == 0:
        try:
            args = ["explain", "m.onnx", "photos", "--method", "rise", "--report"]
            os.execv(sys.executable, [sys.executable, "-c", code, *args])
        finally:
            os._exit(99)
    start = time.monotonic()
    while len(lines("explanations/explanations.jsonl")) < 2:
        assert time.monotonic() - start < 60
        time.sleep(0.005)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert Path("explanations/report.html").is_file()


def test_handlers_are_those_from_before() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with signals_raised():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_other_threads_take_no_signals() -> None:
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            with signals_raised():
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert failed == []
