"""`onnxplain evaluate`: what it prints and writes, what it goes on from, and what it answers to bad input."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli_helpers import assert_one_line_error, run, write_explainer, write_picture
from onnxplain import Explainer, MethodError, evaluation
from onnxplain.cli import evaluate as command
from onnxplain.cli._methods import METHOD_NAMES
from onnxplain.evaluation import Case, Evaluator, Plan
from onnxplain.image_methods import IMAGE_METHODS
from onnxplain.localization import Annotation, Region
from onnxplain.maps import METHODS
from onnxplain.metrics import METRICS
from tiny_explainer import tiny_explainer, tiny_manifest, two_layers

QUICK = ("--metric", "drop", "--metric", "increase")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an explainer and three pictures."""
    write_explainer(tmp_path / "m.onnx")
    for number in range(3):
        write_picture(tmp_path / "photos" / f"{number}.png", number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path: Path = Path("evaluation/evaluation.csv")) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def journal() -> list[str]:
    return Path("evaluation/evaluation.jsonl").read_text().splitlines()


def test_names_of_methods_are_those_of_the_library():
    assert set(METHOD_NAMES) == {*METHODS, *IMAGE_METHODS}


def test_all_metrics(folder):
    Path("boxes.csv").write_text("file,x0,y0,x1,y1,class\n0.png,5,5,20,20,tabby cat\n1.png,0,0,40,30,\n")
    result = run(
        "evaluate", "m.onnx", "photos", "--method", "gradcam", "--method", "cam", "--boxes", "boxes.csv"
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for metric in METRICS.values():
        assert (
            f"{metric.title.upper()} ({'MORE' if metric.more_is_better else 'LESS'} IS BETTER)"
            in result.stdout
        )
    assert "control" in result.stdout
    assert "evaluation.csv" in result.stdout
    found = rows()
    assert list(found[0]) == ["picture", "class", "label", "method", "metric", "value"]
    with_boxes = [name for name, metric in METRICS.items() if metric.needs_boxes]
    for number in range(3):
        mine = [row for row in found if row["picture"] == f"photos/{number}.png"]
        metrics = [name for name in METRICS if number < 2 or name not in with_boxes]
        assert [(row["method"], row["metric"]) for row in mine] == [
            (method, metric) for method in ("random", "gradcam", "cam") for metric in metrics
        ]
        assert len({row["class"] for row in mine}) == 1
    assert {row["label"] for row in found if row["picture"] == "photos/0.png"} == {"tabby cat"}
    predicted = Explainer("m.onnx").explain("photos/1.png")
    assert found[-1]["class"] == str(Explainer("m.onnx").explain("photos/2.png").index)
    values = {(row["picture"], row["method"], row["metric"]): float(row["value"]) for row in found}
    assert values["photos/1.png", "gradcam", "pointing"] == 1
    heat = predicted.heatmap
    assert values["photos/1.png", "gradcam", "energy"] == pytest.approx(float(heat.sum() > 0), abs=1e-6)
    assert Path("evaluation/evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert len(journal()) == 3


def test_a_picture_of_two_classes(folder):
    Path("boxes.csv").write_text(
        "file,x0,y0,x1,y1,class\n0.png,5,5,20,20,tabby cat\n0.png,1,1,9,9,3\n0.png,2,2,9,9,3\n"
    )
    result = run("evaluate", "m.onnx", "photos/0.png", "--metric", "iou", "--boxes", "boxes.csv")
    assert result.exit_code == 0, result.output
    assert {row["class"] for row in rows()} == {"0", "3"}
    assert "1 PICTURES" in result.stdout


def test_values_depend_on_neither_order_nor_name(folder):
    calls = [("photos/0.png", "photos/1.png"), ("photos/1.png", "copy.png")]
    Path("copy.png").write_bytes(Path("photos/0.png").read_bytes())
    found, metrics = [], ("--metric", "road", "--metric", "drop")
    for number, paths in enumerate(calls):
        result = run("evaluate", "m.onnx", *paths, *metrics, "-o", f"out{number}")
        assert result.exit_code == 0, result.output
        found.append(rows(Path(f"out{number}/evaluation.csv")))
    renamed = [{**row, "picture": row["picture"].replace("copy.png", "photos/0.png")} for row in found[1]]
    assert sorted(map(str, found[0])) == sorted(map(str, renamed))
    result = run("evaluate", "m.onnx", *calls[0], *metrics, "--seed", "1", "-o", "out2")
    assert rows(Path("out2/evaluation.csv")) != found[0]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The maps that are measured: method and metrics."""
    done = []

    def measure(explanation, tensor, predict, regions, metrics, seed):
        done.append(" ".join([explanation.method, *metrics]))
        return original(explanation, tensor, predict, regions, metrics, seed)

    original = evaluation.measure
    monkeypatch.setattr(evaluation, "measure", measure)
    return done


def test_resuming(folder, measured):
    call = ("evaluate", "m.onnx", "photos", "--method", "gradcam", *QUICK)
    result = run(*call)
    assert len(measured) == 6
    before = Path("evaluation/evaluation.csv").read_bytes()
    again = run(*call)
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    assert len(measured) == 6
    assert Path("evaluation/evaluation.csv").read_bytes() == before
    # An interruption cut the second line off; the third isn't ours, or says nonsense.
    lines = journal()
    broken = json.loads(lines[2])
    broken["classes"][0]["scores"]["gradcam"]["drop"] = "1e999"
    Path("evaluation/evaluation.jsonl").write_text(f"{lines[0]}\n[]\n{json.dumps(broken)}\n{lines[1][:50]}")
    again = run(*call)
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    assert len(measured) == 10
    assert Path("evaluation/evaluation.csv").read_bytes() == before
    assert len(journal()) == 6
    run(*call)
    assert len(measured) == 10


@pytest.mark.parametrize(
    "changes",
    [
        ("--seed", "1"),
        ("--boxes", "b.csv"),
        ("--layer", "features"),
    ],
)
def test_other_settings_are_measured_anew(changes, folder, measured):
    Path("b.csv").write_text("file,x0,y0,x1,y1\n0.png,5,5,20,20\n")
    call = ("evaluate", "m.onnx", "photos/0.png", "--method", "gradcam", *QUICK)
    run(*call)
    assert len(measured) == 2
    result = run(*call, *changes)
    assert result.exit_code == 0, result.output
    assert len(measured) == 4
    assert len(journal()) == 2


def test_other_methods_and_metrics_alone_are_measured(folder, measured):
    call = ("evaluate", "m.onnx", "photos", "--method")
    run(*call, "gradcam", "--metric", "drop")
    assert sorted(measured) == ["gradcam drop"] * 3 + ["random drop"] * 3
    measured.clear()
    result = run(*call, "cam", "--method", "gradcam", "--metric", "drop")
    assert measured == ["cam drop"] * 3
    assert [row["method"] for row in rows()] == ["random", "cam", "gradcam"] * 3
    measured.clear()
    more = ("road", "increase", "drop")
    flags = [part for name in more for part in ("--metric", name)]
    both = run(*call, "gradcam", *flags)
    assert sorted(measured) == ["gradcam road increase"] * 3 + ["random road increase"] * 3
    assert [row["metric"] for row in rows()] == [*more] * 6
    table = rows()
    measured.clear()
    assert run(*call, "cam", "--method", "gradcam", "--metric", "drop").stdout == result.stdout
    assert run(*call, "gradcam", *flags).stdout == both.stdout
    assert measured == []
    anew = run(*call, "gradcam", *flags, "-o", "anew")
    assert anew.stdout.replace("anew/", "evaluation/") == both.stdout
    assert rows(Path("anew/evaluation.csv")) == table


def test_classes_of_a_picture_keep_their_own_boxes(folder, measured):
    """Resumed, with another method, and where a box without a class is of the same class as one with it."""
    predicted = Explainer("m.onnx").explain("photos/0.png").index
    other = (predicted + 1) % 4
    Path("b.csv").write_text(
        f"file,x0,y0,x1,y1,class\n0.png,0,0,6,6,{predicted}\n0.png,0,0,40,20,\n0.png,9,9,20,20,{other}\n"
    )
    call = ("evaluate", "m.onnx", "photos/0.png", "--metric", "energy", "--boxes", "b.csv", "--method")
    first = run(*call, "gradcam")
    assert first.exit_code == 0, first.output
    assert [row["class"] for row in rows()] == [str(predicted)] * 2 + [str(other)] * 2
    measured.clear()
    assert run(*call, "gradcam").stdout == first.stdout
    assert measured == []
    run(*call, "gradcam", "--method", "cam")
    assert measured == ["cam energy"] * 2
    run(*call, "gradcam", "--method", "cam", "-o", "anew")
    assert rows() == rows(Path("anew/evaluation.csv"))
    values = [row["value"] for row in rows()]
    assert len(set(values[:3]) & set(values[3:])) == 0


def test_a_journal_of_other_classes_is_measured_anew(folder, measured):
    call = ("evaluate", "m.onnx", "photos/0.png", "--method", "gradcam", *QUICK)
    run(*call)
    table = rows()
    line = json.loads(journal()[0])
    line["classes"][0]["index"] = (line["classes"][0]["index"] + 1) % 4
    del line["classes"][0]["scores"]["gradcam"]
    Path("evaluation/evaluation.jsonl").write_text(json.dumps(line) + "\n")
    for _ in range(2):
        run(*call)
        assert rows() == table
        assert len(journal()) == 2
    assert len(measured) == 4


@pytest.mark.parametrize("changes", [{"label": ["x"]}, {"index": 0.5}, {"index": -1}, {"scores": [1]}])
def test_a_hostile_journal(changes, folder, measured):
    call = ("evaluate", "m.onnx", "photos/0.png", "--method", "gradcam", *QUICK)
    run(*call)
    table = rows()
    line = json.loads(journal()[0])
    line["classes"][0].update(changes)
    Path("evaluation/evaluation.jsonl").write_text(json.dumps(line) + "\n")
    run(*call)
    assert rows() == table
    assert len(measured) == 4


def test_moved_boxes_are_measured_anew(folder, measured):
    call = ("evaluate", "m.onnx", "photos/0.png", "--method", "gradcam", "--boxes", "b.csv")
    for box in ("5,5,20,20,0", "6,5,20,20,0", "6,5,20,20,1"):
        Path("b.csv").write_text(f"file,x0,y0,x1,y1,class\n0.png,{box}\n")
        measured.clear()
        assert run(*call, "--metric", "energy").exit_code == 0
        assert len(measured) == 2


def test_another_version_measures_anew(folder, measured, monkeypatch):
    call = ("evaluate", "m.onnx", "photos/0.png", "--method", "gradcam", *QUICK)
    run(*call)
    for module in (evaluation, evaluation.onnxruntime):
        monkeypatch.setattr(module, "__version__", "0.0.1")
        measured.clear()
        run(*call)
        assert len(measured) == 2


def test_predictions_of_a_map(folder, monkeypatch):
    """As docs/evaluate.md counts them: 18 of ROAD, 101 of insertion, 101 of deletion, 2 of the others."""
    predicted = []
    explainer = Explainer("m.onnx")
    scores = explainer.network.scores
    monkeypatch.setattr(
        explainer.network, "scores", lambda batch: predicted.append(len(batch)) or scores(batch)
    )
    metrics = ("road", "insertion", "deletion", "drop", "increase")
    (outcome,) = Evaluator(explainer, b"", Plan((), metrics)).run([Case(Path("photos/0.png"))], {})
    assert tuple(outcome.classes[0].scores["random"]) == metrics
    assert sum(predicted) == 222


def test_no_picture_with_boxes_can_be_measured(folder):
    Path("photos/0.png").write_bytes(b"no picture")
    Path("b.csv").write_text("file,x0,y0,x1,y1\n0.png,5,5,20,20\n")
    result = run("evaluate", "m.onnx", "photos", "--metric", "iou", "--boxes", "b.csv")
    assert result.exit_code == 1
    assert "0.png is damaged" in result.stderr
    assert "none of the pictures with boxes could be measured" in result.stderr


def test_another_model_or_picture_is_measured_anew(folder, measured):
    call = ("evaluate", "m.onnx", "photos/0.png", "--method", "gradcam", *QUICK)
    run(*call)
    write_picture(folder / "photos" / "0.png", seed=9)
    run(*call)
    assert len(measured) == 4
    write_explainer(folder / "m.onnx", ("a", "b", "c", "d"))
    run(*call)
    assert len(measured) == 6


def test_a_bad_picture_is_left_out(folder):
    Path("photos/1.png").write_bytes(b"no picture")
    result = run("evaluate", "m.onnx", "photos", *QUICK)
    assert_one_line_error(result, 1, "1.png is damaged, or is not a picture")
    assert "2 PICTURES" in result.stdout
    assert {row["picture"] for row in rows()} == {"photos/0.png", "photos/2.png"}
    assert len(journal()) == 2


def test_only_bad_pictures(folder):
    Path("p.png").write_bytes(b"no picture")
    assert_one_line_error(run("evaluate", "m.onnx", "p.png", *QUICK), 1, "p.png is damaged")


def test_a_box_outside_its_picture(folder):
    Path("b.csv").write_text("file,x0,y0,x1,y1\n0.png,50,5,60,20\n1.png,5,5,20,20\n")
    result = run("evaluate", "m.onnx", "photos", *QUICK, "--boxes", "b.csv")
    assert_one_line_error(result, 1, "0.png has 40 x 30 pixels, and a box is outside")
    assert "2 PICTURES" in result.stdout


def test_layers(folder):
    Path("two.onnx").write_bytes(tiny_explainer(manifest=two_layers(tiny_manifest())))
    for layer in ((), ("--layer", "late")):
        result = run("evaluate", "two.onnx", "photos/0.png", *QUICK, *layer)
        assert result.exit_code == 0, result.output
    assert_one_line_error(
        run("evaluate", "two.onnx", "photos", *QUICK, "--layer", "x"), 1, "no target layer 'x'"
    )


OLD = {
    "--methods": "Warning: --methods A B will go with the next release; write --method A --method B.",
    "--metrics": "Warning: --metrics A B will go with the next release; write --metric A --metric B.",
}


@pytest.mark.parametrize(
    "arguments",
    [
        ["m.onnx", "photos/0.png", "--methods", "gradcam", "cam"],
        ["m.onnx", "photos/0.png", "--methods", "gradcam", "--methods", "cam"],
        ["m.onnx", "photos/0.png", "--methods=gradcam", "--methods", "cam", "random", "cam"],
        ["m.onnx", "--methods", "gradcam", "cam", "photos/0.png"],
        ["--methods=gradcam", "cam", "m.onnx", "photos/0.png"],
        ["--methods", "gradcam", "cam", "--", "m.onnx", "photos/0.png"],
        ["m.onnx", "--method", "gradcam", "photos/0.png", "--methods", "cam"],
    ],
)
def test_old_lists_take_the_names_that_they_know(arguments, folder):
    """And no others: what is no method is a picture."""
    result = run("evaluate", *QUICK, *arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [OLD["--methods"]]
    assert {row["picture"] for row in rows()} == {"photos/0.png"}
    assert {row["method"] for row in rows()} == {"random", "gradcam", "cam"}
    assert "--methods" not in run("evaluate", "--help").output


def test_old_lists_of_metrics(folder):
    result = run("evaluate", "m.onnx", "--metrics", "drop", "increase", "photos/0.png", "--methods", "cam")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [OLD["--metrics"], OLD["--methods"]]
    assert {row["metric"] for row in rows()} == {"drop", "increase"}


@pytest.mark.parametrize("option", ["--method", "--metric"])
def test_an_option_takes_one_name(option, folder):
    name = {"--method": "gradcam", "--metric": "drop"}[option]
    result = run(
        "evaluate", "m.onnx", option, name, "photos/0.png", "--method", "cam", "--metric", "increase"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert {row["picture"] for row in rows()} == {"photos/0.png"}


def test_a_picture_after_an_old_list_that_is_not_there(folder):
    result = run("evaluate", "m.onnx", "--methods", "gradcam", "photo.png")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == ["Error: there is no file photo.png"]


def test_help_needs_no_packages(monkeypatch):
    monkeypatch.setattr(command, "require", lambda extra: pytest.fail("it asks for packages"))
    result = run("evaluate", "--help")
    assert result.exit_code == 0
    assert "--method M" in result.output


def test_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setattr("onnxplain.extras.find_spec", lambda name: None)
    result = run("evaluate", "m.onnx", "photos")
    assert_one_line_error(result, 1, 'python -m pip install "onnxplain[evaluate]"')


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.onnx", "photos"], 1, "no model file missing.onnx"),
        (["m.onnx"], 2, "Missing argument 'PATH...'"),
        (["m.onnx", "empty"], 1, "no pictures in empty"),
        (["m.onnx", "missing.png"], 1, "there is no file missing.png"),
        (["m.onnx", "photos", "--method", "nothing"], 2, "'nothing' is not one of"),
        (["m.onnx", "photos", "--method"], 2, "--method"),
        (["m.onnx", "photos", "--metric", "nothing"], 2, "'nothing' is not one of"),
        (["m.onnx", "photos", "--metric", "iou"], 2, "iou needs --boxes"),
        (["m.onnx", "photos", "--method", "saliency"], 1, "export it with --input-gradient"),
        (["m.onnx", "photos", "--seed", "-1"], 2, "--seed"),
        (["m.onnx", "photos", "--boxes", "missing.csv"], 1, "can't read missing.csv"),
        (["m.onnx", "photos", "--boxes", "broken.csv"], 1, "broken.csv: there is no column file"),
        (["m.onnx", "photos", "--boxes", "broken.json"], 1, "broken.json: it is no JSON"),
        (
            ["m.onnx", "photos", "--boxes", "strange.csv"],
            1,
            "boxes for x.png, which is not among the pictures",
        ),
        (["m.onnx", "photos", "--boxes", "class.csv"], 1, "the model has no class 'dog'"),
        (["m.onnx", "photos", "--output", "m.onnx"], 2, "'m.onnx' is a file"),
    ],
)
def test_one_line_errors(arguments, code, words, folder):
    Path("empty").mkdir()
    Path("broken.csv").write_text("1,2\n")
    Path("broken.json").write_text("{")
    Path("strange.csv").write_text("file,x0,y0,x1,y1\nx.png,5,5,20,20\n")
    Path("class.csv").write_text("file,x0,y0,x1,y1,class\n0.png,5,5,20,20,dog\n")
    before = sorted(folder.rglob("*"))
    assert_one_line_error(run("evaluate", *arguments), code, words)
    if "missing.png" not in arguments:
        assert sorted(folder.rglob("*")) == before


def test_files_that_prepare_pictures_are_refused():
    explainer = Explainer(tiny_explainer())
    explainer.manifest = replace(explainer.manifest, pixels=True)
    with pytest.raises(MethodError, match="export it without --pixels"):
        Evaluator(explainer, b"", Plan(("gradcam",), ("drop",)))


def test_an_interruption_stops_what_runs(folder):
    """The other pictures aren't measured before the caller has its answer."""
    predicted = []
    explainer = Explainer("m.onnx", threads=1)
    evaluator = Evaluator(explainer, b"", Plan(("gradcam",), ("deletion",)))
    predict = explainer.network.predict
    explainer.network.predict = lambda batch: predicted.append(len(batch)) or predict(batch)
    outcomes = evaluator.run([Case(Path("photos/0.png"))] * 50, {})
    next(outcomes)
    outcomes.close()
    assert sum(predicted) < 25 * 2 * 101


def test_noise_is_as_coarse_as_the_maps(folder, monkeypatch):
    shapes = []

    def measure(explanation, *rest):
        shapes.append(explanation.cams[0].shape)
        return {"drop": 0.0}

    monkeypatch.setattr(evaluation, "measure", measure)
    evaluator = Evaluator(Explainer("m.onnx"), b"", Plan(("gradcam",), ("drop",)))
    (outcome,) = evaluator.run([Case(Path("photos/0.png"))], {})
    assert outcome.error is None
    assert shapes == [(6, 8)] * 2


def test_classes_of_boxes_are_checked_first(folder):
    evaluator = Evaluator(Explainer("m.onnx"), b"", Plan(("gradcam",), ()))
    region = Region(0, 0, 1, 1)
    evaluator.check_classes([Case(Path("x"), (Annotation("x", region, 3), Annotation("x", region, None)))])
    for label in (4, "crane", "dog"):
        with pytest.raises(Exception, match=r"out of range|names 2 classes|has no class"):
            evaluator.check_classes([Case(Path("x"), (Annotation("x", region, label),))])


def test_tiny_files_have_no_interval(folder):
    result = run("evaluate", "m.onnx", "photos/0.png", "--method", "cam", *QUICK)
    assert "no telling" in result.stdout
    assert np.isfinite([float(row["value"]) for row in rows()]).all()
