"""Figures of explanations, and what a notebook shows of them."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from dataclasses import replace
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from onnxplain import Explanation, MissingDependencyError, extras
from onnxplain.figure import side_by_side
from onnxplain.images import Picture
from onnxplain.preprocessing import View

SIGNED = np.array([[-3, 0], [1, 2]], np.float32)


def explanation(
    cam: NDArray[np.float32] | None = None, size: tuple[int, int] = (30, 40), **changes: Any
) -> Explanation:
    """Explain noise of a size; the network saw the middle square of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    height, width = size
    side = min(size)
    given: dict[str, Any] = {
        "index": 3,
        "label": "tiger cat",
        "logit": 2.5,
        "probability": 0.734,
        "method": "gradcam",
        "layers": ("features.14",),
        "cams": (np.maximum(SIGNED, 0) if cam is None else cam,),
        "picture": Picture(pixels, size),
        "view": View((height - side) / 2, (width - side) / 2, side, side),
    }
    return Explanation(**{**given, **changes})


def panels(figure: Figure) -> list[Axes]:
    """Return the axes of the row, without the colour bars in them."""
    bars = {image.colorbar.ax for axis in figure.axes for image in axis.images if image.colorbar}
    return [axis for axis in figure.axes if axis not in bars]


def pixels(axis: Axes) -> NDArray[Any]:
    """Return what an axis shows."""
    (image,) = axis.images
    found = image.get_array()
    assert found is not None
    return np.asarray(found)


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def boxes(axis: Axes) -> set[tuple[float, float, float, float]]:
    return {
        (*patch.get_xy(), patch.get_width(), patch.get_height())
        for patch in axis.patches
        if isinstance(patch, Rectangle)
    }


def test_a_figure_is_the_picture_the_heatmap_and_the_overlay() -> None:
    one = explanation()
    figure = one.figure()
    picture, heat, overlay = panels(figure)
    assert title(figure) == "tiger cat, 73.4%, gradcam, features.14"
    assert [axis.get_title() for axis in (picture, heat, overlay)] == ["picture", "heatmap", "overlay"]
    np.testing.assert_array_equal(pixels(picture), one.image)
    np.testing.assert_array_equal(pixels(heat), one.heatmap)
    np.testing.assert_array_equal(pixels(overlay), one.overlay())
    assert heat.images[0].get_clim() == (0, 1)
    assert heat.images[0].colorbar is not None
    assert heat.images[0].get_cmap().name == "inferno"
    box = one.boxes()[0]
    assert boxes(overlay) == {(box.x0 - 0.5, box.y0 - 0.5, box.x1 - box.x0, box.y1 - box.y0)}


def test_options_are_those_of_the_overlay() -> None:
    one = explanation()
    _, heat, overlay = panels(one.figure("viridis", 0.4))
    assert heat.images[0].get_cmap().name == "viridis"
    np.testing.assert_array_equal(pixels(overlay), one.overlay("viridis", 0.4))
    np.testing.assert_array_equal(pixels(panels(side_by_side([one], "jet", 0.3))[1]), one.overlay("jet", 0.3))
    with pytest.raises(ValueError, match="colour map"):
        one.figure("rainbow")  # type: ignore[arg-type]


def test_a_signed_map_is_drawn_where_it_lies_in_colours_centred_at_0() -> None:
    *_, raw = panels(explanation(SIGNED, method="hirescam").figure())
    assert raw.get_title() == "raw map"
    np.testing.assert_array_equal(pixels(raw), SIGNED)
    shown = raw.images[0]
    assert shown.get_clim() == (-3, 3)
    assert shown.colorbar is not None
    assert shown.colorbar.extend == "neither"
    red, green, blue, _ = shown.get_cmap()(0.5)
    assert min(red, green, blue) > 0.95  # nothing is white
    assert shown.get_extent() == [4.5, 34.5, 29.5, -0.5]
    assert (raw.get_xlim(), raw.get_ylim()) == ((-0.5, 39.5), (29.5, -0.5))


def test_colours_of_a_map_of_pixels_end_before_its_outliers() -> None:
    cam = np.random.default_rng(1).normal(size=(50, 50)).astype(np.float32)
    cam[7, 9] = 1000
    *_, raw = panels(explanation(cam, layers=("image",), method="integrated_gradients").figure())
    low, high = raw.images[0].get_clim()
    assert -low == high == pytest.approx(np.quantile(np.abs(cam), 0.995))
    colorbar = raw.images[0].colorbar
    assert colorbar is not None
    assert colorbar.extend == "both"


@pytest.mark.parametrize("cam", [np.zeros((2, 2), np.float32), -np.ones((2, 2), np.float32)])
def test_a_class_that_nothing_speaks_for_has_no_box(cam: NDArray[np.float32]) -> None:
    figure = explanation(cam).figure()
    overlay = panels(figure)[2]
    assert not overlay.patches
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"label": None}, "class 3, 73.4%, gradcam, features.14"),
        ({"probability": None}, "tiger cat, logit 2.5, gradcam, features.14"),
        ({"label": "a $20 bill, or $5"}, "a $20 bill, or $5, 73.4%, gradcam, features.14"),
        ({"layers": ("3", "7")}, "tiger cat, 73.4%, gradcam, 3+7"),
    ],
)
def test_titles(changes: dict[str, Any], expected: str) -> None:
    cams = (SIGNED,) * len(changes.get("layers", ("one",)))
    figure = explanation(cams=cams, **changes).figure()
    assert title(figure) == expected
    figure.savefig(io.BytesIO())
    axis = panels(side_by_side([explanation(cams=cams, **changes)]))[1]
    assert axis.get_title().replace("\n", " ").replace(",", "") == expected.replace(",", "")


@pytest.mark.parametrize("size", [(30, 40), (400, 60), (40, 500), (96, 96), (1, 1)])
@pytest.mark.parametrize("label", ["cat", "a class with a name so long that no title has room for it all"])
def test_no_text_overlaps_or_is_cut(size: tuple[int, int], label: str) -> None:
    one = explanation(SIGNED, size, label=label, method="integrated_gradients", layers=("a.long.layer.name",))
    for figure in (one.figure(), side_by_side([one] * 3)):
        FigureCanvasAgg(figure).draw()
        texts = [axis.title for axis in panels(figure)]
        texts += [figure._suptitle] if title(figure) else []  # type: ignore[attr-defined]
        extents = [text.get_window_extent() for text in texts]
        for number, extent in enumerate(extents):
            assert extent.x0 >= 0
            assert extent.y0 >= 0
            assert extent.x1 <= figure.bbox.x1
            assert extent.y1 <= figure.bbox.y1
            assert not any(extent.overlaps(other) for other in extents[:number])


@pytest.mark.parametrize("size", [(30, 40), (400, 60), (40, 500), (96, 96)])
def test_margins_are_small(size: tuple[int, int]) -> None:
    for figure in (explanation(size=size).figure(), side_by_side([explanation(size=size)] * 3)):
        FigureCanvasAgg(figure).draw()
        tight = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert width - tight.width < 1.0
        assert height - tight.height < 0.5


def test_side_by_side() -> None:
    first = explanation()
    found = [first, explanation(SIGNED.T, label="a dog", method="cam", probability=0.1)]
    figure = side_by_side(found)
    picture, *others = panels(figure)
    np.testing.assert_array_equal(pixels(picture), first.image)
    assert picture.get_title() == "picture"
    assert [axis.get_title() for axis in others] == [
        "tiger cat, 73.4%\ngradcam, features.14",
        "a dog, 10.0%\ncam, features.14",
    ]
    for axis, one in zip(others, found, strict=True):
        np.testing.assert_array_equal(pixels(axis), one.overlay())
        assert boxes(axis)
    with pytest.raises(ValueError, match="no explanations"):
        side_by_side([])
    with pytest.raises(ValueError, match="different pictures"):
        side_by_side([first, explanation(size=(30, 41))])


def test_pyplot_knows_nothing_of_it() -> None:
    before, settings = plt.get_fignums(), dict(mpl.rcParams)
    explanation().figure()
    side_by_side([explanation()])
    assert plt.get_fignums() == before
    assert dict(mpl.rcParams) == settings


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    line = 'matplotlib is not installed; run: python -m pip install "onnxplain[figure]"'
    for draw in (explanation().figure, lambda: side_by_side([explanation()])):
        with pytest.raises(MissingDependencyError, match="^" + re.escape(line) + "$"):
            draw()


def decoded(data: bytes) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image.astype(np.uint8)


def test_a_notebook_shows_the_overlay() -> None:
    one = explanation()
    np.testing.assert_array_equal(decoded(one._repr_png_()), one.overlay())


def test_a_notebook_gets_a_photograph_reduced() -> None:
    one = explanation(size=(1500, 3000))
    shown = decoded(one._repr_png_())
    assert shown.shape == (512, 1024, 3)
    expected = cv2.resize(one.overlay(), (1024, 512), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(shown, expected)
    assert decoded(explanation(size=(1, 5000))._repr_png_()).shape == (1, 1024, 3)


def test_a_notebook_shows_the_class_below_the_overlay() -> None:
    one = explanation()
    html = one._repr_html_()
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    np.testing.assert_array_equal(decoded(b64decode(data)), one.overlay())
    assert "<b>tiger cat</b> 73.4%, gradcam, features.14" in html


def test_labels_are_escaped() -> None:
    one = replace(explanation(), label='<script>alert("&")</script>', layers=("<b>",))
    html = one._repr_html_()
    assert "<script>" not in html
    assert "<b>&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;</b> 73.4%, gradcam, &lt;b&gt;" in html
    assert 'alt="&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;"' in html
