"""The report of `onnxplain explain --report` in headless Chromium: mouse and keyboard, phones, offline.

Skipped where Chromium or its driver (the package playwright) aren't there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from chromium import wait_until
from PIL import Image

from cli_helpers import run, write_explainer
from onnxplain_models import explainer_file
from tiny_explainer import tiny_explainer, tiny_manifest

pytestmark = pytest.mark.slow

HOSTILE = '<img src=x onerror="window.hacked=1">\'&amp;{{ 7*7 }}'
TOP, METHODS = 3, ("gradcam", "layercam")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def write_pictures(folder: Path, count: int) -> Path:
    """Write so many parts of scikit-image's photographs."""
    photographs = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    folder.mkdir()
    for number in range(count):
        photograph = photographs[number % 3]
        top, left = number * 7 % 150, number * 13 % 200
        part = photograph[top : top + 150, left : left + (150 if number % 2 else 230)]
        Image.fromarray(part).save(folder / f"{number:04}.jpg")
    return folder


def explain(model: Path, pictures: Path, out: Path, *flags: str) -> Path:
    result = run("explain", model, pictures, "--report", "-o", out, *flags)
    assert result.exit_code == 0, result.output
    return out / "report.html"


@pytest.fixture(scope="module")
def report(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 41 pictures by two methods; made only where there is a browser for it."""
    folder = tmp_path_factory.mktemp("report")
    model = folder / "vgg_cam.onnx"
    model.write_bytes(explainer_file("vgg_cam").read_bytes())
    flags = ["--top", str(TOP), *(part for method in METHODS for part in ("--method", method))]
    return explain(model, write_pictures(folder / "photos", 41), folder / "out", *flags)


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Open a page from disk in a new profile; what it does wrong, or asks the network for, fails the test."""
    contexts, problems, requests = [], [], []

    def visit(page: Path, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.on("request", lambda request: requests.append(request.url))
        tab = context.new_page()
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.goto(page.as_uri())
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def shown(tab: Any) -> Any:
    return tab.locator(".card:not([hidden])")


def wait_for_images(images: Any) -> None:
    """Wait until these, which are in view, are loaded; one that isn't in half a minute fails the test.

    Playwright's own `wait_for_function` evaluates a string in the page, which the page's policy forbids.
    """
    assert images.count() > 0
    images.evaluate_all(
        """images => {
          const late = new Promise((_, reject) => setTimeout(() => reject(new Error("not loaded")), 30000));
          return Promise.race([Promise.all(images.map(image => image.decode())), late]);
        }"""
    )


def names(tab: Any) -> list[str]:
    return [str(name) for name in shown(tab).locator(".file").all_text_contents()]


def focused(tab: Any) -> str:
    """What has the focus: an id, a card's file name, or what its kind is called."""
    return str(
        tab.evaluate(
            """() => {
              const at = document.activeElement;
              return at.id || at.closest(".card")?.querySelector(".file").textContent || at.localName;
            }"""
        )
    )


def wait_for_focus(tab: Any, name: str) -> None:
    """Wait until the focus is there: a dialog's `close` event, which moves it, comes after it is gone."""
    wait_until(lambda: focused(tab) == name, lambda: f"the focus is at {focused(tab)}, not at {name}", 30)


def test_it_opens_whole(visit: Visit, report: Path) -> None:
    tab = visit(report)
    assert tab.evaluate("document.readyState") == "complete"
    assert shown(tab).count() == 41
    wait_for_images(tab.locator(".card .photo").first)
    assert tab.inner_text("#count") == "41 pictures"
    broken = "[...document.images].filter(one => one.complete && !one.naturalWidth).length"
    assert tab.evaluate(broken) == 0
    assert tab.evaluate("document.querySelector('.card .photo').naturalWidth") == 230


def test_the_slider_sets_all_heatmaps(visit: Visit, report: Path) -> None:
    tab = visit(report)
    opacities = (
        "[...new Set([...document.querySelectorAll('.heat')].map(one => getComputedStyle(one).opacity))]"
    )
    assert tab.evaluate(opacities) == ["0.8"]
    before = shown(tab).first.screenshot()
    tab.locator(".view [data-sets=opacity]").fill("0")
    assert tab.evaluate(opacities) == ["0"]
    assert tab.inner_text(".view [data-shows=opacity]") == "0%"
    assert shown(tab).first.screenshot() != before
    shown(tab).first.click()
    assert tab.locator("dialog [data-sets=opacity]").input_value() == "0"
    tab.locator("dialog [data-sets=opacity]").fill("100")
    assert tab.evaluate(opacities) == ["1"]
    assert tab.locator(".view [data-sets=opacity]").input_value() == "100"


def test_boxes(visit: Visit, report: Path) -> None:
    tab = visit(report)
    box = shown(tab).first.locator("rect").nth(0)
    svg = tab.locator(".card .boxes").first
    assert not svg.is_visible()
    tab.get_by_label("Boxes").first.check()
    assert svg.is_visible()
    assert box.get_attribute("width")
    shown(tab).first.click()
    assert tab.locator("dialog .boxes rect").first.is_visible()
    tab.locator("dialog [data-sets=boxes]").uncheck()
    assert not tab.locator("dialog .boxes").first.is_visible()
    assert not svg.is_visible()


def test_what_the_network_did_not_see_is_dimmed(visit: Visit, tmp_path: Path) -> None:
    manifest = tiny_manifest()
    cropped = replace(manifest, input=replace(manifest.input, resize=32, crop="center"))
    (tmp_path / "model.onnx").write_bytes(tiny_explainer(manifest=cropped))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (200, 160), "white").save(tmp_path / "photos" / "white.png")
    page = explain(tmp_path / "model.onnx", tmp_path / "photos", tmp_path / "out")
    wide = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    width, screen = visit(page, **PHONE).evaluate(wide)
    assert width <= screen
    tab = visit(page)
    tab.locator(".view [data-sets=opacity]").fill("0")
    assert "not seen by the network" in tab.inner_text(".legend")
    shown(tab).first.click()
    for stage in (tab.locator(".card .stage"), tab.locator("dialog .stage")):
        wait_for_images(stage.locator(".photo"))
        photo, dimmed = (stage.locator(kind).bounding_box() for kind in (".photo", ".unseen"))
        assert photo == dimmed
    taken = tab.locator("dialog .stage").screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(taken)).convert("L"))
    height, width = pixels.shape
    assert pixels[height // 2, width // 2] == 255
    for row, column in ((3, width // 2), (-4, width // 2), (height // 2, 3), (height // 2, -4)):
        assert pixels[row, column] < 200


def test_filters(visit: Visit, report: Path) -> None:
    tab = visit(report)
    tab.locator("#search").fill("/photos/003")
    assert names(tab) == [f"003{digit}.jpg" for digit in range(10)]
    assert tab.inner_text("#count") == "10 of 41 pictures"
    tab.locator("#search").fill("no such name")
    assert shown(tab).count() == 0
    tab.get_by_role("button", name="Show all").click()
    assert shown(tab).count() == 41
    assert focused(tab) == "search"
    option = tab.locator("#class option").nth(1)
    index = option.get_attribute("value")
    count = int(option.text_content().rpartition("(")[2].rstrip(")"))
    tab.locator("#class").select_option(index)
    assert shown(tab).count() == count < 41
    assert tab.evaluate(
        "index => shown().every(card => card.dataset.class === index)",
        index,
    )
    tab.locator("#class").select_option("")
    tab.locator("#least").fill("50")
    confidences = [float(card.get_attribute("data-confidence")) for card in shown(tab).all()]
    assert 0 < len(confidences) < 41
    assert min(confidences) >= 0.5
    assert tab.inner_text("#least-shown") == "50%"


def test_sorting(visit: Visit, report: Path) -> None:
    tab = visit(report)
    given = names(tab)
    for order, sign in (("most", -1), ("least", 1)):
        tab.locator("#sort").select_option(order)
        confidences = [float(card.get_attribute("data-confidence")) for card in shown(tab).all()]
        assert confidences == sorted(confidences, key=lambda value, sign=sign: sign * value)
    tab.locator("#sort").select_option("order")
    assert names(tab) == given


def test_the_methods_on_the_cards(visit: Visit, report: Path) -> None:
    tab = visit(report)
    heat = shown(tab).nth(5).locator(".heat")
    first = heat.get_attribute("src")
    tab.locator("#method").select_option("1")
    other = heat.get_attribute("src")
    assert first != other
    shown(tab).nth(5).click()
    of_the_class = tab.locator("dialog .class").first.locator(".heat")
    assert [of_the_class.nth(n).get_attribute("src") for n in range(2)] == [first, other]
    tab.keyboard.press("Escape")
    tab.locator("#method").select_option("0")
    assert heat.get_attribute("src") == first


def test_an_opened_card_has_classes_and_methods_side_by_side(visit: Visit, report: Path) -> None:
    tab = visit(report)
    shown(tab).nth(2).click()
    classes = tab.locator("dialog .class")
    assert classes.count() == TOP
    card = shown(tab).nth(2)
    assert classes.locator("h3 .label").all_text_contents() == card.locator(".label").all_text_contents()
    for number in range(TOP):
        maps = classes.nth(number).locator("figure")
        assert tuple(maps.locator("figcaption span").all_text_contents()) == METHODS
        tops = {round(maps.nth(n).bounding_box()["y"]) for n in range(len(METHODS))}
        assert len(tops) == 1
        assert "by layercam" in maps.nth(1).locator(".heat").get_attribute("alt")
    link = classes.first.locator("a").first
    assert Path(report.parent / link.get_attribute("href")).is_file()
    photo, heat, svg = (
        tab.locator(f"dialog {kind}").first.bounding_box() for kind in (".photo", ".heat", ".boxes")
    )
    assert photo == heat
    assert svg is None or svg == photo  # boxes are hidden


def test_by_keyboard(visit: Visit, report: Path) -> None:
    tab = visit(report)
    order = []
    for _ in range(9):
        tab.keyboard.press("Tab")
        order.append(focused(tab))
    assert order == ["a", "search", "class", "least", "sort", "method", "input", "input", "0000.jpg"]
    outline = "getComputedStyle(document.activeElement.closest('.card')).outlineStyle"
    assert tab.evaluate(outline) == "solid"
    tab.keyboard.press("ArrowRight")
    assert focused(tab) == "0001.jpg"
    columns = tab.evaluate(
        "getComputedStyle(document.getElementById('cards')).gridTemplateColumns.split(' ').length"
    )
    tab.keyboard.press("ArrowDown")
    assert focused(tab) == f"{1 + columns:04}.jpg"
    tab.keyboard.press("Enter")
    title = tab.locator("#opened-name")
    assert title.inner_text() == f"{1 + columns:04}.jpg"
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowLeft")
    assert title.inner_text() == f"{2 + columns:04}.jpg"
    assert tab.inner_text("#opened-place").startswith(f"{3 + columns} of 41 · ")
    tab.keyboard.press("End")
    assert title.inner_text() == "0040.jpg"
    assert tab.locator("#next").is_disabled()
    tab.keyboard.press("ArrowRight")
    assert title.inner_text() == "0040.jpg"
    tab.keyboard.press("Home")
    assert title.inner_text() == "0000.jpg"
    slider = tab.locator("dialog [data-sets=opacity]")
    slider.focus()
    tab.keyboard.press("ArrowLeft")  # the slider's own
    assert (slider.input_value(), title.inner_text()) == ("79", "0000.jpg")
    tab.keyboard.press("Escape")
    assert not tab.locator("dialog").is_visible()
    wait_for_focus(tab, "0000.jpg")


def test_the_arrow_keys_pass_over_what_is_filtered_out(visit: Visit, report: Path) -> None:
    tab = visit(report)
    tab.locator("#search").fill("5.jpg")
    shown(tab).first.click()
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#opened-name") == "0015.jpg"
    assert tab.inner_text("#opened-place").startswith("2 of 4 · ")
    tab.keyboard.press("Escape")
    wait_for_focus(tab, "0015.jpg")


def test_a_picture_opened_as_another_closes_is_shown(visit: Visit, report: Path) -> None:
    """The dialog's `close` event comes after it is open again."""
    tab = visit(report)
    shown(tab).first.click()
    tab.evaluate(
        """() => new Promise((resolve) => {
          opened.addEventListener("close", resolve);
          opened.close();
          open(shown()[1]);
        })"""
    )
    assert tab.locator("dialog .class").count() == TOP
    assert tab.inner_text("#opened-name") == "0001.jpg"
    assert focused(tab) == "opened-name"


def test_everything_has_a_name(visit: Visit, report: Path) -> None:
    tab = visit(report)
    shown(tab).first.click()
    unnamed = """() => {
      const all = [...document.querySelectorAll("button, input, select, dialog a, dialog .heat")];
      const name = (one) => one.getAttribute("aria-label") || one.alt || one.textContent.trim()
        || one.labels?.[0]?.textContent.trim();
      return all.filter((one) => !name(one)).map((one) => one.outerHTML);
    }"""
    assert tab.evaluate(unnamed) == []
    first = shown(tab).first
    label = first.locator("button").get_attribute("aria-label")
    assert label.startswith("0000.jpg: ")
    assert label.endswith("%")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE])
def test_it_fits_screens_and_schemes(device: dict[str, Any], scheme: str, visit: Visit, report: Path) -> None:
    tab = visit(report, color_scheme=scheme, **device)
    wide = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    width, screen = tab.evaluate(wide)
    assert width <= screen
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(level) for level in background[4:-1].split(","))
    assert (brightness > 600) == (scheme == "light")
    assert tab.locator("#search").is_visible() == (not device)
    if device:
        tab.get_by_text("Search, filter and sort").tap()
        assert tab.locator("#search").is_visible()
    shown(tab).first.click()
    width, screen = tab.evaluate("[document.querySelector('dialog').scrollWidth, innerWidth]")
    assert width <= screen
    tab.locator("#next").click()
    assert tab.inner_text("#opened-name") == "0001.jpg"
    tab.locator("#close").click()
    assert not tab.locator("dialog").is_visible()


def test_hostile_names_and_labels_are_text(visit: Visit, tmp_path: Path) -> None:
    labels = (f"{HOSTILE}</script><script>window.hacked=2</script>",) * 4
    model = write_explainer(tmp_path / "hostile.onnx", labels)
    write_pictures(tmp_path / "photos", 2)
    try:
        (tmp_path / "photos" / "0000.jpg").rename(tmp_path / "photos" / f"{HOSTILE}.jpg")
    except OSError:
        pytest.skip("this file system doesn't take such names")
    tab = visit(explain(model, tmp_path / "photos", tmp_path / "out"))
    assert f"{HOSTILE}.jpg" in names(tab)
    tab.locator("#search").fill("onerror")
    shown(tab).first.click()
    assert tab.inner_text("#opened-name") == f"{HOSTILE}.jpg"
    assert tab.inner_text("dialog .class .label") == labels[0]
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("img[src=x]").count() == 0


def test_no_other_program_runs(visit: Visit, report: Path, tmp_path: Path) -> None:
    """The page's policy stops what would get into it all the same."""
    text = report.read_text(encoding="utf-8")
    for place in ("<script>window.hacked = 1</script>", '<b onclick="window.hacked = 2" id="bad">b</b>'):
        text = text.replace("<footer>", f"{place}<footer>")
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    context = visit(report).context  # the messages about what is stopped are errors: not of that tab
    tab = context.new_page()
    tab.goto((tmp_path / "report.html").as_uri())
    tab.locator("#bad").click()
    assert tab.evaluate("window.hacked") is None
    assert shown(tab).count() == 41


def test_a_thousand_pictures(visit: Visit, tmp_path: Path) -> None:
    model = write_explainer(tmp_path / "model.onnx")
    pictures = write_pictures(tmp_path / "photos", 1000)
    page = explain(model, pictures, tmp_path / "out", "--no-overlays", "--top", "2")
    assert page.stat().st_size < 4_000_000
    tab = visit(page)
    assert shown(tab).count() == 1000
    images = "performance.getEntriesByType('resource').filter(one => one.name.endsWith('.webp')).length"
    wait_for_images(tab.locator(".card .photo").first)
    assert tab.evaluate(images) < 500  # loaded as they come into view
    tab.locator("#search").fill("0999")
    assert names(tab) == ["0999.jpg"]
    wait_for_images(shown(tab).locator(".heat"))
    tab.locator("#search").fill("")
    tab.locator("#sort").select_option("most")
    shown(tab).first.click()
    assert tab.locator("dialog .class").count() == 2
    wait_for_images(tab.locator("dialog img"))
