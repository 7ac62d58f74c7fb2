"""The networks that are timed: torchvision's, every parameter redrawn, as plain files and as explainers."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[1] / "tests"))

if TYPE_CHECKING:
    import torch

SIZE = 224
SEED = 7

CNNS = (
    "resnet18",
    "resnet50",
    "vgg16",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "squeezenet1_1",
    "convnext_tiny",
    "regnet_y_400mf",
)
TRANSFORMERS = ("vit_b_16", "swin_t")


@dataclass(frozen=True)
class Files:
    """A network's files: the plain model, and its explainer at a layer, by the layer's own name."""

    plain: Path
    explainer: Path
    layer: str


def build(name: str) -> torch.nn.Module:
    """Return one of torchvision's networks, every parameter redrawn."""
    # Imported late: processes that time files do so without torch.
    import torch

    from redraw import redraw
    from torchvision_operators import declare_torchvision_operators

    declare_torchvision_operators()
    import torchvision.models

    network = getattr(torchvision.models, name)(weights=None)
    return redraw(network, torch.zeros(1, 3, SIZE, SIZE), SEED)


def export_files(spec: str, folder: Path) -> Files:
    """Write what is timed of `NETWORK` or `NETWORK:LAYER`, where the folder hasn't it yet."""
    from onnxplain.session import create_session, read_manifest

    name, _, layer = spec.partition(":")
    plain, explainer = folder / f"{name}.plain.onnx", folder / f"{spec.replace(':', '.')}.onnx"
    if not plain.exists():
        export_plain(build(name), plain)
    if not explainer.exists():
        import torch

        from onnxplain_export import export

        export(build(name), torch.zeros(1, 3, SIZE, SIZE), explainer, layer=layer or None)
    manifest = read_manifest(create_session(explainer, "cpu", None), explainer.name)
    return Files(plain, explainer, manifest.layers[0].name)


def export_plain(network: torch.nn.Module, path: Path) -> None:
    """Write a network as PyTorch's own exporter does, for any batch."""
    import torch

    warnings.simplefilter("ignore")
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, SIZE, SIZE),),
        path,
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
