"""Programs of torch.export as sources: their layers and gradients, and what is answered where one fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from autograd import autograd
from onnxplain.errors import LayerError, SourceError
from onnxplain_export import export, list_layers, load_source
from onnxplain_export.exported_program import as_module
from redraw import redraw

BATCH = ({0: Dim("batch")},)
EXAMPLE = torch.zeros(2, 3, 32, 40)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 1),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x + self.second(self.relu(self.norm(self.first(x)))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 6, 3, stride=2), nn.ModuleList([Block(), Block()])
        self.fc = nn.Linear(6, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def program_of(model: nn.Module, **options: object) -> ExportedProgram:
    return torch.export.export(model, (EXAMPLE,), **{"dynamic_shapes": BATCH, **options})


def saved(program: ExportedProgram, folder: Path) -> str:
    torch.export.save(program, folder / "model.pt2")
    return str(folder / "model.pt2")


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize(
    ("network", "layer", "target"),
    [
        (Plain, None, "features"),
        (Plain, "features.0", "features.0"),
        (Residual, None, "blocks.1"),
        (Residual, "stem", "stem"),
        (Residual, "blocks.0.norm", "blocks.0.norm"),  # an in-place ReLU comes next
    ],
)
def test_gradients_are_those_of_the_model(
    tmp_path: Path, network: Callable[[], nn.Module], layer: str | None, target: str, decomposed: bool
) -> None:
    model = redraw(network(), torch.randn(EXAMPLE.shape, generator=torch.Generator().manual_seed(1)), seed=0)
    program = program_of(model)
    source = load_source(saved(program.run_decompositions() if decomposed else program, tmp_path))
    report = export(source.model, source.example_input, tmp_path / "e.onnx", layer=layer)
    assert [entry.name for entry in report.manifest.layers] == [target]
    image = torch.randn(3, 3, 32, 40, generator=torch.Generator().manual_seed(2))
    classes = torch.tensor([[4, 1], [0, 2], [3, 3]])
    logits, gradients = autograd(model, [target], image, classes)
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["logits", "gradients"], {"image": image.numpy(), "class_index": classes.numpy()})
    expected = gradients[target].numpy()
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found[0], logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(found[1], expected, atol=1e-5 * np.abs(expected).max())


def test_a_program_is_exported_as_its_model_is(tmp_path: Path) -> None:
    model = Residual().eval()
    program = program_of(model)
    assert list_layers(program, EXAMPLE) == list_layers(model, EXAMPLE)
    ours = export(program, EXAMPLE, tmp_path / "program.onnx").manifest
    theirs = export(model, EXAMPLE, tmp_path / "model.onnx").manifest
    assert (ours.layers, ours.source) == (theirs.layers, theirs.source)
    with pytest.raises(LayerError, match="called 2 times"):
        export(program, EXAMPLE, tmp_path / "e.onnx", layer="blocks.0.relu")


def test_a_program_that_takes_its_image_by_name() -> None:
    model = Plain().eval()
    program = torch.export.export(model, (), {"image": EXAMPLE}, dynamic_shapes={"image": BATCH[0]})
    image = torch.randn(5, 3, 32, 40)
    torch.testing.assert_close(as_module(program)(image), model(image))


def test_the_size_is_the_programs_own(tmp_path: Path) -> None:
    file = saved(program_of(Plain().eval()), tmp_path)
    source = load_source(file)
    assert (source.name, source.example_input.shape) == ("model.pt2", (1, 3, 32, 40))
    assert load_source(file, size=(32, 40)).preprocessing == source.preprocessing
    with pytest.raises(SourceError, match="takes images of 32 x 40 alone, not of 64 x 64"):
        load_source(file, size=(64, 64))


def test_a_program_that_takes_every_size_has_its_examples(tmp_path: Path) -> None:
    sizes = {0: Dim("batch"), 2: Dim("height", min=16), 3: Dim("width", min=16)}
    file = saved(program_of(Residual().eval(), dynamic_shapes=(sizes,)), tmp_path)
    assert load_source(file).example_input.shape == (1, 3, 32, 40)
    other = load_source(file, size=(48, 64))
    assert other.model(other.example_input).shape == (1, 5)


class Two(nn.Module):
    def forward(self, image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (image + other).mean((2, 3))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            lambda: program_of(Plain().eval(), dynamic_shapes=None),
            r"batches of 2 alone.*dynamic_shapes=\(\{0",
        ),
        (lambda: program_of(Plain().train()), r"exported in training mode .*model\.eval\(\)"),
        (lambda: program_of(nn.Dropout(0.5).train()), "exported in training mode"),
        (lambda: torch.export.export(Two(), (EXAMPLE, EXAMPLE)), "takes 2 inputs"),
        (lambda: torch.export.export(nn.Flatten(), (EXAMPLE[0],)), r"\[batch, channels, height, width\]"),
        (lambda: torch.export.export(nn.Flatten(), (EXAMPLE.double(),)), r"takes torch\.float64"),
    ],
)
def test_programs_that_do_not_fit(
    tmp_path: Path, program: Callable[[], ExportedProgram], message: str
) -> None:
    for answer in (
        lambda: load_source(saved(program(), tmp_path)),
        lambda: export(program(), EXAMPLE, tmp_path / "e.onnx"),
    ):
        with pytest.raises(SourceError, match=message) as caught:
            answer()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "e.onnx").exists()


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "checkpoint", "folder"])
def test_files_that_hold_no_program(tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.pt2"
    if damage == "folder":
        file.mkdir()
    elif damage == "checkpoint":
        torch.save(Plain().state_dict(), file)
    else:
        saved(program_of(Plain().eval()), tmp_path)
        whole = file.read_bytes()
        file.write_bytes(
            {"empty": b"", "text": b"no program\n" * 99, "cut": whole[: len(whole) // 2]}[damage]
        )
    capfd.readouterr()
    message = "there is no program" if damage == "folder" else r"can't read a program .*torch\.export\.save"
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(file))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_program_takes_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has its own weights"):
        load_source(saved(program_of(Plain().eval()), tmp_path), checkpoint="w.pth")
