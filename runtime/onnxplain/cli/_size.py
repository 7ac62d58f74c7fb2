"""The size of images, as several commands take it."""

from __future__ import annotations

import click


def read_size(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Read ``320`` or ``240x320`` as (height, width)."""
    if value is None:
        return None
    sides = value.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise click.BadParameter(f"{value!r} is not a size; write 320, or 240x320 for height and width.")
    return int(sides[0]), int(sides[-1])
