from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outlier_paste.config import MODES, PasteConfig
from shards.errors import InputError
from shards.settings import read_config, write_config


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_mode_states_what_it_decides_and_survives_its_file(tmp_path: Path, mode: str) -> None:
    config = PasteConfig(bank="b", probability=0.1, mode=mode)
    for name, decided in MODES[mode].items():
        assert getattr(config, name) == decided
    write_config(config, tmp_path / "c.yaml")
    assert read_config(PasteConfig, tmp_path / "c.yaml") == config


def test_a_setting_that_the_mode_decides_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"paste\.placement: got 'road', but paste\.mode rba decides it \('inside'\)"
    ):
        PasteConfig(mode="rba", placement="road")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "cutmix"}, r"paste\.mode: unknown mode 'cutmix'; known: free, rba, pebal, rpl"),
        ({"sizing": "huge"}, r"paste\.sizing: unknown sizing 'huge'; known: share, original, rpl"),
        ({"onto": "map"}, r"paste\.onto: unknown stage 'map'; known: crop, frame"),
        ({"overlap": "some"}, r"paste\.overlap: unknown overlap 'some'; known: ordered, none"),
        ({"match": ("color", "hue")}, r"paste\.match: unknown step 'hue'; known: color, defocus, motion"),
        ({"max_hidden": 1.1}, r"paste\.max_hidden: got 1\.1; a number in 0\.\.1"),
        ({"held_out": 1.0}, r"paste\.held_out: got 1\.0; at least 0 and less than 1"),
        ({"pool": -1}, r"paste\.pool: got -1; 0 or more"),
        ({"pool_refresh": 2.0}, r"paste\.pool_refresh: got 2\.0; a number in 0\.\.1"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PasteConfig(**settings)
