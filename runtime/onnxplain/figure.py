"""Figures for papers and notebooks, drawn by matplotlib (the extra ``figure``).

They are figures of their own, `matplotlib.figure.Figure`: pyplot's state and windows stay as they are. A
notebook shows them, with ``%matplotlib inline`` or without.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.explanation import Explanation, class_and_score
from onnxplain.extras import require
from onnxplain.image_methods import IMAGE
from onnxplain.overlay import Colormap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DIVERGING = "RdBu_r"
"""The colours of signed maps: red speaks for the class, blue against it, white says nothing."""

# In inches: a picture's longer side; between panels; a line of text. Then what a colour bar takes: from the
# picture to the bar, the bar, the least height that its numbers need, and the room for all of it.
_LONGER, _GAP, _LINE = 2.8, 0.1, 0.19
_TO_BAR, _BAR, _LOWEST_BAR, _BAR_ROOM = 0.05, 0.12, 0.5, 0.65
_FONT_SIZE = 10
_LETTER = 0.58 * _FONT_SIZE / 72

# A label may hold dollar signs, which matplotlib would read as mathematics.
_PLAIN: dict[str, Any] = {"fontsize": _FONT_SIZE, "parse_math": False, "usetex": False}


def draw(explanation: Explanation, colormap: Colormap = "inferno", alpha: float = 0.8) -> Figure:
    """Draw an explanation: the picture, the heatmap, the overlay with its largest box.

    Where the raw map has cells below 0, it follows as it is, in colours centred at 0, where it lies on the
    picture. In a map as fine as the network's input single pixels stand out by far: its colours end at the
    99.5th percentile.

    Parameters
    ----------
    explanation
        What is drawn. Its class, probability, method and layer are the title.
    colormap, alpha
        As in `Explanation.overlay`.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("why.pdf")`` writes it; a notebook shows it.

    Raises
    ------
    MissingDependencyError
        matplotlib isn't installed.
    """
    is_signed = bool(explanation.cam.min(initial=0) < 0)
    row = _Row.of(
        explanation,
        (_GAP, _BAR_ROOM, _GAP, _BAR_ROOM) if is_signed else (_GAP, _BAR_ROOM, _GAP),
        narrowest=0.8,
    )
    title = _wrapped([", ".join([*class_and_score(explanation), *_how(explanation)])], row.width)
    figure, axes = row.axes(lines=title.count("\n") + 2)
    figure.suptitle(title, y=1 - 0.5 * _GAP / figure.get_figheight(), va="top", **_PLAIN)
    _show(axes[0], "picture", explanation.image)
    heat = _show(axes[1], "heatmap", explanation.heatmap, cmap=colormap, vmin=0, vmax=1)
    _add_bar(axes[1], heat)
    _show_overlay(axes[2], "overlay", explanation, colormap, alpha)
    if is_signed:
        _show_raw_map(axes[3], explanation)
    return figure


def side_by_side(
    explanations: Sequence[Explanation], colormap: Colormap = "inferno", alpha: float = 0.8
) -> Figure:
    """Draw a picture, and beside it what several explanations of it say: of several classes, or methods.

    Each is an overlay with its largest box, under its class, probability, method and layer.

    Parameters
    ----------
    explanations
        One or more, all of one picture.
    colormap, alpha
        As in `Explanation.overlay`.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("why.pdf")`` writes it; a notebook shows it.

    Raises
    ------
    ValueError
        There are no explanations, or they are of different pictures.
    MissingDependencyError
        matplotlib isn't installed.
    """
    if not explanations:
        raise ValueError("there are no explanations to draw")
    first = explanations[0]
    if not all(np.array_equal(one.image, first.image) for one in explanations):
        raise ValueError("the explanations are of different pictures; draw those of one")
    row = _Row.of(first, (_GAP,) * (len(explanations) + 1), narrowest=1.7)
    titles = [
        _wrapped([", ".join(class_and_score(one)), ", ".join(_how(one))], row.panel) for one in explanations
    ]
    figure, axes = row.axes(lines=1 + max(title.count("\n") for title in titles))
    _show(axes[0], "picture", first.image)
    for axis, title, one in zip(axes[1:], titles, explanations, strict=True):
        _show_overlay(axis, title, one, colormap, alpha)
    return figure


@dataclass(frozen=True)
class _Row:
    """Where a figure's panels are, in inches.

    Layout engines of matplotlib's leave wide margins where a row has another shape than they were told, or
    cut titles off.
    """

    picture: tuple[float, float]
    """Its width and height in a panel."""
    panel: float
    """How wide a panel is: it has room for a title."""
    gaps: Sequence[float]
    """What follows each panel."""

    @classmethod
    def of(cls, explanation: Explanation, gaps: Sequence[float], narrowest: float) -> _Row:
        """Return a row of panels for a picture's shape."""
        height, width = explanation.picture.size
        scale = _LONGER / max(height, width)
        return cls((width * scale, height * scale), max(width * scale, narrowest), gaps)

    @property
    def width(self) -> float:
        """Of the figure."""
        return _GAP + sum(self.panel + gap for gap in self.gaps)

    def axes(self, lines: int) -> tuple[Figure, list[Axes]]:
        """Return the figure and its panels, below so many lines of text."""
        require("figure")
        from onnxplain.shown_figure import ShownFigure

        width, height = self.picture
        room = max(height, _LOWEST_BAR)
        whole = room + lines * _LINE + 2 * _GAP
        figure = ShownFigure(figsize=(self.width, whole))
        axes = []
        left, bottom = _GAP + (self.panel - width) / 2, _GAP + (room - height) / 2
        for gap in self.gaps:
            place = (left / self.width, bottom / whole, width / self.width, height / whole)
            axes.append(figure.add_axes(place))
            left += self.panel + gap
        return figure, axes


def _show(axis: Axes, title: str, pixels: NDArray[Any], **options: Any) -> AxesImage:
    """Show pixels under a title, without ticks."""
    axis.set_title(title, y=1, **_PLAIN)  # at the picture, and not above a colour bar that is higher
    axis.set_xticks([])
    axis.set_yticks([])
    return axis.imshow(pixels, **options)


def _show_overlay(axis: Axes, title: str, explanation: Explanation, colormap: Colormap, alpha: float) -> None:
    """Show the overlay, and its largest box where it has one."""
    from matplotlib.patches import Rectangle

    _show(axis, title, explanation.overlay(colormap, alpha))
    for x0, y0, x1, y1 in explanation.boxes()[:1]:
        # The centre of the first pixel is at 0. A dark line under the bright one is seen on any picture.
        place: dict[str, Any] = {"xy": (x0 - 0.5, y0 - 0.5), "width": x1 - x0, "height": y1 - y0}
        axis.add_patch(Rectangle(**place, fill=False, edgecolor="black", linewidth=2.5))
        axis.add_patch(Rectangle(**place, fill=False, edgecolor="white", linewidth=1.2))


def _show_raw_map(axis: Axes, explanation: Explanation) -> None:
    """Show the cells of the raw map where they lie on the picture."""
    cam, view = explanation.cam, explanation.view
    is_fine = explanation.layers == (IMAGE,)
    largest = float(np.quantile(np.abs(cam), 0.995) if is_fine else np.abs(cam).max())
    place = (view.left - 0.5, view.left + view.width - 0.5, view.top + view.height - 0.5, view.top - 0.5)
    shown = _show(
        axis,
        "raw map",
        cam,
        extent=place,
        cmap=DIVERGING,
        vmin=-largest,
        vmax=largest,
        interpolation=None if is_fine else "nearest",
    )
    height, width = explanation.picture.size
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    _add_bar(axis, shown, "both" if is_fine else "neither")


def _add_bar(axis: Axes, shown: AxesImage, extend: str = "neither") -> None:
    """Put a colour bar beside a picture, as high as that."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    width, height = axis.get_position().size * figure.get_size_inches()
    share = max(1, _LOWEST_BAR / height)
    beside = axis.inset_axes((1 + _TO_BAR / width, (1 - share) / 2, _BAR / width, share))
    bar = figure.colorbar(shown, cax=beside, extend=extend)
    bar.ax.tick_params(labelsize=_FONT_SIZE - 2)


def _how(explanation: Explanation) -> list[str]:
    """Return the method and the layer."""
    return [explanation.method, explanation.layer]


def _wrapped(lines: Sequence[str], width: float) -> str:
    """Return lines, each broken where it is wider than so many inches."""
    letters = max(10, int(width / _LETTER))
    return "\n".join(part for line in lines for part in textwrap.wrap(line, letters))
