"""Models in OpenVINO: compiled as they are timed, and with ReciproCAM inserted.

ReciproCAM ("Recipro-CAM: Fast gradient-free visual explanations for CNNs", Byun and Lee 2022) takes no
gradients. It lets one place of the feature map through at a time, and what a class then scores is its map
there. openvino_xai inserts it into a model's graph, and so does `with_recipro_cam`: the layers before the
target run once; those after it are there twice, once for the logits and once for h*w masked feature maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as opset


def read(path: str, shapes: Mapping[str, Sequence[int]]) -> openvino.Model:
    """Read an .onnx file, its inputs of fixed shapes."""
    model = openvino.Core().read_model(path)
    model.reshape({name: list(shape) for name, shape in shapes.items()})
    return model


def compiled(model: openvino.Model, threads: int) -> openvino.CompiledModel:
    """Compile a model for the CPU and one image at a time, in float32 as onnxruntime computes."""
    return openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )


def find_tensor(path: str, image: NDArray[np.float32], value: NDArray[np.float32]) -> str:
    """Return the name of the first tensor in an .onnx file that has a value, to 1e-3 of its largest.

    A layer is so found in any file of its network, whatever names the exporter gave.

    Parameters
    ----------
    path
        The plain model.
    image
        What the model is given.
    value
        What the layer puts out for it.
    """
    (given,) = openvino.Core().read_model(path).inputs
    model = read(path, {given.any_name: image.shape})
    outputs = [output for node in model.get_ordered_ops() for output in node.outputs()]
    names: list[str] = [
        output.any_name
        for output in outputs
        if output.names and tuple(output.partial_shape.get_max_shape()) == value.shape
    ]
    model.add_outputs(names)
    results = compiled(model, threads=1)(image)
    for name in names:
        if np.abs(results[name] - value).max() < 1e-3 * np.abs(value).max():
            return name
    raise SystemExit(f"{path}: no tensor has the target layer's value")


def with_recipro_cam(path: str, target: str, image_shape: Sequence[int]) -> openvino.Model:
    """Return a model that puts out its logits, and as `maps` the ReciproCAM of every class.

    Parameters
    ----------
    path
        The plain model, of any batch.
    target
        Name of the tensor [1, C, h, w] that is masked.
    image_shape
        Shape of the one image.
    """
    branch = openvino.Core().read_model(path)  # with a batch of its own
    (given,) = branch.inputs
    model = read(path, {given.any_name: image_shape})
    features = _tensor(model, target)
    _, _, height, width = features.shape
    places = height * width
    masks = np.eye(places, dtype=np.float32).reshape(places, 1, height, width)
    _replace(_tensor(branch, target), opset.multiply(features, opset.constant(masks)).output(0))
    # What may be left to read the image is a Reshape that asks for its batch.
    repeated = opset.tile(model.input(), opset.constant([places, *[1] * (len(image_shape) - 1)]))
    _replace(given, repeated.output(0))
    scores = _before_result(branch)
    by_class = opset.transpose(scores, opset.constant([1, 0]))
    maps = opset.reshape(by_class, opset.constant([1, -1, height, width]), special_zero=False)
    maps.output(0).set_names({"maps"})
    return openvino.Model([_before_result(model), maps.output(0)], model.get_parameters())


def _tensor(model: openvino.Model, name: str) -> openvino.Output:
    """Return a value of a model by its name."""
    outputs = (output for node in model.get_ordered_ops() for output in node.outputs())
    return next(output for output in outputs if name in output.names)


def _replace(old: openvino.Output, new: openvino.Output) -> None:
    """Let all that read one value read another."""
    for reader in old.get_target_inputs():
        reader.replace_source_output(new)


def _before_result(model: openvino.Model) -> openvino.Output:
    """Return the value that is a model's only output."""
    (result,) = model.get_results()
    return result.input_value(0)
