"""A loaded explainer: it prepares pictures, runs the network, and checks what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import ModelError, TargetError
from onnxplain.images import Picture
from onnxplain.manifest import IMAGE_OUTPUTS, Activation, Layer, Manifest
from onnxplain.preprocessing import View, preprocess, view_of
from onnxplain.session import check_size, num_classes, run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Outputs = dict[str, NDArray[Any]]


class Network:
    """An explainer file in a session, and the size that it is run at.

    Parameters
    ----------
    session
        onnxruntime's.
    manifest
        The file's own.
    size
        Height and width that pictures are brought to; None for the manifest's.

    Raises
    ------
    ModelError
        The file takes one size alone.
    """

    def __init__(self, session: InferenceSession, manifest: Manifest, size: tuple[int, int] | None) -> None:
        self.session, self.manifest = session, manifest
        self.input = manifest.input
        self.num_classes = num_classes(session)
        """None where the graph leaves it open."""
        if size is not None:
            if manifest.pixels:
                raise ModelError(
                    "the model brings pictures to a size of its own; to choose one, export it again without "
                    "--pixels and with --dynamic-size"
                )
            self.input = self.input.at_size(*size)
            check_size(session, *size)

    def has_output(self, name: str) -> bool:
        """Say whether the file has an output of a name."""
        return any(output.name == name for output in self.session.get_outputs())

    def prepare(self, picture: Picture) -> tuple[NDArray[Any], View]:
        """Return what the file takes of a picture, and what the network sees of it."""
        if self.manifest.pixels:
            return picture.pixels, view_of(picture.size, self.input)
        return preprocess(picture.pixels, self.input, picture.size)

    def explain(
        self,
        images: Sequence[NDArray[Any]],
        class_index: Sequence[Sequence[int]],
        layers: Sequence[Layer],
        names: Sequence[str],
    ) -> Outputs:
        """Run the network on images, those of one size in a batch.

        Parameters
        ----------
        images
            As `prepare` returns them.
        class_index
            For each image, as many classes or negative ranks.
        layers
            The target layers that `names` belong to.
        names
            Outputs that are wanted with ``logits`` and ``explained_class``.

        Returns
        -------
        dict
            The outputs by name, checked.

        Raises
        ------
        ModelError
            The file fails, or puts out what its manifest doesn't promise.
        TargetError
            A class is out of range.
        """
        batches: dict[tuple[int, ...], list[int]] = {}
        for number, image in enumerate(images):
            batches.setdefault(image.shape, []).append(number)
        results = [
            self._explain(_stack([images[i] for i in batch]), [class_index[i] for i in batch], layers, names)
            for batch in batches.values()
        ]
        if len(results) == 1:  # gradients are large: no copies
            return results[0]
        order = np.argsort([number for batch in batches.values() for number in batch])
        return {name: np.concatenate([result[name] for result in results])[order] for name in results[0]}

    def predict(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits [batch, num_classes] of images [batch, ...]; the price is a plain prediction's.

        Raises
        ------
        ModelError
            The file fails, or they aren't finite.
        """
        no_classes = np.zeros((len(batch), 0), np.int64)
        (logits,) = run(self.session, ["logits"], {"image": batch, "class_index": no_classes})
        if logits.shape[:-1] != (len(batch),):
            raise ModelError(f"the model's 'logits' came out as {logits.shape}")
        _check_finite({"logits": logits})
        return logits

    def scores(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return the probabilities of images, or the logits where the model has none, [batch, num_classes].

        Raises
        ------
        ModelError
            As in `predict`.
        """
        logits = self.predict(batch)
        found = self.probabilities(logits)
        return logits if found is None else found

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """Return probabilities of logits [batch, num_classes]; None where the model has none."""
        return _probabilities(logits, self.manifest.activation)

    def _explain(
        self,
        batch: NDArray[Any],
        class_index: Sequence[Sequence[int]],
        layers: Sequence[Layer],
        names: Sequence[str],
    ) -> Outputs:
        names = ["logits", "explained_class", *names]
        feeds: dict[str, NDArray[Any]] = {"image": batch, "class_index": np.array(class_index, np.int64)}
        outputs = dict(zip(names, run(self.session, names, feeds), strict=True))
        self._check_shapes(outputs, feeds["class_index"].shape, layers)
        classes = outputs["logits"].shape[1]
        if self.manifest.labels is not None and len(self.manifest.labels) != classes:
            raise ModelError(f"the model has {classes} classes but {len(self.manifest.labels)} labels")
        _check_classes(outputs["explained_class"], class_index, classes)
        _check_finite(outputs)
        return outputs

    def _check_shapes(self, outputs: Outputs, rows: tuple[int, ...], layers: Sequence[Layer]) -> None:
        """Compare what came out with the manifest: a graph may leave its outputs' shapes open.

        Where images have another size than the manifest's, so have the maps; those of a layer are all alike.
        """
        batch = rows[0]
        shapes: dict[str, tuple[int, ...]] = {"explained_class": rows}
        for layer in layers:
            leading: dict[str, tuple[int, ...]] = {
                layer.activations: (batch, layer.channels),
                layer.gradients: (*rows, layer.channels),
                self.manifest.cam(layer): rows,
            }
            fetched = [name for name in leading if name in outputs]
            size = outputs[fetched[0]].shape[-2:] if fetched else ()
            if self.input == self.manifest.input:
                size = (layer.height, layer.width)
            shapes |= {name: (*leading[name], *size) for name in fetched}
        for name in IMAGE_OUTPUTS:
            if name in outputs:
                shapes[name] = (*rows, self.input.channels, self.input.height, self.input.width)
        for name, shape in shapes.items():
            if outputs[name].shape != shape:
                raise ModelError(f"the model's {name!r} came out as {outputs[name].shape}, not as {shape}")
        if outputs["logits"].shape[:-1] != (batch,):
            raise ModelError(f"the model's 'logits' came out as {outputs['logits'].shape}")


def _stack(images: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return images of one size as a batch; of one alone there is no copy."""
    return np.stack(images) if len(images) > 1 else images[0][None]


def _check_classes(explained: NDArray[np.int64], class_index: Sequence[Sequence[int]], classes: int) -> None:
    # They are few, and numpy takes longer over each of its steps.
    asked = [index for row in class_index for index in row]
    if any(not -classes <= index < classes for index in asked):
        raise TargetError(f"a class is out of range: the model has {classes} classes")
    for index, answer in zip(asked, explained.ravel().tolist(), strict=True):
        if not 0 <= answer < classes or (index >= 0 and answer != index):
            raise ModelError("the model explained other classes than it was asked for; export it again")


def _check_finite(outputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse NaN and infinity, which would make a blank heatmap."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise ModelError(
                f"the model's {name!r} came out as NaN or infinite, so there is nothing to explain; "
                "check its weights and its preprocessing"
            )


def _probabilities(logits: NDArray[np.float32], activation: Activation) -> NDArray[np.float64] | None:
    scores = logits.astype(np.float64)
    if activation == "softmax":
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return probabilities
    if activation == "sigmoid":
        return np.exp(-np.logaddexp(0, -scores))  # 1 / (1 + exp(-x)) without the overflow
    return None
