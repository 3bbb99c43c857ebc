"""Exponentials, logarithms and tanh of arrays in memory, each by the library whose code suits the processor.

NumPy has vector code for AVX-512; below that, its float64 exponential takes 5 times as long as that of
OpenCV, whose packages carry Intel's IPP, and its float32 log1p 7 times as long as PyTorch's. The choice is
made once, by what the processor has and by what OpenCV answers, never by a clock: two runs on one machine
compute the same. Results differ between libraries by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_Array = TypeVar("_Array", bound=np.ndarray)
_Write = Callable[[np.ndarray, np.ndarray], object]
"""Writes the function of a contiguous array into another one, or into the same."""
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def exp(values: _Array, out: _Array | None = None) -> _Array:
    """Take e^values of float32 or float64 into `out`, contiguous, or a new array."""
    return _apply("exp", values, out)


def log(values: _Array, out: _Array | None = None) -> _Array:
    """Take the natural logarithm, as `exp`."""
    return _apply("log", values, out)


def log1p(values: _Array, out: _Array | None = None) -> _Array:
    """Take log(1 + values), as `exp`."""
    return _apply("log1p", values, out)


def tanh(values: _Array, out: _Array | None = None) -> _Array:
    """Take the hyperbolic tangent of float32, as `exp`."""
    return _apply("tanh", values, out)


def of_tensor(name: str, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Take the function called `name` of a tensor: by PyTorch on a device and where gradients are wanted."""
    if values.device.type != "cpu" or values.requires_grad:
        return getattr(torch, name)(values)  # type: ignore[no-any-return]
    return torch.from_numpy(_apply(name, values.numpy(), None))


def _apply(name: str, values: _Array, out: _Array | None) -> _Array:
    values = np.ascontiguousarray(values)  # type: ignore[assignment]
    out = np.empty_like(values) if out is None else out
    assert out.flags.c_contiguous, "written through a flat view"
    assert (out.shape, out.dtype) == (values.shape, values.dtype), (out.shape, out.dtype)
    if values.size:
        _CHOSEN[name, values.dtype](values, out)
    return out


def _by_opencv(function: Callable[[np.ndarray, np.ndarray], object]) -> _Write:
    return lambda values, out: function(values.reshape(1, -1), out.reshape(1, -1))


def _by_torch(function: Callable[..., object]) -> _Write:
    return lambda values, out: function(torch.from_numpy(values), out=torch.from_numpy(out))


def choose(capability: str, *, opencv: bool) -> Mapping[tuple[str, np.dtype], _Write]:
    """Return what computes each function, by its name and the float type.

    Args:
        capability: as PyTorch calls that of the processor, such as AVX2 or AVX512.
        opencv: whether OpenCV's exponential and logarithm may be used, see `opencv_is_exact`.
    """
    chosen: dict[tuple[str, np.dtype], _Write] = {
        ("exp", _SINGLE): np.exp,
        ("exp", _DOUBLE): np.exp,
        ("log", _SINGLE): np.log,
        ("log", _DOUBLE): _by_torch(torch.log),
        ("log1p", _SINGLE): np.log1p,
        ("log1p", _DOUBLE): _by_torch(torch.log1p),
        ("tanh", _SINGLE): np.tanh,
    }
    if capability.startswith("AVX512"):
        return chosen
    for dtype in (_SINGLE, _DOUBLE):
        chosen["exp", dtype] = _by_opencv(cv2.exp) if opencv else _by_torch(torch.exp)
        chosen["log", dtype] = _by_opencv(cv2.log) if opencv else _by_torch(torch.log)
    return chosen | {("log1p", _SINGLE): _by_torch(torch.log1p)}


def opencv_is_exact() -> bool:
    """Return whether OpenCV's exponential and logarithm are exact to rounding, infinities and NaN included.

    With IPP they are. OpenCV's own take log(inf) for 709 and lose NaN, which an evaluation has to see.
    """
    special = np.array([[-np.inf, np.inf, np.nan]])
    exponents = np.linspace(-700, 700, 4001)[None]
    powers = np.exp(exponents)
    return (
        np.array_equal(cv2.exp(special), [[0, np.inf, np.nan]], equal_nan=True)
        and np.array_equal(cv2.log(special[:, 1:]), [[np.inf, np.nan]], equal_nan=True)
        and bool(np.allclose(cv2.exp(exponents), powers, rtol=1e-15, atol=0))
        and bool(np.allclose(cv2.log(powers), exponents, rtol=1e-15, atol=1e-13))
    )


_CHOSEN = choose(torch.backends.cpu.get_cpu_capability(), opencv=opencv_is_exact())
