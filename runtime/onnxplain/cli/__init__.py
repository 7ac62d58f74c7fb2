"""The command line, a thin shell over the library: one file a command.

A command's file is imported when the command is called. The files import only click and the errors at their
top, and what a command works with when it runs: help and `--version` answer at once.
"""

import os

import click

from onnxplain import __version__
from onnxplain.cli._group import OneLineErrors, debug_option

__all__ = ["main"]

# A damaged picture is answered in one line of ours. A library must not silence another, but a program may.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


@click.group(
    "onnxplain",
    cls=OneLineErrors,
    commands_of="onnxplain.cli",
    names=("demo", "export", "layers", "inspect", "verify", "check", "explain", "evaluate", "bench", "web"),
    params=[debug_option()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="onnxplain", message="%(prog)s %(version)s")
def main() -> None:
    """Explain an image classifier with onnxruntime.

    Export a network once, to an explainer: one .onnx file that returns its logits, the activations of a
    layer, and the gradient of any class with respect to them. Then see where it looked, with no PyTorch.

    \b
        onnxplain export torchvision:resnet50 -o resnet50.onnx
        onnxplain explain resnet50.onnx photo.jpg --top 3
    """
