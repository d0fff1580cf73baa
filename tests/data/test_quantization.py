"""Pixel levels to real numbers and back; importing the package stays light."""

import subprocess
import sys

import numpy as np
import pytest

from score_sde import likelihood
from score_sde.data import dequantize, to_levels, to_unit_range
from tests.cli import ROOT


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_survive_scaling_and_rounding(levels):
    pixels = np.arange(levels, dtype=np.uint8)
    scaled = to_unit_range(pixels, levels)
    assert scaled.dtype == np.float32
    assert (scaled[0], scaled[-1]) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_levels(scaled, levels), pixels)
    np.testing.assert_array_equal(to_levels(np.array([-3.0, 3.0]), levels), [0, levels - 1])


def test_likelihood_exports_dequantize():
    assert likelihood.dequantize is dequantize


def test_import_loads_no_heavy_packages():
    code = """
import sys
import score_sde.data, score_sde.likelihood
print([name for name in ("tensorflow_datasets", "tensorflow", "grain", "orbax") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
