"""Export one network from random weights, and measure the file against PyTorch; one process, one network.

`python benchmarks/coverage_network.py NAME RECORD [--stem]` writes what was found to the file RECORD, as one
object of JSON. `coverage.py` runs it for a whole list.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from onnxplain.manifest import Layer
from onnxplain_export import ExportReport, export, list_layers
from onnxplain_export.feature_map import FeatureMap
from onnxplain_export.graph import downstream, skip_identities, upstream
from onnxplain_export.torch_model import one_line

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from autograd import autograd
from redraw import redraw
from torchvision_operators import declare_torchvision_operators

TOLERANCE = 1e-4
SEED = 7
BATCH, CLASSES = 2, 3
# Heights and widths that the sweep from the first layer tries, before the network's own.
SMALL_SIZES = (64, 96, 128, 160, 192, 224)

Record = dict[str, Any]
Array = NDArray[Any]
Size = tuple[int, int, int]


def main() -> None:
    """Measure one network and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("record", type=Path)
    parser.add_argument("--stem", action="store_true", help="from the first layer, at a small size")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    record: Record = {"network": options.name, "verified": False}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            measure(options.name, Path(folder) / "explainer.onnx", record, stem=options.stem)
            record["verified"] = True
        except Exception as error:
            record["reason"] = reason(error).replace(folder, "")
    record["seconds"] = round(time.perf_counter() - start, 1)
    options.record.write_text(json.dumps(record))


def reason(error: Exception) -> str:
    """Return the first line of an error, with its type where it isn't one of ours."""
    kind = type(error)
    is_ours = kind.__module__.startswith("onnxplain") or kind is MismatchError
    return one_line(error) if is_ours else f"{kind.__name__}: {one_line(error)}"


class MismatchError(Exception):
    """The file's outputs aren't PyTorch's."""


def measure(name: str, path: Path, record: Record, *, stem: bool) -> None:
    """Export a network and compare the file with PyTorch; what is found goes into the record as it comes.

    From the first layer, float32 switches units near a ReLU's zero on or off, in PyTorch as much as in the
    file. There the export's own verification counts: it checks the rules in float64, and the file at the
    same activations as PyTorch.
    """
    model, size = small(name) if stem else drawn(name)
    record |= {"parameters": sum(tensor.numel() for tensor in model.parameters()), "size": size[1:]}
    example = torch.zeros(1, *size)
    report = export(model, example, path, layer=first_layer(model, example) if stem else None)
    (layer,) = report.manifest.layers
    record |= {
        "layer": layer.name,
        "operators": path_operators(path, layer),
        "nodes_added": report.nodes_added,
        "rules": report.verification.rules,
    }
    if stem:
        record |= {"logits": report.verification.logits, "gradients": report.verification.gradients}
    else:
        compare(model, report, size, record)


def drawn(name: str, size: int | None = None) -> tuple[nn.Module, Size]:
    """Return a network with every parameter redrawn, and the size of its input.

    Parameters
    ----------
    size
        Height and width; by default the network's own.
    """
    model, shape = built(name, size)
    return redraw(model, torch.zeros(1, *shape), SEED), shape


def small(name: str) -> tuple[nn.Module, Size]:
    """Return a network as `drawn` does, at the smallest size that it takes."""
    for size in SMALL_SIZES:
        try:
            model, shape = drawn(name, size)
            with torch.no_grad():
                model(torch.zeros(2, *shape))
            return model, shape
        except Exception:  # whatever a network raises that doesn't take the size
            continue
    return drawn(name)


def built(name: str, size: int | None) -> tuple[nn.Module, Size]:
    """Return a network with the weights that it begins training with, and the size of its input."""
    declare_torchvision_operators()
    origin, _, name = name.partition(":")
    if origin == "timm":
        timm: Any = importlib.import_module("timm")
        model = sized(
            lambda **options: timm.create_model(name, pretrained=False, **options), "img_size", size
        )
        channels, *own = timm.data.resolve_model_data_config(model)["input_size"]
    else:
        models: Any = importlib.import_module("torchvision.models")
        # Theirs takes minutes.
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = sized(
            lambda **size: models.get_model(name, weights=None, **options, **size), "image_size", size
        )
        channels, (crop,) = 3, models.get_model_weights(name).DEFAULT.transforms().crop_size
        # Its newest weights may be for larger images than the network takes by default.
        own = [getattr(model, "image_size", crop)] * 2
    height, width = own if size is None else (size, size)
    return model, (channels, height, width)


def sized(build: Callable[..., nn.Module], option: str, size: int | None) -> nn.Module:
    """Build a network for a size of input; those that take any have no such option."""
    if size is None:
        return build()
    try:
        return build(**{option: size})
    except TypeError:
        return build()


def first_layer(model: nn.Module, example: torch.Tensor) -> str:
    """Return the name of the first convolution or patch embedding that the logits depend on."""
    found = list_layers(model, example)
    first = [layer for layer in found if "Conv" in layer.kind or "PatchEmbed" in layer.kind]
    return (first or found)[0].name


def path_operators(path: Path, layer: Layer) -> dict[str, int]:
    """Count the operators between a layer and the logits, by type in the order of the graph."""
    graph = ir.load(path).graph
    outputs = {value.name: value for value in graph.outputs}
    folded = skip_identities(outputs[layer.activations])
    tap = skip_identities(FeatureMap.of_layer(layer).unfolded(folded))
    on_path = downstream(graph, [tap], with_gradient=True) & upstream([outputs["logits"]]) - {tap}
    return Counter(node.op_type for node in graph if not on_path.isdisjoint(node.outputs))


def compare(model: nn.Module, report: ExportReport, size: Size, record: Record) -> None:
    """Compare a file's outputs on images that the export hasn't seen with PyTorch's autograd.

    Raises
    ------
    MismatchError
        They differ, or there is nothing to compare.
    """
    (layer,) = report.manifest.layers
    generator = torch.Generator().manual_seed(SEED + 1)
    image = torch.randn(BATCH, *size, generator=generator)
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    count = session.get_outputs()[0].shape[1]
    asked = torch.randint(count, (BATCH, CLASSES), generator=generator)
    asked[:, 0] = -1
    names = ["logits", "gradients", "explained_class"]
    logits, gradients, explained = session.run(names, {"image": image.numpy(), "class_index": asked.numpy()})
    asked[:, 0] = torch.from_numpy(logits).argmax(dim=1)
    if not np.array_equal(explained, asked):
        raise MismatchError("the file explains other classes than it is asked for")
    expected_logits, by_layer = autograd(model, [layer.name], image, asked)
    expected = folded(by_layer[layer.name].numpy(), layer)
    if not np.abs(expected[:, 0]).max(axis=(1, 2, 3)).all():
        raise MismatchError("PyTorch's gradients of the predicted class are zero")
    record["logits"] = relative_error(logits, expected_logits.numpy())
    record["gradients"] = relative_error(gradients, expected)
    # The export has compared the logits, and knows how PyTorch's round.
    for what, tolerance in (("logits", 100 * TOLERANCE), ("gradients", TOLERANCE)):
        if not record[what] <= tolerance:
            raise MismatchError(f"the {what} differ from PyTorch's by {record[what]:.1e}")


def folded(gradients: Array, layer: Layer) -> Array:
    """Fold gradients [batch, classes, *layout] to a grid, as the manifest says."""
    tokens = layer.tokens or {}
    if tokens.get("layout") == "NHWC":
        return gradients.transpose(0, 1, 4, 2, 3)
    if tokens.get("layout") == "BNC":
        first = tokens.get("prefix", 0)
        grid = gradients[:, :, first : first + layer.height * layer.width]
        return grid.transpose(0, 1, 3, 2).reshape(*grid.shape[:2], -1, layer.height, layer.width)
    return gradients


def relative_error(actual: Array, expected: Array) -> float:
    """Return the relative L2 error."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    main()
