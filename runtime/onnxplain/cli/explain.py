"""`onnxplain explain MODEL.onnx PATH...`: maps of pictures and of folders of pictures."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxplain.cli._device import device_option
from onnxplain.cli._methods import METHOD_NAMES
from onnxplain.cli._pictures import Picture, find_pictures, overlay_name
from onnxplain.cli._size import read_size
from onnxplain.cli._text import printable, table
from onnxplain.errors import ImageError
from onnxplain.files import write_atomically

if TYPE_CHECKING:
    from onnxplain import Explainer, Explanation
    from onnxplain.overlay import Colormap
    from onnxplain.session import Device

RECORD = "explanations.jsonl"
_CLEAR_LINE = "\r\x1b[K"


@click.command("explain", short_help="Show where a network looked, in pictures or folders of them.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--top", type=click.IntRange(min=1), metavar="K", show_default="1", help="The K most likely classes."
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="C",
    help="A class: its index, its label, or -1 for the most likely, -2 for the next. Repeatable.",
)
@click.option(
    "--method",
    type=click.Choice(METHOD_NAMES),
    default="gradcam",
    show_default=True,
    help="How the map is made; cam where the network ends in one linear layer on averaged maps.",
)
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default="explanations",
    show_default=True,
    help="Folder for the overlays and the record.",
)
@click.option(
    "--size",
    metavar="SIZE",
    callback=read_size,
    show_default="the file's own",
    help="What pictures are brought to, for a file exported with --dynamic-size: 320, or 240x320 for height "
    "and width.",
)
@device_option
@click.option(
    "--colormap",
    type=click.Choice(["inferno", "magma", "plasma", "viridis", "turbo", "jet"]),
    default="inferno",
    show_default=True,
    help="Colours of the overlays.",
)
@click.option(
    "--overlays/--no-overlays",
    default=True,
    show_default=True,
    help="Without overlays, the record alone is written, and large JPEGs are decoded at a reduced scale.",
)
def command(
    model: Path,
    paths: tuple[Path, ...],
    top: int | None,
    classes: tuple[str, ...],
    method: str,
    output: Path,
    size: tuple[int, int] | None,
    device: Device,
    colormap: Colormap,
    overlays: bool,
) -> None:
    """Explain what the explainer MODEL answers to the pictures at each PATH.

    A PATH is a picture, or a folder, which is searched with the folders in it for files with a picture's
    extension. A picture that can't be read is reported and left out; the exit code is then 1.

    Into the output folder go an overlay for each picture and class, PICTURE.INDEX-LABEL.png, in folders as
    the pictures were, and explanations.jsonl, one JSON object for each picture.

    Several pictures are explained at once, one a core.
    """
    if top and classes:
        raise click.UsageError("--top and --class don't go together.", click.get_current_context())
    pictures = find_pictures(paths, output)
    # Runs of one thread each, side by side, explain more pictures than runs of all cores, one by one.
    explainer = _load(model, device, size, threads=1 if len(pictures) > 1 else None)
    from onnxplain.pipeline import in_order

    targets = [_target(text) for text in classes] or None
    top = None if targets else top or 1
    rows: list[list[str]] = []
    records: list[str] = []
    show_progress = len(pictures) > 1 and sys.stderr.isatty()

    def explain(picture: Picture) -> tuple[str, list[list[str]]]:
        """Write a picture's overlays; return its record and its rows of the table."""
        found = _explain(explainer, picture, targets, top, method, reduced=not overlays)
        saved = [_save(one, picture, output, colormap) if overlays else None for one in found]
        return json.dumps(_record(model, picture, found, saved), allow_nan=False), [
            [
                str(picture.path),
                _class(one),
                _percent(one.probability),
                *([str(output / path)] if path else []),
            ]
            for one, path in zip(found, saved, strict=True)
        ]

    try:
        with (
            closing(in_order(explain, pictures)) as calls,
            click.progressbar(calls, len(pictures), "Explaining", file=sys.stderr)
            if show_progress
            else nullcontext(calls) as bar,  # click imports what draws bars when it makes one
        ):
            for call in bar:
                try:
                    record, lines = call.result()
                except ImageError as error:
                    click.echo(f"{_CLEAR_LINE * show_progress}Error: {printable(str(error))}", err=True)
                    continue
                records.append(record)
                rows += lines
    finally:  # what was done before an interruption is on record too
        if records:
            output.mkdir(parents=True, exist_ok=True)
            write_atomically(output / RECORD, "".join(f"{record}\n" for record in records).encode())
    if rows:
        headers = ["PICTURE", "CLASS", "PROBABILITY", *(["OVERLAY"] if overlays else [])]
        click.echo(table(headers, rows, right=[2]))
        click.echo(f"\nThe record: {printable(str(output / RECORD))}")
    if len(records) < len(pictures):
        click.get_current_context().exit(1)


def _load(model: Path, device: Device, size: tuple[int, int] | None, threads: int | None) -> Explainer:
    """Load an explainer; OpenCV and most of the library are imported while onnxruntime reads the file."""
    # numpy's threads spin as it is imported; the products here are too small for them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from concurrent.futures import ThreadPoolExecutor

    from onnxplain.session import create_session, read_manifest

    with ThreadPoolExecutor(1) as pool:
        # Threads that spin while the file is loaded would keep the core that imports the rest.
        loading = pool.submit(create_session, model, device, None, threads, spin=False)
        from onnxplain import Explainer
    session = loading.result()
    read_manifest(session, str(model))  # its errors name the file
    return Explainer(session=session, size=size)


def _target(text: str) -> int | str:
    """Read a class as a user types it: a whole number is an index or a rank, anything else a label."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def _explain(
    explainer: Explainer,
    picture: Picture,
    targets: Sequence[int | str] | None,
    top: int | None,
    method: str,
    reduced: bool,
) -> list[Explanation]:
    """Explain a picture's classes in one forward pass, each once: two targets may be the same class."""
    explanations = explainer.explain_classes(picture.path, targets, top=top, method=method, reduced=reduced)
    return list({explanation.index: explanation for explanation in explanations}.values())


def _save(explanation: Explanation, picture: Picture, output: Path, colormap: Colormap) -> Path:
    """Write an overlay; return its path relative to the output folder."""
    overlay = overlay_name(picture.stem, explanation.index, explanation.label)
    (output / overlay).parent.mkdir(parents=True, exist_ok=True)
    explanation.save(output / overlay, colormap)
    return overlay


def _record(
    model: Path, picture: Picture, explanations: Sequence[Explanation], overlays: Sequence[Path | None]
) -> dict[str, Any]:
    """Return what is recorded of a picture; boxes are (x0, y0, x1, y1) in its pixels, the largest first."""
    return {
        "path": str(picture.path),
        "model": str(model),
        "method": explanations[0].method,
        "layer": explanations[0].layer,
        "classes": [
            {
                "index": one.index,
                "label": one.label,
                "logit": one.logit,
                "probability": one.probability,
                "boxes": one.boxes(),
                "overlay": overlay and overlay.as_posix(),
            }
            for one, overlay in zip(explanations, overlays, strict=True)
        ],
    }


def _class(explanation: Explanation) -> str:
    label = explanation.label
    return (
        str(explanation.index) if label in (None, str(explanation.index)) else f"{explanation.index} {label}"
    )


def _percent(probability: float | None) -> str:
    return "-" if probability is None else f"{probability:.1%}"
