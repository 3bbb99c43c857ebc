"""Progress of a long job: a bar on a terminal; in a log, lines with done, rate and time to go."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

EVERY_S = 30.0
"""Seconds between two lines in a log; a job that is shorter writes none."""
LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {elapsed} gone, {remaining} to go"


class Progress(tqdm):
    """`tqdm` that tells a terminal from a log: `Progress(images, desc="RA-21", unit="image")`.

    Everything else is tqdm's: `total` where the iterable has no length, `update(n)` without an iterable,
    `disable=True` for processes that say nothing. `every_s` are seconds between lines, 0: a line each time.
    """

    def __init__(
        self, *args: Any, unit: str, every_s: float | int = EVERY_S, disable: bool = False, **options: Any
    ) -> None:
        self._is_bar = sys.stderr.isatty()
        options |= {"unit": f" {unit}", "disable": disable}
        if not self._is_bar:  # nothing is drawn, so that no log line has to make room for it
            options |= {"file": io.StringIO(), "bar_format": LINE, "miniters": 0}
            options |= {"mininterval": every_s, "delay": every_s}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or log the line."""
        if self._is_bar:
            super().display(msg, pos)
        else:
            logger.info("%s", str(self))  # as it stands now

    def rest(self) -> str:
        """Say the time to go, as H:MM:SS or MM:SS; ? before there is a rate, and where it is disabled."""
        if self.disable:
            return "?"
        facts = self.format_dict
        rate = facts["rate"] or (self.n - self.initial) / max(facts["elapsed"], 1e-9)
        return str(tqdm.format_interval((self.total - self.n) / rate)) if self.total and rate else "?"
