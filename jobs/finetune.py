"""Fine-tune EoMT: read the configuration, build the run, call the loop.

python -m jobs.finetune CONFIG.yaml --loop.steps 2000 --seed 3
accelerate launch -m jobs.finetune CONFIG.yaml --resume
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # StopSignal notices what comes while modules are loaded
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))

import logging
import sys
from collections.abc import Sequence

import psutil

from shards.program import run_program
from shards.settings import load_config
from trainer.config import STOPPED, FinetuneConfig

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Run one fine-tuning from the command line; exit with 75 if it was asked to stop before its end."""
    resume = "--resume" in arguments
    arguments = [argument for argument in arguments if argument != "--resume"]
    config = load_config(FinetuneConfig, arguments, program="jobs.finetune")
    from jobs.work.finetune import finetune
    from trainer.runtime import StopAsked, StopSignal

    stop = StopSignal()
    stop.listen()  # to the end of the process
    try:
        state = finetune(config, resume=resume, started=psutil.Process().create_time(), stop=stop)
    except StopAsked:
        logger.info("%s before the first step: nothing new was to save", stop.reason)
        raise
    if not state.has_ended(config.loop.steps):
        sys.exit(STOPPED)


if __name__ == "__main__":
    run_program(main)
