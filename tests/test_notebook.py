"""What notebooks show of figures and of several explanations, without pyplot, and by IPython where it is."""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
from base64 import b64decode
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from onnxplain import Explainer, Explanation
from onnxplain.explanations import Explanations
from onnxplain.figure import side_by_side
from tiny_explainer import tiny_explainer, tiny_manifest

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(tiny_explainer())


@pytest.fixture
def found(explainer: Explainer) -> list[Explanation]:
    return explainer.explain_classes(PICTURE, top=3)


def decoded(data: bytes) -> NDArray[Any]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image


def images(html: str) -> list[NDArray[Any]]:
    return [decoded(b64decode(data)) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]


def test_figures_show_themselves(found: list[Explanation]) -> None:
    for figure in (found[0].figure(), side_by_side(found)):
        assert isinstance(figure, Figure)
        written = io.BytesIO()
        figure.savefig(written, format="png")
        shown = decoded(figure._repr_png_())  # type: ignore[attr-defined]
        np.testing.assert_array_equal(shown, decoded(written.getvalue()))
        assert shown.std() > 10
        again = pickle.loads(pickle.dumps(figure))
        np.testing.assert_array_equal(decoded(again._repr_png_()), shown)


def test_ipython_shows_figures_and_lists(found: list[Explanation]) -> None:
    """In a process where no pyplot has told it how."""
    pytest.importorskip("IPython")
    program = f"""
import pickle, sys
from IPython.core.formatters import DisplayFormatter
found = pickle.loads({pickle.dumps(found)!r})
from onnxplain.figure import side_by_side
show = DisplayFormatter().format
for one in (found[0].figure(), side_by_side(found), found, found[0], found[:2]):
    print(*sorted(show(one)[0]))
print("matplotlib.pyplot" in sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    figure, both = "image/png text/plain", "image/png text/html text/plain"
    assert finished.stdout.splitlines() == [
        figure,
        figure,
        "text/html text/plain",
        both,
        "text/html text/plain",
        "False",
    ]


def test_several_explanations_are_a_list(found: list[Explanation], explainer: Explainer) -> None:
    assert isinstance(found, list)
    assert found == list(found)
    assert [*found] == found
    assert repr(found) == repr(list(found))
    assert found[0] is next(iter(found))
    assert found[-2:] == list(found)[-2:]
    assert isinstance(found[:2], Explanations)
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert isinstance(again, Explanations)
        assert [one.index for one in again] == [one.index for one in found]
        np.testing.assert_array_equal(again[1].heatmap, found[1].heatmap)
    assert copy.copy(found) == found
    assert isinstance(explainer.explain_classes(PICTURE, [2, 0], common_scale=True), Explanations)
    assert explainer.explain_classes(PICTURE, []) == []


def test_a_notebook_shows_them_in_a_row(found: list[Explanation]) -> None:
    html = found._repr_html_()  # type: ignore[attr-defined]
    for one, image in zip(found, images(html), strict=True):
        np.testing.assert_array_equal(image, one.overlay())
        assert f"<b>{one.label}</b> {one.probability:.1%}<br>gradcam, features</figcaption>" in html
    assert html.count("<figure") == html.count("</figure>") == 3


def test_photographs_are_small_there(explainer: Explainer) -> None:
    photograph = cv2.resize(PICTURE, (1200, 900), interpolation=cv2.INTER_CUBIC)
    (one,) = found = explainer.explain_classes(photograph, top=1)
    (image,) = images(found._repr_html_())
    assert image.shape == (180, 240, 3)
    expected = cv2.resize(one.overlay(), (240, 180), interpolation=cv2.INTER_AREA)
    assert np.abs(image.astype(int) - expected).mean() < 2
    (image,) = images(explainer.explain_classes(np.zeros((1, 5000, 3), np.uint8), top=1)._repr_html_())
    assert image.shape == (1, 240, 3)


def test_of_many_some_are_shown(explainer: Explainer) -> None:
    found = explainer.explain_classes(PICTURE, [0, 1] * 20)
    html = found._repr_html_()
    assert html.count("<figure") == 24
    assert "and 16 more" in html
    assert "more" not in found[:24]._repr_html_()


def test_labels_are_text_there() -> None:
    labels = ('<script>alert("&")</script>',) * 4
    found = Explainer(tiny_explainer(manifest=tiny_manifest(labels=labels))).explain_classes(PICTURE, [1])
    html = found._repr_html_()
    assert "<script>" not in html
    assert "<b>&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;</b>" in html
