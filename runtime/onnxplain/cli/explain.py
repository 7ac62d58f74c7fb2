"""`onnxplain explain MODEL.onnx PATH...`: maps of pictures and of folders of pictures."""

from __future__ import annotations

import os
import re
import sys
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import click

from onnxplain.cli._device import device_option
from onnxplain.cli._explained import Asked, Explained, explain_picture
from onnxplain.cli._methods import METHOD_NAMES, ONE_RUN
from onnxplain.cli._pictures import find_pictures
from onnxplain.cli._record import RECORD, record, summary
from onnxplain.cli._report import PAGE, image_store, write_report
from onnxplain.cli._size import read_size
from onnxplain.cli._text import CLEAR_LINE, printable
from onnxplain.errors import ImageError
from onnxplain.extras import require
from onnxplain.files import write_atomically

if TYPE_CHECKING:
    from onnxplain import Explainer
    from onnxplain.overlay import Colormap
    from onnxplain.session import Device


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
    multiple=True,
    default=("gradcam",),
    show_default=True,
    help="How the map is made; cam where the network ends in one linear layer on averaged maps. Repeatable: "
    "then each class has a map by each method.",
)
@click.option("--layer", metavar="L", show_default="all that the file has", help="The target layer.")
@click.option(
    "--eigen-smooth",
    is_flag=True,
    help="Take the first principal component over a layer's channels, not their sum: less noise.",
)
@click.option(
    "--aug-smooth",
    is_flag=True,
    help="Take the mean over the picture mirrored, brighter and darker: six runs.",
)
@click.option(
    "--common-scale", is_flag=True, help="Let colours mean the same for all classes of a picture and method."
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
@click.option(
    "--report",
    is_flag=True,
    help=f"Write {PAGE} too, a page to look through the pictures with. It takes the extra `report`.",
)
def command(
    model: Path,
    paths: tuple[Path, ...],
    top: int | None,
    classes: tuple[str, ...],
    method: tuple[str, ...],
    layer: str | None,
    eigen_smooth: bool,
    aug_smooth: bool,
    common_scale: bool,
    output: Path,
    size: tuple[int, int] | None,
    device: Device,
    colormap: Colormap,
    overlays: bool,
    report: bool,
) -> None:
    """Explain what the explainer MODEL answers to the pictures at each PATH.

    A PATH is a picture, or a folder, which is searched with the folders in it for files with a picture's
    extension. A picture that can't be read is reported and left out; the exit code is then 1.

    Into the output folder go an overlay for each picture and class, PICTURE.INDEX-LABEL.png, in folders as
    the pictures were, and explanations.jsonl, one JSON object for each picture. With several methods an
    overlay is PICTURE.INDEX-LABEL.METHOD.png.

    Several pictures are explained at once, one a core.
    """
    if top and classes:
        raise click.UsageError("--top and --class don't go together.", click.get_current_context())
    if report:
        require("report")
    pictures = find_pictures(paths, output)
    # Runs of one thread each, side by side, explain more pictures than runs of all cores, one by one.
    # One run of the network isn't worth threads that wait for the next, spinning.
    is_one_run = len(pictures) == 1 and not aug_smooth and set(method) <= set(ONE_RUN)
    threads = 1 if len(pictures) > 1 else None
    explainer = _load(model, device, size, threads, spin=not is_one_run)
    from onnxplain.pipeline import in_order

    targets = [_target(text) for text in classes] or None
    methods = tuple(dict.fromkeys(method))
    maps = len(methods) * len(targets or range(top or 1))
    asked = Asked(
        methods,
        targets,
        None if targets else top or 1,
        {
            "layer": layer,
            "eigen_smooth": eigen_smooth,
            "aug_smooth": aug_smooth,
            "common_scale": common_scale,
        },
        colormap,
        output if overlays else None,
        image_store(output, len(pictures), maps) if report else None,
    )
    asked.check(explainer)
    on_terminal, several = sys.stderr.isatty(), len(pictures) > 1
    done: list[Explained] = []
    records: list[str] = []
    problems: list[str] = []
    stopped = Event()
    explain = partial(
        explain_picture, explainer, asked, progress=on_terminal and not several, stopped=stopped
    )
    try:
        with (
            closing(in_order(explain, pictures, stopped)) as calls,
            click.progressbar(calls, len(pictures), "Explaining", file=sys.stderr)
            if on_terminal and several
            else nullcontext(calls) as bar,  # click imports what draws bars when it makes one
        ):
            for call in bar:
                try:
                    one = call.result()
                except ImageError as error:
                    problems.append(str(error))
                    click.echo(f"{CLEAR_LINE * on_terminal}Error: {printable(problems[-1])}", err=True)
                    continue
                records.append(record(model, one, asked))
                done.append(one)
    finally:  # what was done before an interruption is on record too
        if done:
            output.mkdir(parents=True, exist_ok=True)
            write_atomically(output / RECORD, "".join(f"{line}\n" for line in records).encode())
            if report:
                write_report(output, model, done, asked, problems, len(pictures))
    if done:
        click.echo(summary(done, asked))
        click.echo(f"\nThe record: {printable(str(output / RECORD))}")
        if report:
            click.echo(f"The report: {printable(str(output / PAGE))}")
    if problems:
        click.get_current_context().exit(1)


def _load(
    model: Path, device: Device, size: tuple[int, int] | None, threads: int | None, spin: bool
) -> Explainer:
    """Load an explainer; OpenCV and most of the library are imported while onnxruntime reads the file."""
    # numpy's threads spin as it is imported; the products here are too small for them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from concurrent.futures import ThreadPoolExecutor

    from onnxplain.session import create_session, read_manifest

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(create_session, model, device, None, threads, spin=spin)
        from onnxplain import Explainer
    session = loading.result()
    read_manifest(session, str(model))  # its errors name the file
    return Explainer(session=session, size=size)


def _target(text: str) -> int | str:
    """Read a class as a user types it: a whole number is an index or a rank, anything else a label."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text
