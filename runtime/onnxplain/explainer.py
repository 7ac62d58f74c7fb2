"""Explanations from an explainer file, computed by onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import MethodError, ModelError, TargetError
from onnxplain.explanation import Explanation, on_common_scale
from onnxplain.explanations import Explanations
from onnxplain.files import digest, stamp
from onnxplain.image_methods import IMAGE, IMAGE_METHODS, Subject, check_image_method
from onnxplain.images import BinaryFile, Image, PillowImage, kept, read_picture
from onnxplain.manifest import Layer, Manifest
from onnxplain.maps import METHODS, check_method
from onnxplain.network import Network
from onnxplain.perturbation import Progress
from onnxplain.pipeline import in_order
from onnxplain.preprocessing import enough_pixels
from onnxplain.session import Device, Provider, create_session, model_name, read_manifest
from onnxplain.smoothing import AUGMENTATIONS
from onnxplain.targets import Target, resolve_target

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class Explainer:
    """An explainer model, loaded. Threads may share one.

    It can be pickled, for worker processes: the file's path, or its bytes, and the options are, and the file
    is loaded again there; on another machine too, where the same file has that path. Attributes of your own,
    such as a subclass has, go with it. Copies by `copy` share what is loaded.

    Parameters
    ----------
    model
        Path of an explainer file, or its bytes.
    device
        ``"cpu"``, ``"cuda"``, or ``"auto"`` for CUDA where onnxruntime has it.
    providers
        onnxruntime's execution providers, in place of `device`.
    session
        In place of `model`: a session of your own, with an explainer file in it. It can't be pickled.
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

    A pickled one raises these too, where it is loaded again; a `ModelError` also where the file there is
    another one. Pickling raises a `ModelError` where the file was written again since it was loaded.
    """

    manifest: Manifest
    """What the file says about itself."""
    network: Network
    """The file as a network, for what needs more than explanations: `predict` and `scores` take batches."""

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
        path = None if model is None or isinstance(model, bytes) else Path(model).absolute()
        self._stamp = stamp(path) if path else None
        if model is not None and session is None:
            session = create_session(model, device, providers, threads)
        elif session is None or model is not None:
            raise TypeError("Explainer takes either a model or a session")
        elif device != "auto" or providers is not None or threads is not None:
            raise TypeError("device, providers and threads go with a model; a session has its own")
        self._session = session
        self._arguments: dict[str, Any] = {
            "model": path or model,
            "device": device,
            "providers": providers,
            "size": size,
            "threads": threads,
        }
        self.manifest = read_manifest(session, model_name(model))
        self.network = Network(session, self.manifest, (size, size) if isinstance(size, int) else size)

    def __repr__(self) -> str:
        model = self._arguments["model"]
        of = repr(str(model)) if isinstance(model, Path) else "<bytes>" if model else "<session>"
        held = {
            "network": self.manifest.source.get("name"),
            "layers": [layer.name for layer in self.manifest.layers],
            "classes": self.network.num_classes,
            "size": (self.network.input.height, self.network.input.width),
        }
        return f"Explainer({', '.join([of, *(f'{name}={value!r}' for name, value in held.items())])})"

    def __copy__(self) -> Explainer:
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Explainer:
        copy = self.__copy__()  # what is loaded doesn't change, and a session can't be copied
        memo[id(self)] = copy
        copy.__dict__.update(deepcopy(self._own_attributes(), memo))
        return copy

    def _own_attributes(self) -> dict[str, Any]:
        """Return what a subclass or a caller put beside the fields that are set here."""
        fields = ("_stamp", "_session", "_arguments", "manifest", "network")
        return {name: value for name, value in self.__dict__.items() if name not in fields}

    def __getstate__(self) -> tuple[dict[str, Any], str | None, dict[str, Any]]:
        model, file_digest = self._arguments["model"], None
        if model is None:
            raise TypeError("an explainer of a session can't be pickled; make one of its model's file")
        if isinstance(model, Path):
            # The digest isn't made when the file is loaded: that would take time, and few are pickled.
            if stamp(model) != self._stamp:
                raise ModelError(
                    f"{model} was written again since the explainer was loaded, or is gone; load it again"
                )
            file_digest = digest(model)
        return self._arguments, file_digest, self._own_attributes()

    def __setstate__(self, state: tuple[dict[str, Any], str | None, dict[str, Any]]) -> None:
        arguments, file_digest, own_attributes = state
        Explainer.__init__(self, **arguments)
        model = arguments["model"]
        if isinstance(model, Path) and digest(model) != file_digest:
            raise ModelError(f"{model} isn't the file of the explainer that was pickled; load it again")
        self.__dict__.update(own_attributes)

    @property
    def providers(self) -> list[str]:
        """The execution providers that the model runs on, the preferred one first."""
        providers: list[str] = self._session.get_providers()
        return providers

    def check(
        self,
        method: str,
        layer: str | None = None,
        *,
        eigen_smooth: bool = False,
        aug_smooth: bool = False,
    ) -> None:
        """Check that the file can be explained by a method, before there is a picture.

        Parameters
        ----------
        method, layer, eigen_smooth, aug_smooth
            As in `explain`.

        Raises
        ------
        MethodError
            It can't.
        """
        self._how(method, layer, eigen_smooth, aug_smooth)

    def explain(
        self,
        image: Image,
        target: Target = None,
        method: str = "gradcam",
        layer: str | None = None,
        *,
        eigen_smooth: bool = False,
        aug_smooth: bool = False,
        progress: Progress = lambda done, total: None,
    ) -> Explanation:
        """Explain one class of one picture.

        Parameters
        ----------
        image
            A path, an encoded picture, a binary file, a picture of Pillow, or an RGB array [H, W, 3] (see
            `onnxplain.images.read_image`).
        target
            A class index, a label, a negative rank (-1 is the highest logit), or None for the predicted
            class.
        method
            A key of `onnxplain.maps.METHODS`: ``"gradcam"``, ``"gradcam++"``, ``"layercam"`` and others, or
            ``"cam"`` where the network ends in global average pooling and a linear layer. Or one of
            `onnxplain.image_methods.IMAGE_METHODS`, which need more outputs or thousands of predictions.
        layer
            One of the file's target layers; None takes all of them together.
        eigen_smooth
            Put the first principal component of the channels' terms in the place of their sum: less noise,
            and less of the class.
        aug_smooth
            Explain the picture mirrored, brighter and darker too, and take the mean heatmap: six runs of the
            network in place of one.
        progress
            Called with how many predictions are done and how many there are, by methods that make many.

        Raises
        ------
        ImageError
            The picture can't be read.
        TargetError
            There is no such class, or the label names more than one.
        MethodError
            The method is unknown or undefined for the layer, or the file has no such layer.
        """
        how = self._how(method, layer, eigen_smooth, aug_smooth, progress)
        return self._run([image], [[target]], how)[0][0]

    def explain_classes(
        self,
        image: Image,
        targets: Iterable[Target] | None = None,
        *,
        top: int | None = None,
        method: str = "gradcam",
        layer: str | None = None,
        reduced: bool = False,
        eigen_smooth: bool = False,
        aug_smooth: bool = False,
        progress: Progress = lambda done, total: None,
        common_scale: bool = False,
    ) -> list[Explanation]:
        """Explain several classes of one picture in one forward pass.

        Parameters
        ----------
        image, method, layer, eigen_smooth, aug_smooth, progress
            As in `explain`.
        targets
            The classes, each as in `explain`.
        top
            In place of `targets`: so many of the most likely classes.
        reduced
            Decode a large JPEG at a half, a quarter or an eighth of its size where the network needs no more.
            That is faster, and moves the pixels that the network sees by less than 0.2/255 in the mean. An
            explanation's `image` is then decoded when first asked for; all is in the whole picture's pixels.
        common_scale
            Let 1 be the same in the heatmaps of all classes, so that they can be compared. By default each
            class's heatmap reaches 1.

        Returns
        -------
        list of Explanation
            One a class, in the order of `targets`, or the most likely first. A notebook shows them in a row.

        Raises
        ------
        ImageError, TargetError, MethodError
            As in `explain`.
        """
        if targets is None and top is not None:
            _check_top(top, self.network.num_classes)
            targets = range(-1, -1 - top, -1)
        elif targets is None or top is not None:
            raise TypeError("explain_classes takes either targets or top")
        elif isinstance(targets, str):
            raise TypeError("targets is a list of classes; for one class, call explain")
        how = self._how(method, layer, eigen_smooth, aug_smooth, progress)
        found = self._run([image], [list(targets)], how, reduced)[0]
        return Explanations(on_common_scale(found) if common_scale else found)

    def stream(
        self,
        images: Iterable[Image],
        target: Target = None,
        method: str = "gradcam",
        layer: str | None = None,
        *,
        eigen_smooth: bool = False,
        aug_smooth: bool = False,
    ) -> Generator[Explanation, None, None]:
        """Explain one class of each picture of a stream, on all cores, in order.

        Some pictures are decoded and prepared while the network runs on others. They are taken as there is
        room, a few a core ahead, so a stream may be endless: a camera's frames, say. It is fastest with an
        explainer of ``threads=1``.

        Parameters
        ----------
        images
            The pictures, each as in `explain`, of any sizes. When the next is asked for, an array may be
            filled again, and a file closed. An error of the iterable's own is raised after the explanations
            of all pictures before it.
        target, method, layer, eigen_smooth, aug_smooth
            As in `explain`.

        Yields
        ------
        Explanation
            One a picture. The threads end when the iterator does, or is closed.

        Raises
        ------
        ImageError, TargetError, MethodError
            As in `explain`, when the picture's turn comes.
        TypeError
            It is one picture, not several.
        """
        _check_several(images)
        # The caller may fill an array again, or close a file, before a thread comes to it.
        taken = map(kept, images)
        how = self._how(method, layer, eigen_smooth, aug_smooth)
        with closing(in_order(lambda image: self._run([image], [[target]], how)[0][0], taken)) as calls:
            for call in calls:
                yield call.result()

    def explain_batch(
        self,
        images: Iterable[Image],
        target: Target | Sequence[Target] = None,
        method: str = "gradcam",
        layer: str | None = None,
        *,
        eigen_smooth: bool = False,
        aug_smooth: bool = False,
    ) -> list[Explanation]:
        """Explain one class of each of several pictures in one run of the network.

        A file that takes pictures itself runs once for each size that they have.

        Parameters
        ----------
        images
            The pictures, each as in `explain`, of any sizes; or an array [batch, H, W, 3].
        target
            One class for all, as in `explain`, or a list or array with one for each.
        method, layer, eigen_smooth, aug_smooth
            As in `explain`.

        Returns
        -------
        list of Explanation
            One a picture, in order.

        Raises
        ------
        ImageError, TargetError, MethodError
            As in `explain`.
        TypeError
            It is one picture, not several.
        """
        _check_several(images)
        images = list(images)
        if isinstance(target, (list, tuple)) or (isinstance(target, np.ndarray) and target.ndim > 0):
            targets = list(target)
            if len(targets) != len(images):
                raise TargetError(f"{len(targets)} targets for {len(images)} pictures; give one for each")
        else:
            targets = [target] * len(images)
        how = self._how(method, layer, eigen_smooth, aug_smooth)
        return [found[0] for found in self._run(images, [[one] for one in targets], how)]

    def _run(
        self,
        images: Sequence[Image],
        targets: Sequence[Sequence[Target]],
        how: _How,
        reduced: bool = False,
    ) -> list[list[Explanation]]:
        """Explain as many classes of each picture: for each picture, a list of one explanation a class."""
        labels, network = self.manifest.labels, self.network
        class_index = [[resolve_target(one, labels, network.num_classes) for one in row] for row in targets]
        if not class_index or not class_index[0]:
            return [[] for _ in images]
        enough = enough_pixels(network.input) if reduced and not self.manifest.pixels else None
        pictures = [read_picture(image, enough) for image in images]
        prepared = [network.prepare(picture) for picture in pictures]
        tensors = [tensor for tensor, _ in prepared]
        of_images = how.method in IMAGE_METHODS
        compute = self._image_maps if of_images else self._maps
        logits, explained, maps = compute(tensors, class_index, how)
        augmented = []
        for augmentation in AUGMENTATIONS if how.aug_smooth else ():
            changed = [augmentation.apply(tensor) for tensor in tensors]
            theirs = compute(changed, explained.tolist(), how)[2]
            augmented.append([augmentation.undo(map_) for map_ in theirs])
        probabilities = network.probabilities(logits)
        return [
            [
                Explanation(
                    index=int(index),
                    label=None if labels is None else labels[index],
                    logit=float(logits[row, index]),
                    probability=None if probabilities is None else float(probabilities[row, index]),
                    method=how.method,
                    layers=how.names,
                    cams=tuple(map_[row, column] for map_ in maps),
                    picture=picture,
                    view=view,
                    augmented=tuple(tuple(map_[row, column] for map_ in theirs) for theirs in augmented),
                    rank=_rank(logits[row], index),
                )
                for column, index in enumerate(explained[row])
            ]
            for row, (picture, (_, view)) in enumerate(zip(pictures, prepared, strict=True))
        ]

    def _maps(
        self, tensors: Sequence[NDArray[Any]], class_index: Sequence[Sequence[int]], how: _How
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], list[NDArray[np.float32]]]:
        """Run the network; return logits, the classes explained, and the maps of each layer.

        Of a method whose maps the file computes, the maps alone are fetched: activations and gradients, which
        are larger, then needn't leave the device that the network runs on.
        """
        network, classes = self.network, len(class_index[0])
        if how.method == self.manifest.heatmap and not how.eigen_smooth:
            names = [self.manifest.cam(layer) for layer in how.layers]
            outputs = network.explain(tensors, class_index, how.layers, names)
            return outputs["logits"], outputs["explained_class"], [outputs[name] for name in names]
        rivals = METHODS[how.method].rivals
        if rivals:
            # One more, for the class itself may be among them.
            most_likely = range(-1, -2 - min(rivals, (network.num_classes or rivals + 1) - 1), -1)
            class_index = [[*row, *most_likely] for row in class_index]
        names = [name for layer in how.layers for name in (layer.activations, layer.gradients)]
        outputs = network.explain(tensors, class_index, how.layers, names)
        explained = outputs["explained_class"]
        maps = []
        for layer in how.layers:
            gradients = outputs[layer.gradients]
            arrays = [outputs[layer.activations], gradients[:, :classes]]
            if rivals:
                arrays.append(_rivals(gradients[:, classes:], explained[:, :classes], explained[:, classes:]))
            smooth = {"eigen_smooth": True} if how.eigen_smooth else {}
            maps.append(METHODS[how.method].maps(*arrays, **smooth).astype(np.float32))
        return outputs["logits"], explained[:, :classes], maps

    def _image_maps(
        self, tensors: Sequence[NDArray[Any]], class_index: Sequence[Sequence[int]], how: _How
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], list[NDArray[np.float32]]]:
        """Do the same by a method that explains the image itself, or by many predictions, one by one."""
        outputs = self.network.explain(tensors, class_index, (), [])
        explained = outputs["explained_class"]
        found = [
            IMAGE_METHODS[how.method].maps(
                Subject(self.network, tensor, classes.tolist(), how.layers, how.progress)
            )
            for tensor, classes in zip(tensors, explained, strict=True)
        ]
        maps = [np.stack(maps).astype(np.float32) for maps in zip(*found, strict=True)]
        return outputs["logits"], explained, maps

    def _how(
        self,
        method: str,
        layer: str | None,
        eigen_smooth: bool,
        aug_smooth: bool,
        progress: Progress = lambda done, total: None,
    ) -> _How:
        """Check that the file can be explained so."""
        layers = tuple(one for one in self.manifest.layers if layer in (None, one.name))
        if not layers:
            known = ", ".join(one.name for one in self.manifest.layers)
            raise MethodError(f"the file has no target layer {layer!r}; it has {known}")
        if method in IMAGE_METHODS:
            check_image_method(method, self.network)
            if eigen_smooth:
                raise MethodError(f"eigen_smooth is for sums over a layer's channels, and {method} has none")
        elif method in METHODS:
            check_method(method, {one.name: one.head for one in layers}, eigen_smooth=eigen_smooth)
        else:
            raise MethodError(f"unknown method {method!r}; there are {', '.join([*METHODS, *IMAGE_METHODS])}")
        if aug_smooth and self.manifest.pixels:
            raise MethodError(
                "aug_smooth changes what the network takes, and this file prepares pictures itself; "
                "export it without --pixels"
            )
        return _How(method, layers, eigen_smooth, aug_smooth, progress)


@dataclass(frozen=True)
class _How:
    """What is made of a network's outputs."""

    method: str
    layers: tuple[Layer, ...]
    eigen_smooth: bool
    aug_smooth: bool
    progress: Progress

    @property
    def names(self) -> tuple[str, ...]:
        """What is explained: the layers, or the image."""
        if self.method in IMAGE_METHODS and not IMAGE_METHODS[self.method].has_layers:
            return (IMAGE,)
        return tuple(layer.name for layer in self.layers)


def _rivals(
    gradients: NDArray[np.float32], explained: NDArray[np.int64], most_likely: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the gradients of each class's rivals, [batch, classes, rivals, channels, h, w].

    Parameters
    ----------
    gradients
        Those of the most likely classes, [batch, one more than there are rivals, channels, h, w].
    explained, most_likely
        The classes, [batch, classes], and the most likely ones.
    """
    is_itself = most_likely[:, None, :] == explained[:, :, None]
    # The others first, the most likely of them first.
    order = np.argsort(is_itself, axis=-1, kind="stable")[..., :-1]
    return gradients[np.arange(len(gradients))[:, None, None], order]


def _rank(logits: NDArray[np.float32], index: int) -> int:
    """Return a class's place by its logit, from 1; of equals the first in order is ahead, as in the file."""
    ahead = (logits > logits[index]).sum() + (logits[:index] == logits[index]).sum()
    return int(ahead) + 1


def _check_top(top: int, num_classes: int | None) -> None:
    if top < 1:
        raise TargetError(f"top must be at least 1, not {top}")
    if num_classes is not None and top > num_classes:
        raise TargetError(f"top must be at most {num_classes}, the number of classes, not {top}")


def _check_several(images: object) -> None:
    """Check that what shall be several pictures isn't one, whose letters or rows would be taken for such."""
    # A file gives lines one by one; a camera may have `read` too, and gives pictures.
    is_file = isinstance(images, BinaryFile) and (
        hasattr(images, "readline") or not hasattr(images, "__iter__")
    )
    if (
        is_file
        or isinstance(images, (str, bytes, os.PathLike, PillowImage))
        or (isinstance(images, np.ndarray) and images.ndim != 4)
    ):
        raise TypeError("images is a list of pictures or an array [batch, H, W, 3]; for one, call explain")
