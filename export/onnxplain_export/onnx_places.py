"""Which tokens of a finished graph stand for places of the image, and whether the logits depend on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import TopologicalSortPass
from onnxscript import GraphBuilder

from onnxplain_export.assemble import INPUT
from onnxplain_export.feature_map import Array, FeatureMap
from onnxplain_export.graph import static_dims
from onnxplain_export.layers import ModuleCall
from onnxplain_export.onnx_session import session_of
from onnxplain_export.places import Places
from onnxplain_export.rules.registry import Op


class TokenProbes:
    """A graph in which tokens can be looked at, put back and moved, while it runs.

    Parameters
    ----------
    session
        It takes, for each probe, which tokens are left as they are, and how far each is moved.
    logits
        Their name.
    shapes
        The tokens and channels of each probe, by layer.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, logits: str, shapes: Mapping[str, tuple[int, int]]
    ) -> None:
        self._session = session
        self._logits = logits
        self._numbers = {name: number for number, name in enumerate(shapes)}
        self._tokens = {name: tokens for name, (tokens, _) in shapes.items()}

    @classmethod
    def of(cls, model: ir.Model, logits: str, layers: Mapping[str, str]) -> TokenProbes:
        """Open a model with a probe at each of some layers, given the names of their values."""
        copy = model.clone()
        graph = copy.graph
        values = ir.convenience.create_value_mapping(graph)
        shapes = {}
        outputs = [values[logits]]
        op: Op = GraphBuilder(graph).op
        for number, (layer, name) in enumerate(layers.items()):
            _, tokens, channels = static_dims(values[name])
            assert tokens is not None
            assert channels is not None
            shapes[layer] = tokens, channels
            outputs.append(_insert_probe(op, graph, values[name], number, channels))
        graph.outputs[:] = outputs
        TopologicalSortPass()(copy)
        return cls(session_of(copy), logits, shapes)

    def moved(self, images: Array, kept: Mapping[str, Array]) -> dict[str, Array]:
        """Return how far the tokens of each layer are from those of the first image, [images, tokens].

        Parameters
        ----------
        images
            float32 [images, channels, height, width].
        kept
            For some layers, which tokens aren't put back to those of the first image, bool [images, tokens].
        """
        names = [f"onnxplain.moved.{number}" for number in self._numbers.values()]
        found = self._session.run(names, self._feeds(images, kept, {}))
        return dict(zip(self._numbers, found, strict=True))

    def reach(self, sets: Sequence[Sequence[ModuleCall]], image: Array) -> list[bool]:
        """Say of sets of layers whether noise on their grids changes the logits by a bit.

        Parameters
        ----------
        sets
            Of layers whose tokens are read as grids; each has an image of its own, all in one batch.
        image
            One, float32 [1, channels, height, width].
        """
        images = image.repeat(len(sets), axis=0)
        deltas: dict[str, Array] = {}
        for number, calls in enumerate(sets):
            for call in calls:
                assert call.feature_map is not None
                delta = deltas.setdefault(
                    call.name, np.zeros((len(sets), self._tokens[call.name]), np.float32)
                )
                maps = call.feature_map
                count = maps.height * maps.width
                noise = np.random.default_rng(count).standard_normal(count)
                delta[number, maps.prefix : maps.prefix + count] = noise
        still, moved = (
            self._session.run([self._logits], self._feeds(images, {}, given))[0] for given in ({}, deltas)
        )
        changed: list[bool] = (still != moved).reshape(len(sets), -1).any(axis=1).tolist()
        return changed

    def _feeds(
        self, images: Array, kept: Mapping[str, Array], deltas: Mapping[str, Array]
    ) -> dict[str, Array]:
        feeds = {INPUT: images}
        all_kept, no_delta = np.ones((1, 1), bool), np.zeros((1, 1), np.float32)
        for layer, number in self._numbers.items():
            feeds[f"onnxplain.kept.{number}"] = kept.get(layer, all_kept)[..., None]
            feeds[f"onnxplain.delta.{number}"] = deltas.get(layer, no_delta)[..., None]
        return feeds


def with_places(
    calls: Sequence[ModuleCall], probes: TokenProbes, channels: int, image_size: tuple[int, int]
) -> list[ModuleCall]:
    """Say of calls that put out a row of tokens whether these stand for places, and which of them.

    Parameters
    ----------
    calls
        Each with the grid that its tokens may be, by their number.
    probes
        Of all those calls.
    channels
        How many the image has.
    image_size
        Its height and width.
    """
    asked = {call.name: maps for call in calls if (maps := tokens_of(call)) is not None}
    if not asked:
        return list(calls)
    places = Places({maps.size for maps in asked.values()}, image_size)
    images = places.images(channels)
    found: dict[str, FeatureMap] = {}
    kept: dict[str, Array] = {}
    # What is put back behind a layer may show the next ones; once no more are, all that are grids are found.
    while len(found) < len(asked):
        before = len(found)
        for name, moved in probes.moved(images, kept).items():
            # What attention has folded to a row for each head has another batch, and is none of the image's.
            if name not in found and len(moved) == len(images):
                maps = places.read(asked[name], moved[places.of_grid(asked[name].size)])
                if maps is not None:
                    found[name], kept[name] = maps, places.changed_tokens(maps)
        if len(found) == before:
            break
    return [
        call
        if call.name not in asked
        else replace(call, feature_map=found.get(call.name, asked[call.name]), has_places=call.name in found)
        for call in calls
    ]


def tokens_of(call: ModuleCall) -> FeatureMap | None:
    """Return how a call's tokens may be a grid; None where it puts out none."""
    maps = call.feature_map
    return maps if maps is not None and maps.layout == "BNC" else None


def _insert_probe(op: Op, graph: ir.Graph, value: ir.Value, number: int, channels: int) -> ir.Value:
    """Insert a probe behind tokens [batch, tokens, channels]; return how far they move, [batch, tokens]."""
    uses = [(use.node, use.idx) for use in value.uses()]
    assert value.dtype is not None
    kept = ir.val(f"onnxplain.kept.{number}", dtype=ir.DataType.BOOL, shape=[None, None, 1])
    delta = ir.val(f"onnxplain.delta.{number}", dtype=ir.DataType.FLOAT, shape=[None, None, 1])
    graph.inputs.extend([kept, delta])
    # Noise that differs from channel to channel: a normalisation would take away what doesn't.
    noise = np.random.default_rng(1).standard_normal(channels).astype(np.float32)
    first = op.Slice(value, [0], [1], [0])
    change = op.Sub(value, first)
    centred = op.Sub(change, op.ReduceMean(change, [1]))  # what moves all tokens alike says nothing of any
    moved = op.ReduceL2(centred, [2], keepdims=0)
    moved.name = f"onnxplain.moved.{number}"
    put_back = op.Where(kept, value, first)
    shifted = op.Add(put_back, op.CastLike(op.Mul(delta, op.Constant(value=ir.tensor(noise))), value))
    for node, position in uses:
        node.replace_input_with(position, shifted)
    return moved
