"""Explanations from an explainer file, computed by onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import MethodError, ModelError, TargetError
from onnxplain.explanation import Explanation
from onnxplain.images import Image, Picture, read_picture
from onnxplain.manifest import Activation, Layer, Manifest
from onnxplain.maps import METHODS, check_method
from onnxplain.pipeline import in_order
from onnxplain.preprocessing import View, enough_pixels, preprocess, view_of
from onnxplain.session import (
    Device,
    Provider,
    check_size,
    create_session,
    model_name,
    num_classes,
    read_manifest,
    run,
)
from onnxplain.targets import Target, resolve_target

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class Explainer:
    """An explainer model, loaded. Threads may share one.

    Parameters
    ----------
    model
        Path of an explainer file, or its bytes.
    device
        ``"cpu"``, ``"cuda"``, or ``"auto"`` for CUDA where onnxruntime has it.
    providers
        onnxruntime's execution providers, in place of `device`.
    session
        In place of `model`: a session of your own, with an explainer file in it.
    size
        Height and width that pictures are brought to, or one number for both, for a file that was exported to
        take any; by default those of the manifest.
    threads
        How many of the CPU's threads one run takes; one a core by default. With 1, runs on several threads of
        yours, or those of `stream`, are faster together than one after the other.

    Raises
    ------
    ModelError
        The file is missing, damaged, not an explainer, newer than this version, or takes one size alone.
    ProviderError
        The device or a provider isn't available here.
    """

    manifest: Manifest
    """What the file says about itself."""

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | None = None,
        *,
        device: Device = "auto",
        providers: Sequence[Provider] | None = None,
        session: InferenceSession | None = None,
        size: int | tuple[int, int] | None = None,
        threads: int | None = None,
    ) -> None:
        if model is not None and session is None:
            session = create_session(model, device, providers, threads)
        elif session is None or model is not None:
            raise TypeError("Explainer takes either a model or a session")
        elif device != "auto" or providers is not None or threads is not None:
            raise TypeError("device, providers and threads go with a model; a session has its own")
        self._session = session
        self.manifest = read_manifest(self._session, model_name(model))
        self._num_classes = num_classes(self._session)
        self._input = self.manifest.input
        if size is not None:
            if self.manifest.pixels:
                raise ModelError(
                    "the model brings pictures to a size of its own; to choose one, export it again without "
                    "--pixels and with --dynamic-size"
                )
            height, width = (size, size) if isinstance(size, int) else size
            self._input = self._input.at_size(height, width)
            check_size(self._session, height, width)

    @property
    def providers(self) -> list[str]:
        """The execution providers that the model runs on, the preferred one first."""
        providers: list[str] = self._session.get_providers()
        return providers

    def explain(
        self, image: Image, target: Target = None, method: str = "gradcam", layer: str | None = None
    ) -> Explanation:
        """Explain one class of one picture.

        Parameters
        ----------
        image
            A path, an encoded picture, or an RGB array [H, W, 3] (see `onnxplain.images.read_image`).
        target
            A class index, a label, a negative rank (-1 is the highest logit), or None for the predicted
            class.
        method
            A key of `onnxplain.maps.METHODS`: ``"gradcam"``, ``"gradcam++"``, ``"xgradcam"``, ``"hirescam"``,
            ``"layercam"``, or ``"cam"`` where the network ends in global average pooling and a linear layer.
        layer
            One of the file's target layers; None takes all of them together.

        Raises
        ------
        ImageError
            The picture can't be read.
        TargetError
            There is no such class, or the label names more than one.
        MethodError
            The method is unknown or undefined for the layer, or the file has no such layer.
        """
        return self._run([image], [[target]], method, layer)[0][0]

    def explain_classes(
        self,
        image: Image,
        targets: Iterable[Target] | None = None,
        *,
        top: int | None = None,
        method: str = "gradcam",
        layer: str | None = None,
        reduced: bool = False,
    ) -> list[Explanation]:
        """Explain several classes of one picture in one forward pass.

        Parameters
        ----------
        image, method, layer
            As in `explain`.
        targets
            The classes, each as in `explain`.
        top
            In place of `targets`: so many of the most likely classes.
        reduced
            Decode a large JPEG at a half, a quarter or an eighth of its size where the network needs no more.
            That is faster, and moves the pixels that the network sees by less than 0.2/255 in the mean. An
            explanation's `image` is then decoded when first asked for; all is in the whole picture's pixels.

        Returns
        -------
        list of Explanation
            One a class, in the order of `targets`, or the most likely first.

        Raises
        ------
        ImageError, TargetError, MethodError
            As in `explain`.
        """
        if targets is None and top is not None:
            _check_top(top, self._num_classes)
            targets = range(-1, -1 - top, -1)
        elif targets is None or top is not None:
            raise TypeError("explain_classes takes either targets or top")
        elif isinstance(targets, str):
            raise TypeError("targets is a list of classes; for one class, call explain")
        return self._run([image], [list(targets)], method, layer, reduced)[0]

    def stream(
        self,
        images: Iterable[Image],
        target: Target = None,
        method: str = "gradcam",
        layer: str | None = None,
    ) -> Generator[Explanation, None, None]:
        """Explain one class of each picture of a stream, on all cores, in order.

        Some pictures are decoded and prepared while the network runs on others. They are taken as there is
        room, a few a core ahead, so a stream may be endless: a camera's frames, say. It is fastest with an
        explainer of ``threads=1``.

        Parameters
        ----------
        images
            The pictures, each as in `explain`, of any sizes. An array may be filled again when the next is
            asked for.
        target, method, layer
            As in `explain`.

        Yields
        ------
        Explanation
            One a picture. The threads end when the iterator does, or is closed.

        Raises
        ------
        ImageError, TargetError, MethodError
            As in `explain`, when the picture's turn comes.
        """
        # The caller may fill an array again before a thread comes to it.
        taken = (image.copy() if isinstance(image, np.ndarray) else image for image in images)
        with closing(in_order(lambda image: self.explain(image, target, method, layer), taken)) as calls:
            for call in calls:
                yield call.result()

    def explain_batch(
        self,
        images: Iterable[Image],
        target: Target | Sequence[Target] = None,
        method: str = "gradcam",
        layer: str | None = None,
    ) -> list[Explanation]:
        """Explain one class of each of several pictures in one run of the network.

        A file that takes pictures itself runs once for each size that they have.

        Parameters
        ----------
        images
            The pictures, each as in `explain`, of any sizes; or an array [batch, H, W, 3].
        target
            One class for all, as in `explain`, or a list or array with one for each.
        method, layer
            As in `explain`.

        Returns
        -------
        list of Explanation
            One a picture, in order.

        Raises
        ------
        ImageError, TargetError, MethodError
            As in `explain`.
        """
        if isinstance(images, (str, bytes, os.PathLike)) or (
            isinstance(images, np.ndarray) and images.ndim != 4
        ):
            raise TypeError(
                "images is a list of pictures or an array [batch, H, W, 3]; for one, call explain"
            )
        images = list(images)
        if isinstance(target, (list, tuple)) or (isinstance(target, np.ndarray) and target.ndim > 0):
            targets = list(target)
            if len(targets) != len(images):
                raise TargetError(f"{len(targets)} targets for {len(images)} pictures; give one for each")
        else:
            targets = [target] * len(images)
        return [found[0] for found in self._run(images, [[one] for one in targets], method, layer)]

    def _run(
        self,
        images: Sequence[Image],
        targets: Sequence[Sequence[Target]],
        method: str,
        layer: str | None,
        reduced: bool = False,
    ) -> list[list[Explanation]]:
        """Explain as many classes of each picture: for each picture, a list of one explanation a class."""
        layers = self._layers(layer)
        check_method(method, {one.name: one.head for one in layers})
        labels = self.manifest.labels
        class_index = [[resolve_target(one, labels, self._num_classes) for one in row] for row in targets]
        if not class_index or not class_index[0]:
            return [[] for _ in images]
        enough = enough_pixels(self._input) if reduced and not self.manifest.pixels else None
        pictures = [read_picture(image, enough) for image in images]
        prepared = [self._prepare(picture) for picture in pictures]
        outputs = self._infer_all([tensor for tensor, _ in prepared], class_index, layers)
        logits, explained = outputs["logits"], outputs["explained_class"]
        maps = [
            METHODS[method].maps(outputs[one.activations], outputs[one.gradients]).astype(np.float32)
            for one in layers
        ]
        probabilities = _probabilities(logits, self.manifest.activation)
        return [
            [
                Explanation(
                    index=int(index),
                    label=None if labels is None else labels[index],
                    logit=float(logits[row, index]),
                    probability=None if probabilities is None else float(probabilities[row, index]),
                    method=method,
                    layers=tuple(one.name for one in layers),
                    cams=tuple(map_[row, column] for map_ in maps),
                    picture=picture,
                    view=view,
                )
                for column, index in enumerate(explained[row])
            ]
            for row, (picture, (_, view)) in enumerate(zip(pictures, prepared, strict=True))
        ]

    def _prepare(self, picture: Picture) -> tuple[NDArray[Any], View]:
        """Return what the model takes of a picture, and what the network sees of it."""
        if self.manifest.pixels:
            return picture.pixels, view_of(picture.size, self._input)
        return preprocess(picture.pixels, self._input, picture.size)

    def _infer_all(
        self,
        images: Sequence[NDArray[Any]],
        class_index: Sequence[Sequence[int]],
        layers: Sequence[Layer],
    ) -> dict[str, NDArray[Any]]:
        """Run the network on images, those of one size in a batch."""
        batches: dict[tuple[int, ...], list[int]] = {}
        for number, image in enumerate(images):
            batches.setdefault(image.shape, []).append(number)
        results = [
            self._infer(_stack([images[i] for i in batch]), [class_index[i] for i in batch], layers)
            for batch in batches.values()
        ]
        if len(results) == 1:  # gradients are large: no copies
            return results[0]
        order = np.argsort([number for batch in batches.values() for number in batch])
        return {name: np.concatenate([result[name] for result in results])[order] for name in results[0]}

    def _infer(
        self, batch: NDArray[Any], class_index: Sequence[Sequence[int]], layers: Sequence[Layer]
    ) -> dict[str, NDArray[Any]]:
        """Run the network; return its outputs by name, checked."""
        names = ["logits", "explained_class"]
        names += [name for layer in layers for name in (layer.activations, layer.gradients)]
        feeds: dict[str, NDArray[Any]] = {"image": batch, "class_index": np.array(class_index, np.int64)}
        outputs = dict(zip(names, run(self._session, names, feeds), strict=True))
        _check_shapes(outputs, feeds["class_index"].shape, layers, self._input == self.manifest.input)
        classes = outputs["logits"].shape[1]
        if self.manifest.labels is not None and len(self.manifest.labels) != classes:
            raise ModelError(f"the model has {classes} classes but {len(self.manifest.labels)} labels")
        _check_classes(outputs["explained_class"], feeds["class_index"], classes)
        _check_finite(outputs)
        return outputs

    def _layers(self, name: str | None) -> tuple[Layer, ...]:
        layers = tuple(layer for layer in self.manifest.layers if name in (None, layer.name))
        if not layers:
            known = ", ".join(layer.name for layer in self.manifest.layers)
            raise MethodError(f"the file has no target layer {name!r}; it has {known}")
        return layers


def _stack(images: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return images of one size as a batch; of one alone there is no copy."""
    return np.stack(images) if len(images) > 1 else images[0][None]


def _check_shapes(
    outputs: Mapping[str, NDArray[Any]], rows: tuple[int, ...], layers: Sequence[Layer], is_usual_size: bool
) -> None:
    """Compare what came out with the manifest: a graph may leave its outputs' shapes open.

    Where images have another size than the manifest's, so have the maps; gradients are as large as these.
    """
    batch = rows[0]
    shapes: dict[str, tuple[int, ...]] = {"explained_class": rows}
    for layer in layers:
        sides = (layer.height, layer.width) if is_usual_size else outputs[layer.activations].shape[2:]
        size = (layer.channels, *sides)
        shapes |= {layer.activations: (batch, *size), layer.gradients: (*rows, *size)}
    for name, shape in shapes.items():
        if outputs[name].shape != shape:
            raise ModelError(f"the model's {name!r} came out as {outputs[name].shape}, not as {shape}")
    if outputs["logits"].shape[:-1] != (batch,):
        raise ModelError(f"the model's 'logits' came out as {outputs['logits'].shape}")


def _check_classes(explained: NDArray[np.int64], requested: NDArray[np.int64], classes: int) -> None:
    if requested.min() < -classes or requested.max() >= classes:
        raise TargetError(f"a class is out of range: the model has {classes} classes")
    legal = (explained >= 0) & (explained < classes) & ((requested < 0) | (explained == requested))
    if not legal.all():
        raise ModelError("the model explained other classes than it was asked for; export it again")


def _check_finite(outputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse NaN and infinity, which would make a blank heatmap."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise ModelError(
                f"the model's {name!r} came out as NaN or infinite, so there is nothing to explain; "
                "check its weights and its preprocessing"
            )


def _check_top(top: int, num_classes: int | None) -> None:
    if top < 1:
        raise TargetError(f"top must be at least 1, not {top}")
    if num_classes is not None and top > num_classes:
        raise TargetError(f"top must be at most {num_classes}, the number of classes, not {top}")


def _probabilities(logits: NDArray[np.float32], activation: Activation) -> NDArray[np.float64] | None:
    """Turn logits [batch, classes] into probabilities."""
    scores = logits.astype(np.float64)
    if activation == "softmax":
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return probabilities
    if activation == "sigmoid":
        return np.exp(-np.logaddexp(0, -scores))  # 1 / (1 + exp(-x)) without the overflow
    return None
