"""`onnxplain layers SOURCE`: which layers can be explained, and which would be picked."""

from __future__ import annotations

from pathlib import Path

import click

from onnxplain.cli._source import load, source_arguments
from onnxplain.cli._text import folding, table


@click.command("layers", short_help="List the layers of a network that can be explained.")
@source_arguments
def command(
    source: str, checkpoint: Path | None, size: tuple[int, int] | None, preprocessing_file: Path | None
) -> None:
    """List the layers of SOURCE that can be explained, in the order in which they run.

    The one that `onnxplain export` picks by itself is marked. SOURCE is as in `onnxplain export --help`:
    torchvision:NAME or timm:NAME, whose weights aren't downloaded for this, package.module:factory, model.pt2
    or model.onnx.
    """
    loaded = load(source, checkpoint, size, preprocessing_file, pretrained=False)
    from onnxplain_export import list_layers

    rows = [
        [
            layer.name,
            layer.kind,
            f"{layer.channels} of {layer.height}x{layer.width}",
            f"{'picked automatically' * layer.automatic}{folding(layer.tokens)}".removeprefix(", "),
        ]
        for layer in list_layers(loaded.model, loaded.example_input)
    ]
    click.echo(table(["LAYER", "KIND", "MAPS", ""], rows, texts=[1, 3]))
