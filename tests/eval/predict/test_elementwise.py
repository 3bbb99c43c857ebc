"""Functions of arrays against mpmath, by whichever library computes them."""

from __future__ import annotations

import cv2
import mpmath
import numpy as np
import pytest
import torch

from eval.predict import elementwise
from eval.predict.elementwise import choose, of_tensor, opencv_is_exact

FUNCTIONS = [(name, dtype) for name in ("exp", "log", "log1p") for dtype in (np.float32, np.float64)]
FUNCTIONS += [("tanh", np.float32)]
CAPABILITIES = ["AVX512", "AVX2", "DEFAULT"]


def draw(name: str, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.uniform(-80, 80, 200), rng.uniform(-1, 1, 200), 10.0 ** rng.uniform(-8, 8, 99)]
    )
    values = values.clip(max=85) if name == "exp" else values
    return (np.abs(values) if name in ("log", "log1p") else values).astype(dtype)


@pytest.mark.parametrize("opencv", [True, False])
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("name", "dtype"), FUNCTIONS)
def test_functions_are_those_of_mpmath_to_rounding(name, dtype, capability, opencv):
    if opencv and not opencv_is_exact():
        pytest.skip("this OpenCV is not used")
    values = draw(name, dtype)
    expected = np.array([float(getattr(mpmath, name)(float(value))) for value in values])
    got = np.empty_like(values)
    choose(capability, opencv=opencv)[name, np.dtype(dtype)](values, got)
    np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("name", "dtype"), FUNCTIONS)
def test_nan_and_infinity_are_kept(name, dtype):
    values = np.array([np.nan, np.inf], dtype)
    got = getattr(elementwise, name)(values)
    np.testing.assert_array_equal(got, np.array([np.nan, 1 if name == "tanh" else np.inf]))


def test_results_may_take_the_place_of_what_they_are_computed_of():
    values = np.linspace(-3, 3, 60, dtype=np.float32).reshape(3, 4, 5)
    expected = np.exp(values.astype(np.float64))
    assert elementwise.exp(values, out=values) is values
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert elementwise.log(np.zeros((3, 0))).shape == (3, 0)


def test_tensors_that_want_gradients_get_them():
    values = torch.linspace(-1, 1, 5, dtype=torch.float64)
    np.testing.assert_allclose(of_tensor("exp", values[::2]), np.exp([-1.0, 0, 1]), rtol=1e-15)
    wanting = values.clone().requires_grad_()
    of_tensor("exp", wanting).sum().backward()
    torch.testing.assert_close(wanting.grad, values.exp())


def test_an_opencv_that_loses_nan_or_digits_is_not_used(monkeypatch):
    monkeypatch.setattr(cv2, "exp", lambda values: np.nan_to_num(np.exp(values), nan=0.0, posinf=np.inf))
    assert not opencv_is_exact()
    monkeypatch.setattr(cv2, "exp", lambda values: np.exp(values) * (1 + 3e-13))
    assert not opencv_is_exact()
