from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outlier_paste.config import MODES, PasteConfig
from shards.settings import read_config, write_config
from tests.support.refused import refused


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_mode_states_what_it_decides_and_survives_its_file(tmp_path: Path, mode: str) -> None:
    config = PasteConfig(bank="b", probability=0.1, mode=mode)
    for name, decided in MODES[mode].items():
        assert getattr(config, name) == decided
    write_config(config, tmp_path / "c.yaml")
    assert read_config(PasteConfig, tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 1.5}, r"paste\.probability: got 1\.5; a number in 0\.\.1"),
        ({"probability": 0.5}, r"paste\.bank: is empty while paste\.probability is 0\.5"),
        ({"max_objects": 0}, r"paste\.max_objects: got 0; at least 1"),
        ({"placement": "sky"}, r"paste\.placement: unknown placement 'sky'; known: anywhere, inside, road"),
        ({"blend": "poisson"}, r"paste\.blend: unknown blend 'poisson'; known: hard, feather"),
        ({"min_size": 0.5, "max_size": 0.2}, r"paste\.min_size, paste\.max_size: got 0\.5 and 0\.2"),
        ({"min_size": 0.0}, r"got 0\.0 and 0\.4; needed is 0 < min_size <= max_size <= 1"),
        ({"min_pixels": -1}, r"paste\.min_pixels: got -1; 0 or more"),
        ({"cache_mb": -1}, r"paste\.cache_mb: got -1; 0 or more"),
        ({"mode": "rba", "placement": "road"}, r"placement: got 'road', .*mode rba decides it \('inside'\)"),
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
    with refused(message):
        PasteConfig(**settings)
