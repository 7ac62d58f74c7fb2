"""What a row of the rules' test is made of: one operator with its inputs and attributes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graphs import Array

B = "batch"


@dataclass(frozen=True)
class X:
    """An input to differentiate with respect to; ``B`` in its shape is the dynamic batch."""

    shape: tuple[int | str, ...]
    interval: tuple[float, float] | None = None
    """Drawn from it; from the normal distribution by default."""

    def draw(self, rng: np.random.Generator, batch: int) -> Array:
        shape = [batch if size == B else size for size in self.shape]
        sample = rng.standard_normal(shape) if self.interval is None else rng.uniform(*self.interval, shape)
        return sample.astype(np.float32)


@dataclass(frozen=True)
class Case:
    operator: str
    note: str
    inputs: tuple[X | Array | None, ...]
    """What is differentiated, constants, and None for an input left out."""
    attributes: dict[str, object] = field(default_factory=dict)
    outputs: tuple[bool, ...] = (True,)
    """Which of the node's outputs are used."""
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


def number(value: float) -> Array:
    return np.array(value, np.float32)


def row(
    operator: str,
    note: str,
    *inputs: X | Array | None,
    outputs: tuple[bool, ...] = (True,),
    **attributes: object,
) -> Case:
    return Case(operator, note, inputs, attributes, outputs)


def refused(operator: str, error: str, *inputs: X | Array | None, **keywords: Any) -> Case:
    return replace(row(operator, error, *inputs, **keywords), error=error)
