"""`onnxplain web MODEL.onnx -o DIR`: a page that explains pictures in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from onnxplain.cli._text import file_size, printable


@click.command("web", short_help="Write a page that explains pictures in the browser.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the page; an earlier page there is replaced.",
)
@click.option(
    "--ort-web",
    metavar="DIR",
    type=click.Path(path_type=Path),
    show_default="fetched with npm",
    help="Folder of npm's package onnxruntime-web, or its dist.",
)
def command(model: Path, output: Path, ort_web: Path | None) -> None:
    """Write a page that explains pictures with the explainer MODEL, in the browser, with no server behind it.

    MODEL takes pictures and gives heatmaps: export it with --heatmap METHOD --pixels. DIR can go to any web
    server that hands out files. After the first visit the page works without a network too.
    """
    from onnxplain.web_page import write_page

    write_page(model, output, ort_web, lambda step: click.echo(f"{step[:1].upper()}{step[1:]} ..."))
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    click.echo(f"The page: {printable(str(output))}, {file_size(size)}")
    click.echo(f"\nNext: python -m http.server --directory {printable(str(output))}")
    click.echo("and open http://localhost:8000 in a browser.")
