"""Programs of ``torch.export``: read from a `.pt2` file, and made into modules whose layers can be tapped."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram, unflatten
from torch.utils import _pytree as pytree

from onnxplain.errors import SourceError
from onnxplain_export.torch_model import one_line


def load_program(file: Path) -> ExportedProgram:
    """Read a program that ``torch.export.save`` wrote.

    Read only files that you trust: as PyTorch warns, one can be made to run code while it is loaded.

    Raises
    ------
    SourceError
        There is no such file, or this PyTorch can't read a program from it.
    """
    if not file.is_file():
        raise SourceError(f"there is no program {str(file)!r}")
    try:
        with _quiet(), file.open("rb") as stream:
            return torch.export.load(stream)
    except Exception as error:
        raise SourceError(
            f"can't read a program from {str(file)!r} ({one_line(error)}); "
            f"write it with torch.export.save of torch {torch.__version__.partition('+')[0]}"
        ) from error


def input_shape(program: ExportedProgram) -> tuple[int | torch.SymInt, ...]:
    """Return the shape of a program's images, [batch, channels, height, width]; its numbers may be symbols.

    Raises
    ------
    SourceError
        The program takes something else than one float32 batch of images, or a batch of one size alone.
    """
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        raise SourceError(f"the program takes {len(names)} inputs; export one that takes a batch of images")
    image = next(
        (
            node.meta.get("val")
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in names
        ),
        None,
    )
    if not isinstance(image, torch.Tensor) or image.ndim != 4:
        raise SourceError("the program's input must be a tensor of [batch, channels, height, width]")
    if image.dtype != torch.float32:
        raise SourceError(f"the program takes {image.dtype}; export one that takes float32 images")
    batch, *size = image.shape
    if isinstance(batch, int):
        raise SourceError(
            f"the program takes batches of {batch} alone; export it again with a dynamic one: "
            "torch.export.export(model, (image,), dynamic_shapes=({0: torch.export.Dim('batch')},))"
        )
    return (batch, *size)


def as_module(program: ExportedProgram) -> nn.Module:
    """Return a module that computes what a program does, its layers named as in the program's own model.

    The graph of a program is flat; its nodes remember the modules that they came from. From that the modules
    are made again, with their names, types' names and weights, so that they can be hooked.

    Raises
    ------
    SourceError
        The program takes something else than a dynamic batch of images, or was exported in training mode.
    """
    input_shape(program)
    _check_evaluation_mode(program)
    try:
        with _quiet():
            module = unflatten(program)
    except Exception as error:
        raise SourceError(f"the program's modules can't be made again ({one_line(error)})") from error
    # The image is the one input; however the program takes it, by its position or its name, we give it first.
    module.module_call_graph[0].signature.in_spec = pytree.tree_structure(((0,), {}))
    for part in module.modules():
        # All are interpreters of a graph; their types' names say what they do.
        name = getattr(part, "_ty", None)
        if name:
            part.__class__ = type(name.rpartition(".")[2], (type(part),), {})
    return module


def _check_evaluation_mode(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        values = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
        if any({**values, **node.kwargs}.get(name) is True for name in ("train", "training")):
            raise SourceError(
                f"the program was exported in training mode (its node {node.name!r} is); "
                "export it again after model.eval()"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch logs and warns of as it reads or unfolds a program: failures are our errors."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
