"""`onnxplain export` and `onnxplain layers`, on small networks of the tests' own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest

from cli_helpers import assert_one_line_error, run, write_picture
from onnxplain import Explainer, Preprocessing, extras

SOURCE = "networks_of_the_test:small"
NETWORKS = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(7, 4),
    )

def grey():
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), *head)

def fresh():
    model = small()
    nn.init.zeros_(model[5].weight)
    return model

class Branched(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.Conv2d(3, 6, 3, stride=2)
        self.branch = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        nn.init.zeros_(self.norm.weight)

    def forward(self, image):
        maps = self.act(image).sigmoid()
        return self.head((maps + self.norm(self.branch(maps))).mean((2, 3)))

def branched():
    torch.manual_seed(0)
    return Branched()

def number():
    return 7

def broken():
    raise RuntimeError("no weights today")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of its own with the networks in it, as a user does."""
    (tmp_path / "networks_of_the_test.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def unchanged(folder: Path) -> bool:
    left = {path.name for path in folder.iterdir()}
    return left <= {"networks_of_the_test.py", "__pycache__", "labels", "preprocessing.json", "weights.pt"}


def test_export_then_explain(folder: Path) -> None:
    result = run("export", SOURCE, "-o", "small.onnx", "--size", "32")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "2 (picked automatically), 7 maps of 13x13" in result.stdout
    assert "onnxplain explain small.onnx" in result.stdout
    manifest = Explainer("small.onnx").manifest
    assert manifest.input == Preprocessing.for_size(3, 32, 32)
    assert manifest.source["name"] == SOURCE
    assert manifest.labels is None
    write_picture(folder / "picture.png")
    assert run("explain", "small.onnx", "picture.png").exit_code == 0
    assert (folder / "explanations" / "explanations.jsonl").is_file()


def test_the_size_and_a_preprocessing_go_together(folder: Path) -> None:
    """As the export's own advice is given: the same call again, with the file in addition."""
    (folder / "preprocessing.json").write_text(json.dumps({"mean": [0.5], "std": [0.5], "resize": None}))
    options = ("--size", "32", "--preprocessing", "preprocessing.json")
    result = run("export", "networks_of_the_test:grey", "-o", "grey.onnx", *options)
    assert result.exit_code == 0, result.stderr
    spec = Explainer("grey.onnx").manifest.input
    assert spec.in_words() == "L, resized to 32x32, mean 0.5, std 0.5"
    (folder / "preprocessing.json").write_text(json.dumps({"height": 16, "width": 16}))
    refused = run("export", "networks_of_the_test:grey", "-o", "other.onnx", *options)
    assert_one_line_error(refused, 2, "--size says 32x32, and preprocessing.json says height 16 and width 16")


@pytest.mark.parametrize(("side", "size"), [("height", "32x24"), ("width", "24x32")])
def test_a_side_that_the_preprocessing_leaves_out(side: str, size: str, folder: Path) -> None:
    """By itself it is that of a square; the option says otherwise."""
    (folder / "preprocessing.json").write_text(json.dumps({side: 32}))
    options = ("--preprocessing", "preprocessing.json")
    result = run("export", SOURCE, "-o", "out.onnx", "--size", size, *options)
    assert result.exit_code == 0, result.stderr
    spec = Explainer("out.onnx").manifest.input
    assert f"{spec.height}x{spec.width}" == size
    refused = run("export", SOURCE, "-o", "other.onnx", "--size", "24", *options)
    assert_one_line_error(refused, 2, f"--size says 24x24, and preprocessing.json says {side} 32")
    assert run("export", SOURCE, "-o", "out.onnx", *options).exit_code == 0
    spec = Explainer("out.onnx").manifest.input
    assert (spec.height, spec.width) == (32, 32)


def test_the_advice_on_a_guess_is_whole(folder: Path) -> None:
    """A module doesn't say its size: what is advised has it, and gives the same file without a guess."""
    with pytest.warns(UserWarning, match="nobody stated resize, crop, mean and std") as caught:
        run("export", "networks_of_the_test:grey", "-o", "guessed.onnx", "--size", "32")
    message = next(str(one.message) for one in caught if "such as" in str(one.message))
    assert "as its source usually" not in message  # nobody knows what is usual for it
    (folder / "preprocessing.json").write_text(message.partition("such as ")[2])
    run("export", "networks_of_the_test:grey", "-o", "g.onnx", "--preprocessing", "preprocessing.json")
    guessed, stated = (Explainer(name).manifest.input for name in ("guessed.onnx", "g.onnx"))
    assert stated.guessed == ()
    assert stated.in_words() == guessed.in_words()
    assert (stated.height, stated.width) == (32, 32)


def test_a_size_that_nobody_stated_is_said(folder: Path) -> None:
    with pytest.warns(UserWarning, match="nobody stated the size .*224x224 is a guess"):
        run("layers", SOURCE)


def test_a_head_that_is_not_trained(folder: Path) -> None:
    """Nothing is called right that wasn't measured."""
    message = "at 2 every class's gradients are zero"
    with pytest.warns(UserWarning, match=message):
        exported = run("export", "networks_of_the_test:fresh", "-o", "fresh.onnx", "--size", "32")
    with pytest.warns(UserWarning, match=message):
        verified = run("verify", "fresh.onnx")
    for result in (exported, verified):
        assert result.exit_code == 0
        assert "not verified: zero for every class at 2" in result.stdout
        assert "central differences" not in result.stdout
    assert "of the gradients, which are zero, nothing can be said" in verified.stdout
    assert "its gradients were zero, and not verified" in run("inspect", "fresh.onnx").stdout


def test_a_branch_that_is_dead(folder: Path) -> None:
    """What was measured of the other layer is said, and so is that nothing was of this one."""
    layers = ("--layer", "branch", "--layer", "act")
    with pytest.warns(UserWarning, match=r"at branch .* nothing from there reaches the logits"):
        exported = run("export", "networks_of_the_test:branched", "-o", "dead.onnx", "--size", "32", *layers)
    with pytest.warns(UserWarning, match=r"at branch .* nothing from there reaches the logits"):
        verified = run("verify", "dead.onnx")
    for result in (exported, verified):
        assert result.exit_code == 0
        assert "from central differences, in float64" in result.stdout
        assert re.search("not verified +zero for every class at branch", result.stdout)
    assert "right within rounding; of the gradients at branch, which are zero, nothing" in verified.stdout
    shown = run("inspect", "dead.onnx").stdout
    assert "gradients within" in shown
    assert "; not verified at branch: zero for every class" in shown


def test_export_of_a_file_that_takes_pictures(folder: Path) -> None:
    result = run("export", SOURCE, "-o", "small.onnx", "--size", "32", "--pixels", "--heatmap", "gradcam")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "pictures of any size, brought to 32x32 in the file" in result.stdout
    shown = run("inspect", "small.onnx").stdout
    assert "uint8    [batch, height, width, 3]" in shown
    assert "preprocessed in the file" in shown
    write_picture(folder / "picture.png")
    explained = run("explain", "small.onnx", "picture.png")
    assert (explained.exit_code, explained.stderr) == (0, "")
    verified = run("verify", "small.onnx")
    assert (verified.exit_code, verified.stderr) == (0, "")


def test_export_in_half_precision(folder: Path) -> None:
    result = run("export", SOURCE, "-o", "small.onnx", "--size", "32", "--fp16")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Turning it to float16, and verifying that" in result.stdout
    verified = run("verify", "small.onnx")
    assert (verified.exit_code, verified.stderr) == (0, "")
    kinds = {tensor.data_type for tensor in onnx.load("small.onnx").graph.initializer if tensor.dims}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_pixels_that_can_not_be(folder: Path) -> None:
    result = run("export", SOURCE, "-o", "small.onnx", "--size", "32", "--pixels", "--dynamic-size")
    assert_one_line_error(result, 1, "pixels and a dynamic size don't go together")
    assert unchanged(folder)


@pytest.mark.parametrize("text", ["a\nb c\nd\né\n", '["a", "b c", "d", "é"]'])
def test_options(text: str, folder: Path) -> None:
    (folder / "labels").write_text(text, encoding="utf-8")
    options = [
        "--labels",
        "labels",
        "--layer",
        "0",
        "--layer",
        "1",
        "--activation",
        "sigmoid",
        "--size",
        "24x40",
    ]
    result = run("export", SOURCE, "-o", "small.onnx", *options)
    assert result.exit_code == 0, result.stderr
    manifest = Explainer("small.onnx").manifest
    assert manifest.labels == ("a", "b c", "d", "é")
    assert [layer.name for layer in manifest.layers] == ["0", "1"]
    assert manifest.activation == "sigmoid"
    assert (manifest.input.height, manifest.input.width) == (24, 40)
    assert "automatically" not in result.stdout


def test_preprocessing_file(folder: Path) -> None:
    fields = {
        "channels": 1,
        "height": 20,
        "width": 24,
        "color": "L",
        "resize": [20, 24],
        "mean": [0.4],
        "std": [0.2],
    }
    (folder / "preprocessing.json").write_text(json.dumps(fields))
    options = ["--preprocessing", "preprocessing.json"]
    assert run("layers", "networks_of_the_test:grey", *options).exit_code == 0
    assert run("export", "networks_of_the_test:grey", "-o", "grey.onnx", *options).exit_code == 0
    expected = Preprocessing(1, 20, 24, color="L", resize=(20, 24), mean=(0.4,), std=(0.2,))
    assert Explainer("grey.onnx").manifest.input == expected


def test_checkpoint(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    namespace: dict[str, object] = {}
    exec(NETWORKS, namespace)
    network = namespace["small"]()  # type: ignore[operator]
    with torch.no_grad():
        network[5].bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    torch.save(network.state_dict(), folder / "weights.pt")
    options = ["--size", "32", "--checkpoint", "weights.pt"]
    assert run("export", SOURCE, "-o", "small.onnx", *options).exit_code == 0
    assert Explainer("small.onnx").explain(write_picture(folder / "p.png")).index == 2


def test_what_is_read_is_not_replaced(folder: Path) -> None:
    """Labels, preprocessing, a checkpoint, a program of torch.export."""
    for option in ("--labels", "--preprocessing", "--checkpoint"):
        (folder / "mine").write_text("a")
        (folder / "link").symlink_to("mine")
        for output in ("mine", "./mine", "link"):
            result = run("export", SOURCE, option, "mine", "-o", output)
            assert_one_line_error(result, 1, f"{Path(output)} is read here, and would be replaced")
        assert (folder / "mine").read_text() == "a"
        (folder / "link").unlink()
    (folder / "net.pt2").write_bytes(b"a program")
    assert_one_line_error(run("export", "net.pt2", "-o", "net.pt2"), 1, "such as net.explainer.pt2")
    assert (folder / "net.pt2").read_bytes() == b"a program"


def test_layers() -> None:
    result = run("layers", SOURCE, "--size", "32")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines == [
        ["LAYER", "KIND", "MAPS"],
        ["0", "Conv2d", "6", "of", "15x15"],
        ["1", "ReLU", "6", "of", "15x15"],
        ["2", "Conv2d", "7", "of", "13x13", "picked", "automatically"],
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nonsense", ["'nonsense'", "package.module:factory"]),
        ("no_such_module_at_all:f", ["no_such_module_at_all"]),
        ("networks_of_the_test:smal", ["smal"]),
        ("networks_of_the_test:number", ["int", "Module"]),
        ("networks_of_the_test:broken", ["no weights today"]),
        ("torchvision:resnet51", ["resnet51", "resnet50"]),
    ],
)
@pytest.mark.parametrize("command", ["export", "layers"])
def test_bad_source(source: str, words: list[str], command: str, folder: Path) -> None:
    if source.startswith("torchvision"):
        pytest.importorskip("torchvision")
    options = ["-o", "out.onnx"] if command == "export" else []
    assert_one_line_error(run(command, source, *options), 1, *words)
    assert unchanged(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer", "conv"], ["'conv'"]),
        (["--layer", "5"], ["'5'", "spatial"]),
        (["--labels", "labels"], ["the labels are 2", "the classes of the model 4"]),
        (["--labels", "missing"], ["missing"]),
        (["--checkpoint", "missing.pt"], ["missing.pt"]),
        (["--preprocessing", "missing.json"], ["missing.json"]),
        (["--preprocessing", "labels"], ["labels"]),
        (["--size", "2"], ["[batch, 3, 2, 2]"]),
        (["-o", "no/such/folder.onnx"], ["no/such"]),
    ],
)
def test_bad_option(options: list[str], words: list[str], folder: Path) -> None:
    (folder / "labels").write_text("one\ntwo\n")
    assert_one_line_error(run("export", SOURCE, "-o", "out.onnx", *options), 1, *words)
    assert unchanged(folder)


def test_a_misspelt_key_of_the_preprocessing(folder: Path) -> None:
    for key, hint in (("means", "did you mean 'mean'?"), ("zoom", "there are channels, height, ")):
        (folder / "preprocessing.json").write_text(json.dumps({key: [0.5]}))
        result = run("export", SOURCE, "-o", "out.onnx", "--preprocessing", "preprocessing.json")
        assert_one_line_error(result, 1, f"there is no {key!r}; {hint}")


@pytest.mark.parametrize("text", ["[1, 2]", '["a",', b"\xff\xfe\x00"])
def test_bad_labels(text: str | bytes, folder: Path) -> None:
    (folder / "labels").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_one_line_error(run("export", SOURCE, "-o", "out.onnx", "--labels", "labels"), 1, "labels")
    assert unchanged(folder)


HUGE = json.dumps({"height": 10**400, "width": 10**400})


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"height": 0}', '{"colour": "RGB"}', '{"std": [0]}', "7", pytest.param(HUGE, id="huge")],
)
def test_bad_preprocessing(text: str, folder: Path) -> None:
    (folder / "preprocessing.json").write_text(text)
    result = run("export", SOURCE, "-o", "out.onnx", "--preprocessing", "preprocessing.json")
    assert_one_line_error(result, 1, "preprocessing.json")
    assert "--debug" not in result.stderr
    assert unchanged(folder)


def test_preprocessing_that_leaves_the_resize_out(folder: Path) -> None:
    """The resize is then the usual one at the input's size, not the one at 224."""
    (folder / "preprocessing.json").write_text('{"height": 16, "width": 16}')
    assert run("export", SOURCE, "-o", "out.onnx", "--preprocessing", "preprocessing.json").exit_code == 0
    assert Explainer(folder / "out.onnx").manifest.input == Preprocessing.for_size(3, 16, 16)


@pytest.mark.parametrize(
    ("args", "missing", "extra"),
    [
        (["export", SOURCE, "-o", "out.onnx"], "torch", "export"),
        (["export", SOURCE, "-o", "out.onnx"], "onnxscript", "export"),
        (["export", "torchvision:resnet18", "-o", "out.onnx"], "torchvision", "torchvision"),
        (["layers", SOURCE], "torch", "export"),
        (["verify", "model.onnx"], "onnx_ir", "onnx"),
    ],
)
def test_missing_package(
    args: list[str], missing: str, extra: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == missing else find_spec(name))
    line = f'{missing} is not installed; run: python -m pip install "onnxplain[{extra}]"'
    assert_one_line_error(run(*args), 1, line)
    assert unchanged(folder)


def test_extras_are_those_of_the_distribution() -> None:
    """Each package that an extra is said to bring is one of its requirements."""
    from importlib.metadata import packages_distributions, requires

    wanted = requires("onnxplain") or []
    distributions = packages_distributions()
    for extra, packages in extras.PACKAGES.items():
        own = "onnx" if extra == "export" else extra  # `export` takes in `onnx`
        for package in packages:
            (name,) = set(distributions.get(package, [package]))
            assert any(
                line.replace("_", "-").lower().startswith(name.replace("_", "-").lower())
                and line.endswith((f'extra == "{extra}"', f"extra == '{extra}'", f"extra == '{own}'"))
                for line in wanted
            ), (extra, package, wanted)
