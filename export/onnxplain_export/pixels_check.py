"""Verify what a file that takes pictures does around its network: preprocessing, and placing the heatmap.

The explainer inside, which takes normalised images, is verified like any other. What stands around it is
compared with the runtime's own functions, on pictures of several sizes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxplain.errors import VerificationError
from onnxplain.heatmap import heatmap
from onnxplain.manifest import Manifest, Preprocessing
from onnxplain.preprocessing import View, preprocess
from onnxplain_export.assemble import CLASS_INDEX, HEATMAP, INPUT, LOGITS
from onnxplain_export.graph import is_quantised
from onnxplain_export.onnx_session import session_of
from onnxplain_export.pixels import NORMALISED
from onnxplain_export.reference_graph import Array

LEVELS_TOLERANCE = 0.1
"""Mean difference of pixels after the crop, of 255: Resize rounds a little otherwise than Pillow."""
SAME_LOGITS = 1e-4
"""Of the largest logit."""
SAME_GRADIENTS = 2e-2
"""Relative L2 error: images that are rounded otherwise fall to the other side of a kink at times."""
SAME_HEATMAP = 1e-4


def explainer_inside(model: ir.Model, manifest: Manifest) -> ir.Model:
    """Return the explainer in one that takes pictures, which takes normalised images; any other as it is.

    It is what stands behind their preprocessing, without the heatmap, which lies on the picture.
    """
    if not manifest.pixels:
        return model
    outputs = [str(value.name) for value in model.graph.outputs if value.name != HEATMAP]
    inside = _part(model, [NORMALISED, CLASS_INDEX], outputs)
    inside.graph.inputs[0].name = INPUT
    return inside


def check_pixels(path: Path | None, model: ir.Model, inside: ir.Model, manifest: Manifest) -> None:
    """Check a file that takes pictures against the runtime, and against the explainer inside.

    Where it isn't written, its model is run from memory.

    Raises
    ------
    VerificationError
        It preprocesses otherwise, or puts its heatmap elsewhere.
    """
    optimised = not is_quantised(model.graph)
    whole, network = (session_of(source, optimised=optimised) for source in (path or model, inside))
    same = [LOGITS, *(layer.gradients for layer in manifest.layers)]
    names = [
        *same,
        *([*map(manifest.cam, manifest.layers), HEATMAP] if manifest.heatmap else []),
    ]
    front = session_of(_part(model, [INPUT], [NORMALISED]))
    for pictures in _pictures(manifest.input):
        classes = np.tile([[-1, 0]], (len(pictures), 1))
        (tensors,) = front.run([NORMALISED], {INPUT: pictures})
        view = _check_preprocessing(pictures, tensors, manifest.input)
        results = whole.run(names, {INPUT: pictures, CLASS_INDEX: classes})
        found = dict(zip(names, results, strict=True))
        (logits, *gradients) = network.run(same, {INPUT: tensors, CLASS_INDEX: classes})
        if not np.allclose(found[LOGITS], logits, rtol=0, atol=SAME_LOGITS * np.abs(logits).max()):
            raise _wrong("explains another image than it preprocesses", pictures)
        for name, expected in zip(same[1:], gradients, strict=True):
            difference = np.linalg.norm(found[name] - expected)
            if not difference <= SAME_GRADIENTS * np.linalg.norm(expected):
                raise _wrong("has other gradients than the explainer inside", pictures)
        if manifest.heatmap is not None:
            cams = [found[manifest.cam(layer)] for layer in manifest.layers]
            _check_places(found[HEATMAP], cams, view, pictures)


def _part(model: ir.Model, inputs: list[str], outputs: list[str]) -> ir.Model:
    """Return a copy of the part of a model between some of its values."""
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    graph.opset_imports.update(model.graph.opset_imports)
    return ir.Model(graph, ir_version=model.ir_version)


def _pictures(spec: Preprocessing) -> list[NDArray[np.uint8]]:
    """Draw batches of two pictures: larger and smaller than the input, wide and tall, of odd sizes too."""
    generator = np.random.default_rng(21)
    height, width = spec.height, spec.width
    sizes = [
        (2 * height, 3 * width + 1),
        (height + height // 2 + 1, width),
        (height // 2 + 1, width // 3 + 1),
    ]
    return [generator.integers(0, 256, (2, *size, 3), dtype=np.uint8) for size in sizes]


def _check_preprocessing(pictures: NDArray[np.uint8], tensors: Array, spec: Preprocessing) -> View:
    """Compare what the network gets of pictures with the runtime's; return what it saw of them."""
    prepared = [preprocess(picture, spec) for picture in pictures]
    expected = np.stack([tensor for tensor, _ in prepared])
    if tensors.shape != expected.shape:
        raise _wrong(f"makes images of {tensors.shape}, not of {expected.shape},", pictures)
    levels = 255 * np.array(spec.std)[:, None, None] * np.abs(tensors - expected)
    if not levels.mean() <= LEVELS_TOLERANCE:
        raise _wrong(f"preprocesses {levels.mean():.1f} levels of 255 away from the runtime", pictures)
    return prepared[0][1]


def _check_places(found: Array, cams: list[Array], view: View, pictures: NDArray[np.uint8]) -> None:
    """Compare heatmaps with those that the runtime makes of the same maps."""
    for place in np.ndindex(found.shape[:2]):
        expected = heatmap([cam[place] for cam in cams], pictures.shape[1:3], view)
        if found[place].shape != expected.shape or not np.abs(found[place] - expected).max() <= SAME_HEATMAP:
            raise _wrong("lays its heatmap elsewhere than the runtime", pictures)


def _wrong(what: str, pictures: NDArray[np.uint8]) -> VerificationError:
    height, width = pictures.shape[1:3]
    return VerificationError(
        f"the file {what} on pictures of {height}x{width}: onnxruntime computes something else here; try "
        "another version, and please report the model"
    )
