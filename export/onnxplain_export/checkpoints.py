"""Weights from the files that training leaves: tensors by name, bare or wrapped, or a whole pickled module.

A PyTorch file is a pickle, which can run code as it is read. So nothing is called but what PyTorch itself
knows to be safe, and the classes of modules that the network at hand has anyway.
"""

from __future__ import annotations

import argparse
import errno
import functools
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.serialization import MAGIC_NUMBER, get_unsafe_globals_in_checkpoint, safe_globals

from onnxplain.errors import SourceError
from onnxplain_export.torch_model import one_line

Weights = dict[str, torch.Tensor]

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".tar")
_SHOWN = 2
# How files begin that torch.save wrote before 1.6, and writes still where it is asked to.
_BEFORE_1_6 = pickle.dumps(MAGIC_NUMBER, protocol=2)


def read_weights(file: Path, model: nn.Module) -> Weights:
    """Read a checkpoint for a model: its tensors, by the names that the model has for them.

    Training scripts put the weights beside other things, and wrappers put a prefix before their names:
    ``module.`` of DataParallel, ``model.`` of a Lightning module, ``_orig_mod.`` of a compiled one. What fits
    the model best is taken; what stands beside it under other prefixes, such as a loss's weights, is left.

    Raises
    ------
    SourceError
        There is no such file, or it can't be read safely.
    """
    if not file.is_file():
        raise SourceError(f"there is no checkpoint {str(file)!r}")
    content = _read(file, model)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    own = model.state_dict()
    return max(
        (_without_prefix(tensors, own) for tensors in _tensors_in(content)),
        key=lambda weights: len(weights.keys() & own.keys()),
        default={},
    )


def classes_in(weights: Weights, model: nn.Module) -> int | None:
    """Return how many classes the weights' head has, where that is all in which they don't fit a model."""
    own = model.state_dict()
    others = {
        (tuple(own[name].shape), tuple(tensor.shape))
        for name, tensor in weights.items()
        if name in own and own[name].shape != tensor.shape
    }
    numbers = {(mine[0], theirs[0]) for mine, theirs in others if mine and theirs and mine[1:] == theirs[1:]}
    if len(numbers) != 1 or any(mine[1:] != theirs[1:] for mine, theirs in others):
        return None
    return next(iter(numbers))[1]


def load_weights(model: nn.Module, weights: Weights, file: Path) -> None:
    """Give a model the weights that were read from a file.

    Raises
    ------
    SourceError
        They don't fit.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in own]
    differing = [
        f"{name!r} is {list(weights[name].shape)} in place of {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    problems = [
        *([f"it lacks {_some(map(repr, missing))}"] if missing else []),
        *([f"it has {_some(map(repr, unknown))}, which the model hasn't"] if unknown else []),
        *([_some(differing)] if differing else []),
    ]
    if problems:
        raise SourceError(
            f"the checkpoint {str(file)!r} doesn't fit the model: {'; '.join(problems)}. If the network was "
            "changed, name the function of yours that builds it: package.module:factory"
        )
    model.load_state_dict(weights)


# What whole modules and training scripts keep beside their tensors, and what does nothing when it is called.
_HARMLESS: list[Any] = [functools.partial, argparse.Namespace, nn.functional.relu, nn.DataParallel]


def _read(file: Path, model: nn.Module) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except Exception as error:
            raise SourceError(f"can't read the checkpoint {str(file)!r}: {one_line(error)}") from error
    classes = {type(module) for module in model.modules()}
    with safe_globals([*classes, *_HARMLESS]):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = _reason_of_machine(error)
            if reason:
                raise SourceError(f"can't read the checkpoint {str(file)!r}: {reason}") from error
            code = _code_in(file) or _code_named_by(error, file)
            if not code:  # PyTorch's own message would have it read without any check
                raise SourceError(
                    f"{str(file)!r} is no checkpoint of PyTorch, or is damaged; give one that torch.save "
                    "wrote, or .safetensors"
                ) from error
            raise SourceError(
                f"can't read the checkpoint {str(file)!r} safely: beside tensors it holds code "
                f"({_some(code)}); where it comes from, save the weights alone: "
                "torch.save(model.state_dict(), FILE)"
            ) from error


def _reason_of_machine(error: Exception) -> str | None:
    """Return why a file can't be read, where that isn't the file's fault."""
    if isinstance(error, MemoryError):
        return "there is too little memory for it"
    # Of a file that was cut off, PyTorch seeks a place before its beginning.
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return error.strerror or one_line(error)
    return None


def _code_in(file: Path) -> list[str]:
    """Return the names of what a PyTorch file would call that isn't known to be safe."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(file))
    except Exception:  # whatever a file that is no checkpoint makes it raise
        return []


def _code_named_by(error: Exception, file: Path) -> list[str]:
    """Return the name that PyTorch refused, as its message says: of files as before 1.6 it lists none."""
    named = re.search(r"GLOBAL (.+?) (?:was not|whose module)", str(error))
    if named is None or not isinstance(error, pickle.UnpicklingError):
        return []
    with file.open("rb") as opened:  # any text that begins with a c seems to name something
        is_checkpoint = opened.read(len(_BEFORE_1_6)) == _BEFORE_1_6
    return [named[1]] if is_checkpoint else []


def _tensors_in(content: Any) -> Iterator[Weights]:
    """Yield the tensors by name that a checkpoint holds, at its top or one step below it."""
    if not isinstance(content, Mapping):
        return
    for place in (content, *content.values()):
        if isinstance(place, nn.Module):
            place = place.state_dict()
        if isinstance(place, Mapping):
            tensors = {str(key): value for key, value in place.items() if isinstance(value, torch.Tensor)}
            if tensors:
                yield tensors


def _without_prefix(tensors: Weights, own: Weights) -> Weights:
    """Return the tensors whose names have the prefix with which most of them are the model's, without it."""
    ends = list(own)[:1] + list(own)[-1:]
    prefixes = {name.removesuffix(end) for name in tensors for end in ends if name.endswith(end)} | {""}
    best = max(sorted(prefixes), key=lambda prefix: sum(f"{prefix}{name}" in tensors for name in own))
    return {name.removeprefix(best): tensor for name, tensor in tensors.items() if name.startswith(best)}


def _some(words: Iterable[str]) -> str:
    """Return the first of some words, and how many more there are."""
    listed = list(words)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
