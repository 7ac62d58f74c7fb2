"""The manifest: what an explainer file says about itself, as JSON in its metadata.

A manifest comes from a file that may be hostile, so every field is checked before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from onnxplain.errors import ModelError

METADATA_KEY = "onnxplain.manifest"
SCHEMA = 1

Activation = Literal["softmax", "sigmoid", "none"]
Color = Literal["RGB", "BGR", "L"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
Crop = Literal["center", "none"]
Head = Literal["gap_linear"]

_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}
_UNSAID: Any = type("Unsaid", (), {"__repr__": lambda self: "unsaid"})()
GUESSABLE = ("resize", "crop", "mean", "std")
"""What of a preprocessing can't be seen on a network, and has to be stated or guessed."""
IMAGENET: dict[str, tuple[float, ...]] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_SMALLEST_CROPPED = 128
"""Networks of smaller pictures, such as CIFAR's or MNIST's, see them whole."""
_LARGEST_SIZE = 1 << 15
_LARGEST_FLOAT32 = 3.4028234663852886e38
_A_SIZE = f"a whole number from 1 to {_LARGEST_SIZE}"


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input.

    The picture is resized (antialiased), cropped to `height` x `width`, scaled to [0, 1], and normalised by
    ``(pixel - mean) / std``.

    What isn't said follows from what is: the colour from the number of channels, a square from one side, the
    crop from the resize. What doesn't follow is guessed as `usual` does, and `guessed` names it.

    Parameters
    ----------
    channels, height, width
        Shape of the network's input, without its batch.
    color
        Order of the channels: RGB, BGR, or L for one grey channel.
    resize
        Length of the shorter side after resizing; ``(height, width)`` to ignore the aspect ratio; None
        resizes straight to the input's size.
    crop
        ``"center"`` cuts the input from the middle of the resized picture; ``"none"`` takes it whole, and
        then `resize` must be None or the input's own size.
    interpolation
        Filter of the resize.
    mean, std
        One number a channel, of pixels in [0, 1].
    stated
        Names of the parameters that somebody stated; by default those that are given.
    """

    channels: int = _UNSAID
    height: int = _UNSAID
    width: int = _UNSAID
    color: Color = _UNSAID
    resize: int | tuple[int, int] | None = _UNSAID
    crop: Crop = _UNSAID
    interpolation: Interpolation = _UNSAID
    mean: tuple[float, ...] = _UNSAID
    std: tuple[float, ...] = _UNSAID
    stated: frozenset[str] = field(default=_UNSAID, compare=False, repr=False)
    given: frozenset[str] = field(init=False, compare=False, repr=False)
    """Names of the parameters that were given, stated or not: what else there is was derived from these."""

    def __post_init__(self) -> None:
        self._complete()
        self._check()

    def _complete(self) -> None:
        """Derive what wasn't said."""
        said = {
            name: value
            for name, known in self.__dataclass_fields__.items()
            if name != "stated" and known.init and (value := getattr(self, name)) is not _UNSAID
        }
        given = frozenset(said)
        complete = {**_derived(said), "given": given}
        complete["stated"] = given if self.stated is _UNSAID else self.stated & given
        for name, value in complete.items():
            object.__setattr__(self, name, value)

    @property
    def guessed(self) -> tuple[str, ...]:
        """What had to be guessed, of `GUESSABLE`."""
        return tuple(
            name
            for name in GUESSABLE
            if name not in self.stated
            # Either says the other: only the whole of a picture needs no crop.
            and not (name == "crop" and "resize" in self.stated)
            and not (name == "resize" and "crop" in self.stated and self.crop == "none")
        )

    def _check(self) -> None:
        for name in ("channels", "height", "width"):
            _require(_is_size(getattr(self, name)), f"input.{name} must be {_A_SIZE}")
        _require(
            self.channels in _CHANNELS.values(),
            f"input.channels is {self.channels}, but a picture gives 3 (RGB or BGR) or 1 (L); "
            f"put a layer before the model that makes its {self.channels} channels of those",
        )
        _require(self.color in get_args(Color), f"input.color must be one of {get_args(Color)}")
        _require(
            self.channels == _CHANNELS[self.color],
            f"input.color {self.color} goes with input.channels {_CHANNELS[self.color]}, not {self.channels}",
        )
        _require(self.crop in get_args(Crop), f"input.crop must be one of {get_args(Crop)}")
        _require(
            self.interpolation in get_args(Interpolation),
            f"input.interpolation must be one of {get_args(Interpolation)}",
        )
        _require(
            self.resize is None
            or _is_size(self.resize)
            or (isinstance(self.resize, tuple) and len(self.resize) == 2 and all(map(_is_size, self.resize))),
            f"input.resize must be a side's length, a (height, width), or null; a length is {_A_SIZE}",
        )
        for name in ("mean", "std"):
            values = getattr(self, name)
            _require(
                isinstance(values, tuple) and len(values) == self.channels and all(map(_is_finite, values)),
                f"input.{name} must be {self.channels} finite numbers, one a channel",
            )
        _require(all(value > 0 for value in self.std), "input.std must be above 0")
        _require(
            self.crop == "center" or self.resize in (None, (self.height, self.width)),
            "input.crop 'none' goes with a resize to the input's own size",
        )

    @classmethod
    def for_size(cls, channels: int, height: int, width: int) -> Preprocessing:
        """Return the usual evaluation transform at an input's size, as `usual` has it.

        Raises
        ------
        ModelError
            A picture has no such number of channels, or the size is out of range.
        """
        return cls(channels, height, width)

    def in_words(self) -> str:
        """Return what a picture goes through, as a phrase of one line."""
        return ", ".join(self.steps_in_words())

    def steps_in_words(self) -> tuple[str, str, str]:
        """Return a phrase each for the colours, the resize with its crop, and the levels."""
        size = f"{self.height}x{self.width}"
        is_whole = self.resize in (None, (self.height, self.width))
        if self.resize is None:
            resize = f"resized to {size}"
        elif isinstance(self.resize, int):
            resize = f"shorter side resized to {self.resize}"
        else:
            resize = f"resized to {self.resize[0]}x{self.resize[1]}"
        kernel = "" if self.interpolation == "bilinear" else f" ({self.interpolation})"
        # Of what has the input's own size already, the centre is all.
        crop = "" if is_whole else f", centre {size} cropped"
        return self.color, f"{resize}{kernel}{crop}", self._levels_in_words()

    def _levels_in_words(self) -> str:
        if not any(self.mean) and set(self.std) == {1}:
            return "levels in [0, 1]"
        if not any(self.mean) and all(math.isclose(value, 1 / 255, rel_tol=1e-4) for value in self.std):
            return "levels from 0 to 255"
        mean, std = (
            " ".join(f"{value:.4g}" for value in (values if len(set(values)) > 1 else values[:1]))
            for values in (self.mean, self.std)
        )
        return f"mean {mean}, std {std}"

    def guess_in_words(self) -> str:
        """Return what had to be guessed, as a phrase of one line; nothing where nothing had to be."""
        return f"nobody stated {_listed(self.guessed)}" if self.guessed else ""

    def at_size(self, height: int, width: int) -> Preprocessing:
        """Return the same transform for an input of another size: the picture is resized in proportion.

        Where the two sides change differently, to the larger proportion, so that a crop needs no padding.

        Raises
        ------
        ModelError
            The size is out of range.
        """
        resize = self.resize
        if isinstance(resize, tuple):
            resize = (round(resize[0] * height / self.height), round(resize[1] * width / self.width))
        elif resize is not None:
            resize = round(resize * max(height / self.height, width / self.width))
        return replace(self, height=height, width=width, resize=resize)


def usual(channels: int, height: int, width: int) -> dict[str, Any]:
    """Guess how pictures become inputs of a size, where nothing but the size is known.

    Three channels of 128 pixels and more: as torchvision's networks of ImageNet, whose pictures' shorter side
    is resized to size / 0.875 and whose centre is cropped. Others see the whole picture, resized to their
    size, in [0, 1].

    Returns
    -------
    dict
        Values for `GUESSABLE`.
    """
    if channels == 3 and min(height, width) >= _SMALLEST_CROPPED:
        return {"resize": round(min(height, width) / 0.875), "crop": "center", **IMAGENET}
    return {"resize": None, "crop": "none", "mean": (0.0,) * channels, "std": (1.0,) * channels}


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _derived(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what follows from what was said of a preprocessing, and where nothing does, what is usual."""
    known = dict(said)
    statistics = next((known[name] for name in ("mean", "std") if isinstance(known.get(name), tuple)), None)
    if "channels" not in known:
        usual_number = 3 if statistics is None else len(statistics)
        known["channels"] = _CHANNELS.get(str(known.get("color")), usual_number)
    known.setdefault("color", "L" if known["channels"] == 1 else "RGB")
    known.setdefault("interpolation", "bilinear")
    known.setdefault("height", known.get("width", 224))
    known.setdefault("width", known["height"])
    size = known["height"], known["width"]
    if not _is_size(known["channels"]) or not all(map(_is_size, size)):
        return known
    guess = usual(known["channels"], *size)
    if "resize" in known:
        known.setdefault("crop", "none" if known["resize"] in (None, size) else "center")
    elif known.get("crop") == "none":
        known["resize"] = None
    elif known.get("crop") == "center":
        known["resize"] = round(min(size) / 0.875)
    # Whoever states one of these and not the other leaves the other out.
    if "mean" in known:
        guess["std"] = (1.0,) * known["channels"]
    elif "std" in known:
        guess["mean"] = (0.0,) * known["channels"]
    return {**guess, **known}


@dataclass(frozen=True)
class Layer:
    """A target layer: where its activations and gradients come out, and their shape.

    `head` is ``"gap_linear"`` where the logits are a linear function of the layer's spatial mean (what CAM
    needs), else None. `tokens` says how a token layer was folded to a grid; None for feature maps.
    """

    name: str
    activations: str
    gradients: str
    channels: int
    height: int
    width: int
    tokens: Mapping[str, Any] | None = None
    head: Head | None = None

    def __post_init__(self) -> None:
        for name in ("name", "activations", "gradients"):
            value = getattr(self, name)
            _require(isinstance(value, str) and value != "", f"layers.{name} must be a name")
        for name in ("channels", "height", "width"):
            _require(_is_size(getattr(self, name)), f"layers.{name} must be {_A_SIZE}")
        _require(self.tokens is None or isinstance(self.tokens, Mapping), "layers.tokens must be an object")
        _require(self.head in (None, *get_args(Head)), f"layers.head must be null or one of {get_args(Head)}")


IMAGE_GRADIENTS, GUIDED_GRADIENTS = IMAGE_OUTPUTS = ("image_gradients", "guided_image_gradients")
"""The outputs that a file may have beside those of its manifest: the gradients of the image itself."""


def output_of_layer(kind: str, layer: str, layers: int) -> str:
    """Return the name of a layer's output, ``activations`` or such; of several layers it has their name."""
    return kind if layers == 1 else f"{kind}.{layer}"


@dataclass(frozen=True)
class Manifest:
    """What an explainer file says about itself."""

    input: Preprocessing
    layers: tuple[Layer, ...]
    labels: tuple[str, ...] | None = None
    activation: Activation = "softmax"
    producer: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)
    heatmap: str | None = None
    """The method of the outputs ``cam`` and ``heatmap``; None in a file without them."""
    pixels: bool = False
    """Whether ``image`` is a picture, uint8 [batch, height, width, 3], that the file itself preprocesses."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _require(self.activation in get_args(Activation), f"activation must be one of {get_args(Activation)}")
        _require(len(self.layers) > 0, "layers must name at least one target layer")
        names = {layer.name for layer in self.layers}
        _require(len(names) == len(self.layers), "layers must have names that differ")
        if self.labels is not None:
            _require(all(isinstance(label, str) for label in self.labels), "labels must be strings")
        _require(self.heatmap is None or isinstance(self.heatmap, str), "heatmap must be a method or null")
        _require(isinstance(self.pixels, bool), "pixels must be true or false")
        _require(not self.pixels or self.input.color != "L", "pixels are RGB, and input.color is L")
        for name in ("producer", "source", "verification"):
            _require(isinstance(getattr(self, name), Mapping), f"{name} must be an object")

    def cam(self, layer: Layer) -> str:
        """Return the name of a layer's maps among the outputs, where `heatmap` says that there are any."""
        return output_of_layer("cam", layer.name, len(self.layers))

    def to_json(self) -> str:
        """Return the manifest as JSON; the same manifest always gives the same text."""
        fields = asdict(self)
        del fields["input"]["given"]
        fields["input"]["stated"] = {name: name not in self.input.guessed for name in GUESSABLE}
        order = ["schema", "producer", "source", "input", "labels", "activation", "layers", "verification"]
        if self.heatmap is not None:
            order.append("heatmap")
        if self.pixels:
            order.append("pixels")
        return json.dumps({key: fields[key] for key in order}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest.

        Raises
        ------
        ModelError
            The text isn't a manifest, or one of a newer schema.
        """
        try:
            fields = json.loads(text, parse_float=_finite_float, parse_constant=_finite_float)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"the manifest is not valid JSON ({error}); export the model again") from None
        schema = fields.get("schema") if isinstance(fields, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise ModelError(
                f"the explainer has manifest schema {schema}, and this onnxplain reads up to {SCHEMA}; "
                "upgrade it: pip install --upgrade onnxplain"
            )
        try:
            return _parse(fields)
        except (ModelError, TypeError) as error:
            raise ModelError(f"the manifest is damaged: {error}; export the model again") from None


def _parse(fields: Any) -> Manifest:
    _require(isinstance(fields, dict), "it must be an object")
    _require(_is_size(fields.get("schema")), "schema must be a whole number of at least 1")
    layers, labels = fields.get("layers"), fields.get("labels")
    _require(isinstance(layers, list), "layers must be a list")
    _require(labels is None or isinstance(labels, list), "labels must be a list or null")
    return Manifest(
        schema=fields["schema"],
        input=_read(Preprocessing, _with_stated(fields.get("input")), "input"),
        layers=tuple(_read(Layer, layer, "layers") for layer in layers),
        labels=None if labels is None else tuple(labels),
        activation=fields.get("activation", "softmax"),
        producer=fields.get("producer", {}),
        source=fields.get("source", {}),
        verification=fields.get("verification", {}),
        heatmap=fields.get("heatmap"),
        pixels=fields.get("pixels", False),
    )


def _with_stated(fields: Any) -> Any:
    """Return the fields of an input with the names of those stated; all, where the file doesn't say."""
    if not isinstance(fields, dict) or "stated" not in fields:
        return fields
    stated = fields["stated"]
    _require(
        isinstance(stated, dict) and all(isinstance(value, bool) for value in stated.values()),
        "input.stated must be an object of true and false",
    )
    return {**fields, "stated": frozenset(name for name, value in stated.items() if value)}


_T = TypeVar("_T", Preprocessing, Layer)


def _read(kind: type[_T], fields: Any, where: str) -> _T:
    """Make a dataclass of a JSON object; keys that this version doesn't know are left out."""
    _require(isinstance(fields, dict), f"{where} must be an object")
    known: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in fields.items()
        if (known_field := kind.__dataclass_fields__.get(key)) is not None and known_field.init
    }
    return kind(**known)


def _finite_float(text: str) -> float:
    """Read a number of JSON; Python's reader would take NaN, and infinity for 1e999."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ModelError(problem)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_SIZE


def _is_finite(value: object) -> bool:
    """Whether a value is a number that float32 holds; math.isfinite fails on an int beyond float64."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST_FLOAT32
