"""`verify` of a file by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from onnxplain.errors import ModelError, VerificationError
from onnxplain_export import export, verify


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    model.pool = nn.MaxPool2d(2)
    model.flatten = nn.Flatten()
    model.hidden = nn.Linear(6 * 49, 8)
    model.relu = nn.ReLU()
    model.classifier = nn.Linear(8, 5)
    path = tmp_path_factory.mktemp("verification") / "explainer.onnx"
    export(model, torch.zeros(1, 3, 16, 16), path, layer="features")
    return path


def test_a_right_file_is_verified(explainer: Path) -> None:
    measured = verify(explainer)
    assert 0 < measured.rules < 1e-8
    assert measured.logits < 1e-6
    assert measured.gradients < 1e-6


def test_a_changed_gradient_is_found(explainer: Path, tmp_path: Path) -> None:
    """One weight of the backward pass alone is changed: the node that reads it is fed a copy."""
    proto = onnx.load(explainer)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    gather = next(node for node in proto.graph.node if node.op_type == "Gather")
    changed = numpy_helper.to_array(weights[gather.input[0]]).copy()
    changed[:, 0] *= 1.01
    proto.graph.initializer.append(numpy_helper.from_array(changed, "changed"))
    gather.input[0] = "changed"
    onnx.save(proto, tmp_path / "changed.onnx")
    with pytest.raises(VerificationError, match="gradient rules differ"):
        verify(tmp_path / "changed.onnx")


def with_metadata(explainer: Path, path: Path, old: str, new: str) -> Path:
    proto = onnx.load(explainer)
    (entry,) = proto.metadata_props
    assert old in entry.value
    entry.value = entry.value.replace(old, new)
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema": 1', '"schema": 2', "schema 2"),
        ('"activations": "activations"', '"activations": "elsewhere"', "as its manifest says"),
        ('"height": 16', '"height": 8', "as its manifest says"),
        ('"channels": 3', '"channels": "3"', "manifest is damaged"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    explainer: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        verify(with_metadata(explainer, tmp_path / "lying.onnx", old, new))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_explainers(explainer: Path, tmp_path: Path) -> None:
    proto = onnx.load(explainer)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "plain.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes(explainer.read_bytes()[:3000])
    for name, message in (
        ("plain.onnx", "a plain ONNX model, not an explainer; make one of it, without PyTorch"),
        (
            "empty.onnx",
            "a plain ONNX model, not an explainer; make one of it, without PyTorch|not an ONNX model",
        ),
        ("cut.onnx", "not an ONNX model"),
        ("missing.onnx", "there is no file"),
    ):
        with pytest.raises(ModelError, match=message):
            verify(tmp_path / name)


def test_it_is_deterministic(explainer: Path) -> None:
    first, second = verify(explainer), verify(explainer)
    assert np.array_equal([first.rules, first.gradients], [second.rules, second.gradients])


def fresh_head(bias: float) -> nn.Module:
    """Return a network like torchvision's new vision transformers, whose head's weights are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )
    nn.init.zeros_(model[4].weight)
    nn.init.constant_(model[4].bias, bias)
    return model


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_gradients_that_are_zero_are_no_success(bias: float, fp16: bool, tmp_path: Path) -> None:
    """The file is kept, for weights may come later; but nobody is told that its gradients are right."""
    path = tmp_path / "fresh.onnx"
    message = "at 1 every class's gradients are zero .* usually the head isn't trained"
    with pytest.warns(UserWarning, match=message) as caught:
        report = export(fresh_head(bias), torch.zeros(1, 3, 16, 16), path, fp16=fp16)
    assert sum("are zero" in str(warning.message) for warning in caught) == 1
    assert report.verification.zero == ("1",)
    assert report.manifest.verification["gradients"] is None
    with pytest.warns(UserWarning, match=message):
        assert verify(path).zero == ("1",)


def test_of_several_layers_the_dead_one_is_named(tmp_path: Path) -> None:
    model = fresh_head(0.0)
    nn.init.ones_(model[4].weight)
    nn.init.constant_(model[0].bias, -100.0)
    model[1] = nn.ReLU()  # is never on
    with pytest.warns(UserWarning, match="at 0 every class's gradients are zero") as caught:
        report = export(model, torch.zeros(1, 3, 16, 16), tmp_path / "dead.onnx", layer=["0", "1"])
    (said,) = (str(warning.message) for warning in caught if "are zero" in str(warning.message))
    assert said.endswith(
        "these gradients weren't verified; nothing from there reaches the logits on such images"
    )
    assert report.verification.zero == ("0",)
    assert report.verification.measured == ("1",)
    summary = report.manifest.verification
    assert 0 < summary["gradients"] < 1e-6  # those of 1 were verified, and that is told
    assert summary["zero"] == ["0"]
    with pytest.warns(UserWarning, match="nothing from there reaches the logits"):
        assert verify(tmp_path / "dead.onnx").zero == ("0",)


class Cancelling(nn.Module):
    """Numbers are rounded as large ones, and are small again: logits lose their last digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        means = self.maps(image).tanh().mean((2, 3))
        return self.head((means + 3000) * 1.1 - 3300)


def test_logits_that_rounding_moves(tmp_path: Path) -> None:
    """The file alone is as good as beside its source."""
    torch.manual_seed(1)
    path = tmp_path / "explainer.onnx"
    assert export(Cancelling(), torch.zeros(1, 3, 16, 16), path, layer="maps").verification.logits < 1e-2
    assert verify(path).rules < 1e-6


class Amplifying(nn.Module):
    """What is before the layer makes much of rounding, in PyTorch as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 7)
        self.maps = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.maps((self.first(image) * 2e5).sin()).tanh().mean((2, 3)))


def test_activations_that_rounding_moves(tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "explainer.onnx"
    report = export(Amplifying(), torch.zeros(1, 3, 16, 16), path, layer="maps")
    assert report.verification.logits > 1e-3
    assert verify(path).rules < 1e-6


class Saturating(Cancelling):
    """Behind the layer, too: the slopes follow from numbers that have lost their last digits."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image).mul(3).tanh()


def test_gradients_that_rounding_moves(tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "explainer.onnx"
    measured = export(Saturating(), torch.zeros(1, 3, 16, 16), path, layer="maps")
    assert 1e-4 < measured.verification.gradients < 1e-2
    assert verify(path).gradients == measured.verification.gradients


class Noisy(nn.Module):
    """It draws anew in each run."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.maps(image + torch.rand_like(image) / 10).tanh().mean((2, 3)))


def test_a_network_that_draws_at_random_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    with pytest.raises(VerificationError, match=r"the logits differ .* draws at random"):
        export(Noisy(), torch.zeros(1, 3, 16, 16), tmp_path / "e.onnx", layer="maps")
    assert list(tmp_path.iterdir()) == []
