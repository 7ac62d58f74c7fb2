"""A small explainer file made by hand, so that the runtime's tests need no exporter.

The network is Conv (stride 4), ReLU, global average pooling and one linear layer. Its gradients are known in
closed form: dS_c/dA_k = w_ck / (h w) everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxplain.manifest import METADATA_KEY, Layer, Manifest, Preprocessing

STRIDE = 4
CHANNELS = 5


@dataclass(frozen=True)
class Network:
    """The weights, and the same network in numpy."""

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    weight: NDArray[np.float32]
    offset: NDArray[np.float32]

    @classmethod
    def random(cls, classes: int = 4, seed: int = 0) -> Network:
        rng = np.random.default_rng(seed)
        return cls(
            rng.normal(size=(CHANNELS, 3, STRIDE, STRIDE)).astype(np.float32),
            rng.normal(size=CHANNELS).astype(np.float32),
            rng.normal(size=(classes, CHANNELS)).astype(np.float32),
            rng.normal(size=classes).astype(np.float32),
        )

    def activations(self, batch: NDArray[np.float32]) -> NDArray[np.float64]:
        b, c, h, w = batch.shape
        patches = batch.astype(np.float64).reshape(b, c, h // STRIDE, STRIDE, w // STRIDE, STRIDE)
        features = np.einsum("bcyixj,kcij->bkyx", patches, self.kernel) + self.bias[:, None, None]
        return np.maximum(features, 0)

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.activations(batch).mean((2, 3)) @ self.weight.T.astype(np.float64) + self.offset


def tiny_manifest(
    height: int = 24, width: int = 32, classes: int = 4, labels: tuple[str, ...] | None = None
) -> Manifest:
    return Manifest(
        input=Preprocessing(3, height, width, resize=None, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)),
        layers=(
            Layer(
                "features", "activations", "gradients", CHANNELS, height // 4, width // 4, head="gap_linear"
            ),
        ),
        labels=labels or tuple(f"class {index}" for index in range(classes)),
    )


def two_layers(manifest: Manifest) -> Manifest:
    """Return the manifest of a file with a second layer, whose maps are half as large."""
    layer = manifest.layers[0]
    return replace(
        manifest,
        layers=(
            replace(layer, name="early", activations="activations.early", gradients="gradients.early"),
            replace(
                layer,
                name="late",
                activations="activations.late",
                gradients="gradients.late",
                height=layer.height // 2,
                width=layer.width // 2,
            ),
        ),
    )


def tiny_model(network: Network, manifest: Manifest) -> onnx.ModelProto:
    """Return the network as an explainer, by the file format of the docs."""
    spec, classes = manifest.input, len(network.weight)
    nodes, constants = [], []

    def constant(name: str, value: object, dtype: type) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(op: str, inputs: list[str], output: str | list[str], **attributes: object) -> None:
        nodes.append(
            helper.make_node(op, inputs, [output] if isinstance(output, str) else output, **attributes)
        )

    constant("kernel", network.kernel, np.float32)
    constant("bias", network.bias, np.float32)
    constant("weight", network.weight, np.float32)
    constant("offset", network.offset, np.float32)
    first = manifest.layers[0].activations
    node("Conv", ["image", "kernel", "bias"], "features", strides=[STRIDE, STRIDE])
    node("Relu", ["features"], first)
    if len(manifest.layers) == 2:
        node(
            "AveragePool", [first], manifest.layers[1].activations, kernel_shape=[2, 2], strides=[2, 2]
        )  # the mean of means is the mean: the logits stay the same
    node("GlobalAveragePool", [manifest.layers[-1].activations], "pooled")
    node("Flatten", ["pooled"], "flat")
    node("Gemm", ["flat", "weight", "offset"], "logits", transB=1)

    constant("classes", [classes], np.int64)
    constant("zero", 0, np.int64)
    constant("minus_one", -1, np.int64)
    constant("lowest", -classes, np.int64)
    constant("highest", classes - 1, np.int64)
    node("TopK", ["logits", "classes"], ["sorted", "ranking"], axis=1)
    node("Sub", ["minus_one", "class_index"], "rank")
    node("Clip", ["rank", "zero", "highest"], "legal_rank")
    node("GatherElements", ["ranking", "legal_rank"], "ranked", axis=1)
    node("Less", ["class_index", "zero"], "is_rank")
    node("Where", ["is_rank", "ranked", "class_index"], "resolved")
    node("Clip", ["class_index", "lowest", "highest"], "clipped")
    node("Equal", ["class_index", "clipped"], "in_range")
    node("Where", ["in_range", "resolved", "minus_one"], "explained_class")
    node("Clip", ["explained_class", "zero", "highest"], "row")
    node("Gather", ["weight", "row"], "rows", axis=0)
    constant("last_axes", [3, 4], np.int64)
    constant("nan", np.nan, np.float32)
    node("Unsqueeze", ["rows", "last_axes"], "seeds")
    constant("axes", [2, 3, 4], np.int64)
    node("Unsqueeze", ["in_range", "axes"], "in_range_5d")
    for layer in manifest.layers:
        area = constant(f"area.{layer.name}", layer.height * layer.width, np.float32)
        shape = constant(f"shape.{layer.name}", [1, 1, 1, layer.height, layer.width], np.int64)
        node("Div", ["seeds", area], f"shares.{layer.name}")
        node("Expand", [f"shares.{layer.name}", shape], f"spread.{layer.name}")
        node("Where", ["in_range_5d", f"spread.{layer.name}", "nan"], layer.gradients)

    outputs = [("logits", TensorProto.FLOAT, ["batch", classes])]
    outputs += [("explained_class", TensorProto.INT64, ["batch", "classes"])]
    for layer in manifest.layers:
        shape3 = [layer.channels, layer.height, layer.width]
        outputs += [(layer.activations, TensorProto.FLOAT, ["batch", *shape3])]
        outputs += [(layer.gradients, TensorProto.FLOAT, ["batch", "classes", *shape3])]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, spec.height, spec.width]),
            helper.make_tensor_value_info("class_index", TensorProto.INT64, ["batch", "classes"]),
        ],
        [helper.make_tensor_value_info(*output) for output in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def tiny_explainer(network: Network | None = None, manifest: Manifest | None = None) -> bytes:
    """Return the bytes of an explainer file."""
    model: bytes = tiny_model(network or Network.random(), manifest or tiny_manifest()).SerializeToString()
    return model
