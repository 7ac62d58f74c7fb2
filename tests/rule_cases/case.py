"""What a row of the rules' test is made of: one operator with its inputs and attributes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graphs import Array

B = "batch"
H, W = "height", "width"
#: The sizes that dynamic dimensions have in the feeds.
SIZES = {H: 7, W: 6}


@dataclass(frozen=True)
class X:
    """An input to differentiate with respect to; ``B`` in its shape is the dynamic batch.

    ``H`` and ``W`` are other dynamic sizes.
    """

    shape: tuple[int | str, ...]
    interval: tuple[float, float] | None = None
    """Drawn from it; from the normal distribution by default."""

    def draw(self, rng: np.random.Generator, batch: int) -> Array:
        sizes = {B: batch, **SIZES}
        shape = [sizes[size] if isinstance(size, str) else size for size in self.shape]
        sample = rng.standard_normal(shape) if self.interval is None else rng.uniform(*self.interval, shape)
        return sample.astype(np.float32)


@dataclass(frozen=True)
class Fed:
    """An input of whole numbers that the export doesn't know: it is fed when the graph runs."""

    array: Array


Input = X | Fed | Array | None


@dataclass(frozen=True)
class Case:
    operator: str
    note: str
    inputs: tuple[Input, ...]
    """What is differentiated, what is fed, constants, and None for an input left out."""
    attributes: dict[str, object] = field(default_factory=dict)
    outputs: tuple[bool | None, ...] = (True,)
    """Which of the node's outputs are used, None for one that is left out."""
    error: str = ""
    """What an error says that is expected instead of a gradient."""

    def __str__(self) -> str:
        return f"{self.operator}: {self.note}"


def x(*shape: int | str) -> X:
    return X(shape)


def between(low: float, high: float, *shape: int | str) -> X:
    return X(shape, (low, high))


def positive(*shape: int | str) -> X:
    return between(0.5, 2.5, *shape)


def weights(*shape: int) -> Array:
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) + 0.1).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def fed(*values: int) -> Fed:
    return Fed(ints(*values))


def number(value: float) -> Array:
    return np.array(value, np.float32)


def row(
    operator: str,
    note: str,
    *inputs: Input,
    outputs: tuple[bool | None, ...] = (True,),
    **attributes: object,
) -> Case:
    return Case(operator, note, inputs, attributes, outputs)


def refused(operator: str, error: str, *inputs: Input, **keywords: Any) -> Case:
    return replace(row(operator, error, *inputs, **keywords), error=error)
