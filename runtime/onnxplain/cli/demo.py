"""`onnxplain demo`: three networks explain a few scenes, and a page shows it."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from onnxplain.cli._text import printable, table


@click.command("demo", short_help="See it work: three networks, a few scenes, one page.")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default="onnxplain-demo",
    show_default=True,
    help="Folder for the explainers, the scenes, the overlays and the page.",
)
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
def command(output: Path, open_page: bool) -> None:
    """Explain sample scenes with three networks, and write a page that shows it.

    Where PyTorch and the other packages of `onnxplain[export]` are installed, the networks are exported
    first; elsewhere the explainers that ship with onnxplain are used.
    """
    from onnxplain.demo import run_demo

    scenes = run_demo(output, lambda step: click.echo(f"{step[:1].upper()}{step[1:]} ..."))
    networks = [answer.network for answer in scenes[0].answers]
    rows = [
        [scene.digit, *(f"{answer.label} {answer.probability:.1%}" for answer in scene.answers)]
        for scene in scenes
    ]
    click.echo(f"\n{table(['TRUE DIGIT', *networks], rows)}")
    page = output / "index.html"
    click.echo(f"\nWhere they looked: open {printable(str(page))} in a browser.")
    if open_page:
        webbrowser.open(page.resolve().as_uri())
