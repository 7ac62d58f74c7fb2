"""How large a product of matrices may be while several threads compute."""

from __future__ import annotations

SMALL_PRODUCT = 250_000
"""Multiplications of a product that numpy's OpenBLAS computes on the caller's thread.

For a larger one it wakes threads of its own, which wait for each other spinning: with a picture on each core,
an explanation then takes half as long again.
"""
