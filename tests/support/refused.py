"""The error of a user's mistake, as tests expect it."""

from __future__ import annotations

import pytest

from shards.errors import InputError


def refused(text: str) -> pytest.RaisesExc[InputError]:
    """Expect an InputError in which the regular expression `text` is found."""
    return pytest.raises(InputError, match=text)
