"""`onnxplain explain`: what it writes, and what it answers to bad models, pictures and classes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cli_helpers import LABELS, assert_one_line_error, run, write_explainer, write_picture
from onnxplain import Explainer, pipeline
from onnxplain.cli._pictures import find_pictures, overlay_name
from onnxplain.cli.explain import command
from onnxplain.image_methods import IMAGE_METHODS
from onnxplain.images import read_image
from onnxplain.manifest import METADATA_KEY
from onnxplain.maps import METHODS
from onnxplain.network import Network
from onnxplain.outputs import LIST
from onnxplain.overlay import Colormap
from onnxplain.session import Device
from tiny_explainer import Network as TinyNetwork
from tiny_explainer import tiny_explainer, tiny_manifest, two_layers

KEYS = [
    "path",
    "model",
    "rank",
    "class",
    "label",
    "probability",
    "logit",
    "method",
    "layer",
    "peak_x",
    "peak_y",
    "boxes",
    "overlay",
    "options",
    "error",
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_explainer(tmp_path / "model.onnx")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_picture(tmp_path / "picture.png")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def records(out: Path) -> list[dict[str, Any]]:
    lines = (out / "explanations.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def files(folder: Path) -> set[str]:
    """Return the files in a folder, but for its list of outputs."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found - {LIST}


def test_predicted_class_by_default(model: Path, picture: Path, out: Path) -> None:
    result = run("explain", model, picture, "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    expected = Explainer(model).explain(picture)
    (found,) = records(out)
    assert list(found) == KEYS
    overlay = found.pop("overlay")
    row, column = np.unravel_index(expected.heatmap.argmax(), expected.heatmap.shape)
    assert found == {
        "path": str(picture),
        "model": str(model),
        "rank": 1,
        "class": expected.index,
        "label": expected.label,
        "probability": pytest.approx(expected.probability, rel=1e-6),
        "logit": pytest.approx(expected.logit, rel=1e-6),
        "method": "gradcam",
        "layer": "features",
        "peak_x": column,
        "peak_y": row,
        "boxes": [list(box) for box in expected.boxes()],
        "options": {"eigen_smooth": False, "aug_smooth": False, "common_scale": False, "size": None},
        "error": None,
    }
    np.testing.assert_array_equal(read_image(out / overlay), expected.overlay())
    assert files(out) == {overlay, "explanations.jsonl"}
    for shown in (str(picture), str(expected.label), f"{expected.probability:.1%}", str(out / overlay)):
        assert shown in result.stdout


def test_top(model: Path, picture: Path, out: Path) -> None:
    assert run("explain", model, picture, "--top", "3", "-o", out).exit_code == 0
    expected = Explainer(model).explain_classes(picture, top=3)
    assert [found["class"] for found in records(out)] == [one.index for one in expected]
    assert [found["rank"] for found in records(out)] == [1, 2, 3]
    assert len(files(out)) == 4


@pytest.mark.parametrize(
    ("named", "indices"),
    [
        (["1"], [1]),
        (["tiger cat"], [1]),
        (["2", "tabby cat"], [2, 0]),
        (["-1", "-2", "-3", "-4"], "ranking"),
        (["1", "tiger cat", "1"], [1]),
        (["-1", "0", "1", "2", "3"], "each once"),
    ],
)
def test_classes(named: list[str], indices: list[int] | str, model: Path, picture: Path, out: Path) -> None:
    flags = [part for name in named for part in ("--class", name)]
    assert run("explain", model, picture, *flags, "-o", out).exit_code == 0
    found = records(out)
    ranking = [one.index for one in Explainer(model).explain_classes(picture, top=4)]
    if indices == "ranking":
        indices = ranking
    if indices == "each once":
        indices = [ranking[0], *sorted(set(range(4)) - {ranking[0]})]
    assert [row["class"] for row in found] == indices
    assert [row["label"] for row in found] == [LABELS[index] for index in indices]
    assert [row["rank"] for row in found] == [ranking.index(index) + 1 for index in indices]


def test_one_forward_pass_for_all_classes(
    model: Path, picture: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    infer = Network.explain
    monkeypatch.setattr(Network, "explain", lambda self, *args: runs.append(1) or infer(self, *args))
    assert run("explain", model, picture, "--top", "4", "-o", out).exit_code == 0
    assert len(records(out)) == 4
    assert len(runs) == 1


@pytest.mark.parametrize("method", ["cam", "gradcam"])
@pytest.mark.parametrize("colormap", ["jet", "viridis"])
def test_method_and_colormap(method: str, colormap: Colormap, model: Path, picture: Path, out: Path) -> None:
    flags = ["--method", method, "--colormap", colormap, "--class", "0"]
    assert run("explain", model, picture, *flags, "-o", out).exit_code == 0
    (record,) = records(out)
    assert record["method"] == method
    expected = Explainer(model).explain(picture, 0, method).overlay(colormap)
    np.testing.assert_array_equal(read_image(out / record["overlay"]), expected)


def test_choices_are_those_of_the_library() -> None:
    choices = {option.name: getattr(option.type, "choices", None) for option in command.params}
    assert list(choices["method"]) == [*METHODS, *IMAGE_METHODS]
    assert tuple(choices["colormap"]) == get_args(Colormap)
    assert tuple(choices["device"]) == get_args(Device)


def test_several_methods(model: Path, picture: Path, out: Path) -> None:
    """The first method's classes come first, as they would alone; the keys are the same."""
    methods = ["layercam", "gradcam", "rise"]
    flags = [part for method in (*methods, "gradcam") for part in ("--method", method)]
    result = run("explain", model, picture, "--top", "2", *flags, "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    explainer = Explainer(model)
    expected = [one for method in methods for one in explainer.explain_classes(picture, top=2, method=method)]
    assert len(files(out)) == 7
    for found, one in zip(records(out), expected, strict=True):
        assert list(found) == KEYS
        assert (found["method"], found["class"]) == (one.method, one.index)
        assert found["layer"] == ("image" if one.method == "rise" else "features")
        assert (
            found["overlay"] == f"{overlay_name(Path('picture'), one.index, one.label).stem}.{one.method}.png"
        )
        np.testing.assert_array_equal(read_image(out / found["overlay"]), one.overlay())
    assert result.stdout.splitlines()[0].split() == ["PICTURE", "METHOD", "CLASS", "PROBABILITY", "OVERLAY"]


def test_a_method_that_fails_leaves_nothing_of_the_others(tmp_path: Path, picture: Path, out: Path) -> None:
    manifest = json.loads(tiny_manifest().to_json())
    manifest["layers"][0]["head"] = None
    (tmp_path / "mlp.onnx").write_bytes(with_manifest(json.dumps(manifest)))
    result = run(
        "explain", tmp_path / "mlp.onnx", picture, "--method", "gradcam", "--method", "cam", "-o", out
    )
    assert_one_line_error(result, 1, "global average pooling")
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--layer", "early"], {"layer": "early"}),
        (["--layer", "late", "--eigen-smooth"], {"layer": "late", "eigen_smooth": True}),
        (["--aug-smooth"], {"aug_smooth": True}),
        (["--common-scale"], {"common_scale": True}),
    ],
)
def test_layer_and_smoothing(
    flags: list[str], options: dict[str, Any], tmp_path: Path, picture: Path, out: Path
) -> None:
    model = tmp_path / "layers.onnx"
    model.write_bytes(tiny_explainer(manifest=two_layers(tiny_manifest())))
    assert run("explain", model, picture, "--top", "3", *flags, "-o", out).exit_code == 0
    for found in records(out):
        assert found["layer"] == options.get("layer", "early+late")
        said = {key: value for key, value in found["options"].items() if value}
        assert said == {key: value for key, value in options.items() if key != "layer"}
    expected = Explainer(model).explain_classes(picture, top=3, **options)
    plain = Explainer(model).explain_classes(picture, top=3)
    for found, one in zip(records(out), expected, strict=True):
        np.testing.assert_array_equal(read_image(out / found["overlay"]), one.overlay())
    assert any(not np.array_equal(a.heatmap, b.heatmap) for a, b in zip(expected, plain, strict=True))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layer", "nowhere"], ["no target layer 'nowhere'", "features"]),
        (["--method", "rise", "--eigen-smooth"], ["eigen_smooth", "rise"]),
        (["--method", "saliency"], ["--input-gradient"]),
    ],
)
def test_what_a_file_can_not_explain(
    flags: list[str], words: list[str], model: Path, picture: Path, out: Path
) -> None:
    assert_one_line_error(run("explain", model, picture, *flags, "-o", out), 1, *words)
    assert not out.exists()


def test_probability_none(tmp_path: Path, picture: Path, out: Path) -> None:
    model = onnx.load_from_string(tiny_explainer())
    manifest = json.loads(tiny_manifest().to_json()) | {"activation": "none", "labels": None}
    helper.set_model_props(model, {METADATA_KEY: json.dumps(manifest)})
    onnx.save(model, tmp_path / "bare.onnx")
    result = run("explain", tmp_path / "bare.onnx", picture, "-o", out)
    assert result.exit_code == 0
    (found,) = records(out)
    assert found["probability"] is None
    assert found["label"] is None
    assert found["overlay"] == f"picture.{found['class']}.png"


def test_folder_with_one_bad_picture(model: Path, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "photos"
    names = ["b.jpg", "a.png", "deep/er/a.png", "deep/A.webp"]
    for seed, name in enumerate(names):
        write_picture(folder / name, seed)
    (folder / "aa.jpg").write_text("not a picture")
    (folder / "notes.txt").write_text("left out")
    write_picture(folder / ".hidden.png")
    write_picture(folder / ".cache" / "x.png")
    result = run("explain", model, folder, "-o", out)
    assert_one_line_error(result, 1, str(folder / "aa.jpg"))
    sorted_names = ["a.png", "b.jpg", "deep/A.webp", "deep/er/a.png"]
    found, (bad,) = records(out), [row for row in records(out) if row["error"]]
    assert list(bad) == KEYS
    assert bad["path"] == str(folder / "aa.jpg")
    assert bad["error"] == f"{folder / 'aa.jpg'} is damaged, or is not a picture that OpenCV reads"
    assert {key for key, value in bad.items() if value is not None} == {"path", "model", "options", "error"}
    assert found.index(bad) == 1
    found.remove(bad)
    assert [row["path"] for row in found] == [str(folder / name) for name in sorted_names]
    for row in found:
        alone = Explainer(model).explain(row["path"])
        assert row["class"] == alone.index
        np.testing.assert_array_equal(read_image(out / row["overlay"]), alone.overlay())
    assert len(files(out)) == 5
    assert any(name.startswith("deep/er/a.") for name in files(out))


def test_output_folder_within_the_folder(model: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "photos" / "a.png")
    for _ in range(2):
        result = run("explain", model, tmp_path / "photos", "-o", tmp_path / "photos" / "out")
        assert result.exit_code == 0
    assert len(records(tmp_path / "photos" / "out")) == 1
    assert len(files(tmp_path / "photos" / "out")) == 2


def test_pictures_of_the_same_name(model: Path, tmp_path: Path, out: Path) -> None:
    paths = [
        write_picture(tmp_path / "one" / "cat.png", 1),
        write_picture(tmp_path / "two" / "cat.png", 2),
        write_picture(tmp_path / "two" / "cat.jpg", 3),
        write_picture(tmp_path / "two" / "CAT.bmp", 4),
        write_picture(tmp_path / "two" / "cat-2.png", 5),
    ]
    assert run("explain", model, *paths, "--class", "0", "-o", out).exit_code == 0
    overlays = [found["overlay"] for found in records(out)]
    assert overlays == [f"{name}.0-tabby-cat.png" for name in ("cat", "cat-2", "cat-3", "CAT-4", "cat-2-2")]
    for path, overlay in zip(paths, overlays, strict=True):
        expected = Explainer(model).explain(path, 0).overlay()
        np.testing.assert_array_equal(read_image(out / overlay), expected)


def test_earlier_record_is_replaced(model: Path, picture: Path, out: Path) -> None:
    for index in ("0", "1"):
        assert run("explain", model, picture, "--class", index, "-o", out).exit_code == 0
    assert [found["class"] for found in records(out)] == [1]


def test_without_overlays_the_record_alone_is_written(model: Path, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "photos"
    for seed in range(12):
        write_picture(folder / f"{seed:02}.png", seed)
    (folder / "05.png").write_text("not a picture")
    result = run("explain", model, folder, "--no-overlays", "--top", "2", "-o", out)
    assert_one_line_error(result, 1, "05.png")
    assert "OVERLAY" not in result.stdout
    assert files(out) == {"explanations.jsonl"}
    without = records(out)
    assert run("explain", model, folder, "--top", "2", "-o", out).exit_code == 1
    for found in (whole := records(out)):
        assert (found["overlay"] in files(out)) == (found["error"] is None)
        found["overlay"] = None
    assert without == whole
    assert len(whole) == 11 * 2 + 1


def test_large_jpegs_without_overlays(model: Path, tmp_path: Path, out: Path) -> None:
    """They are decoded at a reduced scale; boxes are in the whole picture's pixels."""
    large = np.zeros((1203, 1601, 3), np.uint8)
    large[200:500, 900:1300] = 255
    picture = tmp_path / "large.jpg"
    cv2.imwrite(str(picture), large)
    assert run("explain", model, picture, "--no-overlays", "-o", out).exit_code == 0
    (found,) = records(out)
    expected = Explainer(model).explain(picture)
    assert found["class"] == expected.index
    assert found["logit"] == pytest.approx(expected.logit, abs=0.05)
    np.testing.assert_allclose(found["boxes"][0], expected.boxes()[0], atol=16)
    row, column = np.unravel_index(expected.heatmap.argmax(), expected.heatmap.shape)
    np.testing.assert_allclose((found["peak_x"], found["peak_y"]), (column, row), atol=16)


def test_interruption_keeps_what_was_done(
    model: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_picture(tmp_path / f"{name}.png") for name in "abc"]
    explain = Explainer.explain_classes

    def interrupted(self: Explainer, image: Path, *args: Any, **options: Any) -> Any:
        if image == paths[2]:
            raise KeyboardInterrupt
        return explain(self, image, *args, **options)

    monkeypatch.setattr(Explainer, "explain_classes", interrupted)
    assert run("explain", model, *paths, "-o", out).exit_code == 130
    assert [record["path"] for record in records(out)] == [str(path) for path in paths[:2]]
    assert len(files(out)) == 3


def test_interruption_ends_a_method_of_many_predictions(
    model: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[int] = []
    scores = Network.scores

    def counted(self: Network, batch: Any) -> Any:
        predicted.append(len(batch))
        return scores(self, batch)

    def interrupted(call: Any) -> Any:
        while not predicted:
            time.sleep(0.001)
        raise KeyboardInterrupt

    monkeypatch.setattr(Network, "scores", counted)
    monkeypatch.setattr(pipeline, "_finished", interrupted)
    picture = write_picture(tmp_path / "picture.png")
    assert run("explain", model, picture, "--method", "rise", "-o", out).exit_code == 130
    assert sum(predicted) < 4000
    assert not out.exists()


def truncated_jpeg(path: Path) -> None:
    write_picture(path)
    path.write_bytes(path.read_bytes()[:-200])


BAD_PICTURES = {
    "missing.png": lambda path: None,
    "text.png": lambda path: path.write_text("hello"),
    "truncated.jpg": truncated_jpeg,
    "empty.png": lambda path: path.write_bytes(b""),
    "folder without pictures": lambda path: (path / "deeper").mkdir(parents=True),
    "nan.tiff": lambda path: path.write_bytes(
        cv2.imencode(".tiff", np.full((9, 9, 3), np.nan, np.float32))[1].tobytes()
    ),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture(name: str, model: Path, tmp_path: Path, out: Path) -> None:
    BAD_PICTURES[name](tmp_path / name)
    assert_one_line_error(run("explain", model, tmp_path / name, "-o", out), 1, name)
    assert not out.exists()


def plain_model() -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "plain", [value], [output])
    opsets = [helper.make_opsetid("", 20)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return model


def with_manifest(text: str) -> bytes:
    model = onnx.load_from_string(tiny_explainer())
    helper.set_model_props(model, {METADATA_KEY: text})
    data: bytes = model.SerializeToString()
    return data


BAD_MODELS = {
    "missing": (None, ["no model file", "bad.onnx"]),
    "empty": (b"", ["empty"]),
    "text": (b"this is no model", ["bad.onnx"]),
    "damaged": (tiny_explainer()[:-700], ["bad.onnx"]),
    "plain": (plain_model(), ["plain ONNX model", "onnxplain export"]),
    "newer": (with_manifest(json.dumps({"schema": 99})), ["schema 99", "pip install --upgrade onnxplain"]),
    "manifest is no JSON": (with_manifest("{"), ["JSON", "export"]),
}


@pytest.mark.parametrize("name", BAD_MODELS)
@pytest.mark.parametrize("command_name", ["explain", "inspect"])
def test_bad_model(name: str, command_name: str, picture: Path, tmp_path: Path, out: Path) -> None:
    data, words = BAD_MODELS[name]
    path = tmp_path / "bad.onnx"
    if data is not None:
        path.write_bytes(data)
    args = [picture, "-o", out] if command_name == "explain" else []
    assert_one_line_error(run(command_name, path, *args), 1, *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("4", ["class 4", "0 to 3"]),
        ("-5", ["class -5", "-4"]),
        ("99999999999999999999", ["out of range"]),
        ("tiger cta", ["'tiger cta'", "did you mean 'tiger cat'"]),
        ("zebra", ["'zebra'", "onnxplain inspect MODEL.onnx --json"]),
        ("crane", ["'crane'", "2, 3"]),
        ("", ["''"]),
    ],
)
def test_bad_class(name: str, words: list[str], model: Path, picture: Path, out: Path) -> None:
    assert_one_line_error(run("explain", model, picture, "--class", name, "-o", out), 1, *words)
    assert not out.exists()


def test_more_classes_than_there_are(model: Path, picture: Path, out: Path) -> None:
    result = run("explain", model, picture, "--top", "5", "-o", out)
    assert_one_line_error(result, 1, "top must be at most 4, the number of classes, not 5")


def test_cam_where_it_is_undefined(tmp_path: Path, picture: Path, out: Path) -> None:
    manifest = json.loads(tiny_manifest().to_json())
    manifest["layers"][0]["head"] = None
    (tmp_path / "mlp.onnx").write_bytes(with_manifest(json.dumps(manifest)))
    result = run("explain", tmp_path / "mlp.onnx", picture, "--method", "cam", "-o", out)
    assert_one_line_error(result, 1, "global average pooling", "gradcam")
    assert not out.exists()


def test_unavailable_device(model: Path, picture: Path, out: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is available here")
    result = run("explain", model, picture, "--device", "cuda", "-o", out)
    assert_one_line_error(result, 1, "CUDAExecutionProvider", "CPUExecutionProvider")


def test_output_is_a_file(model: Path, picture: Path) -> None:
    assert_one_line_error(run("explain", model, picture, "-o", picture), 2, "--output", "is a file")


def test_output_can_not_be_made(model: Path, picture: Path) -> None:
    assert_one_line_error(run("explain", model, picture, "-o", picture / "out"), 1, "Not a directory")


def test_hostile_labels(tmp_path: Path, picture: Path, out: Path) -> None:
    label = "../../evil\x1b[31m\nC:\\<name>|?*" + "x" * 300
    model = write_explainer(tmp_path / "hostile.onnx", (label,) * 4)
    result = run("explain", model, picture, "--class", "0", "-o", out)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    (overlay,) = files(out) - {"explanations.jsonl"}
    assert Path(overlay).parent == Path()
    assert records(out)[0]["label"] == label


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("tiger cat", "cat.7-tiger-cat.png"),
        (None, "cat.7.png"),
        ("7", "cat.7.png"),
        ('a/b\\c:d*e?f"g<h>i|j', "cat.7-a-b-c-d-e-f-g-h-i-j.png"),
        ("St. Bernard...", "cat.7-St-Bernard.png"),
        ("...", "cat.7.png"),
        ("été 猫", "cat.7-été-猫.png"),
        ("猫" * 100, f"cat.7-{'猫' * 20}.png"),
    ],
)
def test_overlay_name(label: str | None, name: str) -> None:
    assert overlay_name(Path("photos/cat"), 7, label) == Path("photos") / name


def test_long_names_stay_within_the_limit(tmp_path: Path) -> None:
    path = write_picture(tmp_path / ("é" * 120 + ".png"))
    (picture,) = find_pictures([path], tmp_path / "out")
    assert len(os.fsencode(overlay_name(picture.stem, 123456, "猫" * 100))) <= 255


def test_name_that_is_not_unicode(model: Path, tmp_path: Path, out: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        write_picture(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    result = run("explain", model, tmp_path / name, "-o", out)
    assert result.exit_code == 0, result.output
    assert records(out)[0]["path"] == str(tmp_path / name)


def zero_head(path: Path) -> Path:
    """Write an explainer whose head is all zeros, as that of a network that wasn't trained."""
    network = TinyNetwork.random()
    path.write_bytes(tiny_explainer(replace(network, weight=0 * network.weight), tiny_manifest()))
    return path


def test_blank_maps_are_said(tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "picture.png")
    model = zero_head(tmp_path / "blank.onnx")
    result = run("explain", model, picture, "-o", tmp_path / "why")
    assert result.exit_code == 0
    assert "The map is blank: no place speaks for the class" in result.stdout
    assert "usually the network's head isn't trained" in result.stdout
    result = run("explain", model, picture, "-o", tmp_path / "why", "--top", "3")
    assert "All 3 maps are blank" in result.stdout


def test_some_blank_maps_are_counted(tmp_path: Path) -> None:
    """Of two classes one has no evidence for it."""
    network = TinyNetwork.random()
    signs = np.array([1, -1, 0, 0], np.float32)[:, None]
    one_sided = replace(network, weight=np.abs(network.weight) * signs)
    (tmp_path / "model.onnx").write_bytes(tiny_explainer(one_sided, tiny_manifest()))
    picture = write_picture(tmp_path / "picture.png")
    options = ["--class", "0", "--class", "1", "-o", tmp_path / "why"]
    result = run("explain", tmp_path / "model.onnx", picture, *options)
    assert "1 of 2 maps is blank: no place speaks for the class" in result.stdout


def test_a_guessed_preprocessing_is_said(tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "picture.png")
    stated = tiny_manifest()
    guessed = replace(stated, input=replace(stated.input, stated=frozenset({"resize", "crop"})))
    for manifest, words in (
        (stated, None),
        (guessed, "nobody stated mean and std when this file was exported"),
    ):
        (tmp_path / "model.onnx").write_bytes(tiny_explainer(manifest=manifest))
        result = run("explain", tmp_path / "model.onnx", picture, "-o", tmp_path / "why")
        assert result.exit_code == 0
        assert ("A guess" in result.stdout) == (words is not None)
        assert words is None or words in result.stdout
        assert "is blank" not in result.stdout
