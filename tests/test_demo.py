"""The demo: what it writes, that its page needs nothing else, and that the page tells the truth."""

from __future__ import annotations

import base64
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cli_helpers import assert_one_line_error, run
from onnxplain import Explainer, demo, demo_page
from onnxplain.images import read_image
from onnxplain.outputs import LIST
from onnxplain_models import METHODS, NETWORKS, samples

SHIPPED = (
    "import sys\n"
    "from pathlib import Path\n"
    "from onnxplain import demo\n"
    "demo.missing_packages = lambda *extras: ['torch', 'onnx']\n"
    "demo.run_demo(Path(sys.argv[1]), print)\n"
    "loaded = {'torch', 'onnx', 'onnx_ir', 'onnxscript', 'onnxplain_export'} & set(sys.modules)\n"
    "assert not loaded, loaded\n"
)


class Page(HTMLParser):
    """The page's elements and text; every element must be closed."""

    EMPTY = frozenset({"meta", "img", "rect", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.commands: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data
        if self.open[-2:] == ["pre", "code"]:
            self.commands += data.splitlines()

    def pictures(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]
        return [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo from the shipped explainers, made in a process of its own."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    subprocess.run([sys.executable, "-c", SHIPPED, str(folder)], check=True, capture_output=True, text=True)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_files(folder: Path) -> None:
    names = [sample.name for sample in samples()]
    expected = {LIST, "index.html", *(f"{network}.onnx" for network in NETWORKS)}
    expected |= {f"scenes/{name}.png" for name in names}
    expected |= {f"overlays/{name}-{network}.png" for name in names for network in NETWORKS}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == expected


def test_page_needs_nothing_else(folder: Path, page: Page) -> None:
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object"}
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "style"):
            assert (attributes.get(name) or "data:").startswith("data:")
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert "//" not in "".join(part for part in text.split('"') if not part.startswith("data:"))


def test_page_shows_each_scene_and_overlay(folder: Path, page: Page) -> None:
    _ramp, *pictures = page.pictures()
    expected = [
        path.read_bytes()
        for sample in samples()
        for path in (
            folder / "scenes" / f"{sample.name}.png",
            *(folder / "overlays" / f"{sample.name}-{network}.png" for network in NETWORKS),
        )
    ]
    assert pictures == expected


def test_answers_and_overlays_are_the_explainers_own(folder: Path, page: Page) -> None:
    for network in NETWORKS:
        explainer = Explainer(folder / f"{network}.onnx", device="cpu")
        for sample in samples():
            explanation = explainer.explain(folder / "scenes" / f"{sample.name}.png", method=METHODS[network])
            overlay = read_image(folder / "overlays" / f"{sample.name}-{network}.png")
            np.testing.assert_array_equal(overlay, explanation.overlay())
            assert f"{explanation.label} {network} {explanation.probability:.1%}" in page.text


def test_true_boxes_are_drawn_on_every_picture(page: Page) -> None:
    drawn = [
        tuple(int(attributes[name] or -1) for name in ("x", "y", "width", "height"))
        for tag, attributes in page.elements
        if tag == "rect" and attributes["class"] == "true"
    ]
    expected = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in (sample.box for sample in samples())]
    assert drawn == [box for box in expected for _ in range(1 + len(NETWORKS))]


def test_commands_stand_on_lines_of_their_own(page: Page) -> None:
    """Those that install are the README's: the package is on no index."""
    explain, inspect, install, export = page.commands
    assert explain.startswith("onnxplain explain ")
    assert inspect.startswith("onnxplain inspect ")
    assert install == 'python -m pip install -c constraints.txt ".[cpu,export,torchvision]"'
    assert export.startswith("onnxplain export torchvision:")
    assert page.text.count("pip install") == 1


def test_page_tells_that_there_was_no_torch(page: Page) -> None:
    assert "without PyTorch" in page.text
    assert "PyTorch in the process: none" in page.text
    assert "this Python lacks torch, onnx" in page.text


def test_page_tells_that_there_was_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.setattr(demo, "missing_packages", lambda *extras: ["onnx"])
    demo.run_demo(tmp_path, lambda step: None)
    text = Page((tmp_path / "index.html").read_text(encoding="utf-8")).text
    assert "without PyTorch" not in text
    assert "PyTorch in the process: yes" in text


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(demo, "missing_packages", lambda *extras: ["torch"])
    for flags in ([], ["--open"]):
        result = run("demo", "--output", tmp_path / "out", *flags)
        assert (result.exit_code, result.stderr) == (0, "")
        assert str(tmp_path / "out" / "index.html") in result.stdout
        for sample in samples():
            assert f"\n{sample.label} " in result.stdout
    assert opened == [(tmp_path / "out" / "index.html").as_uri()]


def test_failed_export_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "missing_packages", lambda *extras: [])
    monkeypatch.setattr(
        demo.subprocess,
        "run",
        lambda command, **options: subprocess.CompletedProcess(
            command, 1, "", "Traceback\n  ...\nOSError: full\n"
        ),
    )
    result = run("demo", "--output", tmp_path / "out")
    assert_one_line_error(result, 1, "OSError: full", "onnxplain_models.export_all")
    assert not (tmp_path / "out" / "index.html").exists()


def test_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert_one_line_error(run("demo", "--output", tmp_path / "out"), 2, "--output")


def test_names_are_escaped() -> None:
    evil = "<script>alert('1')</script>"
    answer = demo_page.Answer(evil, evil, 0.5, b"", [])
    text = demo_page.render(
        networks=[demo_page.Network(evil, evil, evil)],
        scenes=[demo_page.Scene(b"", 9, 9, evil, (0, 0, 1, 1), [answer])],
        ramp=b"",
        facts=[(evil, evil)],
        steps=[(evil, evil)],
        torch=evil,
        made=evil,
    )
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.text.count(evil) == 12
    assert "$" not in page.text


@pytest.mark.slow
def test_export_happens_in_another_process(tmp_path: Path) -> None:
    code = SHIPPED.replace("demo.missing_packages = lambda *extras: ['torch', 'onnx']\n", "")
    finished = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert finished.stdout.startswith("exporting")
    text = Page((tmp_path / "index.html").read_text(encoding="utf-8")).text
    assert "to export the networks, in another process" in text
    assert "exported and verified on this machine" in text
