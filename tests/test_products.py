from __future__ import annotations

import numpy as np
import pytest

from onnxplain import products


@pytest.mark.parametrize("small", [1, 40, 100, products.SMALL_PRODUCT])
@pytest.mark.parametrize(
    ("left", "right"), [((3, 4), (4, 50)), ((2, 3, 4), (2, 4, 50)), ((1, 4), (2, 5, 4, 3)), ((3, 0), (0, 2))]
)
def test_a_product_in_parts_is_the_product(left, right, small, monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=left), rng.normal(size=right).astype(np.float32)
    monkeypatch.setattr(products, "SMALL_PRODUCT", small)
    found = products.product(a, b)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, a @ b, atol=1e-12)


def test_the_parts_are_small(monkeypatch):
    """Of a map of 256 channels and 56x56 cells, which as one product would wake OpenBLAS's threads."""
    multiplications = []
    matmul = np.matmul

    def watched(left, right, out):
        multiplications.append(left.shape[-2] * left.shape[-1] * right.shape[-1])
        return matmul(left, right, out=out)

    monkeypatch.setattr(products.np, "matmul", watched)
    products.product(np.ones((1, 256), np.float32), np.ones((256, 3136), np.float32))
    assert sum(multiplications) == 256 * 3136
    assert max(multiplications) <= products.SMALL_PRODUCT
