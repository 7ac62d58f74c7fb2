"""Files that take pictures: preprocessed as the runtime does, the heatmap laid where the crop lay."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from onnxplain import Explainer, Preprocessing
from onnxplain.errors import ModelError, SourceError, VerificationError
from onnxplain.heatmap import heatmap
from onnxplain.preprocessing import preprocess
from onnxplain_export import export, verify
from onnxplain_export.maps import METHODS
from test_heatmap_outputs import network
from test_verification import with_metadata

# Of a picture: larger and smaller than the input, wide, tall and square, one where pixels' centres lie on the
# crop's edge, and one a pixel high.
SIZES = [(50, 75), (75, 50), (48, 48), (13, 17), (24, 32), (20, 28), (1, 9), (61, 24)]
WIDE, TALL = {"height": 20, "width": 28}, {"height": 28, "width": 20}
SPECS = {
    "usual": Preprocessing(**WIDE, resize=32),
    "tall": Preprocessing(**TALL, resize=31),
    "of odd margins": Preprocessing(**WIDE, resize=29),
    "padded": Preprocessing(**WIDE, resize=16),
    "straight to its size": Preprocessing(**WIDE, resize=None),
    "to another size": Preprocessing(**WIDE, resize=(18, 40)),
    "bicubic": Preprocessing(**WIDE, resize=32, interpolation="bicubic"),
    "nearest": Preprocessing(**WIDE, resize=32, interpolation="nearest"),
    "nearest, padded": Preprocessing(**WIDE, resize=16, interpolation="nearest"),
    "BGR": Preprocessing(**WIDE, resize=32, color="BGR", mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)),
}


class Passing(nn.Module):
    """Puts out its image as the layer's activations, to be looked at."""

    def __init__(self, spec: Preprocessing) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer, self.flatten = nn.Identity(), nn.Flatten()
        self.head = nn.Linear(3 * spec.height * spec.width, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.flatten(self.layer(image * 1.0)))


def write(path: Path, spec: Preprocessing, model: nn.Module | None = None, **options: Any) -> Path:
    example = torch.zeros(1, 3, spec.height, spec.width)
    options = {"layer": "layer", "heatmap": "hirescam"} | options
    export(model or Passing(spec), example, path, preprocessing=spec, pixels=True, **options)
    return path


def run(path: Path, pictures: NDArray[np.uint8], classes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": pictures, "class_index": classes}), strict=True))


def noise(size: tuple[int, int], count: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (count, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_pictures_of_every_size(spec: Preprocessing, tmp_path: Path) -> None:
    """Pixels within rounding to the next level, heatmaps within rounding and at their place."""
    path = write(tmp_path / "model.onnx", spec)
    for size in SIZES:
        pictures = noise(size, 2)
        found = run(path, pictures, np.array([[-1, 0, 2]] * 2))
        assert found["heatmap"].shape == (2, 3, *size)
        for picture, activations, cams, heats in zip(
            pictures, found["activations"], found["cam"], found["heatmap"], strict=True
        ):
            tensor, view = preprocess(picture, spec)
            levels = 255 * np.array(spec.std)[:, None, None] * np.abs(activations - tensor)
            assert levels.max() < 1.001
            assert levels.mean() < 0.1  # where the filter says a half, libraries round either way
            for cam, heat in zip(cams, heats, strict=True):
                np.testing.assert_allclose(heat, heatmap([cam], size, view), rtol=0, atol=1e-4)


LONG = """
import re, sys
from pathlib import Path
import numpy as np
from onnxplain import Explainer
explainer = Explainer(sys.argv[1])
heatmaps = [explainer.explain(np.zeros((*size, 3), np.uint8)).heatmap for size in ((1, 30000), (30000, 1))]
assert [heatmap.shape for heatmap in heatmaps] == [(1, 30000), (30000, 1)]
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


# Not resource's ru_maxrss: a process begins with that of the one that started it.
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc"
)
@pytest.mark.parametrize("name", ["usual", "bicubic", "nearest"])
def test_long_pictures_take_little_memory(name: str, tmp_path: Path) -> None:
    """A file of some hundred bytes may hold one; resized whole, it would have a million rows or columns."""
    spec = dataclasses.replace(SPECS[name], height=112, width=112, resize=128)
    path = write(tmp_path / "model.onnx", spec, network(nn.Linear(8, 5)), layer="last", heatmap="gradcam")
    done = subprocess.run([sys.executable, "-c", LONG, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 600_000  # KiB; 30000 x 128 x 128 x 3 bytes alone are 1.4 million


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, tmp_path: Path) -> None:
    """Through the runtime, which makes of the file's activations what the file does; and `verify`."""
    spec = SPECS["usual"]
    path = write(tmp_path / "model.onnx", spec, network(nn.Linear(8, 5)), layer="last", heatmap=method)
    explainer = Explainer(path)
    picture = noise((50, 75))[0]
    (heats,) = run(path, picture[None], np.array([[-1, -2]]))["heatmap"]
    for heat, explanation in zip(
        heats, explainer.explain_classes(picture, top=2, method=method), strict=True
    ):
        np.testing.assert_allclose(heat, explanation.heatmap, rtol=0, atol=1e-4)
    assert verify(path).rules < 1e-6


def test_several_layers_and_image_gradients(tmp_path: Path) -> None:
    """The gradients of the image are those of what the network takes."""
    spec = SPECS["usual"]
    options: dict[str, Any] = {"layer": ["first", "last"], "heatmap": "layercam", "input_gradient": True}
    path = write(tmp_path / "model.onnx", spec, network(nn.Linear(8, 5)), guided=True, **options)
    picture = noise((33, 40))[0]
    found = run(path, picture[None], np.array([[1, 3]]))
    tensor, view = preprocess(picture, spec)
    cams = [found["cam.first"][0, 1], found["cam.last"][0, 1]]
    np.testing.assert_allclose(found["heatmap"][0, 1], heatmap(cams, (33, 40), view), rtol=0, atol=1e-4)
    image = torch.tensor(tensor[None], requires_grad=True)
    network(nn.Linear(8, 5))(image)[0, 3].backward()
    assert image.grad is not None
    np.testing.assert_allclose(found["image_gradients"][0, 1], image.grad[0], rtol=0, atol=2e-3)
    assert found["guided_image_gradients"].shape == (1, 2, 3, 20, 28)
    assert verify(path).rules < 1e-6


def test_without_a_heatmap(tmp_path: Path) -> None:
    path = write(
        tmp_path / "model.onnx", SPECS["usual"], network(nn.Linear(8, 5)), layer="last", heatmap=None
    )
    plain = tmp_path / "plain.onnx"
    export(
        network(nn.Linear(8, 5)), torch.zeros(1, 3, 20, 28), plain, layer="last", preprocessing=SPECS["usual"]
    )
    picture = noise((50, 75))[0]
    one, other = (Explainer(file).explain(picture) for file in (path, plain))
    assert one.index == other.index
    assert one.logit == pytest.approx(other.logit, abs=1e-3)
    np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=0, atol=1e-2)
    assert verify(path).rules < 1e-6


def test_a_batch_of_pictures_of_several_sizes(tmp_path: Path) -> None:
    """One file takes pictures of one size at a time; the runtime sees to it."""
    path = write(tmp_path / "model.onnx", SPECS["usual"], network(nn.Linear(8, 5)), layer="last")
    explainer = Explainer(path)
    pictures = [noise(size)[0] for size in ((50, 75), (50, 75), (20, 28), (50, 75))]
    together = explainer.explain_batch(pictures, [0, 1, 2, 3])
    for number, (picture, explanation) in enumerate(zip(pictures, together, strict=True)):
        alone = explainer.explain(picture, number)
        assert (explanation.index, explanation.logit) == (number, pytest.approx(alone.logit, abs=1e-5))
        np.testing.assert_allclose(explanation.heatmap, alone.heatmap, rtol=0, atol=1e-4)


def test_no_classes_and_classes_that_do_not_exist(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", SPECS["usual"], network(nn.Linear(8, 5)), layer="last")
    picture = noise((50, 75))
    nothing = run(path, picture, np.zeros((1, 0), np.int64))
    assert nothing["heatmap"].shape == (1, 0, 50, 75)
    some = run(path, picture, np.array([[5, 1]]))
    np.testing.assert_allclose(nothing["logits"], some["logits"], rtol=0, atol=1e-5)
    assert np.isnan(some["heatmap"][0, 0]).all()
    assert some["heatmap"][0, 1].max() == pytest.approx(1)


def test_names_of_the_source_that_the_file_needs(tmp_path: Path) -> None:
    """A finished file of pictures, channels last, whose inner values are called as the explainer's inputs."""
    helper, rng = onnx.helper, np.random.default_rng(0)
    nodes = [
        helper.make_node("Transpose", ["picture"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["image", "w"], ["normalised_image"]),
        helper.make_node("Tanh", ["normalised_image"], ["maps"]),
        helper.make_node("ReduceMean", ["maps"], ["logits"], axes=[2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "source",
        [helper.make_tensor_value_info("picture", onnx.TensorProto.FLOAT, [1, 20, 28, 3])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 5])],
        [onnx.numpy_helper.from_array(rng.standard_normal((5, 3, 3, 3)).astype(np.float32), "w")],
    )
    source = tmp_path / "source.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), source)
    path = tmp_path / "model.onnx"
    export(source, None, path, layer="normalised_image", preprocessing=SPECS["usual"], pixels=True)
    assert Explainer(path).explain(noise((50, 75))[0]).heatmap.shape == (50, 75)
    assert verify(path).rules < 1e-6


def test_networks_that_can_not_take_pixels(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(SourceError, match="pixels and a dynamic size don't go together"):
        write(path, SPECS["usual"], dynamic_size=True)
    grey = Preprocessing(channels=1, **WIDE, color="L", resize=None, mean=(0.5,), std=(0.5,))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 18 * 26, 5))
    with pytest.raises(SourceError, match="pixels are RGB, and the network takes grey pictures"):
        export(model, torch.zeros(1, 1, 20, 28), path, preprocessing=grey, pixels=True)
    assert list(tmp_path.iterdir()) == []


def test_another_size_for_a_file_of_pictures(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", SPECS["usual"])
    with pytest.raises(ModelError, match="brings pictures to a size of its own"):
        Explainer(path, size=64)


def shifted(path: Path, node: onnx.NodeProto, proto: onnx.ModelProto, by: NDArray[Any]) -> Path:
    """Return a copy of a file in which a value is larger than its node makes it."""
    name = node.output[0]
    node.output[0] = "before"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(by, "by"))
    position = list(proto.graph.node).index(node) + 1
    proto.graph.node.insert(position, onnx.helper.make_node("Add", ["before", "by"], [name]))
    copy = path.with_name("changed.onnx")
    onnx.save(proto, copy)
    return copy


def test_verification_sees_other_levels(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", SPECS["usual"])
    proto = onnx.load(path)
    node = next(node for node in proto.graph.node if node.output[0] == "normalised_image")
    with pytest.raises(VerificationError, match=r"preprocesses 0\.2 levels of 255 away"):
        verify(shifted(path, node, proto, np.array([0.2 / 255], np.float32)))


def test_verification_sees_another_resize(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", SPECS["usual"])
    proto = onnx.load(path)
    node = next(node for node in proto.graph.node if node.op_type == "Div")
    with pytest.raises(VerificationError, match="levels of 255 away from the runtime"):
        verify(shifted(path, node, proto, np.array([1, 0])))


def test_verification_sees_another_place(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", SPECS["usual"])
    proto = onnx.load(path)
    pads = next(node for node in proto.graph.node if node.op_type == "Pad").input[1]
    node = next(node for node in proto.graph.node if node.output[0] == pads)
    with pytest.raises(VerificationError, match="lays its heatmap elsewhere"):
        verify(shifted(path, node, proto, np.array([0, 0, 1, 0, 0, 0, -1, 0])))


def test_a_manifest_that_says_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", SPECS["usual"])
    with_metadata(path, path, ', "pixels": true', "")
    with pytest.raises(ModelError, match="'image' is tensor"):
        Explainer(path)
    with pytest.raises(ModelError, match="doesn't run as its manifest says"):
        verify(path)
