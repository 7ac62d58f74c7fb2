"""`onnxplain verify FILE`: check an explainer by itself, with no source at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxplain.cli._text import facts, printable
from onnxplain.extras import require

if TYPE_CHECKING:
    from onnxplain_export import Verification


@click.command("verify", short_help="Check an explainer's gradients, in float64.")
@click.argument("file", type=click.Path(path_type=Path))
def command(file: Path) -> None:
    """Check the explainer FILE: its gradient rules against central differences of its logits in float64, and
    what onnxruntime makes of it in float32 against the same graph in float64.

    Needs no source model. Exits with 1 where an error is larger than rounding explains.
    """  # noqa: D205 (click shows the first paragraph whole)
    require("onnx")
    from onnxplain_export import verify

    click.echo(f"Verifying {printable(str(file))} in float64 ...")
    verification = verify(file)
    click.echo(facts(verification_facts(verification, "the same graph in float64")))
    if not verification.zero:
        click.echo("The explainer is right within rounding.")
    elif verification.measured:
        click.echo(
            "The explainer is right within rounding; of the gradients at "
            f"{printable(' and '.join(verification.zero))}, which are zero, nothing can be said."
        )
    else:
        click.echo(
            "The logits are right within rounding; of the gradients, which are zero, nothing can be said."
        )


def verification_facts(verification: Verification, source: str) -> list[tuple[str, str]]:
    """Return the relative errors that a verification measured, each with what it was measured against."""
    logits = ("logits", f"{verification.logits:.1g} from {source}, with onnxruntime")
    zeros = f"zero for every class at {' and '.join(verification.zero)}"
    if not verification.measured:
        return [logits, ("gradients", f"not verified: {zeros}")]
    found = [
        ("gradient rules", f"{verification.rules:.1g} from central differences, in float64"),
        logits,
        ("gradients", f"{verification.gradients:.1g} from the same graph in float64"),
    ]
    if verification.autograd is not None:
        found.append(
            ("and autograd", f"{verification.autograd:.1g} from PyTorch's gradients, the median image")
        )
    if verification.zero:
        found.append(("not verified", zeros))
    return found
