"""The page of `onnxplain web` in headless Chromium: against Python, offline, by keyboard, on a phone.

Skipped where Chromium, its driver (the package playwright) or npm aren't there.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import skimage.data
import torch
from chromium import wait_until
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.models import mobilenet_v2

from onnxplain import Explainer, OnnxplainError, web_page
from onnxplain.web_page import fetch_ort_web, write_page
from onnxplain_export import export
from page_server import FOR_THREADS, Server
from test_web import HOSTILE, LABELS, write_model

pytestmark = pytest.mark.slow

REALWORLD = Path(__file__).resolve().parents[2] / "shared" / "realworld"
SECONDS = 60

LISTEN = """
window.explained = [];
document.addEventListener("explained", ({ detail }) => explained.push(detail));
"""
# Heatmaps are long, and go to Python as text.
READ = """
number => {
  const { heatmap, logits, ...others } = explained[number];
  const bytes = new Uint8Array(heatmap.buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) {
    text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  }
  return { ...others, heatmap: btoa(text), logits: [...logits] };
}
"""


class Page:
    """A tab of the browser that shows the page."""

    def __init__(self, tab: Any, url: str, server: Server | None = None) -> None:
        self.tab, self.url, self.server = tab, url, server
        self.requests: list[str] = []
        self.problems: list[str] = []
        tab.set_default_timeout(1000 * SECONDS)
        tab.add_init_script(LISTEN)
        tab.context.on("request", lambda request: self.requests.append(request.url))
        tab.on("pageerror", lambda error: self.problems.append(str(error)))
        tab.goto(url)

    def stop_server(self) -> None:
        assert self.server is not None
        self.server.stop()

    def text(self, selector: str) -> str:
        return str(self.tab.inner_text(selector))

    def wait_for(self, selector: str) -> None:
        self.tab.wait_for_selector(selector)

    def wait_until_kept(self) -> None:
        """Wait until the page works without a network."""
        self.wait_for("#facts li:has-text('works offline')")

    def count(self) -> int:
        return int(self.tab.evaluate("explained.length"))

    def wait_until(self, expression: str) -> None:
        """Wait until a script's expression is true."""
        wait_until(lambda: bool(self.tab.evaluate(expression)), lambda: self.text("body"), SECONDS)

    def wait_for_count(self, count: int) -> None:
        self.wait_until(f"explained.length >= {count}")

    def explained(self, count: int) -> dict[str, Any]:
        """Wait for the explanation of that number, and return it."""
        self.wait_for_count(count)
        found = dict(self.tab.evaluate(READ, count - 1))
        heatmap = np.frombuffer(base64.b64decode(found["heatmap"]), np.float32)
        return found | {"heatmap": heatmap.reshape(found["height"], found["width"])}

    def open(self, path: Path) -> None:
        self.tab.set_input_files("#file", path)

    def error(self) -> str:
        self.wait_for("#error:not(:empty)")
        return self.text("#error")


@pytest.fixture(scope="module")
def ort_web(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetched once, and only where there is a browser for it."""
    try:
        return fetch_ort_web(tmp_path_factory.mktemp("ort"))
    except OnnxplainError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture
def folder(model: Path, ort_web: Path, tmp_path: Path) -> Path:
    """The page's, for a test to change."""
    write_page(model, tmp_path / "page", ort_web)
    return tmp_path / "page"


Visit = Callable[..., Page]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Show a folder's page in a new profile; what the page does wrong fails the test."""
    servers, contexts, pages = [], [], []

    def visit(
        folder: Path, *, headers: dict[str, str] | None = None, script: str = "", **options: Any
    ) -> Page:
        server = Server(folder, headers)
        servers.append(server)
        context = browser.new_context(**options)
        contexts.append(context)
        if script:
            context.add_init_script(script)
        pages.append(Page(context.new_page(), server.url, server))
        return pages[-1]

    yield visit
    for context in contexts:
        context.close()
    for server in servers:
        server.stop()
    for page in pages:
        assert page.problems == []
        assert {url for url in page.requests if not url.startswith(page.url)} == set()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(skimage.data.chelsea()[60:180:2, 100:260:2]).save(path)
    return path


def assert_python_agrees(
    found: dict[str, Any], model: Path, picture: Path, index: int | None = None, method: str = "gradcam"
) -> None:
    expected = Explainer(model).explain(picture, index, method=method)
    assert found["index"] == expected.index
    np.testing.assert_allclose(found["logits"][expected.index], expected.logit, atol=1e-3)
    np.testing.assert_allclose(found["heatmap"], expected.heatmap, rtol=0, atol=1e-3)


def test_each_class_as_in_python(visit: Visit, folder: Path, model: Path, picture: Path) -> None:
    page = visit(folder)
    page.open(picture)
    top = page.explained(1)
    assert_python_agrees(top, model, picture)
    assert top["heatmap"].max() == 1
    others = [index for index in range(5) if index != top["index"]]
    for number, index in enumerate([*others, top["index"]], start=2):
        page.tab.locator(f'#classes input[value="{index}"]').check()
        assert_python_agrees(page.explained(number), model, picture, index)
        assert page.text("#status").startswith(f"{LABELS[index]}, ")
        assert page.tab.locator("#target").input_value() == str(index)
    page.tab.select_option("#target", "-1")
    assert_python_agrees(page.explained(7), model, picture)


def test_answers_are_pythons(visit: Visit, folder: Path, model: Path, picture: Path) -> None:
    page = visit(folder)
    page.open(picture)
    page.explained(1)
    expected = Explainer(model).explain_classes(picture, top=5)
    rows = page.tab.locator(".answer")
    assert [rows.nth(n).locator(".name").text_content() for n in range(5)] == [one.label for one in expected]
    for n, one in enumerate(expected):
        assert one.probability is not None
        shown = float(rows.nth(n).locator(".score").inner_text().removesuffix("%"))
        assert shown == pytest.approx(100 * one.probability, abs=0.06)


@pytest.mark.parametrize(
    ("changes", "index", "name", "score"),
    [
        ({"activation": "sigmoid"}, 2, "plain", lambda logit: f"{100 / (1 + np.exp(-logit)):.1f}%"),
        ({"activation": "none", "labels": None}, 3, "class 3", lambda logit: f"{logit:.2f}"),
    ],
)
def test_other_activations(
    changes: dict[str, Any],
    index: int,
    name: str,
    score: Callable[[float], str],
    visit: Visit,
    folder: Path,
    picture: Path,
) -> None:
    about = json.loads((folder / "explainer.json").read_bytes())
    (folder / "explainer.json").write_text(json.dumps(about | changes))
    page = visit(folder)
    page.open(picture)
    logit = page.explained(1)["logits"][index]
    row = page.tab.locator(".answer", has=page.tab.locator(f'[value="{index}"]'))
    assert row.locator(".name").inner_text() == name
    assert row.locator(".score").inner_text() == score(logit)


def encoded(picture: NDArray[np.uint8], **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, **({"format": "PNG"} | options))
    return file.getvalue()


def turned() -> bytes:
    """A picture that EXIF says to turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(skimage.data.chelsea()[60:180:2, 100:260:2], exif=exif)


def transparent() -> bytes:
    rows = np.linspace(0, 255, 60, dtype=np.uint8)[:, None]
    alpha = np.broadcast_to(rows, (60, 80))
    return encoded(np.dstack([skimage.data.chelsea()[60:180:2, 100:260:2], alpha]))


def linear() -> bytes:
    """A picture whose colours are said to be others than those of screens."""
    told = PngInfo()
    told.add(b"gAMA", (100_000).to_bytes(4, "big"))
    return encoded(skimage.data.chelsea()[60:180:2, 100:260:2], pnginfo=told)


def deep() -> bytes:
    levels = skimage.data.camera()[::8, ::6].astype(np.uint16) * 257
    return cv2.imencode(".png", levels)[1].tobytes()


PICTURES = {
    "linear.png": linear,
    "deep.png": deep,
    "turned.png": turned,
    "transparent.png": transparent,
    "grey.png": lambda: encoded(skimage.data.camera()[::8, ::6]),
    "palette.gif": lambda: encoded(skimage.data.camera()[::8, ::6], format="GIF"),
    "photo.jpg": lambda: encoded(skimage.data.chelsea(), format="JPEG", quality=90),
    "small.webp": lambda: encoded(skimage.data.chelsea()[::4, ::4], format="WEBP", lossless=True),
    "wide.png": lambda: encoded(skimage.data.chelsea()[:3]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_many_kinds(name: str, visit: Visit, folder: Path, model: Path, tmp_path: Path) -> None:
    picture = tmp_path / name
    picture.write_bytes(PICTURES[name]())
    page = visit(folder)
    page.open(picture)
    assert_python_agrees(page.explained(1), model, picture)


def test_a_picture_of_many_pixels_is_scaled_down(visit: Visit, folder: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    cv2.imwrite(str(large), np.full((4000, 5000), 99, np.uint8))
    page = visit(folder)
    page.open(large)
    page.wait_for_count(1)
    assert page.tab.evaluate("[explained[0].height, explained[0].width]") == [3577, 4472]
    assert "The picture was scaled down to 4472 × 3577." in page.text("#status")


def test_a_dropped_picture(visit: Visit, folder: Path, model: Path, picture: Path) -> None:
    page = visit(folder)
    data = page.tab.evaluate_handle(
        """bytes => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "dropped.png"));
          return data;
        }""",
        list(picture.read_bytes()),
    )
    page.tab.dispatch_event("#stage", "drop", {"dataTransfer": data})
    assert_python_agrees(page.explained(1), model, picture)
    page.tab.dispatch_event(
        "#stage", "drop", {"dataTransfer": page.tab.evaluate_handle("new DataTransfer()")}
    )
    assert "not a file" in page.error()


def test_the_camera(visit: Visit, folder: Path) -> None:
    """It explains frame after frame; a class that is chosen stays chosen; the last frame stays."""
    page = visit(folder, permissions=["camera"])
    page.tab.get_by_role("button", name="Use the camera").click()
    found = page.explained(3)
    assert (found["height"], found["width"]) == (480, 640)
    page.tab.select_option("#target", "2")
    assert page.explained(page.count() + 3)["index"] == 2
    page.tab.get_by_role("button", name="Stop the camera").click()
    page.wait_for("button:has-text('Use the camera')")
    page.wait_until("!explaining")
    page.tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert not page.tab.evaluate("explaining")  # no further frame, which would be taken at once
    assert page.tab.is_visible("#photo")


def test_the_camera_stops_while_an_answer_is_under_way(visit: Visit, folder: Path, picture: Path) -> None:
    """The answer is shown over the frame that it is for."""
    page = visit(folder, permissions=["camera"])
    page.open(picture)
    page.wait_for_count(1)
    page.tab.evaluate(
        """() => {
          const own = ask;
          ask = async (question, transfer) => {
            window.sent = question.pixels.data.slice();
            const answer = await own(question, transfer);
            await new Promise((resolve) => (window.release = resolve));
            return answer;
          };
        }"""
    )
    page.tab.get_by_role("button", name="Use the camera").click()
    page.wait_until("!!window.release")
    page.tab.get_by_role("button", name="Stop the camera").click()
    page.tab.evaluate("release()")
    found = page.explained(2)
    assert (found["height"], found["width"]) == (480, 640)
    for canvas in ("photo", "heat"):
        assert page.tab.evaluate(f"[$('{canvas}').height, $('{canvas}').width]") == [480, 640]
    assert page.tab.evaluate(
        """() => {
          const { data } = $("photo").getContext("2d").getImageData(0, 0, 640, 480);
          return data.length === sent.length && data.every((value, at) => value === sent[at]);
        }"""
    )


def test_a_class_chosen_just_before_the_camera_stops(visit: Visit, folder: Path) -> None:
    page = visit(folder, permissions=["camera"])
    page.tab.get_by_role("button", name="Use the camera").click()
    page.wait_for_count(1)
    for index in (0, 1, 2):
        page.tab.evaluate(f"choose({index}); stopCamera()")
        page.wait_until("!explaining")
        assert page.explained(page.count())["index"] == index
        page.tab.get_by_role("button", name="Use the camera").click()
        page.wait_for_count(page.count() + 1)


def test_a_picture_chosen_while_the_camera_starts(
    visit: Visit, folder: Path, model: Path, picture: Path
) -> None:
    script = """
    const own = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (options) => {
      window.stream = await own(options);
      await new Promise((resolve) => (window.grant = resolve));
      return stream;
    };
    """
    page = visit(folder, permissions=["camera"], script=script)
    page.tab.get_by_role("button", name="Use the camera").click()
    page.wait_until("!!window.grant")
    page.open(picture)
    assert_python_agrees(page.explained(1), model, picture)
    page.tab.evaluate("grant()")
    page.wait_until("stream.getTracks().every((track) => track.readyState === 'ended')")
    assert page.text("#camera") == "Use the camera"
    assert page.tab.is_enabled("#camera")
    assert page.count() == 1
    assert page.text("#error") == ""


def test_the_camera_started_while_a_picture_is_decoded(visit: Visit, folder: Path, picture: Path) -> None:
    script = """
    const own = createImageBitmap;
    createImageBitmap = async (...given) => {
      const bitmap = await own(...given);
      await new Promise((resolve) => (window.finish = resolve));
      return bitmap;
    };
    """
    page = visit(folder, permissions=["camera"], script=script)
    page.open(picture)
    page.wait_until("!!window.finish")
    page.tab.get_by_role("button", name="Use the camera").click()
    page.wait_for_count(1)
    page.tab.evaluate("finish()")
    page.wait_for_count(page.count() + 3)
    assert page.tab.evaluate("explained.every(({ height }) => height === 480)")
    assert page.text("#status") != ""


def test_no_camera(visit: Visit, folder: Path) -> None:
    refusing = "async () => { throw new DOMException('', 'NotAllowedError') }"
    page = visit(folder, script=f"navigator.mediaDevices.getUserMedia = {refusing}")
    page.tab.get_by_role("button", name="Use the camera").click()
    assert page.error() == "This page may not use the camera: the browser's settings say so."


def test_no_camera_on_plain_http(visit: Visit, folder: Path) -> None:
    page = visit(folder, script="Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page.tab.get_by_role("button", name="Use the camera").click()
    for _ in range(2):  # at once, and when the model is loaded
        assert page.error() == "Browsers let pages on https or localhost alone use the camera."
        page.wait_until_kept()


def test_offline_after_the_first_visit(visit: Visit, folder: Path, model: Path, picture: Path) -> None:
    page = visit(folder)
    page.wait_until_kept()
    page.stop_server()
    page.tab.context.set_offline(True)
    page.tab.reload()
    page.open(picture)
    assert_python_agrees(page.explained(1), model, picture)
    page.tab.goto(f"{page.url}index.html?from=home")
    page.open(picture)
    assert_python_agrees(page.explained(1), model, picture)


def test_no_service_workers(visit: Visit, folder: Path, model: Path, picture: Path) -> None:
    refusing = "async () => { throw new DOMException('refused', 'SecurityError') }"
    page = visit(folder, script=f"navigator.serviceWorker.register = {refusing}")
    page.open(picture)
    assert_python_agrees(page.explained(1), model, picture)
    page.wait_for("#facts li:has-text('thread')")
    assert page.text("#error") == ""
    assert "works offline" not in page.text("#facts")


def caches(page: Page) -> list[str]:
    return list(page.tab.evaluate("caches.keys()"))


def test_a_new_version_replaces_the_old(
    visit: Visit, folder: Path, ort_web: Path, picture: Path, tmp_path: Path
) -> None:
    page = visit(folder)
    page.wait_until_kept()
    (old,) = caches(page)
    other = write_model(tmp_path / "other.onnx", heatmap="layercam")
    write_page(other, folder, ort_web)
    page.tab.reload()
    assert page.text("#model") in ("the model", "small")
    page.tab.get_by_role("button", name="Reload").click()
    page.wait_for("#model:has-text('other')")
    page.wait_until_kept()
    (new,) = caches(page)
    assert new != old
    assert not page.tab.is_visible("#update")
    page.stop_server()
    page.tab.reload()
    page.open(picture)
    assert_python_agrees(page.explained(1), other, picture, method="layercam")


def test_a_half_uploaded_version_is_not_kept(visit: Visit, folder: Path) -> None:
    """The service worker's list has the new hashes already, and a file is the old one still."""
    page = visit(folder)
    page.wait_until_kept()
    kept = caches(page)
    program = folder / "service-worker.js"
    text = program.read_text(encoding="utf-8")
    program.write_text(text.replace('VERSION = "', 'VERSION = "f').replace("sha256-", "sha256-AAAA", 1))
    page.tab.reload()
    page.wait_until_kept()
    page.tab.evaluate("navigator.serviceWorker.ready.then(one => one.update()).catch(() => {})")
    page.tab.reload()
    page.wait_until_kept()
    assert not page.tab.is_visible("#update")
    assert kept[0] in caches(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(scheme: str, visit: Visit, ort_web: Path, picture: Path, tmp_path: Path) -> None:
    """360 pixels are enough, whatever the labels, with a picture and without."""
    labels = ["W" * 300, HOSTILE, "word " * 60, "", "last"]
    write_page(write_model(tmp_path / f"{'long_' * 30}.onnx", labels=labels), tmp_path / "page", ort_web)
    page = visit(tmp_path / "page", viewport={"width": 360, "height": 740}, color_scheme=scheme)
    narrow = "document.documentElement.scrollWidth <= 360"
    page.wait_until_kept()
    assert page.tab.evaluate(narrow)
    page.open(picture)
    page.explained(1)
    assert page.tab.evaluate(narrow)
    page.open(Path(__file__))
    page.error()
    assert page.tab.evaluate(narrow)
    background = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(251, 251, 250)", "dark": "rgb(20, 20, 22)"}[scheme]


def test_the_keyboard_alone(visit: Visit, folder: Path, model: Path, picture: Path) -> None:
    page = visit(folder)
    page.open(picture)
    page.explained(1)
    page.tab.evaluate("document.activeElement.blur()")
    expected = Explainer(model).explain_classes(picture, top=2)
    reached = []
    for _ in range(5):
        page.tab.keyboard.press("Tab")
        reached.append(page.tab.evaluate("document.activeElement.id || document.activeElement.type"))
        assert page.tab.evaluate(
            """() => {
              const one = document.activeElement;
              const outlined = (element) => getComputedStyle(element).outlineStyle === "solid";
              return outlined(one) || outlined(one.closest("label"));
            }"""
        )
    assert reached == ["file", "camera", "target", "radio", "opacity"]
    page.tab.keyboard.press("Shift+Tab")
    page.tab.keyboard.press("ArrowDown")
    assert_python_agrees(page.explained(2), model, picture, expected[1].index)
    page.tab.keyboard.press("ArrowUp")
    assert page.explained(3)["index"] == expected[0].index
    assert page.tab.evaluate("document.activeElement.type") == "radio"
    page.tab.keyboard.press("Tab")
    page.tab.keyboard.press("Home")
    assert page.tab.evaluate("getComputedStyle(document.getElementById('heat')).opacity") == "0"


def test_what_screen_readers_read(visit: Visit, folder: Path, picture: Path) -> None:
    page = visit(folder)
    page.open(picture)
    index = page.explained(1)["index"]
    for role, name in (
        ("button", "Use the camera"),
        ("combobox", "Explain"),
        ("group", "Most likely"),
        ("slider", "Opacity"),
        ("img", f"What speaks for {LABELS[index]} in picture.png"),
    ):
        assert page.tab.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    assert page.tab.get_by_label("Choose a picture").get_attribute("type") == "file"
    assert page.tab.get_by_role("radio").count() == 5
    assert page.tab.get_by_role("status").inner_text().startswith(LABELS[index])
    assert page.tab.get_by_role("alert").count() == 1


def test_labels_and_names_are_text(visit: Visit, folder: Path, tmp_path: Path, picture: Path) -> None:
    hostile = Path(shutil.copy(picture, tmp_path / "<img src=x onerror=alert(1)>.png"))
    page = visit(folder)
    page.open(hostile)
    page.explained(1)
    page.tab.select_option("#target", "0")
    page.explained(2)
    assert HOSTILE in page.text("#status")
    assert HOSTILE in page.text("#classes")
    page.open(Path(shutil.copy(__file__, tmp_path / "<img src=x>.png")))
    assert page.error().startswith("<img src=x>.png is not a picture")
    assert page.tab.locator("img, b:not(#model)").count() == 0
    assert page.tab.title() == "small"


def test_files_that_are_no_pictures(
    visit: Visit, folder: Path, model: Path, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("words")
    with (tmp_path / "film.mp4").open("wb") as film:
        film.truncate(150_000_000)
    page = visit(folder)
    page.open(tmp_path / "words.txt")
    assert page.error() == "words.txt is not a picture that this browser can read."
    page.open(tmp_path / "film.mp4")
    page.wait_for("#error:has-text('too large')")
    assert page.error() == "film.mp4 is too large: it has 150.0 MB, and this page takes 100 MB."
    page.open(picture)
    assert_python_agrees(page.explained(1), model, picture)
    assert page.text("#error") == ""


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        ("explainer.onnx", "The model explainer.onnx can't be loaded (HTTP 404): write the page again."),
        ("explainer.json", "explainer.json can't be loaded (HTTP 404): write the page again."),
        (
            "ort/ort.wasm.bundle.min.js",
            "onnxruntime-web can't be loaded from the folder ort: write the page again.",
        ),
        ("ort/ort-wasm-simd-threaded.wasm", "This browser can't run the model: "),
        ("worker.js", "worker.js can't be loaded: reload the page to try again."),
    ],
)
def test_files_of_the_page_that_are_missing(
    lacking: str, words: str, visit: Visit, folder: Path, picture: Path
) -> None:
    (folder / lacking).unlink()
    page = visit(folder)
    assert page.error().startswith(words)
    assert page.text("#status") == ""
    page.open(picture)
    assert page.error().startswith(words)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"!"], ids=["shorter", "longer"]
)
def test_another_model_than_the_pages(change: Callable[[bytes], bytes], visit: Visit, folder: Path) -> None:
    (folder / "explainer.onnx").write_bytes(change((folder / "explainer.onnx").read_bytes()))
    assert "is not the one that this page was written for" in visit(folder).error()


def test_a_damaged_model(visit: Visit, folder: Path) -> None:
    (folder / "explainer.onnx").write_bytes(b"!" * (folder / "explainer.onnx").stat().st_size)
    error = visit(folder).error()
    assert error.startswith("This browser can't run the model: ")
    assert "\n" not in error


def test_outputs_that_are_not_finite(
    visit: Visit, ort_web: Path, model: Path, picture: Path, tmp_path: Path
) -> None:
    broken = onnx.load(model)
    bias = next(one for one in broken.graph.initializer if list(one.dims) == [5])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(5, np.nan, np.float32), bias.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(OnnxplainError, match="NaN or infinite"):
        Explainer(tmp_path / "broken.onnx").explain(picture)
    write_page(tmp_path / "broken.onnx", tmp_path / "page", ort_web)
    page = visit(tmp_path / "page")
    page.open(picture)
    assert page.error().startswith("The model's outputs are NaN or infinite, ")
    assert page.text("#status") == ""
    assert page.count() == 0


def test_no_webassembly(visit: Visit, folder: Path) -> None:
    page = visit(folder, script="delete globalThis.WebAssembly")
    assert page.error() == "This browser lacks WebAssembly, so it can't run the model."


def test_opened_as_a_file(browser: Any, folder: Path) -> None:
    context = browser.new_context()
    page = Page(context.new_page(), (folder / "index.html").as_uri())
    assert "serve its folder" in page.error()
    context.close()


def test_headers_for_threads(
    visit: Visit, ort_web: Path, model: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = web_page._source

    def on_eight_cores(name: str) -> str:
        """Scripts that tests add to the page don't reach its worker, so this one is written into it."""
        cores = "Object.defineProperty(navigator, 'hardwareConcurrency', { value: 8 });\n"
        return (cores if name == "worker.js" else "") + source(name)

    monkeypatch.setattr(web_page, "_source", on_eight_cores)
    folder = tmp_path / "page"
    write_page(model, folder, ort_web)
    page = visit(folder, headers=FOR_THREADS)
    page.wait_until_kept()
    for _ in range(2):  # from the server, and from the cache
        assert page.tab.evaluate("crossOriginIsolated")
        page.wait_for("#facts li:text-is('4 threads')")
        page.open(picture)
        assert_python_agrees(page.explained(1), model, picture)
        page.tab.reload()


@pytest.mark.skipif(not REALWORLD.is_dir(), reason="the photographs of ../shared are not here")
def test_the_dog_and_the_cat(visit: Visit, ort_web: Path, tmp_path: Path) -> None:
    network = mobilenet_v2()
    network.load_state_dict(torch.load(REALWORLD / "mobilenet_v2_imagenet.pth", weights_only=True))
    labels = json.loads((REALWORLD / "imagenet_labels.json").read_text())
    model, picture = tmp_path / "mobilenet_v2.onnx", REALWORLD / "images" / "dog_and_cat.png"
    example = torch.zeros(1, 3, 224, 224)
    export(network.eval(), example, model, labels=labels, heatmap="gradcam", pixels=True)
    write_page(model, tmp_path / "page", ort_web)
    page = visit(tmp_path / "page")
    page.open(picture)
    dog = page.explained(1)
    assert labels[dog["index"]] == "bull mastiff"
    assert_python_agrees(dog, model, picture)
    page.tab.get_by_role("radio", name="tiger cat").check()
    assert_python_agrees(page.explained(2), model, picture, labels.index("tiger cat"))
