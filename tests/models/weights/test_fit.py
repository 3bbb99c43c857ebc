from __future__ import annotations

import pytest
import torch
from torch import nn

from models.weights.fit import compare_weights, load_strictly
from shards.errors import InputError


def test_the_report_puts_every_name_in_one_place() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 1), "c": nn.Linear(1, 1)})
    shapes = {"a.weight": (3, 2), "a.bias": (4,), "b.weight": (1, 3), "d": (1,)}
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    report = compare_weights(module.state_dict(), weights, skip=("c",))
    assert report.loaded == ("a.weight", "b.weight")
    assert report.missing == ("b.bias",)
    assert report.unexpected == ("d",)
    assert report.misshapen == {"a.bias": ((4,), (3,))}
    assert report.skipped == ("c.weight", "c.bias")
    assert not report.fits


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({}, r"the weights do not fit the model: 1 missing \[bias\]"),
        ({"bias": torch.tensor([0.0, float("nan")])}, r"NaN or infinite values in 1 weights \[bias\]"),
        ({"bias": torch.tensor([0.0, float("inf")])}, r"NaN or infinite values in 1 weights \[bias\]"),
    ],
    ids=["missing", "nan", "inf"],
)
def test_a_refused_load_leaves_the_module_alone(bias: dict, message: str) -> None:
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    with pytest.raises(InputError, match=f"here: {message}"):
        load_strictly(module, {"weight": torch.ones(2, 2), **bias}, "here")
    assert torch.equal(module.weight, before)


def test_matrices_of_zeros_are_told(caplog: pytest.LogCaptureFixture) -> None:
    load_strictly(nn.Linear(2, 2), {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, "file")
    assert caplog.messages == ["file: only zeros in 1 weights [weight]"]
