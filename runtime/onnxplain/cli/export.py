"""`onnxplain export SOURCE -o OUT.onnx`: make an explainer of a classifier."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxplain.cli._methods import IN_THE_GRAPH
from onnxplain.cli._source import load, read_text, source_arguments
from onnxplain.cli._text import facts, file_size, folding, printable
from onnxplain.cli.verify import verification_facts
from onnxplain.errors import SourceError
from onnxplain.files import check_apart

if TYPE_CHECKING:
    from onnxplain.manifest import Activation
    from onnxplain_export import ExportReport


@click.command("export", short_help="Make an explainer of a classifier: of PyTorch, or an .onnx file.")
@source_arguments
@click.option(
    "-o",
    "--output",
    metavar="OUT.onnx",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the explainer goes; an earlier file there is replaced, unless it is one that is read.",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="L",
    show_default="picked",
    help="Layer to explain, as in `onnxplain layers`. Repeatable.",
)
@click.option(
    "--labels",
    "labels_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The classes' names by index: one a line, or a JSON list.",
)
@click.option(
    "--activation",
    type=click.Choice(["softmax", "sigmoid", "none"]),
    help="What turns logits into probabilities: sigmoid for multi-label networks. "
    "[default: softmax, sigmoid for a single logit]",
)
@click.option(
    "--input-gradient",
    is_flag=True,
    help="Add the output image_gradients: the gradients of the image itself.",
)
@click.option(
    "--guided",
    is_flag=True,
    help="Add the output guided_image_gradients: those of guided backpropagation.",
)
@click.option(
    "--dynamic-size",
    is_flag=True,
    help="Let the file take images of any height and width that the network takes.",
)
@click.option(
    "--heatmap",
    type=click.Choice(IN_THE_GRAPH),
    help="Add the outputs cam and heatmap: a method's maps, and these as large as the image.",
)
@click.option(
    "--pixels",
    is_flag=True,
    help="Let the file take pictures as they are: 8-bit RGB of any size, preprocessed in the file.",
)
@click.option(
    "--fp16",
    is_flag=True,
    help="Half precision: weights and forward pass in float16, half the file.",
)
def command(
    source: str,
    output: Path,
    layers: tuple[str, ...],
    input_gradient: bool,
    guided: bool,
    dynamic_size: bool,
    heatmap: str | None,
    pixels: bool,
    fp16: bool,
    checkpoint: Path | None,
    labels_file: Path | None,
    activation: Activation | None,
    size: tuple[int, int] | None,
    preprocessing_file: Path | None,
) -> None:
    """Make an explainer of the classifier SOURCE.

    SOURCE is torchvision:NAME or timm:NAME, with its pretrained weights unless there is a checkpoint, whose
    head then says how many classes there are; package.module:factory for a function of yours that returns a
    torch.nn.Module, where modules in the current folder are found; or model.pt2, a program of torch.export.
    Or it is the .onnx file of a finished classifier, for which PyTorch isn't needed; its layers are its nodes
    and tensors.

    The explainer is verified before it gets its name: its gradients against central differences in float64,
    its file against the source. What fails leaves no file.
    """
    check_apart(output, [Path(source), checkpoint, labels_file, preprocessing_file])
    labels = None if labels_file is None else _read_labels(labels_file)
    _step(f"loading {source}")
    loaded = load(source, checkpoint, size, preprocessing_file)
    from onnxplain_export import export
    from onnxplain_export.progress import shown

    with shown(quiet=0) if sys.stderr.isatty() else nullcontext(_step) as progress:
        report = export(
            loaded.model,
            loaded.example_input,
            output,
            layer=layers or None,
            labels=loaded.labels if labels is None else labels,
            preprocessing=loaded.preprocessing,
            activation=activation,
            source_name=loaded.name,
            input_gradient=input_gradient,
            guided=guided,
            dynamic_size=dynamic_size,
            heatmap=heatmap,
            pixels=pixels,
            fp16=fp16,
            progress=progress,
        )
    click.echo(facts(_summary(report)))
    click.echo(f"\nNext: onnxplain explain {printable(str(output))} PICTURE_OR_FOLDER")


def _step(words: str) -> None:
    """Print that a step begins; of those of the export, how much is done before."""
    done = getattr(words, "done", 0.0)
    click.echo(f"{printable(words[:1].upper() + words[1:])} ...{f' {done:.0%}' if done else ''}")


def _summary(report: ExportReport) -> list[tuple[str, str]]:
    picked = " (picked automatically)" if report.automatic else ""
    return [
        ("explainer", f"{report.path}, {file_size(report.size)}"),
        ("input", _input(report)),
        ("picture", report.manifest.input.in_words()),
        *((name, f"from {where}") for name, where in report.taken.items()),
        *(
            (
                "layer",
                f"{layer.name}{picked}, {layer.channels} maps of {layer.height}x{layer.width}"
                f"{folding(layer.tokens)}",
            )
            for layer in report.manifest.layers
        ),
        *([("heatmap", f"{report.manifest.heatmap}, as cam and heatmap")] if report.manifest.heatmap else []),
        ("nodes", f"{report.nodes}, of which {report.nodes_added} were added to explain"),
        *verification_facts(report.verification, "the source"),
    ]


def _input(report: ExportReport) -> str:
    spec = report.manifest.input
    size = f"{spec.height}x{spec.width}"
    if report.manifest.pixels:
        return f"pictures of any size, brought to {size} in the file"
    return f"{spec.channels}x{size}" + ", or another size" * report.any_size


def _read_labels(file: Path) -> list[str]:
    """Read the classes' names: a JSON list of strings, or one a line."""
    text = read_text(file)
    if not text.lstrip().startswith("["):
        return text.splitlines()
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{file} starts like a JSON list but isn't one: {error}") from None
    if not all(isinstance(label, str) for label in labels):
        raise SourceError(f"{file} must be a JSON list of strings, one a class")
    return list(labels)
