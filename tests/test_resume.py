"""`onnxplain explain --resume`: what is done stays, what isn't is done, and nothing else is left."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import assert_one_line_error, run, write_explainer, write_picture
from onnxplain import Explainer
from onnxplain.cli import _report
from onnxplain.cli._record import Record
from onnxplain.outputs import LIST
from tiny_explainer import tiny_explainer, tiny_manifest

CALL = ("explain", "m.onnx", "photos", "--top", "2", "--method", "gradcam", "--method", "layercam")
PICTURES = [f"photos/{number}.png" for number in range(5)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an explainer and five pictures."""
    write_explainer(tmp_path / "m.onnx")
    for number, name in enumerate(PICTURES):
        write_picture(tmp_path / name, number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that are explained, by one method each."""
    done: list[str] = []
    explain = Explainer.explain_classes

    def counted(self: Explainer, image: Any, *args: Any, **options: Any) -> Any:
        if options["method"] == "gradcam":
            done.append(str(image))
        return explain(self, image, *args, **options)

    monkeypatch.setattr(Explainer, "explain_classes", counted)
    return done


def interrupt(at: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> Any:
    """Run the call, and interrupt it at a picture."""
    explain = Explainer.explain_classes

    def interrupted(self: Explainer, image: Any, *args: Any, **options: Any) -> Any:
        if str(image) == at:
            raise KeyboardInterrupt
        return explain(self, image, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Explainer, "explain_classes", interrupted)
        return run(*CALL, *more, "-o", "why")


def contents(folder: str) -> dict[str, bytes]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def rows(folder: str = "why") -> list[dict[str, Any]]:
    with Path(folder, "explanations.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("more", [(), ("--report",), ("--no-overlays",)])
@pytest.mark.parametrize("beside", [False, True], ids=["embedded", "beside"])
def test_as_if_nothing_had_happened(
    more: tuple[str, ...], beside: bool, explained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if beside:
        monkeypatch.setattr(_report, "EMBEDDED_PICTURES", 1)
    result = interrupt("photos/3.png", monkeypatch, *more)
    assert result.exit_code == 130
    assert (
        "Interrupted: 3 of 5 pictures are done; the same call with --resume goes on."
        in result.stderr.splitlines()
    )
    assert {row["path"] for row in rows()} == set(PICTURES[:3])
    overlays = {row["overlay"] for row in rows()}
    assert {name for name in contents("why") if name.endswith(".png")} == overlays - {None}
    explained.clear()
    resumed = run(*CALL, *more, "-o", "why", "--resume")
    assert resumed.exit_code == 0
    assert sorted(explained) == PICTURES[3:]
    assert "Of 5 pictures, an earlier call had done 3." in resumed.stdout
    whole = run(*CALL, *more, "-o", "whole")
    assert contents("why") == contents("whole")
    assert resumed.stdout.splitlines()[:21] == whole.stdout.replace("whole", "why").splitlines()[:21]


def test_a_resumed_report_says_what_the_network_saw(
    folder: Path, explained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tiny_manifest()
    cropped = replace(manifest, input=replace(manifest.input, resize=32, crop="center"))
    (folder / "m.onnx").write_bytes(tiny_explainer(manifest=cropped))
    assert interrupt("photos/3.png", monkeypatch, "--report").exit_code == 130
    explained.clear()
    assert run(*CALL, "--report", "-o", "why", "--resume").exit_code == 0
    assert sorted(explained) == PICTURES[3:]
    text = Path("why/report.html").read_text(encoding="utf-8")
    assert text.count('<svg class="unseen" viewBox="0 0 40 30"') == 5
    assert run(*CALL, "--report", "-o", "whole").exit_code == 0
    assert contents("why") == contents("whole")


def test_what_is_whole_is_left(explained: list[str]) -> None:
    assert run(*CALL, "-o", "why").exit_code == 0
    before = contents("why")
    explained.clear()
    assert run(*CALL, "-o", "why", "--resume").exit_code == 0
    assert explained == []
    assert contents("why") == before


def test_a_first_call_may_say_so_too() -> None:
    assert run(*CALL, "-o", "why", "--resume").exit_code == 0
    assert {row["path"] for row in rows()} == set(PICTURES)


def test_without_it_all_is_done_again(explained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt("photos/3.png", monkeypatch)
    explained.clear()
    assert run(*CALL, "-o", "why").exit_code == 0
    assert sorted(explained) == PICTURES


def change_picture(folder: Path) -> None:
    write_picture(folder / "photos" / "1.png", 9)


def touch_picture(folder: Path) -> None:
    os.utime("photos/1.png", (1, 1))


def remove_overlay(folder: Path) -> None:
    next((folder / "why").glob("1.*.layercam.png")).unlink()


def damage_note(folder: Path) -> None:
    text = (folder / "why" / LIST).read_text()
    lines = [line for line in text.splitlines() if "photos/1.png" not in line]
    notes = [json.loads(line) for line in text.splitlines() if "photos/1.png" in line]
    for key, value in (
        ("stamp", [1]),
        ("size", "large"),
        ("seen", [0, 0, 40]),
        ("seen", [0, 0, "40", 30]),
        ("seen", None),
        ("thumbnail", "javascript:alert(1)"),
        ("findings", [{"rank": 1}]),
        ("findings", []),
        ("findings", [notes[0]["note"]["findings"][0] | {"heat": "https://example.org/x.png"}]),
        ("findings", [notes[0]["note"]["findings"][0] | {"overlay": "../photos/0.png"}]),
        ("findings", [notes[0]["note"]["findings"][0] | {"overlay": "0.png"}]),
        ("findings", [notes[0]["note"]["findings"][0] | {"logit": "NaN"}]),
        ("findings", [notes[0]["note"]["findings"][0] | {"boxes": [[1, 2, 3]]}]),
        ("path", ["photos/1.png"]),
    ):
        lines.append(json.dumps({"note": notes[0]["note"] | {key: value}}))
    (folder / "why" / LIST).write_text("\n".join(lines))


@pytest.mark.parametrize("change", [change_picture, touch_picture, remove_overlay, damage_note])
def test_a_picture_that_is_not_as_it_was_is_done_again(
    change: Any, explained: list[str], folder: Path
) -> None:
    assert run(*CALL, "-o", "why").exit_code == 0
    change(folder)
    explained.clear()
    assert run(*CALL, "-o", "why", "--resume").exit_code == 0
    assert explained == ["photos/1.png"]
    assert run(*CALL, "-o", "whole").exit_code == 0
    assert {str(row) for row in rows("why")} == {str(row) for row in rows("whole")}
    assert contents("why").keys() == contents("whole").keys()


def test_more_and_fewer_pictures(explained: list[str], folder: Path) -> None:
    assert run(*CALL, "-o", "why").exit_code == 0
    write_picture(folder / "photos" / "20.png", 20)
    Path("photos/4.png").unlink()
    explained.clear()
    assert run(*CALL, "-o", "why", "--resume").exit_code == 0
    assert explained == ["photos/20.png"]
    assert run(*CALL, "-o", "whole").exit_code == 0
    assert contents("why").keys() == contents("whole").keys()
    assert {str(row) for row in rows("why")} == {str(row) for row in rows("whole")}


def test_what_could_not_be_read_is_tried_again(explained: list[str], folder: Path) -> None:
    Path("photos/1.png").write_text("no picture")
    assert run(*CALL, "-o", "why").exit_code == 1
    assert [row["path"] for row in rows() if row["error"]] == ["photos/1.png"]
    write_picture(folder / "photos" / "1.png", 1)
    explained.clear()
    assert run(*CALL, "-o", "why", "--resume").exit_code == 0
    assert explained == ["photos/1.png"]
    assert [row for row in rows() if row["error"]] == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (["--method", "cam"], 'method: ["gradcam", "layercam"] then, ["gradcam", "layercam", "cam"] now'),
        (["--eigen-smooth"], "eigen smooth: false then, true now"),
        (["--layer", "features"], 'layer: null then, "features" now'),
        (["--colormap", "jet"], 'colormap: "inferno" then, "jet" now'),
        (["--no-overlays"], "overlays: true then, false now"),
    ],
)
def test_another_question_is_refused(changes: list[str], name: str, folder: Path) -> None:
    assert run(*CALL, "-o", "why").exit_code == 0
    before = contents("why")
    result = run(*CALL, *changes, "-o", "why", "--resume")
    assert_one_line_error(result, 1, f"why was made with another {name}; leave --resume out to replace")
    assert contents("why") == before


def test_another_model_is_refused(folder: Path) -> None:
    assert run(*CALL, "-o", "why").exit_code == 0
    write_explainer(folder / "m.onnx", ("a", "b", "c", "d"))
    assert_one_line_error(run(*CALL, "-o", "why", "--resume"), 1, "why was made with another model")


def test_a_report_of_pictures_that_had_none(explained: list[str]) -> None:
    """Their thumbnails are missing, so they are done again."""
    assert run(*CALL, "-o", "why").exit_code == 0
    explained.clear()
    assert run(*CALL, "-o", "why", "--report", "--resume").exit_code == 0
    assert sorted(explained) == PICTURES
    assert Path("why/report.html").is_file()
    explained.clear()
    assert run(*CALL, "-o", "why", "--resume").exit_code == 0
    assert explained == []
    assert not Path("why/report.html").exists()


def test_after_a_crash(explained: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after kill -9: the folder is as it was at some moment, files without a picture's rows among them."""
    half, add = folder / "half", Record.add

    def copied(self: Record, new: Any) -> None:
        add(self, new)
        if len(rows()) == 8 and not half.exists():
            shutil.copytree("why", half, ignore=shutil.ignore_patterns(".onnxplain-*"))  # drafts come and go

    with monkeypatch.context() as patch:
        patch.setattr(Record, "add", copied)
        assert run(*CALL, "-o", "why").exit_code == 0
    assert {row["path"] for row in rows("half")} == set(PICTURES[:2])
    (half / "explanations.jsonl").open("a").write('{"path": "photos/2.p')
    explained.clear()
    assert run(*CALL, "-o", "half", "--resume").exit_code == 0
    assert "photos/0.png" not in explained
    assert contents("half") == contents("why")


def test_records_are_written_as_pictures_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole lines, at any moment: those of a picture at once, when the next ones are on their way."""
    add, seen = Record.add, []

    def watched(self: Record, new: Any) -> None:
        add(self, new)
        seen.append(len(rows()))

    monkeypatch.setattr(Record, "add", watched)
    assert run(*CALL, "-o", "why").exit_code == 0
    assert seen == [4, 8, 12, 16, 20]
