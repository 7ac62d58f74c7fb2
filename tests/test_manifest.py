"""The manifest: its contract, and files that don't keep to it."""

from __future__ import annotations

import json

import pytest

from onnxplain import Layer, Manifest, ModelError, Preprocessing
from onnxplain.manifest import IMAGENET

# The example of the file format, with a whole number for a mean, as JSON writers may have it.
EXAMPLE = {
    "schema": 1,
    "producer": {"onnxplain": "0.1.0", "torch": "2.13.0", "onnx": "1.23.2"},
    "source": {"kind": "torch", "name": "torchvision:resnet50", "sha256": "ab"},
    "input": {
        "channels": 3,
        "height": 224,
        "width": 224,
        "color": "RGB",
        "resize": 256,
        "crop": "center",
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0],
        "std": [0.229, 0.224, 1],
        "stated": {"resize": True, "crop": True, "mean": False, "std": False},
    },
    "labels": ["tench", "goldfish"],
    "activation": "softmax",
    "layers": [
        {
            "name": "layer4",
            "activations": "activations",
            "gradients": "gradients",
            "channels": 2048,
            "height": 7,
            "width": 7,
            "tokens": None,
            "head": "gap_linear",
        }
    ],
    "verification": {"reference": "float64 directional derivatives", "inputs": 3, "logits": 3e-07},
}


def changed(*keys, to):
    """Return the example's JSON with one value changed; the last of `keys` says which."""
    fields = json.loads(json.dumps(EXAMPLE))
    inner = fields
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    return json.dumps(fields)


def test_the_example():
    manifest = Manifest.from_json(json.dumps(EXAMPLE))
    assert manifest.input == Preprocessing(mean=(0.485, 0.456, 0), std=(0.229, 0.224, 1))
    assert manifest.layers == (Layer("layer4", "activations", "gradients", 2048, 7, 7, head="gap_linear"),)
    assert manifest.labels == ("tench", "goldfish")
    assert json.loads(manifest.to_json()) == EXAMPLE
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_order_of_the_keys_is_that_of_the_file_format():
    assert list(json.loads(Manifest.from_json(json.dumps(EXAMPLE)).to_json())) == list(EXAMPLE)


def test_labels_of_any_script_survive():
    manifest = Manifest.from_json(changed("labels", to=["Hündchen", "猫"]))
    assert manifest.labels == ("Hündchen", "猫")
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_keys_that_a_later_version_adds_are_left_out():
    fields = json.loads(json.dumps(EXAMPLE)) | {"more": 1}
    fields["input"]["more"] = [1]
    fields["layers"][0]["more"] = {}
    assert Manifest.from_json(json.dumps(fields)) == Manifest.from_json(json.dumps(EXAMPLE))


@pytest.mark.parametrize("resize", [None, 232, [250, 240]])
def test_resizes(resize):
    assert (
        json.loads(Manifest.from_json(changed("input", "resize", to=resize)).to_json())["input"]["resize"]
        == resize
    )


@pytest.mark.parametrize("schema", [2, 10**20])
def test_a_newer_schema(schema):
    with pytest.raises(ModelError, match=r"schema \d+, and this onnxplain reads up to 1; upgrade"):
        Manifest.from_json(changed("schema", to=schema))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["schema"], None),
        (["schema"], 0),
        (["schema"], "1"),
        (["schema"], True),
        (["input"], None),
        (["input"], []),
        (["input", "channels"], 0),
        (["input", "channels"], 2.5),
        (["input", "channels"], 1),
        (["input", "channels"], 4),
        (["input", "channels"], 10**30),
        (["input", "height"], -1),
        (["input", "height"], 10**9),
        (["input", "height"], "224"),
        (["input", "height"], True),
        (["input", "color"], "CMYK"),
        (["input", "color"], "L"),
        (["input", "color"], []),
        (["input", "resize"], 0),
        (["input", "resize"], [1]),
        (["input", "resize"], [1, 2, 3]),
        (["input", "resize"], "256"),
        (["input", "resize"], 1e9),
        (["input", "crop"], "left"),
        (["input", "crop"], "none"),
        (["input", "interpolation"], "area"),
        (["input", "mean"], [0.5]),
        (["input", "mean"], 0.5),
        (["input", "mean"], ["a", "b", "c"]),
        (["input", "mean"], [0.5, 0.5, None]),
        (["input", "mean"], [0.5, 0.5, 10**400]),
        (["input", "mean"], [0.5, 0.5, -1e39]),
        (["input", "std"], [1, 1, 10**400]),
        (["input", "std"], [1, 1, 0]),
        (["input", "std"], [1, 1, -1]),
        (["labels"], "tench"),
        (["labels"], [1, 2]),
        (["labels"], {"0": "tench"}),
        (["activation"], "relu"),
        (["activation"], None),
        (["activation"], []),
        (["layers"], []),
        (["layers"], {}),
        (["layers"], ["layer4"]),
        (["layers"], [EXAMPLE["layers"][0]] * 2),
        (["layers", 0, "name"], ""),
        (["layers", 0, "name"], 4),
        (["layers", 0, "activations"], None),
        (["layers", 0, "channels"], 0),
        (["layers", 0, "width"], 1.5),
        (["layers", 0, "tokens"], 3),
        (["layers", 0, "head"], "linear"),
        (["layers", 0, "head"], {}),
        (["producer"], []),
        (["source"], None),
        (["verification"], 3),
    ],
)
def test_a_damaged_manifest(keys, value):
    with pytest.raises(ModelError, match=r"^the manifest is damaged: .*; export the model again$"):
        Manifest.from_json(changed(*keys, to=value))


@pytest.mark.parametrize("schema", [0, -1, "1", None, 1.0, True])
def test_a_schema_that_is_no_number_of_at_least_1(schema):
    with pytest.raises(ModelError, match="schema must be a whole number of at least 1;"):
        Manifest.from_json(changed("schema", to=schema))


@pytest.mark.parametrize("size", [0, 32769, 100000])
@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["input", "height"], "input.height"),
        (["input", "resize"], "input.resize"),
        (["layers", 0, "channels"], "layers.channels"),
    ],
)
def test_a_size_out_of_range_is_told_both_bounds(keys, name, size):
    with pytest.raises(ModelError, match=rf"{name} must be .*a whole number from 1 to 32768;"):
        Manifest.from_json(changed(*keys, to=size))
    Manifest.from_json(changed(*keys, to=32768))


def test_layers_of_one_name():
    layer = Layer("layer4", "activations", "gradients", 5, 7, 7)
    with pytest.raises(ModelError, match="names that differ"):
        Manifest(Preprocessing(), (layer, layer))


@pytest.mark.parametrize(("color", "channels"), [("RGB", 1), ("BGR", 1), ("L", 3)])
def test_a_colour_of_other_channels(color, channels):
    values = (0.5,) * channels
    with pytest.raises(ModelError, match=rf"input.color {color} goes with input.channels \d, not {channels}"):
        Preprocessing(channels, color=color, mean=values, std=values)


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_channels_that_no_picture_has(channels):
    for make in (
        lambda: Preprocessing(channels, mean=(0.5,) * channels, std=(0.5,) * channels),
        lambda: Preprocessing.for_size(channels, 224, 224),
    ):
        with pytest.raises(ModelError, match=rf"channels is {channels}, but a picture gives 3 .*put a layer"):
            make()


@pytest.mark.parametrize("key", ["schema", "input", "layers"])
def test_a_missing_key(key):
    fields = {name: value for name, value in EXAMPLE.items() if name != key}
    with pytest.raises(ModelError, match="damaged"):
        Manifest.from_json(json.dumps(fields))


@pytest.mark.parametrize("key", ["name", "channels", "gradients"])
def test_a_layer_without_a_key(key):
    layer = {name: value for name, value in EXAMPLE["layers"][0].items() if name != key}
    with pytest.raises(ModelError, match="damaged"):
        Manifest.from_json(changed("layers", to=[layer]))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "1", "9" * 5000, "[" * 200_000, '{"schema": NaN}', "\ud800", '{"schema": 1e999}'],
)
def test_text_that_is_no_manifest(text):
    with pytest.raises(ModelError, match="manifest") as caught:
        Manifest.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("keys", [["input", "mean", 2], ["verification", "logits"]])
def test_numbers_that_are_not_finite(keys, number):
    with pytest.raises(ModelError, match=f"not valid JSON \\({number} is no finite number\\)"):
        Manifest.from_json(changed(*keys, to=0.123).replace("0.123", number))


def test_the_usual_transform_of_a_size():
    usual = Preprocessing.for_size(3, 224, 224)
    assert usual == Preprocessing() == Preprocessing(3, 224, 224, "RGB", 256, "center", **IMAGENET)
    assert usual.guessed == ("resize", "crop", "mean", "std")
    assert Preprocessing.for_size(3, 160, 160).resize == 183
    whole = {"resize": None, "crop": "none"}
    assert Preprocessing(3, 32, 32) == Preprocessing(3, 32, 32, **whole, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert Preprocessing(1, 28, 28) == Preprocessing(1, 28, 28, "L", **whole, mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize(
    ("said", "derived", "guessed"),
    [
        ({"height": 32}, {"width": 32, "resize": None}, ("resize", "crop", "mean", "std")),
        ({"width": 240}, {"height": 240, "resize": 274}, ("resize", "crop", "mean", "std")),
        ({"color": "L"}, {"channels": 1, "resize": None, "std": (1.0,)}, ("resize", "crop", "mean", "std")),
        ({"mean": (0.4,), "std": (0.2,)}, {"channels": 1, "color": "L"}, ("resize", "crop")),
        ({"mean": (0.4, 0.4, 0.4)}, {"channels": 3, "std": (1.0,) * 3}, ("resize", "crop", "std")),
        ({"std": (0.4, 0.4, 0.4)}, {"channels": 3, "mean": (0.0,) * 3}, ("resize", "crop", "mean")),
        ({"resize": None}, {"crop": "none"}, ("mean", "std")),
        ({"height": 24, "width": 32, "resize": (24, 32)}, {"crop": "none"}, ("mean", "std")),
        ({"resize": None, "crop": "center"}, {"crop": "center"}, ("mean", "std")),
        ({"resize": 236}, {"crop": "center"}, ("mean", "std")),
        ({"crop": "none"}, {"resize": None}, ("mean", "std")),
        ({"crop": "center", "height": 32}, {"resize": 37}, ("resize", "mean", "std")),
    ],
)
def test_what_is_not_said_follows_from_what_is(said, derived, guessed):
    spec = Preprocessing(**said)
    assert {name: getattr(spec, name) for name in derived} == derived
    assert spec.guessed == guessed


def test_what_was_stated_goes_with_copies_and_files():
    spec = Preprocessing(height=32, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    manifest = Manifest(spec, Manifest.from_json(json.dumps(EXAMPLE)).layers)
    copy = Manifest.from_json(manifest.to_json()).input.at_size(64, 64)
    assert spec.guessed == copy.guessed == ("resize", "crop")


def test_a_file_that_does_not_say_what_was_stated():
    """Before there was `stated`: nothing is known of it, and nothing is called a guess."""
    fields = json.loads(json.dumps(EXAMPLE))
    del fields["input"]["stated"]
    assert Manifest.from_json(json.dumps(fields)).input.guessed == ()


@pytest.mark.parametrize("stated", [["mean"], "mean", 1, None, {"mean": 1}, {"mean": "no"}])
def test_stated_that_is_no_object_of_truths(stated):
    with pytest.raises(ModelError, match=r"input\.stated must be an object"):
        Manifest.from_json(changed("input", "stated", to=stated))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            Preprocessing(),
            "RGB, shorter side resized to 256, centre 224x224 cropped, mean 0.485 0.456 0.406, ",
        ),
        (Preprocessing(1, 28, 28), "L, resized to 28x28, levels in [0, 1]"),
        (
            Preprocessing(3, 24, 32, "BGR", (24, 32), "none", "bicubic", (0.0,) * 3, (1 / 255,) * 3),
            "BGR, resized to 24x32 (bicubic), levels from 0 to 255",
        ),
        (Preprocessing(1, 8, 8, mean=(0.5,), std=(0.25,)), "L, resized to 8x8, mean 0.5, std 0.25"),
        (  # 1 / 255, as somebody wrote it
            Preprocessing(1, 8, 9, resize=(8, 9), crop="center", std=(0.003921569,)),
            "L, resized to 8x9, levels from 0 to 255",
        ),
    ],
)
def test_in_words(spec, words):
    assert spec.in_words().startswith(words)
