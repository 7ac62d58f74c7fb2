"""Do maps depend on what the network has learned? The check by randomised parameters.

Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3: a network's layers lose what they
have learned one after the other, from the logits back. A map that stays as it was shows the picture's edges,
or the architecture, and not why the network answered so. It takes the source network, and PyTorch.
"""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onnxplain.errors import SourceError
from onnxplain.explainer import Explainer
from onnxplain.files import write_atomically
from onnxplain.heatmap import heatmap
from onnxplain.images import Picture, read_image
from onnxplain.manifest import GUIDED_GRADIENTS, IMAGE_GRADIENTS
from onnxplain_export.exporter import export
from onnxplain_export.torch_model import logits_of

TABLE = "sanity.csv"
_SAME = 1e-2
_ENOUGH = 32


@dataclass(frozen=True)
class Similarity:
    """How like the original's a method's maps are when layers are randomised.

    Parameters
    ----------
    layers, of
        How many layers are, from the logits back, and how many there are.
    ranks, values
        Spearman's and Pearson's correlation of the maps' cells, the mean over pictures; a blank map has 0.
    """

    method: str
    layers: int
    of: int
    ranks: float
    values: float


def check_sanity(
    explainer: Explainer,
    model: nn.Module,
    pictures: Sequence[Path],
    methods: Sequence[str],
    layer: str | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Similarity]:
    """Compare maps of a network with those of itself without what its layers have learned.

    The class is the one that the network itself predicts. Each stage is exported anew.

    Parameters
    ----------
    explainer
        Of the network.
    model
        The network; it isn't changed.
    pictures
        The pictures to explain; of many the first 32.
    methods, layer
        As `Explainer.explain` takes them.
    seed
        Of the randomised parameters.
    progress
        Called with a few words as each step begins.

    Raises
    ------
    SourceError
        The explainer wasn't made of this network.
    OnnxplainError
        A randomised network can't be exported.
    """
    network = explainer.network
    images = [read_image(picture) for picture in pictures[:_ENOUGH]]
    tensors = np.stack([network.prepare(Picture(image, image.shape[:2]))[0] for image in images])
    batch = torch.from_numpy(tensors)
    _check_source(model, batch[:1], network.predict(tensors[:1]))
    classes = [explainer.explain(image).index for image in images]

    def maps(of: Explainer) -> dict[str, list[NDArray[np.float64]]]:
        return {
            method: [
                _cells(of.explain(image, index, method, layer).cams)
                for image, index in zip(images, classes, strict=True)
            ]
            for method in methods
        }

    originals = maps(explainer)
    found = []
    for count, total, randomised in _cascade(model, batch, seed):
        progress(f"maps with {count} of {total} layers randomised")
        with TemporaryDirectory() as folder:
            export(
                randomised,
                batch[:1],
                Path(folder) / "randomised.onnx",
                layer=[one.name for one in explainer.manifest.layers],
                preprocessing=network.input,
                activation=explainer.manifest.activation,
                input_gradient=network.has_output(IMAGE_GRADIENTS),
                guided=network.has_output(GUIDED_GRADIENTS),
            )
            theirs = maps(Explainer((Path(folder) / "randomised.onnx").read_bytes()))
        for method in methods:
            pairs = list(zip(originals[method], theirs[method], strict=True))
            values = float(np.mean([correlation(a, b) for a, b in pairs]))
            by_rank = float(np.mean([correlation(ranks(a), ranks(b)) for a, b in pairs]))
            found.append(Similarity(method, count, total, by_rank, values))
    return found


def write_similarities(folder: Path, similarities: Sequence[Similarity]) -> None:
    """Write a row for each method and stage."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["method", "layers_randomised", "layers", "rank_correlation", "correlation"])
    rows.writerows([one.method, one.layers, one.of, one.ranks, one.values] for one in similarities)
    write_atomically(folder / TABLE, text.getvalue().encode())


def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the ranks of values, those that are equal sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return shared[place.reshape(values.shape)]


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return Pearson's correlation; 0 where one of the two is the same everywhere."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


def _cells(cams: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Return the cells of the layers' maps as they are shown: through ReLU, and scaled."""
    return np.concatenate([heatmap([cam], cam.shape).ravel() for cam in cams]).astype(np.float64)


def _check_source(model: nn.Module, batch: Any, expected: NDArray[Any]) -> None:
    is_training = model.training
    try:
        with torch.no_grad():
            logits = logits_of(model.eval()(batch)).numpy()
    finally:
        model.train(is_training)
    if logits.shape != expected.shape or not (
        np.abs(logits - expected).max() <= _SAME * np.abs(expected).max()
    ):
        raise SourceError(
            "the source's logits aren't the explainer's: it was exported from another network, or with other "
            "weights"
        )


def _cascade(model: nn.Module, batch: Any, seed: int) -> Iterator[tuple[int, int, nn.Module]]:
    """Yield how many layers are randomised, how many there are, and the network.

    One of them, a quarter, half, and all.
    """
    model = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    # In the order in which they were made, which is that of the forward pass in nearly all networks.
    layers = [one for one in model.modules() if list(one.parameters(recurse=False))][::-1]
    done = 0
    for count in sorted({1, -(-len(layers) // 4), -(-len(layers) // 2), len(layers)}):
        with torch.no_grad():
            for layer in layers[done:count]:
                for parameter in layer.parameters(recurse=False):
                    # Its own values in another order: new weights of the same size, whatever the layer.
                    order = torch.randperm(parameter.numel(), generator=generator)
                    parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
            _settle(model, layers[:count], batch)
        done = count
        yield count, len(layers), model


def _settle(model: nn.Module, randomised: Sequence[nn.Module], batch: Any) -> None:
    """Take batch norms' statistics anew: with those of other weights, activations would grow or vanish."""
    norms = [one for one in randomised if isinstance(one, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if norms:
        model(batch if len(batch) > 1 else torch.cat([batch, -batch]))
    model.eval()
