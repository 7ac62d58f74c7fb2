"""Run the same explainer files in several engines, and write their errors to docs/engines.md.

`python benchmarks/engines.py [NETWORK ...]` exports the networks with Grad-CAM's heatmaps, for normalised
images and for pictures, and compares each engine with onnxruntime on the CPU. Engines: onnxruntime (CUDA too,
where it is at hand), OpenVINO (`pip install -c constraints.txt openvino`), and onnxruntime-node and
onnxruntime-web, which are found where NODE_PATH says (`npm install --ignore-scripts`).
"""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from torch import nn

from onnxplain.manifest import Manifest, Preprocessing
from onnxplain.preprocessing import preprocess
from onnxplain_export import export
from onnxplain_models.catalog import NETWORKS as SHIPPED
from onnxplain_models.catalog import PREPROCESSING, TARGET_LAYERS
from onnxplain_models.networks import load

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from engine_runs import Arrays, Engine, engines, node_version

from redraw import redraw
from torchvision_operators import declare_torchvision_operators

TORCHVISION = ("mobilenet_v2", "resnet18", "vit_b_16")
REAL_WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "realworld"
SEED = 11


@dataclass(frozen=True)
class Network:
    """A network to export."""

    model: nn.Module
    weights: str
    layer: str | None = None
    preprocessing: Preprocessing | None = None

    @property
    def example(self) -> torch.Tensor:
        spec = self.preprocessing
        return torch.zeros(1, 3, 224, 224) if spec is None else torch.zeros(1, 3, spec.height, spec.width)

    @property
    def num_classes(self) -> int:
        with torch.no_grad():
            return int(self.model(self.example).shape[1])


@dataclass(frozen=True)
class Row:
    """How far an engine's answers are from onnxruntime's: over the largest value, a heatmap's as they are."""

    network: str
    engine: str
    logits: float
    gradients: float
    cam: float
    heatmap: float
    problems: str
    """What is not as it must be: other classes, numbers where there is no class, other shapes."""


def network(name: str) -> Network:
    """Build a network: a shipped one, or torchvision's, with real weights where they are at hand."""
    if name in SHIPPED:
        return Network(load(name), "trained", TARGET_LAYERS[name], PREPROCESSING)
    declare_torchvision_operators()
    models: Any = importlib.import_module("torchvision.models")
    model = models.get_model(name, weights=None)
    weights = REAL_WEIGHTS / f"{name}_imagenet.pth"
    if weights.is_file():
        model.load_state_dict(torch.load(weights, weights_only=True))
        return Network(model.eval(), "trained")
    return Network(redraw(model, torch.zeros(1, 3, 224, 224), SEED), "redrawn")


def measure(name: str, source: Network, others: Sequence[Engine], *, pixels: bool) -> Iterator[Row]:
    """Export a network and compare engines with onnxruntime on the CPU."""
    reference, *others = others
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "explainer.onnx"
        report = export(
            source.model,
            source.example,
            path,
            layer=source.layer,
            preprocessing=source.preprocessing,
            heatmap="gradcam",
            pixels=pixels,
        )
        feeds = feeds_of(report.manifest, source.num_classes)
        expected = reference.run(path, feeds)
        for engine in others:
            yield compare(name, engine, expected, engine.run(path, feeds))


def feeds_of(manifest: Manifest, num_classes: int) -> list[Arrays]:
    """Return two photographs with classes, ranks and classes that don't exist, and with no class at all."""
    pictures = np.stack([skimage.data.astronaut()[:300, :451], skimage.data.chelsea()])
    image = pictures
    if not manifest.pixels:
        image = np.stack([preprocess(one, manifest.input)[0] for one in pictures])
    classes = np.array([[-1, -2, 3, num_classes], [0, -3, -num_classes - 1, 5]])
    return [{"image": image, "class_index": some} for some in (classes, classes[:, :0])]


def compare(network: str, engine: Engine, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Row:
    """Compare an engine's runs with the reference's."""
    errors, problems = dict.fromkeys(("logits", "gradients", "cam", "heatmap"), 0.0), []
    for theirs, ours in zip(found, expected, strict=True):
        for name, array in ours.items():
            if theirs[name].shape != array.shape:
                problems.append(f"{name} {theirs[name].shape}")
            elif not np.array_equal(np.isnan(theirs[name]), np.isnan(array)):
                problems.append(f"{name}: NaN elsewhere")
            elif name == "explained_class" and not np.array_equal(theirs[name], array):
                problems.append("other classes")
            elif name in errors:
                errors[name] = max(errors[name], _error(theirs[name], array, relative=name != "heatmap"))
    return Row(network, engine.name, **errors, problems="; ".join(dict.fromkeys(problems)))


def _error(found: NDArray[Any], expected: NDArray[Any], *, relative: bool) -> float:
    known = ~np.isnan(expected)
    if not known.any():
        return 0.0
    scale = np.abs(expected[known]).max() if relative else 1.0
    return float(np.abs(found - expected)[known].max() / scale)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Write rows as Markdown."""
    yield "| network | engine | logits | gradients | cam | heatmap | classes |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        numbers = [f"{number:.0e}" for number in (row.logits, row.gradients, row.cam, row.heatmap)]
        yield f"| {' | '.join([row.network, row.engine, *numbers, row.problems or 'same'])} |"


def measured_with(used: Sequence[Engine]) -> str:
    """Say what was measured with, where and when."""
    versions = ", ".join(f"{engine.name} {engine.version}" for engine in used)
    cores = len(os.sched_getaffinity(0))
    return (
        f"Written by `python benchmarks/engines.py` on {datetime.date.today().isoformat()}, with {versions}, "
        f"Node {node_version()}, Python {platform.python_version()}; {_processor()}, {cores} cores."
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


INTRODUCTION = """\
# Engines

The same files on several engines, against onnxruntime's CPU provider in Python: two photographs in one
batch; for each two ranks or one, a class or two, and one that doesn't exist; then no class at all.

*logits*, *gradients* and *cam*: the largest error over the largest value. *heatmap*: the largest error as
it is, of [0, 1]. *classes*: whether ranks resolve to the same classes, a class that doesn't exist gives NaN
and -1, and all shapes are the same, without classes too.
"""
IMAGES = """\
## Images

`--heatmap gradcam`: `image` is float32, normalised by the caller.
"""
PICTURES = """\
## Pictures

`--heatmap gradcam --pixels`: `image` is uint8, 300 x 451 pixels, and the file resizes it with antialiasing.

**OpenVINO is exempt**: it ignores `antialias` without a word, takes other pixels for the network, and so
answers otherwise; its rows show by how much. Give it files without `--pixels`, and do the
[preprocessing](file-format.md#preprocessing) before.
"""
NOTES = """\
## What was found

What it took that all these engines run one file alike, and what is left:

- **OpenVINO takes bfloat16** on CPUs that have it: of vgg_mlp, logits were then off by 1e-2 and a heatmap by
  0.13. For the numbers above, compile with `{"INFERENCE_PRECISION_HINT": "f32"}`.
- **OpenVINO mistakes square weights** (2026.4, CPU). It keeps weights that it has packed by their address
  and their packed layout. Where one graph has a square constant in one MatMul as it is and in another
  transposed, or as the weights of both a Conv and a ConvTranspose, the second gets what was packed for the
  first: gradients that are wrong altogether, without an error. Explainers have both, so the backward pass
  takes `Max(w, w)` of such weights: engines fold it at load, and in the file it takes no place.
- **OpenVINO's MaxPool** with `auto_pad` SAME, in a file of dynamic size (`--dynamic-size`), isn't padded
  once its indices are asked for. Only `.onnx` sources have it; name a layer after it, or fix the size.
- **OpenVINO lacks or changes some operators of networks themselves** (a Resize with `half_pixel_symmetric`,
  MaxUnpool, Pad with `wrap`, for example): the plain network is wrong there too.
- **onnxruntime before 1.32**, that of npm among them, fails to multiply one matrix by a stack of none, and up
  to 1.26 OneHot of nothing ends the process. Plain predictions, `class_index` of the shape [batch, 0], would
  do both, and the files avoid it. Einsum of nothing ends the process up to 1.26 too, and is in few networks:
  ask for a class there.
- **onnxruntime-web** resizes pictures to within one level of 255, in a pixel of a thousand (to 96 x 96) or of
  100 000 (to 256 x 384); the others do it bit by bit alike.

`python -m pytest tests/test_rules_on_engines.py -m slow` runs every gradient rule on OpenVINO,
onnxruntime-node and onnxruntime-web, with and without classes.
"""


@click.command(help=__doc__)
@click.argument("networks", nargs=-1, type=click.Choice([*SHIPPED, *TORCHVISION]))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="docs/engines.md",
    show_default=True,
)
def main(networks: tuple[str, ...], output: Path) -> None:
    used = engines()
    rows: dict[bool, list[Row]] = {False: [], True: []}
    for name in networks or (*SHIPPED, *TORCHVISION):
        source = network(name)
        for pixels in (False, True):
            for row in measure(f"{name}, {source.weights}", source, used, pixels=pixels):
                click.echo(f"{'pictures' if pixels else 'images'}: {row}", err=True)
                rows[pixels].append(row)
    images, pictures = list(table(rows[False])), list(table(rows[True]))
    parts = [INTRODUCTION, measured_with(used), "", IMAGES, *images, "", PICTURES, *pictures, "", NOTES]
    output.write_text("\n".join(parts))
    click.echo("\n".join([*images, "", *pictures]))


if __name__ == "__main__":
    main()
