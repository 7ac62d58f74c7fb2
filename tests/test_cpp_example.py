"""The C++ example, built as its page says, against Python on the same pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
import torch
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v2

from onnxplain import Explainer, Preprocessing
from onnxplain.images import read_image
from onnxplain.overlay import overlay
from onnxplain_export import export
from test_preprocessing import PHOTOGRAPHS
from test_verification import with_metadata

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).resolve().parents[1] / "examples" / "cpp"
CHELSEA = skimage.data.chelsea()
LABELS = ["cat", "tasse à café", "rocket", "astronaut", "page", "coins"]
NOT_FOUND = re.compile(r'configuration file provided by "(OpenCV|nlohmann_json)"|find (ONNXRUNTIME_INCLUDE)')


def build(folder: Path, *options: str) -> Path:
    """Build the example with the library of Python's onnxruntime; skip where tools or headers are missing."""
    if not shutil.which("cmake"):
        pytest.skip("cmake is not here")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("a C++ compiler is not here")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1*"), None)
    if library is None:
        pytest.skip("this onnxruntime has no shared library of its own")
    link = folder / "libonnxruntime.so.1"
    link.symlink_to(library)
    configure = ["cmake", "-S", SOURCE, "-B", folder, f"-DONNXRUNTIME_LIBRARY={link}", *options]
    configured = subprocess.run(configure, capture_output=True, text=True)
    if missing := NOT_FOUND.search(configured.stderr):
        pytest.skip(f"CMake finds no {missing[1] or missing[2]}")
    assert configured.returncode == 0, configured.stderr
    built = subprocess.run(["cmake", "--build", folder], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning:" not in built.stdout + built.stderr
    return folder / "explain"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cpp"))


def network(classes: int = 6) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 5, stride=4), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes)),
    )


def write(path: Path, **options: Any) -> Path:
    options = {"heatmap": "gradcam", "pixels": True, "labels": LABELS, "layer": "3"} | options
    spec = Preprocessing(height=48, width=64, resize=56)
    export(network(), torch.zeros(1, 3, 48, 64), path, preprocessing=spec, **options)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "model.onnx")


def run(program: Path, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *words], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )


def rows(printed: str) -> list[tuple[int, float, str]]:
    """Return index, probability and label of each line."""
    found = [re.fullmatch(r" *(\d+) +(\S+)  (.*)", line) for line in printed.splitlines()]
    return [(int(one[1]), float(one[2]), one[3]) for one in found if one]


def check(program: Path, model: Path, pictures: Sequence[Path], folder: Path, top: int = 2) -> None:
    """Compare what the program prints and writes with the file's outputs and the runtime's answer."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the program needs the cores
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    explainer = Explainer(session=session)
    painted, heat = folder / "overlay.png", folder / "heat.tiff"
    ranks = -1 - np.arange(top)[None]
    for path in pictures:
        done = run(program, model, path, painted, "--top", str(top), "--heatmap", heat)
        assert (done.returncode, done.stderr) == (0, ""), path
        picture = read_image(path)
        (direct,) = session.run(["heatmap"], {"image": picture[None], "class_index": ranks})
        heatmaps = np.split(cv2.imread(str(heat), cv2.IMREAD_UNCHANGED), top, axis=1)
        overlays = np.split(cv2.imread(str(painted))[..., ::-1], top, axis=1)
        explanations = explainer.explain_classes(picture, top=5)
        for found, expected in zip(rows(done.stdout), explanations, strict=True):
            assert found[::2] == (expected.index, expected.label), path
            assert found[1] == pytest.approx(expected.probability, abs=6e-5)
        for rank, heatmap in enumerate(heatmaps):
            assert heatmap.dtype == np.float32
            assert heatmap.max() == 1
            np.testing.assert_allclose(heatmap, direct[0, rank], rtol=0, atol=1e-5, err_msg=str(path))
            np.testing.assert_allclose(heatmap, explanations[rank].heatmap, rtol=0, atol=1e-4)
            # A wrong pixel would show here.
            assert np.abs(overlays[rank] - overlay(picture, heatmap).astype(int)).max() <= 1, path


def test_photographs_of_many_sizes(program: Path, model: Path, tmp_path: Path) -> None:
    pictures = {
        "chelsea.png": CHELSEA,
        "coffee.jpg": skimage.data.coffee(),
        "astronaut.bmp": skimage.data.astronaut(),
        "rocket.webp": skimage.data.rocket(),
        "small.png": CHELSEA[100:131, 100:120],
        "tall.png": CHELSEA[:, 100:170],
        "wide.jpg": CHELSEA[100:170],
        "grey.png": skimage.data.page(),
        "grey.jpg": skimage.data.coins(),
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / name)
    check(program, model, [tmp_path / name for name in pictures], tmp_path)


def test_pictures_of_many_kinds(program: Path, model: Path, tmp_path: Path) -> None:
    """Turned as EXIF says, over white, in 16 bits: read as Python reads them."""
    pixels = CHELSEA[:120, :180]
    alpha = np.tile(np.linspace(0, 255, 180).astype(np.uint8), (120, 1))
    deep = pixels.astype(np.uint16) * 257 + np.random.default_rng(0).integers(0, 2, pixels.shape, np.uint16)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("jpg", "png"):
            Image.fromarray(pixels).save(tmp_path / f"turned_{orientation}.{kind}", exif=exif)
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "alpha.png")
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "alpha.webp", lossless=True)
    Image.fromarray(np.dstack([pixels[..., 0], alpha])).save(tmp_path / "grey_alpha.png")
    palette = Image.fromarray(pixels).quantize(64)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(0, 256, 4)))
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg")
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "deep.tiff"), deep)
    cv2.imwrite(str(tmp_path / "deep_grey.png"), deep[..., 0])
    cv2.imwrite(str(tmp_path / "deep_alpha.png"), np.dstack([deep, alpha.astype(np.uint16) * 257]))
    # What may follow the end of a photograph from a telephone: a film, in which markers turn up by chance.
    film = b"\xff\xd9\xff\xda" + bytes(1000)
    (tmp_path / "with_film.jpg").write_bytes((tmp_path / "turned_1.jpg").read_bytes() + film)
    pictures = sorted(tmp_path.iterdir())
    assert len(pictures) == 26
    check(program, model, pictures, tmp_path, top=1)


@pytest.mark.skipif(not PHOTOGRAPHS, reason="the photographs of ../shared are not here")
def test_mobilenet_on_photographs(program: Path, tmp_path: Path) -> None:
    realworld = PHOTOGRAPHS[0].parents[1]
    network = mobilenet_v2()
    network.load_state_dict(torch.load(realworld / "mobilenet_v2_imagenet.pth", weights_only=True))
    labels = json.loads((realworld / "imagenet_labels.json").read_text())
    model = tmp_path / "mobilenet_v2.onnx"
    export(network.eval(), torch.zeros(1, 3, 224, 224), model, labels=labels, heatmap="gradcam", pixels=True)
    check(program, model, PHOTOGRAPHS[::4], tmp_path, top=5)


def test_times_that_it_prints(program: Path, model: Path, tmp_path: Path) -> None:
    Image.fromarray(CHELSEA[:224, :224]).save(tmp_path / "picture.png")
    done = run(program, model, tmp_path / "picture.png", tmp_path / "overlay.png", "--repeat", "2")
    times = dict(re.findall(r"(\w+) (\d+\.\d+)", done.stdout.splitlines()[-1]))
    assert list(times) == ["decode", "session", "own", "write"]
    assert all(float(time) > 0 for time in times.values())


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_other_activations_and_no_labels(program: Path, activation: Any, tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", activation=activation, labels=None)
    Image.fromarray(CHELSEA).save(tmp_path / "picture.png")
    done = run(program, model, tmp_path / "picture.png", tmp_path / "overlay.png", "--top", "6")
    expected = [
        (one.index, one.logit if one.probability is None else one.probability, "")
        for one in Explainer(model).explain_classes(CHELSEA, top=6)
    ]
    for found, wanted in zip(rows(done.stdout), expected, strict=True):
        assert found == (wanted[0], pytest.approx(wanted[1], abs=6e-5), wanted[2])


def edited(model: Path, path: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    proto = onnx.load(model)
    edit(proto)
    onnx.save(proto, path)
    return path


def without_manifest(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def with_nan(proto: onnx.ModelProto) -> None:
    weight = next(one for one in proto.graph.initializer if list(one.dims) == [6, 64])
    weight.raw_data = np.full((6, 64), np.nan, np.float32).tobytes()


def with_maps_for_heatmaps(proto: onnx.ModelProto) -> None:
    swapped = {"cam": "heatmap", "heatmap": "cam"}
    for node in proto.graph.node:
        node.input[:] = [swapped.get(name, name) for name in node.input]
        node.output[:] = [swapped.get(name, name) for name in node.output]
    for output in proto.graph.output:
        output.name = swapped.get(output.name, output.name)


def failures(model: Path, folder: Path) -> list[tuple[list[str | Path], int, str]]:
    """Return wrong calls and calls that fail, each with its exit code and what the error says."""
    picture, jpeg, out = folder / "picture.png", folder / "picture.jpg", folder / "out.png"
    Image.fromarray(CHELSEA).save(picture)
    Image.fromarray(CHELSEA).save(jpeg)
    broken = folder / "broken"
    broken.mkdir()
    for whole in (picture, jpeg):
        (broken / f"cut{whole.suffix}").write_bytes(whole.read_bytes()[:20000])
    (broken / "empty.png").touch()
    (broken / "text.png").write_text("no picture")
    cv2.imwrite(str(broken / "float.tiff"), np.float32(CHELSEA) / 255)
    (broken / "cut.onnx").write_bytes(model.read_bytes()[:5000])
    images = write(broken / "images.onnx", pixels=False)
    pixels = write(broken / "pixels.onnx", heatmap=None)
    advice = "export the network again: onnxplain export SOURCE -o OUT.onnx --heatmap gradcam --pixels"

    def manifest(model: Path, old: str, new: str) -> Path:
        return with_metadata(model, broken / f"{len(list(broken.iterdir()))}.onnx", old, new)

    wrong: list[tuple[list[str | Path], str]] = [
        ([], "takes MODEL.onnx PICTURE OVERLAY.png"),
        ([model, picture], "takes MODEL.onnx PICTURE OVERLAY.png"),
        ([model, picture, out, "--classes", "3"], "no option --classes"),
        ([model, picture, out, "--top"], "--top lacks its value"),
        ([model, picture, out, "--top", "0"], "--top must be a whole number of at least 1, not '0'"),
        ([model, picture, out, "--repeat", "2x"], "--repeat must be a whole number of at least 1, not '2x'"),
        ([model, picture, folder / "out.xyz"], "name it .png"),
        ([model, picture, out, "--heatmap", folder / "heat.png"], "name it .tiff"),
    ]
    failing: list[tuple[list[str | Path], str]] = [
        ([folder / "none.onnx", picture, out], "there is no such file"),
        ([broken, picture, out], f"can't use {broken}"),
        ([broken / "cut.onnx", picture, out], "cut.onnx"),
        ([edited(model, broken / "plain.onnx", without_manifest), picture, out], advice),
        ([images, picture, out], advice),
        ([pixels, picture, out], advice),
        ([edited(model, broken / "nan.onnx", with_nan), picture, out], "NaN or infinite"),
        ([manifest(model, '"schema": 1', '"schema": 2'), picture, out], "a newer onnxplain wrote it"),
        ([manifest(model, '"labels": [', '"labels": [3, '), picture, out], "type must be string"),
        ([manifest(model, '"schema"', '"schema'), picture, out], "parse error"),
        # They don't keep what their manifests promise.
        (
            [manifest(images, '"schema"', '"pixels": true, "schema"'), picture, out],
            "Unexpected input data type",
        ),
        ([manifest(pixels, '"schema"', '"heatmap": "cam", "schema"'), picture, out], "Invalid output name"),
        ([edited(model, broken / "maps.onnx", with_maps_for_heatmaps), picture, out], "aren't those of an"),
        ([model, picture, out, "--top", "7"], "--top must be at most 6"),
        ([model, folder / "none.png", out], "none.png: No such file"),
        ([model, broken, out], "empty, or no file"),
        *(
            ([model, broken / name, out], f"can't read {broken / name}: it is ")
            for name in ("empty.png", "text.png", "cut.png", "cut.jpg", "float.tiff")
        ),
        ([model, picture, folder / "none" / "out.png"], "out.png: No such file"),
        ([model, picture, (folder / "folder.png")], "folder.png: Is a directory"),
    ]
    (folder / "folder.png").mkdir()
    return [(words, 2, message) for words, message in wrong] + [
        (words, 1, message) for words, message in failing
    ]


def test_failures(program: Path, model: Path, tmp_path: Path) -> None:
    calls = failures(model, tmp_path)
    before = sorted(tmp_path.iterdir())
    for words, code, message in calls:
        done = run(program, *words)
        *others, last = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (code, ""), (words, done.stderr)
        assert last.startswith("explain: "), words
        assert message in last
        # OpenCV's decoders may have a word of their own.
        assert not others or "cut.png" in last, done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_standard_output(program: Path, model: Path, tmp_path: Path) -> None:
    Image.fromarray(CHELSEA).save(tmp_path / "picture.png")
    words = [program, model, tmp_path / "picture.png", tmp_path / "out.png"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "explain: can't write to the standard output\n")


def test_sanitizers_find_nothing(model: Path, tmp_path: Path) -> None:
    """Neither wrong accesses, nor undefined behaviour, nor leaks, its libraries' included."""
    build_folder = tmp_path / "build"
    build_folder.mkdir()
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all"
    program = build(build_folder, "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_CXX_FLAGS={flags}")
    calls = failures(model, tmp_path)
    for name in ("picture.png", "picture.jpg"):
        words = [model, tmp_path / name, tmp_path / "out.png", "--heatmap", tmp_path / "heat.tiff"]
        calls += [([*words, "--top", "6", "--repeat", "2"], 0, "")]
    for words, code, _ in calls:
        done = run(program, *words, ASAN_OPTIONS="exitcode=99", UBSAN_OPTIONS="exitcode=98")
        assert done.returncode == code, (words, done.stderr)


def test_the_page_names_the_options(program: Path) -> None:
    listed = re.findall(r"^\| `(--\w+ [\w.]+)`", (SOURCE / "README.md").read_text(), flags=re.MULTILINE)
    done = run(program, "--help")
    assert done.returncode == 0
    assert re.findall(r"^  (--\w+ [\w.]+)", done.stdout, flags=re.MULTILINE) == listed
