"""Settings of pasting, and the laws of published methods as modes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from outlier_paste.appearance import APPEARANCES
from outlier_paste.blend import BLENDS
from outlier_paste.placement import PLACEMENTS, SIZINGS
from shards.errors import InputError
from shards.files import Location

CHOICES: dict[str, Collection[str]] = {
    "placement": PLACEMENTS, "sizing": SIZINGS, "blend": BLENDS,
    "onto": ("crop", "frame"), "overlap": ("ordered", "none"),
}  # fmt: skip

_WHOLE_PHOTO: dict[str, Any] = {
    "onto": "frame", "max_objects": 1, "placement": "inside", "sizing": "original", "blend": "hard",
    "match": (), "mirror": False, "max_hidden": 1.0, "min_pixels": 0,
}  # fmt: skip
MODES: Mapping[str, Mapping[str, Any]] = {
    "free": {},
    "rba": _WHOLE_PHOTO,
    "pebal": _WHOLE_PHOTO,
    "rpl": {**_WHOLE_PHOTO, "onto": "crop", "sizing": "rpl"},
}
"""Mode -> the settings that it decides. `free` decides none.

Sources: RbA, Nayal et al., ICCV 2023, https://github.com/NazirNayal8/RbA, `mix_object` of its mapper;
PEBAL, Tian et al., ECCV 2022, https://github.com/tianyu0207/PEBAL, `mix_object` of `dataset/data_loader.py`,
from which RbA's is adapted: one law; RPL, Liu et al., ICCV 2023, https://github.com/yyliu01/RPL, whose
`Preprocess` rescales the photograph and pastes onto the crop. docs/outlier-paste.md says what differs.
"""


@dataclass(frozen=True, kw_only=True)
class PasteConfig:
    """Which scenes get outliers, which, where and how."""

    bank: Location = ""
    """Folder of cut-outs written by `jobs.prepare`, or a folder of RGBA PNG files; empty is none."""
    probability: float = 0.0
    """Share of the scenes that get outliers, 0 to 1; 0 switches pasting off."""
    mode: str = "free"
    """`free`: the settings below decide. `rba`, `pebal` and `rpl` paste as these methods do: they decide
    onto, max_objects, placement, sizing, blend, match, mirror, max_hidden and min_pixels."""
    onto: str = "crop"
    """`crop`: onto what the network sees, so that sizes hold there and nothing is pasted outside of it;
    `frame`: onto the whole picture before it is cropped, resized and mirrored."""
    max_objects: int = 3
    """A scene with outliers gets 1 to this many objects, all numbers equally often."""
    placement: str = "anywhere"
    """`anywhere` centres an object on any pixel, so that the border may cut it; `inside` keeps it whole;
    `road` stands it on the road, smaller far away."""
    sizing: str = "share"
    """`share`: the longer side is min_size to max_size of the scene's height; `original`: as large as in its
    photograph; `rpl`: the photograph times 0.1 to 0.75, as RPL draws it; `small`: the longer side is 0.02
    to 0.25 of the height, with the obstacles of RO-21 and L&F in the middle."""
    blend: str = "feather"
    """`hard` keeps the object's edge; `feather` mixes its outermost two pixels with the scene."""
    match: tuple[str, ...] = ()
    """Steps, one after the other, that make an object look as if the scene's camera had taken it: `color`,
    `defocus`, `motion`, `noise`, `seamless`."""
    overlap: str = "ordered"
    """`ordered`: nearer objects, those that reach lower down, cover farther ones; `none`: the boxes of the
    objects of a scene never meet."""
    mirror: bool = True
    """Mirror every other object."""
    min_size: float = 0.05
    """Shortest longer side of an object, as share of the height of the scene it is pasted onto."""
    max_size: float = 0.4
    """Longest longer side of an object, as share of the height of the scene it is pasted onto."""
    max_hidden: float = 0.5
    """Largest share of a scene's pixels that all its objects together may hide; one that would hide more is
    left out."""
    min_pixels: int = 16
    """An object of which fewer pixels would be seen is not pasted; a class of which pasted objects leave
    fewer pixels becomes void, since so small a rest teaches nothing."""
    held_out: float = 0.0
    """Share of the bank's photographs that is never pasted in training: `jobs.paste_validation` makes its
    scenes of them."""
    pool: int = 0
    """Number of bank objects used per epoch; 0 uses all. Where they fit into `cache_mb`, every object is
    decoded once per epoch and loader process."""
    pool_refresh: float = 0.25
    """Share of the pool that every epoch exchanges for other objects of the bank."""
    cache_mb: int = 64
    """Decoded cut-outs kept in memory by each loader process, in MiB. It changes no pixel."""

    def __post_init__(self) -> None:
        _require_known("mode", self.mode, MODES)
        self._obey_mode()
        for name in ("probability", "max_hidden", "pool_refresh"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"paste.{name}: got {value}; a number in 0..1 is needed")
        if self.probability > 0 and not self.bank:
            given = f"is empty while paste.probability is {self.probability}"
            raise InputError(f"paste.bank: {given}; a folder is needed")
        if self.max_objects < 1:
            raise InputError(f"paste.max_objects: got {self.max_objects}; at least 1 is needed")
        for name, known in CHOICES.items():
            _require_known(name, getattr(self, name), known)
        for step in self.match:
            _require_known("match", step, APPEARANCES)
        if not 0 < self.min_size <= self.max_size <= 1:
            given = f"got {self.min_size} and {self.max_size}; needed is 0 < min_size <= max_size <= 1"
            raise InputError(f"paste.min_size, paste.max_size: {given}")
        if not 0 <= self.held_out < 1:
            raise InputError(f"paste.held_out: got {self.held_out}; at least 0 and less than 1 is needed")
        for name in ("min_pixels", "cache_mb", "pool"):
            if (value := getattr(self, name)) < 0:
                raise InputError(f"paste.{name}: got {value}; 0 or more are needed")

    def _obey_mode(self) -> None:
        """Fill in what the mode decides, so that a written configuration says everything."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, decided in MODES[self.mode].items():
            if getattr(self, name) not in (decided, defaults[name]):
                given = f"got {getattr(self, name)!r}, but paste.mode {self.mode} decides it ({decided!r})"
                raise InputError(f"paste.{name}: {given}; leave it out, or take mode free")
            object.__setattr__(self, name, decided)


def _require_known(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        kind = {"match": "step", "onto": "stage"}.get(name, name)
        raise InputError(f"paste.{name}: unknown {kind} {value!r}; known: {', '.join(known)}")
