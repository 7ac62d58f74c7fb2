"""Explainers of images of any height and width: right at sizes that the export never saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from autograd import autograd
from cli_helpers import assert_one_line_error, run, write_picture
from onnxplain import Explainer
from onnxplain.errors import ModelError, SourceError
from onnxplain.manifest import Layer, Preprocessing
from onnxplain_export import ExportReport, export, verify
from onnxplain_export.probe import Probe
from onnxplain_export.torch_source import TorchModel
from redraw import redraw

EXAMPLE = torch.zeros(1, 3, 64, 64)
SIZES = [(64, 64), (64, 96), (75, 131), (40, 33)]


class Pyramid(nn.Module):
    """Strides, a pooling that rounds up, a map enlarged to another one's size, and one enlarged twofold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.SiLU())
        self.features = nn.Conv2d(16, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.pool(self.stem(image))
        coarse = nn.functional.interpolate(self.deep(maps), size=maps.shape[2:], mode="bilinear")
        maps = self.features(torch.cat([maps, coarse], dim=1))
        twice = nn.functional.interpolate(torch.tanh(maps), scale_factor=2.0, mode="nearest")
        return self.head(self.norm(twice * twice).mean((2, 3)))


class Tokens(nn.Module):
    """Patches as a row of tokens behind a class token, without embeddings of their places."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.first = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([self.first.expand(image.shape[0], -1, -1), tokens], dim=1))
        return self.head(tokens.softmax(dim=1).pow(2).sum(dim=1))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.maps = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.maps(self.stem(image).permute(0, 2, 3, 1)).relu()
        return self.head((maps * maps).mean((1, 2)))


class OneSize(nn.Module):
    """A linear layer reads every place of the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 4, 4, stride=4)
        self.head = nn.Linear(4 * 16 * 16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.maps(image).flatten(1))


def made(build: Callable[[], nn.Module], path: Path, **options: object) -> tuple[nn.Module, ExportReport]:
    model = redraw(build(), EXAMPLE, seed=3)
    return model, export(model, EXAMPLE, path, dynamic_size=True, **options)


def laid_out(gradients: torch.Tensor, layout: str, size: tuple[int, int]) -> np.ndarray:
    """Fold PyTorch's gradients [batch, classes, ...] of a layer."""
    array = gradients.numpy()
    if layout == "NHWC":
        return np.moveaxis(array, -1, 2)
    if layout == "BNC":
        return np.moveaxis(array[:, :, 1:], -1, 2).reshape(*array.shape[:2], array.shape[-1], *size)
    return array


@pytest.mark.parametrize(
    ("build", "layers", "layout"),
    [
        pytest.param(Pyramid, ["features", "stem", "stem.0"], "NCHW", id="pyramid"),
        pytest.param(Tokens, ["block"], "BNC", id="tokens"),
        pytest.param(ChannelsLast, ["maps"], "NHWC", id="channels last"),
    ],
)
def test_gradients_at_other_sizes(
    build: Callable[[], nn.Module], layers: list[str], layout: str, tmp_path: Path
) -> None:
    model, report = made(build, tmp_path / "e.onnx", layer=layers)
    assert report.verification.rules < 1e-8
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    for batch, size in enumerate(SIZES, 1):
        if layout == "BNC":
            size = (size[0] // 8 * 8, size[1] // 8 * 8)
        image = torch.randn(batch, 3, *size)
        classes = torch.randint(5, (batch, 3))
        outputs = dict(
            zip(
                [output.name for output in session.get_outputs()],
                session.run(None, {"image": image.numpy(), "class_index": classes.numpy()}),
                strict=True,
            )
        )
        logits, gradients = autograd(model, layers, image, classes)
        np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-5)
        for layer, described in zip(layers, report.manifest.layers, strict=True):
            found = outputs[described.gradients]
            assert found.shape[3:] == outputs[described.activations].shape[2:]
            expected = laid_out(gradients[layer], layout, found.shape[3:])
            assert np.linalg.norm(expected) > 1e-3
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_image_gradients_at_another_size(tmp_path: Path) -> None:
    model, _ = made(Pyramid, tmp_path / "e.onnx", layer="features", input_gradient=True)
    image, classes = torch.randn(2, 3, 48, 80), torch.tensor([[1, 2], [0, 4]])
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["image_gradients"], {"image": image.numpy(), "class_index": classes.numpy()})
    _, expected = autograd(nn.Sequential(nn.Identity(), model), ["0"], image, classes)
    np.testing.assert_allclose(found, expected["0"], rtol=0, atol=2e-5 * expected["0"].abs().max())


def test_the_file_is_verified_at_a_size_that_the_export_did_not_see(tmp_path: Path) -> None:
    _, report = made(Pyramid, tmp_path / "e.onnx", layer="features")
    spec = report.manifest.input
    assert Probe.draw(spec, 5, any_size=True).image.shape[2:] == (96, 128)
    assert Probe.draw(spec, 5, any_size=False).image.shape[2:] == (64, 64)
    assert verify(tmp_path / "e.onnx").rules < 1e-8
    assert (report.manifest.layers[0].height, report.manifest.layers[0].width) == (16, 16)


class Placed(nn.Module):
    """A vector is added at each place of the maps, if they fit: as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 4, 4, stride=4)
        self.places = nn.Parameter(torch.randn(1, 4, 16, 16))
        self.head = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.shape[2] != 64:
            raise ValueError("wrong size")
        return self.head((self.maps(image) + self.places).mean((2, 3)))


class AdaptivePool(nn.Module):
    """The pooling's windows are worked out for the size of the trace."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 8, 4, stride=4)
        self.pool = nn.AdaptiveAvgPool2d(size)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.maps(image)).pow(3).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Placed, "takes images of 64x64 alone"),
        (OneSize, "doesn't run on images of another size, such as 96x128"),
        (lambda: AdaptivePool(3), "doesn't run on images of another size, such as 96x128"),
        (lambda: AdaptivePool(4), "the layer 'pool' was traced as one of fixed size, .* such as 96x128"),
    ],
)
def test_a_network_of_one_size_is_refused(
    build: Callable[[], nn.Module], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SourceError, match=f"{message}; leave the dynamic size out"):
        made(build, tmp_path / "e.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_other_logits_at_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="computes other logits on images of another size, such as 96x128"):
        made(lambda: AdaptivePool(4), tmp_path / "e.onnx", layer="maps")


def test_explaining_at_another_size(tmp_path: Path) -> None:
    stated = Preprocessing(resize=73)
    _, report = made(Pyramid, tmp_path / "e.onnx", layer="features", preprocessing=stated)
    picture = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    usual, larger = Explainer(tmp_path / "e.onnx"), Explainer(tmp_path / "e.onnx", size=(72, 128))
    assert usual.explain(picture).cam.shape == (16, 16)
    explanation = larger.explain(picture)
    assert explanation.cam.shape == (18, 32)
    assert explanation.heatmap.shape == (90, 160)
    spec = report.manifest.input.at_size(72, 128)
    assert (spec.height, spec.width, spec.resize) == (72, 128, 146)
    with pytest.raises(ModelError, match=r"input.height must be"):
        Explainer(tmp_path / "e.onnx", size=(0, 128))


@pytest.mark.parametrize(
    ("resize", "crop", "expected"), [(None, "center", None), ((32, 48), "none", (64, 24)), (40, "center", 80)]
)
def test_preprocessing_at_another_size(
    resize: int | tuple[int, int] | None, crop: str, expected: int | tuple[int, int] | None
) -> None:
    spec = Preprocessing(height=32, width=48, resize=resize, crop=crop)  # type: ignore[arg-type]
    assert spec.at_size(64, 24).resize == expected


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.onnx.export(Pyramid().eval(), (torch.zeros(2, 3, 64, 64),), "any.onnx", dynamo=True, verbose=False,
                      dynamic_shapes=({0: "n", 2: "h", 3: "w"},))  # fmt: skip
    result = run("export", "any.onnx", "-o", "e.onnx", "--size", "64", "--dynamic-size")
    assert result.exit_code == 0, result.output
    assert "3x64x64, or another size" in result.stdout
    assert run("verify", "e.onnx").exit_code == 0
    assert "any; " in run("inspect", "e.onnx").stdout
    picture = write_picture(tmp_path / "p.png")
    result = run("explain", "e.onnx", picture, "--size", "48x96")
    assert result.exit_code == 0, result.output
    result = run("export", "any.onnx", "-o", "fixed.onnx", "--size", "64")
    assert result.exit_code == 0, result.output
    assert_one_line_error(
        run("explain", "fixed.onnx", picture, "--size", "48x96"),
        1,
        "64x64 alone, not of 48x96",
        "--dynamic-size",
    )


def test_an_onnx_file_of_one_size_is_refused(tmp_path: Path) -> None:
    torch.onnx.export(ChannelsLast().eval(), (EXAMPLE,), tmp_path / "one.onnx", dynamo=True, verbose=False)
    with pytest.raises(SourceError, match="takes images of 64x64 alone; leave the dynamic size out"):
        export(str(tmp_path / "one.onnx"), None, tmp_path / "e.onnx", dynamic_size=True)


def test_an_onnx_file_that_is_open_and_still_takes_one_size(tmp_path: Path) -> None:
    options = {"dynamo": True, "dynamic_shapes": ({0: "n"},), "verbose": False, "external_data": False}
    torch.onnx.export(OneSize().eval(), (torch.zeros(2, 3, 64, 64),), tmp_path / "one.onnx", **options)
    proto = onnx.load(tmp_path / "one.onnx")
    for axis, name in ((2, "h"), (3, "w")):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(proto, tmp_path / "open.onnx")
    spec = Preprocessing.for_size(3, 64, 64)
    with pytest.raises(SourceError, match="leave the dynamic size out"):
        export(str(tmp_path / "open.onnx"), None, tmp_path / "e.onnx", preprocessing=spec, dynamic_size=True)


def written(path: Path, nodes: str, weights: dict[str, np.ndarray]) -> Path:
    """Write a classifier of images of any size, `x`, to logits, `y`."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 18]> g (float[N, 3, H, W] x) => (float[N, 5] y) {{ {nodes} }}'
    )
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    onnx.save(proto, path)
    return path


def weights_of(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: (generator.standard_normal(shape) / 5).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("nodes", "weights", "size"),
    [
        pytest.param(
            # Two rows of maps for two images, three for three: and yet they aren't the batch.
            """maps = Conv<strides = [32, 32]>(x, w) turned = Transpose<perm = [2, 0, 1, 3]>(maps)
            u = Tanh(turned) v = Unsqueeze(u, two) square = Mul(v, v)
            sums = ReduceSum<keepdims = 0>(square, axes) y = MatMul(sums, fc)""",
            {**weights_of(w=(4, 3, 32, 32), fc=(4, 5)), "two": np.array([2]), "axes": np.array([0, 2, 4])},
            64,
            id="rows like the batch",
        ),
        pytest.param(
            # Of 256 and of 288 rows of pixels alike, four.
            """maps = Conv<strides = [32, 32]>(x, w)
            pooled = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(maps)
            mixed = Conv(pooled, v) u = Tanh(mixed) square = Mul(u, u)
            means = ReduceMean<keepdims = 0>(square, axes) y = MatMul(means, fc)""",
            {**weights_of(w=(4, 3, 32, 32), v=(4, 4, 1, 1), fc=(4, 5)), "axes": np.array([2, 3])},
            256,
            id="a coarse stride",
        ),
    ],
)
def test_onnx_files_of_any_size(
    nodes: str, weights: dict[str, np.ndarray], size: int, tmp_path: Path
) -> None:
    source = written(tmp_path / "source.onnx", nodes, weights)
    spec = Preprocessing.for_size(3, size, size)
    export(str(source), None, tmp_path / "e.onnx", layer="maps", preprocessing=spec, dynamic_size=True)
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    for batch, height, width in [
        (1, size, size),
        (2, 2 * size, size),
        (1, size // 2 * 3, size),
        (4, 128, 192),
    ]:
        image = np.zeros((batch, 3, height, width), np.float32)
        classes = np.tile(np.array([[0, 1, 2]]), (batch, 1))
        (found,) = session.run(["gradients"], {"image": image, "class_index": classes})
        assert found.shape == (batch, 3, 4, height // 32, width // 32)


def test_patches_of_fourteen(tmp_path: Path) -> None:
    """The other size that a file is verified at is one of whole patches too."""
    network = nn.Sequential(nn.Conv2d(3, 8, 14, stride=14), nn.Tanh(), nn.Flatten(2), Mean())
    report = export(network, torch.zeros(1, 3, 56, 56), tmp_path / "e.onnx", layer="1", dynamic_size=True)
    assert report.verification.rules < 1e-8


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * x).mean(2)


def test_rounding_of_tokens_at_another_size(tmp_path: Path) -> None:
    """Where logits differ by more than usual, PyTorch is asked at the size of the probe."""
    source = TorchModel(Tokens(), EXAMPLE)
    probe = Probe.draw(Preprocessing.for_size(3, 64, 64), 5, any_size=True)
    image = torch.from_numpy(probe.image)
    height, width = (side // 8 for side in image.shape[2:])
    tokens = {"layout": "BNC", "prefix": 1}
    layer = Layer("block", "activations", "gradients", 8, height, width, tokens=tokens)
    outputs = {
        "explained_class": np.zeros((3, 1), np.int64),
        "activations": np.zeros((3, 8, height, width), np.float32),
    }
    expected = source.expected(probe, outputs, [layer])
    assert 0 < source.rounding(probe, expected, [layer])["activations"] < 1e-5


def test_one_number_for_both_sides(tmp_path: Path) -> None:
    made(ChannelsLast, tmp_path / "e.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    assert Explainer(tmp_path / "e.onnx", size=96).explain(picture).cam.shape == (24, 24)
