"""How pictures become inputs: what was stated, what the source says, what it shows, and what is usual.

Nobody sees on an image whether it was rightly normalised, and a network answers all the same. So what wasn't
stated is derived by evidence, and where that isn't enough, it is guessed and said.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxplain.errors import ModelError, SourceError
from onnxplain.manifest import Preprocessing
from onnxplain_export.graph import constant, operand

_BY_SOURCE = "as its source usually takes them"
_NOTHING = object()
_SHAPES = ("Shape", "Size")
_PASSING = ("Identity", "Cast", "Transpose")
# What a network multiplies levels of 0 to 255 by, and smaller: 1/58 is the largest (1/std of ImageNet's).
_SCALE_OF_LEVELS = 1 / 20


SAYS_CHANNELS = frozenset(("channels", "color", "mean", "std"))
"""What of a preprocessing goes with one number of channels alone."""


@dataclass(frozen=True)
class Evidence:
    """Values for some parameters of a preprocessing, and what says so."""

    values: Mapping[str, Any]
    source: str
    is_stated: bool = False
    """The source says it in so many words; else it is what such a network usually takes."""


def check_size(statement: Preprocessing, channels: int, height: int, width: int) -> None:
    """Check that a preprocessing makes what a network takes.

    Raises
    ------
    SourceError
        It says another number of channels, or another size.
    """
    says_channels = not statement.stated.isdisjoint(SAYS_CHANNELS)
    own = {"channels": channels, "height": height, "width": width}
    said = [name for name in own if name in statement.stated or (name == "channels" and says_channels)]
    differing = [name for name in said if getattr(statement, name) != own[name]]
    if differing:
        gives, takes = (
            ", ".join(f"{name} {of[name]}" for name in differing)
            for of in ({name: getattr(statement, name) for name in said}, own)
        )
        raise SourceError(f"the preprocessing gives {gives}, and the model takes {takes}; make them equal")


def stated_size(statement: object) -> tuple[int, int] | None:
    """Return the height and width that a preprocessing states; None where it states none."""
    if not isinstance(statement, Preprocessing) or not {"height", "width"} & statement.stated:
        return None
    return statement.height, statement.width


def settle(
    statement: Preprocessing | None, channels: int, height: int, width: int, evidence: Iterable[Evidence]
) -> Preprocessing:
    """Return a preprocessing for a network's size: what was stated, then what the evidence says.

    Parameters
    ----------
    statement
        What the caller says; its word counts most.
    channels, height, width
        What the network takes.
    evidence
        The weightiest first.

    Raises
    ------
    SourceError
        A picture has no such number of channels, or what is stated contradicts itself.
    """
    said = {name: getattr(statement, name) for name in statement.stated} if statement else {}
    said |= {"channels": channels, "height": height, "width": width}
    known, stated = dict(said), set(said)
    for one in evidence:
        new = {name: value for name, value in one.values.items() if name not in known}
        # Each of the two follows from the other where that was said.
        if {"resize", "crop"} & known.keys():
            new = {name: value for name, value in new.items() if name not in ("resize", "crop")}
        known |= new
        stated |= set(new) if one.is_stated else set()
    try:
        return Preprocessing(**known, stated=frozenset(stated))
    except ModelError as error:
        raise SourceError(str(error)) from None


def stated_by(evidence: Iterable[Evidence], statement: Preprocessing | None) -> dict[str, str]:
    """Return what was taken from statements of the source, and where each of it stood."""
    said = statement.stated if statement else frozenset()
    found: dict[str, str] = {}
    for one in evidence:
        names = [name for name in one.values if name not in said and one.is_stated]
        found |= {name: one.source for name in names if name not in found}
    return found


def guessed_by_source(statement: Preprocessing | None) -> list[Evidence]:
    """Return what a source gave with a preprocessing and didn't state: it knows the kind, not the weights."""
    if statement is None:
        return []
    names = statement.given - statement.stated - {"channels", "height", "width"}
    values = {name: getattr(statement, name) for name in sorted(names)}
    return [Evidence(values, _BY_SOURCE)] if values else []


def normalised_inside(image: ir.Value) -> list[Evidence]:
    """Return what a graph's first nodes show: a network that scales its pixels itself takes them raw.

    Followed is what is done to each number alike, such as Keras's Rescaling: products, sums, and a
    normalisation by constants.
    """
    scale = _scale_at_start(image)
    if scale is None:
        return []
    channels = 1 if image.shape is None or not isinstance(image.shape[1], int) else image.shape[1]
    takes_levels = scale < _SCALE_OF_LEVELS
    values = {"mean": (0.0,) * channels, "std": (1 / 255 if takes_levels else 1.0,) * channels}
    taken = "levels from 0 to 255" if takes_levels else "pixels in [0, 1]"
    return [Evidence(values, f"the network normalises them itself, and so takes {taken}")]


def _scale_at_start(image: ir.Value) -> float | None:
    """Return what a graph multiplies its image's numbers by before anything else; None where it doesn't."""
    scale: float | None = None
    value = image
    while True:
        nodes = [node for node in (use.node for use in value.uses()) if node.op_type not in _SHAPES]
        if len(nodes) != 1 or value.is_graph_output():
            return scale
        (node,) = nodes
        if node.op_type in ("Mul", "Div", "Sub", "Add"):
            factor = _other_operand(node, value)
            if factor is None:
                return scale
            size = float(np.abs(factor).mean())
            by = {"Mul": size, "Div": 1 / size if size else np.inf}.get(node.op_type, 1.0)
            scale = (1.0 if scale is None else scale) * by
        elif node.op_type not in _PASSING:
            return scale
        value = node.outputs[0]


def _other_operand(node: ir.Node, value: ir.Value) -> npt.NDArray[Any] | None:
    """Return the constant of a product or sum: a number, or one a channel."""
    other = operand(node, 1 if node.inputs[0] is value else 0)
    array = constant(other)
    if array is None or array.size not in (1, 3) or (node.op_type == "Div" and node.inputs[0] is not value):
        return None
    return array.astype(np.float64)


def _reason(name: str, spec: Preprocessing, evidence: Sequence[Evidence]) -> list[str]:
    """Return what a guess follows from, as particular as it is known; nothing where it is what is usual."""
    sources = [one.source for one in evidence if one.values.get(name, _NOTHING) == getattr(spec, name)]
    particular = [source for source in sources if source != _BY_SOURCE]
    return (particular or sources)[:1]


def warn_of_guess(spec: Preprocessing, evidence: Iterable[Evidence], stacklevel: int) -> None:
    """Warn, in one line, where something of a preprocessing had to be guessed, and say how to state it."""
    if not spec.guessed:
        return
    found = list(evidence)
    reasons = dict.fromkeys(reason for name in spec.guessed for reason in _reason(name, spec, found))
    because = f" ({'; '.join(reasons)})" if reasons else ""
    # With the size, so that it is whole where the source, a module, leaves that open.
    statement = {name: getattr(spec, name) for name in ("height", "width", *spec.guessed)}
    warnings.warn(
        f"{spec.guess_in_words()}, so how pictures become inputs is a guess{because}: {spec.in_words()}. "
        "If the network was trained otherwise, state it with preprocessing= or --preprocessing FILE, such as "
        f"{json.dumps(statement)}",
        stacklevel=stacklevel + 1,
    )
