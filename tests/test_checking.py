"""Labelled pictures tell whether a network gets pictures as it was trained to."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import comb
from pathlib import Path

import cv2
import numpy as np
import pytest

from cli_helpers import assert_one_line_error, run
from onnxplain import Explainer, ImageError, Preprocessing, TargetError
from onnxplain.checking import Labelled, Trial, check_preprocessing, labelled_by_folder
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
    assert lines[-1] == '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
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
