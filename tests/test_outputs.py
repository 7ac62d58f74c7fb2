"""Folders of outputs: what is replaced, what is gone on with, what is left alone, and what is no input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import assert_one_line_error, run, write_explainer, write_picture
from onnxplain import OutputError, demo
from onnxplain.outputs import LIST, OutputFolder, written_by

QUICK = ("--method", "gradcam", "--metric", "drop")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an explainer and two pictures; a demo takes the explainers that ship."""
    write_explainer(tmp_path / "m.onnx")
    for number in range(2):
        write_picture(tmp_path / "photos" / f"{number}.png", number)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "missing_packages", lambda *extras: ["torch"])
    return tmp_path


CALLS: dict[str, tuple[str, ...]] = {
    "explain": ("explain", "m.onnx", "photos", "--top", "2", "--report"),
    "evaluate": ("evaluate", "m.onnx", "photos", *QUICK),
    "demo": ("demo",),
}


def contents(folder: Path | str) -> dict[str, bytes]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def call(command: str, *more: str | Path) -> Any:
    return run(*CALLS[command], *more)


@pytest.mark.parametrize("command", CALLS)
def test_the_same_call_twice(command: str) -> None:
    for _ in range(2):
        result = call(command, "-o", "out")
        assert result.exit_code == 0, result.output
    once = contents("out")
    assert written_by(Path("out")) == command
    shutil.rmtree("out")
    assert call(command, "-o", "out").exit_code == 0
    fresh = contents("out")
    assert once.keys() == fresh.keys()
    if command == "explain":
        assert once == fresh


@pytest.mark.parametrize("command", CALLS)
@pytest.mark.parametrize("output", ["out", ".", "photos"])
def test_a_folder_with_other_files_is_left_alone(command: str, output: str, folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("mine")
    before = contents(folder)
    foreign = {"out": "thesis.txt", ".": "m.onnx", "photos": "0.png"}[output]
    result = call(command, "-o", output)
    assert_one_line_error(result, 1, f"{output} has other files ({foreign})", str(Path(output) / "onnxplain"))
    assert contents(folder) == before


@pytest.mark.parametrize("command", CALLS)
def test_an_empty_folder_is_taken(command: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The current one too; hidden files, as file managers leave them, don't count, and stay."""
    (folder / "out").mkdir()
    (folder / "out" / ".DS_Store").write_text("a file manager's")
    monkeypatch.chdir(folder / "out")
    paths = [str(Path("..") / part) if (folder / part).exists() else part for part in CALLS[command]]
    for _ in range(2):
        assert run(*paths, "-o", ".").exit_code == 0
    assert contents(".")[".DS_Store"] == b"a file manager's"


@pytest.mark.parametrize("command", CALLS)
def test_another_commands_folder_is_left_alone(command: str, folder: Path) -> None:
    other = {"explain": "evaluate", "evaluate": "demo", "demo": "explain"}[command]
    assert call(other, "-o", "out").exit_code == 0
    before = contents(folder)
    assert_one_line_error(call(command, "-o", "out"), 1, f"out has the outputs of `onnxplain {other}`")
    assert contents(folder) == before


@pytest.mark.parametrize("command", CALLS)
def test_own_files_in_a_folder_of_outputs_stay(command: str, folder: Path) -> None:
    assert call(command, "-o", "out").exit_code == 0
    mine = {"notes.txt": b"mine", "deep/er/notes.txt": b"mine", "0.png": b"mine"}
    for name, data in mine.items():
        (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "out" / name).write_bytes(data)
    assert call(command, "-o", "out").exit_code == 0
    assert mine.items() <= contents("out").items()


@pytest.mark.parametrize("command", ["explain", "evaluate"])
@pytest.mark.parametrize("read", ["m.onnx", "photos", "photos/0.png", "link"])
def test_inputs_in_the_folder_of_the_outputs(command: str, read: str, folder: Path) -> None:
    """Even where it is a folder of ours, and a link leads there."""
    assert call(command, "-o", "out").exit_code == 0
    shutil.copytree("photos", "out/photos")
    shutil.copy("m.onnx", "out")
    (folder / "link").symlink_to("out/photos/0.png")
    before = contents(folder)
    inside = "link" if read == "link" else f"out/{read}"
    model, picture = (inside, "photos") if read == "m.onnx" else ("m.onnx", inside)
    result = run(command, model, picture, "-o", "./photos/../out")
    assert_one_line_error(result, 1, f"{inside} is in photos/../out, where the outputs go")
    assert contents(folder) == before


@pytest.mark.parametrize("option", ["--boxes", "--checkpoint", "--sanity"])
def test_what_evaluate_reads_besides(option: str, folder: Path) -> None:
    assert call("evaluate", "-o", "out").exit_code == 0
    (folder / "out" / "mine.pt2").write_text("file,x0,y0,x1,y1\n0.png,1,1,9,9\n")
    before = contents(folder)
    more = ["--sanity", "a:b"] if option == "--checkpoint" else []
    result = call("evaluate", option, "out/mine.pt2", *more, "-o", "out")
    assert_one_line_error(result, 1, "out/mine.pt2 is in out, where the outputs go")
    assert contents(folder) == before


def test_overlays_are_no_pictures(folder: Path) -> None:
    """A search leaves out what earlier calls wrote, and says so but of its own."""
    assert call("explain", "-o", "photos/why").exit_code == 0
    assert call("evaluate", "-o", "photos/deep/evaluation").exit_code == 0
    for output in ("photos/why", "other"):
        result = call("explain", "-o", output)
        assert result.exit_code == 0
        said = ["photos/deep/evaluation, the outputs of `onnxplain evaluate`"]
        said += ["photos/why, the outputs of `onnxplain explain`"] if output == "other" else []
        assert result.stderr.splitlines() == [f"Left out: {line}" for line in said]
        rows = [json.loads(line) for line in (folder / output / "explanations.jsonl").open()]
        assert {row["path"] for row in rows} == {"photos/0.png", "photos/1.png"}
    for command in ("explain", "evaluate"):
        result = run(command, "m.onnx", "photos/why", "-o", "new")
        assert_one_line_error(result, 1, "photos/why has the outputs of `onnxplain explain`, and no pictures")


def test_an_overlay_may_be_explained_by_its_name(folder: Path) -> None:
    assert call("explain", "-o", "why").exit_code == 0
    overlay = next(Path("why").glob("0.*.png"))
    assert run("explain", "m.onnx", overlay, "-o", "new").exit_code == 0


def test_what_earlier_calls_left_goes(folder: Path) -> None:
    """Overlays of other pictures and classes, the report, and the folders that are empty then."""
    write_picture(folder / "photos" / "deep" / "er" / "2.png")
    assert call("explain", "-o", "why").exit_code == 0
    count = len(contents("why")) - 1
    assert Path("why/deep/er").is_dir()
    result = run("explain", "m.onnx", "photos/0.png", "--class", "0", "-o", "why")
    assert f"They take the place of the {count} files of an earlier call." in result.stdout
    assert contents("why").keys() == {LIST, "0.0-tabby-cat.png", "explanations.jsonl"}
    assert [path for path in Path("why").rglob("*") if path.is_dir()] == []


def test_a_call_that_explains_nothing_leaves_everything(folder: Path) -> None:
    assert call("explain", "-o", "why").exit_code == 0
    before = contents(folder)
    Path("bad.png").write_bytes(b"no picture")
    for bad in ("missing.png", "bad.png"):
        assert_one_line_error(run("explain", "m.onnx", bad, "-o", "why"), 1, bad)
    Path("bad.png").unlink()
    assert contents(folder) == before


def test_a_file_in_the_way(folder: Path) -> None:
    """Someone's own file has the name of an output: it isn't written over, whichever command it is."""
    for command, name in (
        ("explain", "0.0-tabby-cat.png"),
        ("evaluate", "evaluation.csv"),
        ("demo", "nin.onnx"),
    ):
        out = folder / command
        OutputFolder(out, command).add("something")
        (out / name).write_bytes(b"mine")
        more = ["--class", "0"] if command == "explain" else []
        arguments = ["explain", "m.onnx", "photos"] if command == "explain" else CALLS[command]
        result = run(*arguments, *more, "-o", out)
        assert_one_line_error(result, 1, f"{out / name} is in the way: no earlier call wrote it")
        assert (out / name).read_bytes() == b"mine"


HOSTILE: dict[str, Callable[[Path], str]] = {
    "above": lambda folder: "../precious",
    "absolute": lambda folder: str(folder / "precious"),
    "by a link": lambda folder: "link/precious",
    "the folder": lambda folder: ".",
    "the folder above": lambda folder: "..",
    "a folder": lambda folder: "mine",
    "nothing": lambda folder: "",
    "no name": lambda folder: "a\0b",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_list(name: str, folder: Path) -> None:
    """A folder from elsewhere may list anything: nothing outside it is removed, nor what is no file."""
    (folder / "precious").write_text("precious")
    (folder / "out" / "mine").mkdir(parents=True)
    (folder / "out" / "link").symlink_to(folder)
    lines = [{"command": "explain", "settings": {}}, {"file": HOSTILE[name](folder)}, {"file": 7}, 8]
    (folder / "out" / LIST).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = call("explain", "-o", "out")
    assert result.exit_code == 0, result.output
    assert (folder / "precious").read_text() == "precious"
    assert (folder / "out" / "mine").is_dir()


@pytest.mark.parametrize(
    "text", ["", "{", "[]\n", '{"command": 7, "settings": {}}\n', '{"command": "explain"}\n', "7"]
)
def test_a_list_that_is_none_of_ours(text: str, folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / LIST).write_text(text)
    assert_one_line_error(call("explain", "-o", "out"), 1, f"out has other files ({LIST})")
    assert contents("out") == {LIST: text.encode()}


def test_a_list_that_was_cut_off(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path / "out", "explain")
    out.add("first").write_text("1")
    with (tmp_path / "out" / LIST).open("a") as file:
        file.write('{"file": "sec')
    again = OutputFolder(tmp_path / "out", "explain")
    assert again.earlier_files == {"first"}
    again.keep(again.earlier_files)
    again.add("third").write_text("3")
    assert OutputFolder(tmp_path / "out", "explain").earlier_files == {"first", "third"}


def test_files_are_listed_before_they_are_written(tmp_path: Path) -> None:
    """So that one that a killed process left is known as ours, and its draft too."""
    out = OutputFolder(tmp_path / "out", "explain")
    path = out.add("deep/overlay.png")
    assert OutputFolder(tmp_path / "out", "explain").earlier_files == {"deep/overlay.png"}
    path.write_text("cut o")
    draft = path.with_name(f".onnxplain-{'0' * 32}")
    draft.write_text("a draft")
    OutputFolder(tmp_path / "out", "explain").add("other")
    assert contents(tmp_path / "out").keys() == {LIST}
    assert not path.parent.exists()


def test_nothing_is_made_before_there_is_an_output(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path / "out", "explain")
    out.keep([])
    assert not (tmp_path / "out").exists()
    out.note({"a": 1})
    assert OutputFolder(tmp_path / "out", "explain").earlier_notes == [{"a": 1}]


def test_a_linked_output_is_no_way_out(tmp_path: Path) -> None:
    """An output that was replaced by a link to something else: the link goes, and what it leads to stays."""
    (tmp_path / "precious").write_text("precious")
    out = OutputFolder(tmp_path / "out", "explain")
    out.add("a.png").symlink_to(tmp_path / "precious")
    OutputFolder(tmp_path / "out", "explain").add("b.png")
    assert not os.path.lexists(tmp_path / "out" / "a.png")
    assert (tmp_path / "precious").read_text() == "precious"


def test_no_folder_to_look_into(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert written_by(tmp_path / "file") is None
    with pytest.raises(OutputError, match="has other files"):
        OutputFolder(tmp_path, "explain")
