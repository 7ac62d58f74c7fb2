"""`onnxplain explain --report`: what the page holds, hostile names too, and where its images lie."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cli_helpers import assert_one_line_error, run, write_explainer, write_picture
from onnxplain import Explainer, extras, report
from onnxplain.cli import _report
from onnxplain.images import read_image
from onnxplain.outputs import LIST, OutputFolder
from onnxplain.overlay import overlay
from onnxplain.report_images import coloured_heat, kept, thumbnail
from tiny_explainer import tiny_explainer, tiny_manifest

EVIL = "</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"


class Parser(HTMLParser):
    """The page's elements, and the text in its scripts, as a browser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and (not kind or kind in (attrs.get("class") or "").split())
        ]

    @property
    def details(self) -> list[dict[str, Any]]:
        """What each card's program reads."""
        return [json.loads(text) for text in self.scripts[:-1]]


def page_of(out: Path) -> Parser:
    return Parser((out / "report.html").read_text(encoding="utf-8"))


def decoded(url: str | None, out: Path) -> Any:
    assert url is not None
    head, _, data = url.partition(",")
    encoded = base64.b64decode(data) if head == "data:image/webp;base64" else (out / url).read_bytes()
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_explainer(tmp_path / "model.onnx")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_picture(tmp_path / "picture.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(4):
        write_picture(tmp_path / "photos" / f"{seed}.png", seed)
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_one_card_a_picture_with_its_classes(model: Path, folder: Path, out: Path) -> None:
    result = run("explain", model, folder, "--top", "3", "--report", "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"The report: {out / 'report.html'}" in result.stdout
    page = page_of(out)
    cards = page.all("li", "card")
    assert [card["data-path"] for card in cards] == [str(folder / f"{seed}.png") for seed in range(4)]
    explainer = Explainer(model)
    for card, details in zip(cards, page.details, strict=True):
        expected = explainer.explain_classes(str(card["data-path"]), top=3)
        assert card["data-class"] == str(expected[0].index)
        assert float(str(card["data-confidence"])) == pytest.approx(expected[0].probability)
        for answer, one in zip(details["answers"], expected, strict=True):
            assert answer["name"] == one.label
            assert answer["score"] == f"{one.probability:.1%}"
            (found,) = answer["maps"]
            assert found["boxes"] == [list(box) for box in one.boxes()][:8]
            assert (out / found["overlay"]).is_file()
    assert not (out / "report-files").exists()


def test_heat_over_the_thumbnail_is_the_overlay(model: Path, tmp_path: Path, out: Path) -> None:
    write_picture(tmp_path / "small.png")
    assert run("explain", model, tmp_path / "small.png", "--report", "-o", out).exit_code == 0
    page = page_of(out)
    small = decoded(page.all("img", "photo")[0]["src"], out)[..., ::-1]
    heat = decoded(page.all("img", "heat")[1]["src"], out)  # before it, the legend's
    one = Explainer(model).explain(tmp_path / "small.png")
    np.testing.assert_allclose(heat[..., 3], one.heatmap * 255, atol=0.51)
    weight = heat[..., 3:].astype(np.float32) / 255 * 0.8
    blended = small * (1 - weight) + heat[..., 2::-1] * weight
    expected = overlay(small.copy(), one.heatmap)
    assert abs(blended - expected).max() < 2  # rounding


def shape_of(encoded: bytes) -> tuple[int, ...]:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED).shape


@pytest.mark.parametrize(
    ("size", "small", "heat"),
    [
        ((30, 40), (30, 40), (30, 40)),
        ((900, 1200), (240, 320), (60, 80)),
        ((1200, 900), (320, 240), (107, 80)),  # its cells are wide: the network sees all of it
        ((100, 1500), (21, 320), (21, 320)),
        ((1200, 30), (320, 8), (320, 8)),
        ((1, 1), (1, 1), (1, 1)),
    ],
)
def test_images_are_small(
    size: tuple[int, int], small: tuple[int, int], heat: tuple[int, int], model: Path
) -> None:
    one = Explainer(model).explain(np.full((*size, 3), 99, np.uint8))
    assert shape_of(thumbnail(one.picture)) == (*small, 3)
    assert shape_of(coloured_heat(one)) == (*heat, 4)


def test_fine_maps_are_as_fine_as_the_thumbnail(model: Path) -> None:
    one = Explainer(model).explain(np.full((600, 800, 3), 99, np.uint8))
    fine = replace(one, cams=(np.ones((24, 32), np.float32),))
    assert shape_of(coloured_heat(fine)) == (240, 320, 4)


def test_a_heatmap_at_another_size_lies_where_it_lay(model: Path) -> None:
    one = Explainer(model).explain(np.random.default_rng(0).integers(0, 256, (600, 480, 3), np.uint8))
    small = cv2.resize(one.heatmap, (120, 150), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(one.heatmap_at((150, 120)), small, atol=0.03)
    np.testing.assert_array_equal(one.heatmap_at((600, 480)), one.heatmap)


def test_several_methods_side_by_side(model: Path, picture: Path, out: Path) -> None:
    methods = ["layercam", "gradcam", "scorecam"]
    flags = [part for method in methods for part in ("--method", method)]
    result = run("explain", model, picture, "--top", "2", *flags, "--report", "-o", out)
    assert result.exit_code == 0, result.output
    page = page_of(out)
    (details,) = page.details
    explainer = Explainer(model)
    first = page.all("img", "heat")[1]["src"]  # before it, the legend's
    for column, method in enumerate(methods):
        expected = explainer.explain_classes(picture, top=2, method=method)
        for answer, one in zip(details["answers"], expected, strict=True):
            assert answer["name"] == one.label
            found = answer["maps"][column]
            heat = decoded(found["heat"] or first, out)
            np.testing.assert_allclose(heat[..., 3], one.heatmap * 255, atol=0.51)
            assert found["boxes"] == [list(box) for box in one.boxes()][:8]
            np.testing.assert_array_equal(read_image(out / found["overlay"]), one.overlay())


@pytest.mark.parametrize("label", [EVIL, "\u202eright to left", "\x00\x1b[31m\nline", "猫" * 500])
def test_hostile_labels_and_names(label: str, tmp_path: Path, out: Path) -> None:
    model = write_explainer(tmp_path / "hostile.onnx", (label,) * 4)
    name = "<b onclick=alert(1)>'\"&lt;{{ 7*7 }}.png"
    try:
        write_picture(tmp_path / "photos" / name)
    except OSError:
        pytest.skip("this file system doesn't take such names")
    assert run("explain", model, tmp_path / "photos", "--top", "2", "--report", "-o", out).exit_code == 0
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Parser(text)
    assert len(page.scripts) == 2  # the card's details and the page's program
    assert not [attrs for _, attrs in page.elements if any(key.startswith("on") for key in attrs)]
    assert {str(attrs["src"])[:5] for attrs in page.all("img") if "src" in attrs} == {"data:"}
    assert "\x00" not in text
    assert "\u202e" not in text
    (card,) = page.all("li", "card")
    assert str(card["data-path"]).endswith(name)
    for answer in page.details[0]["answers"]:
        assert answer["name"] == _report.printable(label)
        assert re.fullmatch(r"[\w./%~-]+", answer["maps"][0]["overlay"])


def test_a_name_that_is_not_unicode(model: Path, tmp_path: Path, out: Path) -> None:
    try:
        picture = write_picture(tmp_path / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert run("explain", model, picture, "--report", "-o", out).exit_code == 0
    (found,) = page_of(out).details[0]["answers"][0]["maps"]
    assert (out / found["overlay"]).is_file()


def rendered(**changes: Any) -> str:
    answer = report.Answer(1, "cat", 2.5, 0.75, [report.Map("data:image/webp;base64,", [(1, 2, 3, 4)])])
    picture = report.Picture("a/b.png", 40, 30, "data:image/webp;base64,", [answer])
    shown = report.Report("model", ["gradcam"], [picture], [("pictures", "1")], "data:image/webp;base64,")
    return report.render(replace(shown, **changes))


def test_the_policy_lets_only_the_pages_own_program_run() -> None:
    text = rendered()
    page = Parser(text)
    (policy,) = (
        str(meta["content"])
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    for source, directive in ((page.scripts[-1], "script-src"), (style, "style-src")):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not [attrs for _, attrs in page.elements if "style" in attrs]


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = rendered().replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in text
    assert "https:" not in text
    assert "innerHTML" not in text
    assert not Parser(text).all("link")


def test_without_probabilities_there_is_no_confidence(model: Path) -> None:
    answer = report.Answer(7, None, 2.5, None, [report.Map("data:,")])
    text = rendered(pictures=[report.Picture("a.png", 4, 3, "data:,", [answer])])
    page = Parser(text)
    assert "class 7" in page.text
    assert "2.50" in page.text
    assert not [attrs for attrs in page.all("input") if attrs.get("id") == "least"]
    assert page.all("li", "card")[0]["data-confidence"] == "2.5"


def unseen(page: Parser) -> list[dict[str, str | None]]:
    """The parts of pictures that are dimmed; the legend's comes first."""
    return page.all("svg", "unseen")


def test_what_the_network_did_not_see_is_dimmed(tmp_path: Path, out: Path) -> None:
    manifest = tiny_manifest()
    cropped = replace(manifest, input=replace(manifest.input, resize=32, crop="center"))
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_explainer(manifest=cropped))
    noise = np.random.default_rng(0).integers(0, 256, (64, 100, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "picture.png"), noise)
    flags = ["--class", "0", "--method", "gradcam", "--report", "-o", out]
    assert run("explain", model, tmp_path / "picture.png", *flags).exit_code == 0
    page = page_of(out)
    assert "not seen by the network" in " ".join(" ".join(page.text).split())
    _, dimmed = unseen(page)
    assert dimmed["viewbox"] == "0 0 100 64"
    # Resized to 32x50, of which the middle 24x32 is taken: all but 4 rows and 9 columns a side.
    assert "M0 0H100V64H0ZM18 8H82V56H18Z" in [path["d"] for path in page.all("path")]
    hot = Explainer(model).explain(noise, 0).heatmap > 0
    assert not hot[:8].any()
    assert not hot[56:].any()
    assert not hot[:, :18].any()
    assert not hot[:, 82:].any()
    assert hot[8:56, 18:82].any()


def test_where_all_is_seen_nothing_is_dimmed(model: Path, picture: Path, out: Path) -> None:
    assert run("explain", model, picture, "--report", "-o", out).exit_code == 0
    page = page_of(out)
    assert unseen(page) == []
    assert "not seen" not in " ".join(page.text)
    assert not unseen(Parser(rendered()))


def test_classes_asked_for_are_not_called_predictions(model: Path, picture: Path, out: Path) -> None:
    assert (
        run("explain", model, picture, "--class", "0", "--class", "1", "--report", "-o", out).exit_code == 0
    )
    page = page_of(out)
    assert "Likeliest class" in page.text
    assert "Predicted class" not in page.text
    logits = [float(answer["logit"]) for answer in page.details[0]["answers"]]
    assert logits == sorted(logits, reverse=True)


def test_many_pictures_lie_beside_the_page(
    model: Path, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_report, "EMBEDDED_PICTURES", 3)
    assert run("explain", model, folder, "--top", "2", "--report", "-o", out).exit_code == 0
    page = page_of(out)
    for photo in page.all("img", "photo")[:4]:
        assert str(photo["src"]).startswith("report-files/")
        assert photo["loading"] == "lazy"
        assert decoded(photo["src"], out).shape == (30, 40, 3)
    heats = [one["src"] for one in page.all("img", "heat")[1:5]]
    heats += [answer["maps"][0]["heat"] for one in page.details for answer in one["answers"]]
    assert {decoded(heat, out).shape for heat in heats if heat} == {(30, 40, 4)}
    assert len([heat for heat in heats if heat]) == 8
    assert len(list((out / "report-files").iterdir())) <= 12
    assert len((out / "report.html").read_bytes()) < 100_000


def test_many_maps_lie_beside_the_page_too(
    model: Path, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_report, "EMBEDDED_MAPS", 11)
    assert run("explain", model, folder, "--top", "3", "--report", "-o", out).exit_code == 0
    assert (out / "report-files").is_dir()


def test_what_an_earlier_report_left_is_removed(
    model: Path, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_report, "EMBEDDED_PICTURES", 1)
        assert run("explain", model, folder, "--report", "-o", out).exit_code == 0
        before = {path.name for path in (out / "report-files").iterdir()}
        (out / "report-files" / "mine.txt").write_text("not a report's")
        (folder / "0.png").unlink()
        assert run("explain", model, folder, "--report", "-o", out).exit_code == 0
        after = {path.name for path in (out / "report-files").iterdir()}
        assert after - {"mine.txt"} < before
        assert "mine.txt" in after
    assert run("explain", model, folder, "--report", "-o", out).exit_code == 0
    assert [path.name for path in (out / "report-files").iterdir()] == ["mine.txt"]
    (out / "report-files" / "mine.txt").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(_report, "EMBEDDED_PICTURES", 1)
        assert run("explain", model, folder, "--report", "-o", out).exit_code == 0
    assert run("explain", model, folder, "--report", "-o", out).exit_code == 0
    assert not (out / "report-files").exists()


def test_an_image_is_kept_once(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, "explain")
    names = [kept(image, folder, "files") for image in (b"one", b"one", b"two")]
    assert names[0] == names[1] != names[2]
    assert len(list((tmp_path / "files").iterdir())) == 2
    assert (tmp_path / names[0]).read_bytes() == b"one"


def test_an_interruption_leaves_a_report_of_what_was_done(
    model: Path, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = Explainer.explain_classes

    def interrupted(self: Explainer, image: Any, *args: Any, **options: Any) -> Any:
        if image == folder / "2.png":
            raise KeyboardInterrupt
        return explain(self, image, *args, **options)

    monkeypatch.setattr(Explainer, "explain_classes", interrupted)
    assert run("explain", model, folder, "--report", "-o", out).exit_code == 130
    page = page_of(out)
    assert len(page.all("li", "card")) == 2
    assert "Interrupted: 2 of 4 pictures weren't explained." in page.text


def test_pictures_that_are_left_out_are_named(model: Path, folder: Path, out: Path) -> None:
    (folder / "0.png").write_text("not a picture")
    result = run("explain", model, folder, "--report", "-o", out)
    assert_one_line_error(result, 1, "0.png")
    page = page_of(out)
    assert len(page.all("li", "card")) == 3
    assert any("0.png is damaged, or is not a picture" in text for text in page.text)


@pytest.mark.parametrize("extra", [[], ["--report"]])
def test_without_overlays(extra: list[str], model: Path, tmp_path: Path, out: Path) -> None:
    """Large pictures are decoded at a reduced scale then, and their thumbnails are made of that."""
    large = np.zeros((1200, 1600, 3), np.uint8)
    large[200:500, 900:1300] = 255
    cv2.imwrite(str(tmp_path / "large.jpg"), large)
    flags = ["--no-overlays", "--method", "gradcam", "--method", "layercam", *extra]
    assert run("explain", model, tmp_path / "large.jpg", *flags, "-o", out).exit_code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {LIST, "explanations.jsonl", *(["report.html"] if extra else [])}
    if extra:
        page = page_of(out)
        photo = page.all("img", "photo")[0]
        assert (photo["width"], photo["height"]) == ("1600", "1200")
        assert decoded(photo["src"], out).shape == (240, 320, 3)
        assert page.details[0]["answers"][0]["maps"][0]["overlay"] is None


def test_missing_jinja2(model: Path, picture: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "jinja2" else find_spec(name))
    line = 'jinja2 is not installed; run: python -m pip install "onnxplain[report]"'
    assert_one_line_error(run("explain", model, picture, "--report", "-o", out), 1, line)
    assert not out.exists()
    assert run("explain", model, picture, "-o", out).exit_code == 0


def test_an_empty_folder_is_one_line(model: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("explain", model, tmp_path / "empty", "--report", "-o", out)
    assert_one_line_error(result, 1, "no pictures in", "empty")
    assert not out.exists()


def test_no_picture_no_report(model: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "bad.png").write_text("not a picture")
    assert_one_line_error(run("explain", model, tmp_path / "bad.png", "--report", "-o", out), 1, "bad.png")
    assert not out.exists()


def test_facts_under_the_title(model: Path, picture: Path, out: Path) -> None:
    flags = ["--method", "gradcam", "--method", "scorecam", "--aug-smooth", "--common-scale"]
    assert run("explain", model, picture, *flags, "--report", "-o", out).exit_code == 0
    text = " ".join(" ".join(page_of(out).text).split())
    for words in (
        "picture 1",
        "methods gradcam, scorecam",
        "layer features",
        "aug smooth yes",
        "common scale yes",
    ):
        assert words in text
    assert "eigen smooth" not in text
