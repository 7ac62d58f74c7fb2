"""Gradients at every stage of deep networks, in float64 and in float32, written to docs/every-layer.md.

`python benchmarks/every_layer.py [NETWORK ...]` exports torchvision's networks with every residual block or
stage as a target layer, from redrawn weights. Rounding switches single units on or off: so the rules are
judged in float64, and the file in float32 by its median element and loosely by all of them. The same networks
with smooth activations in the place of their ReLUs have no units to switch, and are judged tightly.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from onnxplain_export import export
from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.torch_model import reference
from redraw import redraw
from torchvision_operators import declare_torchvision_operators

SIZE = 224
SEED = 11
LAYERS: dict[str, list[str]] = {
    "resnet50": [
        "maxpool",
        *(f"layer{stage}.{block}" for stage, blocks in enumerate((3, 4, 6, 3), 1) for block in range(blocks)),
    ],
    "convnext_tiny": [f"features.{stage}" for stage in range(8)],
    "densenet121": [
        "features.pool0",
        *(
            name
            for stage in (1, 2, 3)
            for name in (f"features.denseblock{stage}", f"features.transition{stage}")
        ),
        "features.denseblock4",
    ],
    "efficientnet_v2_s": [f"features.{stage}" for stage in range(8)],
    "swin_t": [f"features.{stage}" for stage in range(8)],
    "vit_b_16": [
        "conv_proj",
        *(f"encoder.layers.encoder_layer_{block}" for block in range(11)),
        "encoder.layers.encoder_layer_11.ln_1",
    ],
}
#: Those that have ReLUs.
SMOOTH = ("resnet50", "densenet121")


@dataclass(frozen=True)
class Row:
    """What was found at one layer."""

    network: str
    layer: str
    rules: float
    """Of the gradients in float64 from differences of the logits: the largest of the network's layers."""
    median: float
    """The median error, from autograd, of the elements that aren't zero, over the largest of them."""
    total: float
    """Relative L2, from autograd."""


def measure(name: str, *, smooth: bool = False, size: int = SIZE) -> list[Row]:
    """Export a network with all its layers, and compare the file with autograd on images it hasn't seen."""
    declare_torchvision_operators()
    models: Any = importlib.import_module("torchvision.models")
    model = models.get_model(name, weights=None)
    if smooth:
        make_smooth(model)
    example = torch.zeros(1, 3, size, size)
    redraw(model, example, SEED)
    layers = LAYERS[name]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = export(model, example, Path(folder) / "explainer.onnx", layer=layers)
        session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
        generator = torch.Generator().manual_seed(SEED)
        image = torch.randn(2, 3, size, size, generator=generator)
        classes = torch.randint(1000, (2, 3), generator=generator)
        names = [output.name for output in session.get_outputs()]
        results = session.run(names, {"image": image.numpy(), "class_index": classes.numpy()})
    outputs = dict(zip(names, results, strict=True))
    rows = []
    for layer in report.manifest.layers:
        # At the file's own activations: what is before the layer has rounded by itself.
        activations = torch.from_numpy(outputs[layer.activations])
        maps = FeatureMap.of_layer(layer)
        expected = reference(model, layer.name, maps, image, classes, activations).gradients
        found = outputs[layer.gradients]
        counts = (expected != 0) | (found != 0)
        median = np.median(np.abs(found - expected)[counts]) / np.abs(expected).max()
        total = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        label = f"{name}, smooth" if smooth else name
        rows.append(Row(label, layer.name, report.verification.rules, float(median), float(total)))
    return rows


def make_smooth(model: nn.Module) -> None:
    """Put SiLU in the place of each ReLU of a network, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())


def table(rows: list[Row]) -> Iterator[str]:
    """Write rows as Markdown."""
    yield "| network | layer | rules, float64 | median, float32 | all, float32 |"
    yield "|---|---|---|---|---|"
    for row in rows:
        yield f"| {row.network} | `{row.layer}` | {row.rules:.0e} | {row.median:.0e} | {row.total:.0e} |"


INTRODUCTION = """\
# Every layer

Torchvision's networks with every residual block or stage as a target layer, from redrawn weights at 224x224:
two images that the export hasn't seen, three classes each. Written by `python benchmarks/every_layer.py`.

*Rules*: the gradients in float64 against central differences of the logits, the largest of a network's
layers. *Median* and *all*: the file in float32 against PyTorch's autograd at the file's own activations, the
median error of the elements that aren't zero over the largest of them, and the relative L2 error of all.
Rounding switches a ReLU on or off where its input is within rounding of zero, in PyTorch as in the file, and
then some gradients jump. The networks that are called smooth have SiLU in every ReLU's place, and nothing
to switch but maxima (densenet121 keeps its last ReLU, a function call).
"""


@click.command(help=__doc__)
@click.argument("networks", nargs=-1, type=click.Choice(list(LAYERS)))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="docs/every-layer.md",
    show_default=True,
)
def main(networks: tuple[str, ...], output: Path) -> None:
    rows = []
    for name in networks or LAYERS:
        for smooth in (False, True) if name in SMOOTH else (False,):
            start = time.perf_counter()
            rows += measure(name, smooth=smooth)
            click.echo(f"{rows[-1].network}: {time.perf_counter() - start:.0f} s", err=True)
            output.write_text("\n".join([INTRODUCTION, *table(rows), ""]))


if __name__ == "__main__":
    main()
