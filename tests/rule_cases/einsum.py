"""Rows for `onnxplain_export.rules.einsum`."""

from __future__ import annotations

from rule_cases.case import B, row, weights, x

CASES = [
    row("Einsum", "matrix product", x(B, 3, 4), x(4, 5), equation="bij,jk->bik"),
    row("Einsum", "attention", x(B, 3, 2, 4), x(B, 5, 2, 4), equation="bqhd,bkhd->bhqk"),
    row("Einsum", "output not named", x(B, 3, 4), x(4, 5), equation="bij,jk"),
    row("Einsum", "output not named, ellipsis", x(B, 3, 4), x(4, 5), equation="...j,jk"),
    row("Einsum", "ellipsis", x(B, 3, 2, 4), x(4, 5), equation="...j,jk->...k"),
    row("Einsum", "ellipsis of none", x(3, 4), x(4, 5), equation="...ij,...jk->...ik"),
    row("Einsum", "broadcast by an ellipsis", x(B, 1, 2, 4), x(1, 3, 4, 5), equation="...ij,...jk->...ik"),
    row("Einsum", "a sum over an index of one operand", x(B, 3, 4), x(B, 5), equation="bij,bk->bk"),
    row("Einsum", "a sum over everything", x(2, 3), equation="ij->"),
    row("Einsum", "transposed", x(B, 3, 4), equation="bij->jbi"),
    row("Einsum", "diagonal", x(B, 3, 3), equation="bii->bi"),
    row("Einsum", "trace of a dynamic size", x(B, 3, B), equation="bib->i"),
    row("Einsum", "diagonal and another operand", x(3, 3, 3), x(3, 2), equation="iii,ij->ij"),
    row("Einsum", "three operands", x(B, 3), x(3, 4), x(4, 2), equation="bi,ij,jk->bk"),
    row("Einsum", "a constant", x(B, 3, 4), weights(3, 4), equation="bij,ij->bj"),
    row("Einsum", "square weights", x(B, 3, 4), weights(4, 4), equation="bij,jk->bik"),
    row("Einsum", "outer product", x(3), x(4), equation="i,j->ij"),
    row("Einsum", "spaces", x(B, 3), x(B, 3), equation="b i, b i -> b"),
]
