"""Means, standard errors and bits per byte, against their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisan.evaluate.metrics import bits_per_byte, mean, standard_error


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_mean_and_standard_error_are_numpys(values: list[float]) -> None:
    assert mean(values) == pytest.approx(float(np.mean(values)), abs=1e-9)
    assert standard_error(values) == pytest.approx(float(np.std(values, ddof=1)) / math.sqrt(len(values)), abs=1e-9)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_fewer_than_two_values_have_no_error(values: list[float]) -> None:
    assert standard_error(values) == 0


def test_one_bit_for_each_of_eight_bytes() -> None:
    assert bits_per_byte(8 * math.log(2), 8) == pytest.approx(1)


def test_a_uniform_guess_among_256_bytes_is_eight_bits() -> None:
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8)
