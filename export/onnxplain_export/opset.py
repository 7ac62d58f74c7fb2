"""Bringing an ONNX model to the design's opset, so that each operator has one form.

Older models are raised one opset at a time, newer ones lowered in one step. onnx's own converter won't do: it
gives an old Resize other pixels, loses metadata, and lowers hardly anything. Nodes whose form is the same
in both opsets stay as they are; the others are replaced where they stand, each by an adapter of a few lines.
"""

from __future__ import annotations

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, inliner

from onnxplain.errors import SourceError
from onnxplain_export.onnx_file import first_line
from onnxplain_export.opset_contrib import unfuse_node
from onnxplain_export.opset_newer import LAST_TYPE, lower_node
from onnxplain_export.opset_nodes import EARLY, OPSET, Rewriting, graphs_of, place, subgraphs
from onnxplain_export.opset_older import raise_node

# From here on the adapters know every form; what is older goes through onnx's converter first.
_OLDEST = 7


def to_design_opset(model: ModelProto) -> ModelProto:
    """Return a model at opset 20 that computes the same.

    Parameters
    ----------
    model
        A model of the standard domain, at any opset that the installed onnx knows; it is left as it is. Large
        weights may be inputs instead of initializers: their values aren't looked at.

    Returns
    -------
    ModelProto
        A copy without local functions. Every tensor that the main graph had keeps its name, and nodes that
        replace others take over their metadata.

    Raises
    ------
    SourceError
        The opset is unknown, or a node can't be expressed in opset 20.
    """
    model = _inlined(model)
    version = _opset(model)
    if version < _OLDEST:
        model, version = _raised_by_onnx(model), _OLDEST
    _check_nodes(model.graph, version)
    rewriting = Rewriting(model, version)
    for step in range(version + 1, OPSET + 1):
        rewriting.run(lambda op, step=step: raise_node(op, step))  # type: ignore[misc]
    if version > OPSET:
        _check_types(model.graph)
        rewriting.run(lower_node)
    rewriting.run(unfuse_node)
    _check_domains(model.graph)
    used = {node.domain for graph in graphs_of(model.graph) for node in graph.node} - {""}
    others = [entry for entry in model.opset_import if entry.domain in used]
    imports = [helper.make_opsetid("", OPSET), *others]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    # Older versions of the format have no initializers beside the inputs, and fewer types.
    model.ir_version = max(model.ir_version, 9)
    return model


def _inlined(model: ModelProto) -> ModelProto:
    """Return a copy whose local functions are replaced by their bodies."""
    if not model.functions:
        copy = ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        inlined = inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:
        raise SourceError(f"the model's local functions can't be inlined: {first_line(error)}") from error
    assert isinstance(inlined, ModelProto)
    return inlined


def _opset(model: ModelProto) -> int:
    versions: set[int] = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    newest = onnx.defs.onnx_opset_version()
    if not versions:
        raise SourceError("the model doesn't say which opset it is written in; convert it with onnx first")
    if len(versions) > 1:
        raise SourceError(f"the model is written in two opsets at once: {sorted(versions)}")
    version = versions.pop()
    if not 1 <= version <= newest:
        raise SourceError(
            f"the model is written in opset {version}, but the installed onnx knows 1 to {newest}; "
            "install a newer onnx, or export the model at an older opset"
        )
    return version


def _raised_by_onnx(model: ModelProto) -> ModelProto:
    try:
        raised = onnx.version_converter.convert_version(model, _OLDEST)
    except Exception as error:
        raise SourceError(
            f"the model's opset {_opset(model)} can't be raised to {OPSET}: {first_line(error)}"
        ) from error
    assert isinstance(raised, ModelProto)
    return raised


def _check_nodes(graph: GraphProto, version: int) -> None:
    """Check that each operator exists in the model's opset."""
    for node in graph.node:
        if node.domain == "ai.onnx":
            node.domain = ""
        if not node.domain and node.op_type not in EARLY:
            try:
                onnx.defs.get_schema(node.op_type, version, "")
            except onnx.defs.SchemaError:
                raise SourceError(f"there is no operator {place(node)} in opset {version}") from None
        for subgraph in subgraphs(node):
            _check_nodes(subgraph, version)


def _check_domains(graph: GraphProto) -> None:
    """Check that each operator is one that onnx defines."""
    for node in graph.node:
        if not onnx.defs.has(node.op_type, domain=node.domain):
            raise SourceError(
                f"{place(node)} is no operator of ONNX, and has no equivalent there that is known; "
                "export the model without it"
            )
        for subgraph in subgraphs(node):
            _check_domains(subgraph)


def _check_types(graph: GraphProto) -> None:
    """Check that no tensor has a type that opset 20 lacks."""
    typed = [(tensor.name, tensor.data_type) for tensor in graph.initializer]
    typed += [(value.name, value.type.tensor_type.elem_type) for value in graph.input]
    typed += [
        (node.output[0], attribute.t.data_type)
        for node in graph.node
        for attribute in node.attribute
        if attribute.type == AttributeProto.TENSOR
    ]
    for name, kind in typed:
        if kind > LAST_TYPE:
            raise SourceError(
                f"the tensor {name!r} is of type {TensorProto.DataType.Name(kind)}, which opset {OPSET} "
                "lacks; export the model without it"
            )
    for node in graph.node:
        for subgraph in subgraphs(node):
            _check_types(subgraph)
