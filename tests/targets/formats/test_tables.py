"""Tables of codes against libraries that have the same formats, and against the papers."""

from __future__ import annotations

from statistics import NormalDist

import gguf.quants
import ml_dtypes
import numpy as np
import pytest
import torch

from cupola.targets.formats.tables import E4M3_MAX, TABLES


def table(name: str) -> np.ndarray:
    return np.array(TABLES[name], "float32")


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", ml_dtypes.float8_e4m3fn), ("e2m1", ml_dtypes.float4_e2m1fn)])
def test_floats_are_those_of_ml_dtypes(name: str, dtype: type) -> None:
    codes = np.arange(len(TABLES[name]), dtype="uint8")
    expected = codes.view(dtype).astype("float32")
    np.testing.assert_array_equal(table(name), expected)
    np.testing.assert_array_equal(np.signbit(table(name)), np.signbit(expected))


def test_e4m3_is_that_of_torch() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(table("e4m3"), codes.view(torch.float8_e4m3fn).float().numpy())
    assert torch.finfo(torch.float8_e4m3fn).max == np.nanmax(table("e4m3")) == E4M3_MAX


def test_iq4nl_is_that_of_ggml() -> None:
    assert TABLES["iq4nl"] == gguf.quants.IQ4_NL.kvalues
    assert tuple(2 * value for value in TABLES["e2m1"]) == gguf.quants.MXFP4.kvalues


def test_nf4_has_quantiles_of_a_normal_distribution() -> None:
    """As bitsandbytes' `create_normal_map` finds them: eight steps from 0 up, seven down, and the outermost ones are 1 and -1."""
    offset, quantile = 0.9677083, NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.array(sorted([*above, 0, *below])) / max(above)
    np.testing.assert_allclose(table("nf4"), expected, atol=1e-6)
