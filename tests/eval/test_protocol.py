"""Protocols are complete, named, and honest about what is not there."""

from __future__ import annotations

import dataclasses

import pytest

from eval.pixel import FPR_RULES
from eval.protocol import PROTOCOLS, get_protocol
from shards.errors import InputError


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_footnote_states_every_choice(name):
    protocol = get_protocol(name)
    for field in dataclasses.fields(protocol):
        assert getattr(protocol, field.name) in protocol.describe()
    assert protocol.name == name
    assert protocol.fpr_rule in FPR_RULES


@pytest.mark.parametrize("name", ["course-512", "smiyc", "fishyscapes", "rba", "Native"])
def test_a_protocol_that_is_not_there_is_refused_with_the_available_ones(name):
    with pytest.raises(InputError, match=f"--protocol: no protocol '{name}'; available: native$"):
        get_protocol(name)
