"""Fine-tune EoMT: read the configuration, build the run, call the loop.

python -m jobs.finetune CONFIG.yaml --loop.steps 2000 --seed 3
accelerate launch -m jobs.finetune CONFIG.yaml --resume
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import psutil

from shards.program import run_program
from shards.settings import load_config
from trainer.config import FinetuneConfig

logger = logging.getLogger(__name__)

STOPPED = 75
"""Exit code of a run that was asked to stop and has saved (EX_TEMPFAIL: try again)."""


def main(arguments: Sequence[str]) -> None:
    """Run one fine-tuning from the command line; exit with 75 if it was asked to stop before its end."""
    resume = "--resume" in arguments
    arguments = [argument for argument in arguments if argument != "--resume"]
    config = load_config(FinetuneConfig, arguments, program="jobs.finetune")
    from jobs.work.finetune import finetune

    state = finetune(config, resume=resume, started=psutil.Process().create_time())
    if not state.has_ended(config.loop.steps):
        sys.exit(STOPPED)


if __name__ == "__main__":
    run_program(main)
