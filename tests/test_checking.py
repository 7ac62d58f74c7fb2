"""Labelled pictures tell whether a network gets pictures as it was trained to."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from math import comb
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cli_helpers import assert_one_line_error, run
from onnxplain import Explainer, ImageError, ModelError, Preprocessing, TargetError
from onnxplain.checking import (
    Check,
    Labelled,
    Trial,
    check_preprocessing,
    labelled_by_folder,
    other_crops,
    other_levels,
)
from onnxplain.cli.check import _report
from onnxplain.manifest import Activation
from onnxplain.preprocessing import preprocess
from tiny_explainer import Network, tiny_explainer, tiny_manifest

# What the network of the tests was trained with.
TRUTH = Preprocessing(3, 24, 32, "RGB", None, "none", "bilinear", (0.5,) * 3, (0.5,) * 3)
LABELS = ("tabby cat", "tiger-cat", "Crane", "2")


def drawn() -> list[np.ndarray]:
    """Return pictures of soft shapes, each with a tint of its own."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(60):
        tint, shapes = generator.integers(0, 256, (1, 1, 3)), generator.integers(0, 256, (5, 8, 3))
        shapes = ((3 * tint + shapes) // 4).astype(np.uint8)
        found.append(cv2.resize(shapes, (80, 50), interpolation=cv2.INTER_CUBIC))
    return found


@cache
def trained() -> Network:
    """Return a network whose four classes are about as likely on these pictures."""
    network = Network.random()
    tensors = np.stack([preprocess(picture, TRUTH)[0] for picture in drawn()])
    logits = network.logits(tensors)
    return replace(network, offset=(network.offset - np.median(logits, axis=0)).astype(np.float32))


def explainer_of(spec: Preprocessing) -> bytes:
    return tiny_explainer(trained(), replace(tiny_manifest(labels=LABELS), input=spec))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder for each class, with pictures that the network answers so where it gets them rightly."""
    folder = tmp_path_factory.mktemp("pictures")
    network = Explainer(explainer_of(TRUTH))
    for number, picture in enumerate(drawn()):
        name = LABELS[network.explain(picture).index].replace(" ", "_")
        (folder / name).mkdir(exist_ok=True)
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        (folder / name / f"{number}.png").write_bytes(cv2.imencode(".png", bgr)[1].tobytes())
    assert len(list(folder.iterdir())) == 4
    return folder


def labelled(folder: Path) -> list[Labelled]:
    return labelled_by_folder(sorted(folder.rglob("*.png")), LABELS, 4)


def test_right_pictures_are_answered_right(pictures: Path) -> None:
    steps: list[tuple[int, int]] = []
    network = Explainer(explainer_of(TRUTH)).network
    found = check_preprocessing(network, labelled(pictures), lambda *step: steps.append(step))
    assert found.own.count == len(found.own.right) == 60
    assert found.own.spec == TRUTH
    assert found.problems == []
    assert steps == [(done, 180) for done in range(1, 181)]
    assert TRUTH not in [trial.spec for trial in found.others]


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": (0.0,) * 3, "std": (1.0,) * 3},
        {"mean": (0.0,) * 3, "std": (1 / 255,) * 3},
        {"color": "BGR"},
        {"resize": 72, "crop": "center"},
    ],
    ids=["levels", "range", "colours", "crop"],
)
def test_what_is_wrong_is_found(wrong: dict[str, object], pictures: Path) -> None:
    spec = replace(TRUTH, **wrong)  # type: ignore[arg-type]
    found = check_preprocessing(Explainer(explainer_of(spec)).network, labelled(pictures))
    best = found.others[0]
    assert found.own.spec == spec
    assert found.own.count < 55
    assert (best.spec, best.count) == (TRUTH, 60)
    assert best.chance_against(found.own) < 0.05
    counts = [trial.count for trial in found.others]
    assert counts == sorted(counts, reverse=True)
    # Each count is what an explainer with that preprocessing answers.
    for trial in found.others[:3]:
        other = Explainer(explainer_of(trial.spec))
        answers = [other.explain(one.path).index == one.index for one in labelled(pictures)]
        assert answers == trial.right.tolist()


def test_the_levels_of_the_pictures_themselves_are_tried(pictures: Path) -> None:
    found = check_preprocessing(Explainer(explainer_of(TRUTH)).network, labelled(pictures))
    resized = [cv2.imread(str(one.path)) / 255 for one in labelled(pictures)]
    means = [trial.spec.mean[0] for trial in found.others]
    assert any(abs(mean - np.mean(resized)) < 0.005 for mean in means if mean not in (0.0, 0.485))


def test_crops_are_not_tried_with_levels_that_chance_may_have_chosen(pictures: Path) -> None:
    own = replace(TRUTH, mean=(0.0,) * 3, std=(1.0,) * 3)
    few = labelled(pictures)[::12]
    found = check_preprocessing(Explainer(explainer_of(own)).network, few)
    assert found.own.count < found.others[0].count
    assert found.others[0].chance_against(found.own) > 0.05
    crops = [one.spec for one in found.others if one.spec.resize is not None]
    assert len(crops) == 2
    assert all((crop.mean, crop.std) == (own.mean, own.std) for crop in crops)


def test_chance() -> None:
    """The sign test, by hand: 7 pictures differ, and one of them wins 6."""
    one = Trial(TRUTH, np.array([True] * 6 + [False] + [True] * 9))
    other = Trial(TRUTH, np.array([False] * 6 + [True] + [True] * 9))
    assert one.chance_against(other) == pytest.approx(2 * (comb(7, 6) + comb(7, 7)) / 2**7)
    assert other.chance_against(one) == one.chance_against(other)
    assert one.chance_against(one) == 1
    many = Trial(TRUTH, np.ones(5000, bool))
    assert many.chance_against(Trial(TRUTH, np.zeros(5000, bool))) == 0


@pytest.mark.parametrize(
    ("folders", "labels", "expected"),
    [
        (["Tabby_Cat", "tiger cat", "crane", "2"], LABELS, [0, 1, 2, 3]),  # a label before an index
        (["0", "3"], LABELS, [0, 3]),
        (["0", "03"], None, [0, 3]),
        (["a", "b", "c", "d"], LABELS, [0, 1, 2, 3]),  # as ImageFolder counts
        (["ä", "b", "c", "d"], None, [3, 0, 1, 2]),
    ],
)
def test_the_folder_names_the_class(folders: list[str], labels: tuple[str, ...], expected: list[int]) -> None:
    found = labelled_by_folder([Path(name) / "1.png" for name in folders], labels, 4)
    assert [one.index for one in found] == expected


@pytest.mark.parametrize(
    ("folders", "labels", "message"),
    [
        (["a", "b"], LABELS, "the folder 'a' is no class of the model"),
        (["0", "4"], None, "the folder '4' is no class"),
        (["crane"], ("crane", "Crane", "b", "c"), "the folder 'crane' is the label of 2 classes"),
    ],
)
def test_folders_that_name_no_class(folders: list[str], labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        labelled_by_folder([Path(name) / "1.png" for name in folders], labels, 4)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["0", "1"], [0, 1]),
        (["no", "Yes"], [0, 1]),
        (["Dented_Can", "sound"], [1, 0]),
        (["dented can", "not dented can"], [1, 0]),
        (["1", "rest"], [1, 0]),
        (["a", "no"], [1, 0]),
        (["dented can", "yes"], [1, 0]),  # the label before all else
        (["fine", "broken"], [1, 0]),  # as ImageFolder counts
    ],
)
def test_the_folders_of_a_single_logit_are_yes_and_no(folders: list[str], expected: list[int]) -> None:
    paths = [Path(name) / "1.png" for name in folders]
    for num_classes in (1, None):
        found = labelled_by_folder(paths, ("dented can",), num_classes)
        assert [one.index for one in found] == expected


@pytest.mark.parametrize(
    "folders", [["1"], ["0", "1", "2"], ["a", "b", "c", "d"], ["Dented can", "dented_can"]]
)
def test_a_single_logit_takes_two_folders(folders: list[str]) -> None:
    with pytest.raises(TargetError, match="into a folder 1 and others into a folder 0") as caught:
        labelled_by_folder([Path(name) / "1.png" for name in folders], ("dented can",), 1)
    assert repr(folders[0]) in str(caught.value)


def explainer_with(activation: Activation, classes: int, spec: Preprocessing = TRUTH) -> bytes:
    """Return a network with the first of the classes, and probabilities by an activation."""
    network = trained()
    network = replace(network, weight=network.weight[:classes], offset=network.offset[:classes])
    manifest = replace(tiny_manifest(labels=LABELS[:classes]), input=spec, activation=activation)
    return tiny_explainer(network, manifest)


@pytest.fixture
def yes_and_no(tmp_path: Path) -> Path:
    """Pictures that a network of one class says no and yes to, in folders whose order says which."""
    explainer = Explainer(explainer_with("sigmoid", 1))
    for number, picture in enumerate(drawn()):
        probability = explainer.explain(picture, 0).probability
        assert probability is not None
        folder = tmp_path / "pictures" / ("with" if probability >= 0.5 else "none")
        folder.mkdir(exist_ok=True, parents=True)
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", bgr)[1].tobytes())
    return tmp_path / "pictures"


def test_a_single_logit_answers_yes_from_one_half_on(tmp_path: Path, yes_and_no: Path) -> None:
    counts = [len(list((yes_and_no / name).iterdir())) for name in ("none", "with")]
    assert min(counts) > 10
    model = tmp_path / "model.onnx"
    model.write_bytes(explainer_with("sigmoid", 1))
    result = run("check", model, yes_and_no)
    assert result.stdout.startswith("60 of 60 pictures are answered right")
    assert "'with' is yes, a probability of 0.5 or more, and 'none' is no" in result.stdout
    # What is wrong is found here, too.
    model.write_bytes(explainer_with("sigmoid", 1, replace(TRUTH, mean=(0.0,) * 3, std=(1.0,) * 3)))
    result = run("check", model, yes_and_no)
    assert not result.stdout.startswith("60")
    assert ' "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}' in result.stdout
    # Folders in the other order are answered wrong.
    (yes_and_no / "with").rename(yes_and_no / "a")
    model.write_bytes(explainer_with("sigmoid", 1))
    assert run("check", model, yes_and_no).stdout.startswith("0 of 60")


def test_a_single_logit_without_a_probability_answers_nothing(yes_and_no: Path) -> None:
    network = Explainer(explainer_with("none", 1)).network
    pictures = labelled_by_folder(sorted(yes_and_no.rglob("*.png")), None, 1)
    with pytest.raises(ModelError, match="export it again with --activation sigmoid"):
        check_preprocessing(network, pictures)


def test_of_several_labels_the_most_likely_counts_and_that_is_said(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(explainer_with("sigmoid", 4))
    result = run("check", tmp_path / "model.onnx", pictures)
    assert result.stdout.startswith("60 of 60")
    assert "The most likely class counts as the answer" in result.stdout
    (tmp_path / "model.onnx").write_bytes(explainer_with("softmax", 4))
    assert "most likely" not in run("check", tmp_path / "model.onnx", pictures).stdout


def trial(right: int, **changes: object) -> Trial:
    """Return a trial in which the first of 100 pictures are answered right."""
    return Trial(replace(TRUTH, **changes), np.arange(100) < right)  # type: ignore[arg-type]


def advised(own: Trial, *others: Trial) -> Trial:
    return Check(own, sorted(others, key=lambda one: -one.count), [], 4).advised


def test_advised_is_the_nearest_of_what_is_as_good_as_the_best() -> None:
    own, levels = trial(20), trial(87, mean=(0.1,) * 3)
    both = trial(89, mean=(0.1,) * 3, resize=27, crop="center")
    colours = trial(60, color="BGR")  # as near as the levels, and worse beyond chance
    assert advised(own, levels, both, colours) is levels
    assert advised(own, both, colours) is both
    # Of those that change as many steps the better one, but the whole picture before a crop.
    better = trial(88, mean=(0.2,) * 3)
    assert advised(own, levels, better) is better
    cropped, whole = trial(20, resize=27, crop="center"), trial(87)
    assert advised(cropped, whole, trial(89, resize=24, crop="center")) is whole


def test_what_may_be_better_by_chance_is_not_advised() -> None:
    own, some, more = trial(20), trial(24, color="BGR"), trial(29, color="BGR", mean=(0.1,) * 3)
    assert some.chance_against(own) > 0.05
    assert more.chance_against(some) > 0.05
    assert more.chance_against(own) < 0.05
    assert advised(own, some) is own
    assert advised(own, some, more) is more
    assert advised(own, trial(20, color="BGR"), trial(10, mean=(0.1,) * 3)) is own


def test_the_advice_says_what_the_best_adds() -> None:
    own, best = trial(20), trial(89, mean=(0.1,) * 3, resize=27, crop="center")
    report = _report(Check(own, [best, trial(87, mean=(0.1,) * 3)], [], 4), [], "softmax").splitlines()
    assert report[-6:-3] == [
        "67 more are answered right, which isn't chance (p = 1e-20), with this alone:",
        "mean 0.1, std 0.5",
        "What the best answers beyond that may be chance (p = 0.5).",
    ]
    assert report[-1] == ' "mean": [0.1, 0.1, 0.1], "std": [0.5, 0.5, 0.5]}'


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop": "center"},
        {"resize": (24, 32)},
        {"resize": (24, 32), "crop": "center"},
        {"resize": 24, "crop": "center"},
        {"mean": (0.0,) * 3, "std": (0.003921569,) * 3},
        {"mean": (0.30001,) * 3, "std": (0.25,) * 3},
    ],
)
def test_each_trial_does_something_else(changes: dict[str, object]) -> None:
    own = trial(20, **changes)
    tried = [Trial(spec, own.right) for spec in [*other_levels(own.spec, 0.3, 0.25), *other_crops(own.spec)]]
    differences = [", ".join(one.changes_from(own)) for one in tried]
    assert "" not in differences
    assert len(set(differences)) == len(differences)
    assert own.spec.resize == 24 or any(one.spec.resize == 27 for one in tried)


def test_pictures_that_can_not_tell(tmp_path: Path, pictures: Path) -> None:
    """A network that always gives the same answer, whatever is done to a picture."""
    stuck = replace(trained(), offset=np.array([1000, 0, 0, 0], np.float32))
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_explainer(stuck, replace(tiny_manifest(labels=LABELS), input=TRUTH)))
    result = run("check", model, pictures / "tabby_cat")
    assert "too few or too easy to tell" in result.stdout.splitlines()[-1]
    result = run("check", model, pictures / "Crane")
    assert "None is answered right" in result.stdout.splitlines()[-1]


def test_a_path_that_is_not_there_is_said_first(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(explainer_of(TRUTH))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.png").write_bytes(next(pictures.rglob("*.png")).read_bytes())
    result = run("check", tmp_path / "model.onnx", tmp_path / "own" / "a.png", tmp_path / "nothere")
    assert_one_line_error(result, 1, f"there is no file {tmp_path / 'nothere'}")


def test_pictures_that_can_not_be_read(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    network = Explainer(explainer_of(TRUTH)).network
    broken = [Labelled(tmp_path / "broken.png", 0)]
    found = check_preprocessing(network, [*broken, *labelled(pictures)[:5]])
    assert len(found.own.right) == 5
    assert len(found.problems) == 1
    with pytest.raises(ImageError, match="none of the pictures can be read"):
        check_preprocessing(network, broken)


def test_the_command(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = replace(TRUTH, mean=(0.0,) * 3, std=(1.0,) * 3, stated=frozenset({"resize", "crop"}))
    Path("model.onnx").write_bytes(explainer_of(wrong))
    result = run("check", "model.onnx", pictures)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert " of 60 pictures are answered right" in lines[0]
    assert "(nobody stated mean and std)" in lines[0]
    assert lines[1] == "RGB, resized to 24x32, levels in [0, 1]"
    assert lines[4].split() == ["60", "mean", "0.5,", "std", "0.5"]
    # All of it is in there, so that a file with nothing else leads to what was found.
    fields: dict[str, Any] = json.loads("".join(lines[-2:]))
    mean, std = tuple(fields.pop("mean")), tuple(fields.pop("std"))
    stated = Preprocessing(**fields, mean=mean, std=std)
    assert stated == TRUTH
    assert stated.stated >= {"height", "width", "color", "resize", "crop", "interpolation", "mean", "std"}
    assert max(map(len, lines)) <= 110
    (tmp_path / "pictures" / "2").mkdir(parents=True)
    (tmp_path / "pictures" / "2" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "2" / "good.png").write_bytes(next(pictures.rglob("*.png")).read_bytes())
    result = run("check", "model.onnx", "pictures")
    assert_one_line_error(result, 1, "broken.png")
    assert "of 1 pictures" in result.stdout


def test_the_command_where_nothing_is_better(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(explainer_of(TRUTH))
    result = run("check", tmp_path / "model.onnx", pictures)
    assert result.stdout.startswith("60 of 60 pictures are answered right, with what the file does:\n")
    assert result.stdout.endswith("\n\nNothing that was tried answers more of them right.\n")
