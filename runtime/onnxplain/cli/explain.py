"""`onnxplain explain MODEL.onnx PATH...`: maps of pictures and of folders of pictures."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxplain.cli._device import device_option
from onnxplain.cli._doubts import doubt_of_maps, doubt_of_preprocessing
from onnxplain.cli._explained import Asked, Explained
from onnxplain.cli._methods import METHOD_NAMES, ONE_RUN
from onnxplain.cli._pictures import find_pictures
from onnxplain.cli._record import RECORD, summary
from onnxplain.cli._report import PAGE, image_store
from onnxplain.cli._size import read_size
from onnxplain.cli._text import printable
from onnxplain.extras import require
from onnxplain.outputs import OutputFolder, check_outside

if TYPE_CHECKING:
    from onnxplain import Explainer
    from onnxplain.cli._run import Run
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
    help="Folder for the overlays and the record; what an earlier call wrote there is replaced.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with what an earlier call of the same options wrote there: pictures that are done aren't "
    "explained again.",
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
    resume: bool,
    size: tuple[int, int] | None,
    device: Device,
    colormap: Colormap,
    overlays: bool,
    report: bool,
) -> None:
    """Explain what the explainer MODEL answers to the pictures at each PATH.

    A PATH is a picture, or a folder, which is searched with the folders in it for files with a picture's
    extension; folders with outputs of onnxplain are left out. A picture that can't be read is reported; the
    exit code is then 1.

    Into the output folder go an overlay for each picture and class, PICTURE.INDEX-LABEL.png, in folders as
    the pictures were, and explanations.jsonl, one JSON object for each picture, class and method. With
    several methods an overlay is PICTURE.INDEX-LABEL.METHOD.png. A folder with files that onnxplain didn't
    write is refused.

    Several pictures are explained at once, one a core.
    """
    if top and classes:
        raise click.UsageError("--top and --class don't go together.", click.get_current_context())
    if report:
        require("report")
    folder = OutputFolder(output, "explain")
    check_outside(output, [model, *paths])
    pictures = find_pictures(paths, output)
    # Runs of one thread each, side by side, explain more pictures than runs of all cores, one by one.
    # One run of the network isn't worth threads that wait for the next, spinning.
    is_one_run = len(pictures) == 1 and not aug_smooth and set(method) <= set(ONE_RUN)
    threads = 1 if len(pictures) > 1 else None
    explainer = _load(model, device, size, threads, spin=not is_one_run)
    from onnxplain.cli._resume import check_settings, done_before, settings_of
    from onnxplain.cli._run import Run

    targets = [_target(text) for text in classes] or None
    methods = tuple(dict.fromkeys(method))
    maps = len(methods) * len(targets or range(top or 1))
    asked = Asked(
        model,
        methods,
        targets,
        None if targets else top or 1,
        {
            "layer": layer,
            "eigen_smooth": eigen_smooth,
            "aug_smooth": aug_smooth,
            "common_scale": common_scale,
        },
        size,
        colormap,
        folder,
        overlays,
        image_store(folder, len(pictures), maps) if report else None,
    )
    asked.check(explainer)
    folder.settings = settings_of(explainer, asked)
    before: list[Explained] = []
    if resume:
        check_settings(folder)
        before = done_before(folder, pictures, asked)
    run = Run(asked, pictures, before, report=report, is_short=is_one_run)
    try:
        run.explain(explainer)
    except KeyboardInterrupt as error:
        error.add_note(
            f"{len(run.done)} of {len(pictures)} pictures are done; the same call with --resume goes on."
            if run.done
            else "no picture was done."
        )
        raise
    if run.done:
        click.echo(summary(run.done, asked))
        click.echo(f"\n{_written(run, folder, len(before), report=report)}")
        for doubt in (doubt_of_preprocessing(explainer.manifest.input), doubt_of_maps(run.done)):
            if doubt:
                click.echo(f"\n{doubt}")
    if run.problems:
        click.get_current_context().exit(1)


def _written(run: Run, folder: OutputFolder, before: int, *, report: bool) -> str:
    """Return where the record and the report are, and what became of those of an earlier call."""
    lines = [f"The record: {folder.path / RECORD}"]
    if report:
        lines.append(f"The report: {folder.path / PAGE}")
    if before:
        lines.append(f"Of {len(run.done)} pictures, an earlier call had done {before}.")
    elif folder.removed:
        lines.append(f"They take the place of the {folder.removed} files of an earlier call.")
    return "\n".join(map(printable, lines))


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
