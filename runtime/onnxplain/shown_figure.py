"""A figure that a notebook shows, whatever pyplot's backend is."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure of matplotlib's that shows itself.

    Notebooks know how to show figures only after ``%matplotlib inline``.
    """

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows."""
        png = BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()
