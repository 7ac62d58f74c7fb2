"""From what a user calls a class to its index."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np

from onnxplain.errors import TargetError

Target = SupportsIndex | str | None
"""A class index, a label, a negative rank (-1 is the highest logit), or None for the predicted class."""

_INT64 = 1 << 63
_MOST = 5
"""Labels that an error proposes."""


def resolve_target(target: Target, labels: Sequence[str] | None, num_classes: int | None) -> int:
    """Return the class index, or the negative rank, of a target.

    Parameters
    ----------
    target
        What to explain.
    labels
        One label a class, or None where the model has none.
    num_classes
        None where the model doesn't say; then any index that fits int64 is let through.

    Raises
    ------
    TargetError
        There is no such class, or the label names more than one.
    """
    if target is None:
        return -1
    if isinstance(target, str):
        return _index_of(target, labels)
    try:
        if isinstance(target, (bool, np.bool_)):
            raise TypeError
        index = operator.index(target)
    except TypeError:
        raise TargetError(f"a class is an index, a label or a negative rank, not {target!r}") from None
    if num_classes is None:
        if not -_INT64 <= index < _INT64:
            raise TargetError(f"class {index} is out of range")
    elif not -num_classes <= index < num_classes:
        raise TargetError(
            f"class {index} is out of range: the model has {num_classes} classes, 0 to {num_classes - 1} "
            f"(or -1 for the most likely, -2 for the next, down to -{num_classes})"
        )
    return index


def _index_of(label: str, labels: Sequence[str] | None) -> int:
    if labels is None:
        raise TargetError(f"the model has no labels, so {label!r} names no class; give its index")
    indices = [index for index, other in enumerate(labels) if other == label]
    if len(indices) == 1:
        return indices[0]
    if indices:
        raise TargetError(
            f"the label {label!r} names {len(indices)} classes; give an index: {', '.join(map(str, indices))}"
        )
    near = _like(label, labels)
    listed = "onnxplain inspect MODEL.onnx --json lists its labels"
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else listed
    raise TargetError(f"the model has no class {label!r}; {hint}")


def _like(label: str, labels: Sequence[str]) -> list[str]:
    """Return the labels that an unknown one may stand for: those with its words, then those spelt like it."""
    words = set(re.findall(r"\w+", label.casefold()))
    by_case = {other.casefold(): other for other in reversed(labels)}
    with_words = [key for key in by_case if words and words <= set(re.findall(r"\w+", key))]
    spelt = difflib.get_close_matches(label.casefold(), by_case, n=_MOST)
    # The shortest says little else.
    near = dict.fromkeys([*sorted(with_words, key=len), *spelt])
    return [by_case[key] for key in list(near)[:_MOST]]
