"""`onnxplain inspect MODEL.onnx`: what an explainer file says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxplain.cli._text import facts, file_size, folding, table

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from onnxplain import Layer, Manifest, Preprocessing

_SHOWN_LABELS = 5


@click.command("inspect", short_help="Show what an explainer file holds.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(model: Path, as_json: bool) -> None:
    """Show what the explainer MODEL says about itself, and the tensors that it takes and returns."""
    from onnxplain.session import create_session, model_name, read_manifest

    session = create_session(model, "cpu", None)
    manifest = read_manifest(session, model_name(model))
    if as_json:
        click.echo(json.dumps(json.loads(manifest.to_json()), indent=2, ensure_ascii=False))
        return
    click.echo(facts(_facts(model, manifest, session)))
    tensors = [("in", tensor) for tensor in session.get_inputs()]
    tensors += [("out", tensor) for tensor in session.get_outputs()]
    rows = [[way, one.name, _dtype(one.type), _shape(one.shape)] for way, one in tensors]
    click.echo()
    click.echo(table(["", "TENSOR", "DTYPE", "SHAPE"], rows))


def _facts(model: Path, manifest: Manifest, session: InferenceSession) -> list[tuple[str, str]]:
    from onnxplain.session import takes_any_size

    source = manifest.source
    made_by = ", ".join(f"{name} {version}" for name, version in manifest.producer.items())
    return [
        ("file", f"{model}, {file_size(model.stat().st_size)}"),
        ("source", f"{source.get('name', 'unknown')} ({source.get('kind', 'unknown')})"),
        ("made by", made_by or "unknown"),
        ("picture", manifest.input.in_words() + "; preprocessed in the file" * manifest.pixels),
        *([("guessed", _guess(manifest.input))] if manifest.input.guessed else []),
        *(
            [("size", "any; that of the picture and the layers is the export's own")]
            if takes_any_size(session)
            else []
        ),
        ("classes", _classes(manifest.labels)),
        ("activation", manifest.activation),
        *(("layer", _layer(layer)) for layer in manifest.layers),
        *([("heatmap", f"{manifest.heatmap}, in the file")] if manifest.heatmap else []),
        ("verified", _verification(manifest.verification)),
    ]


def _guess(spec: Preprocessing) -> str:
    return f"{', '.join(spec.guessed)} (onnxplain check tells what fits labelled pictures)"


def _classes(labels: Sequence[str] | None) -> str:
    if labels is None:
        return "no labels"
    more = ", ..." if len(labels) > _SHOWN_LABELS else ""
    return f"{len(labels)}: {', '.join(labels[:_SHOWN_LABELS])}{more}"


def _layer(layer: Layer) -> str:
    methods = "CAM and Grad-CAM" if layer.head == "gap_linear" else "Grad-CAM"
    size = f"{layer.height}x{layer.width}"
    return f"{layer.name}, {layer.channels} maps of {size}{folding(layer.tokens)}; {methods}"


def _verification(verification: Mapping[str, Any]) -> str:
    if not verification:
        return "no"
    logits = f"logits within {verification.get('logits')} of the source's"
    if verification.get("gradients") is None:
        return f"{logits}; its gradients were zero, and not verified"
    reference = verification.get("reference", "the reference")
    zero = verification.get("zero")
    names = " and ".join(map(str, zero)) if isinstance(zero, list) else ""
    dead = f"; not verified at {names}: zero for every class" if names else ""
    return f"gradients within {verification['gradients']} of {reference}, {logits}{dead}"


def _dtype(onnx_type: str) -> str:
    """Return "float32" for onnxruntime's "tensor(float)"."""
    names = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}
    return names.get(onnx_type, onnx_type)


def _shape(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
