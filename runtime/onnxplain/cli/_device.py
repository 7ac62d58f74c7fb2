"""Where onnxruntime runs, as several commands take it."""

from __future__ import annotations

import click

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where onnxruntime runs; auto takes CUDA where there is one.",
)
