"""Alarms of a model: predictions of pictures without labels, and the calibration of their threshold."""

from __future__ import annotations

import math
from pathlib import Path

from eval.alarms import SMALLEST
from eval.calibration import NAMES as CALIBRATION_NAMES
from eval.calibration import Calibration, CalibrationRun, read_calibration
from eval.conformal import RiskBound
from eval.key import network_key
from eval.part import TestSetPart
from eval.predict.footage import find_frames
from eval.prediction import NAMES, PredictionCounts, PredictionRun
from eval.protocol import Protocol, get_protocol
from eval.result import require_place
from eval.sets.benchmarks import read_own_sets, require_own_sets
from eval.sets.registry import TestSet, check_masks, find_test_sets, read_target
from eval.store import ALONE, Worker
from jobs.calibrate import CalibrateOptions
from jobs.predict import PredictOptions
from jobs.work.model_options import join_task
from models.segmenter import choose_device
from shards.errors import InputError
from shards.schema import ANOMALY


def predict(options: PredictOptions, worker: Worker = ALONE) -> str:
    """Check all inputs, predict what is not finished, and write; return a summary, of one worker alone."""
    worker = join_task(options.task, worker)
    require_place(options.out, NAMES)
    calibration = read_calibration(options.calibration) if options.calibration else None
    score = options.score or (calibration.score if calibration else "MSP")
    name = options.protocol or (calibration.protocol if calibration else "native")
    protocol = _find_protocol(name)
    source = options.find_source((score,), "--score")
    device = choose_device(options.device)
    frames = find_frames(options.images, options.every, options.out, "--images")
    model = options.open_model(source, score)
    if calibration is not None:
        calibration.require_of(model, protocol, f"--calibration {options.calibration}")
    threshold = options.threshold if calibration is None else calibration.threshold
    counts = PredictionRun(
        out=options.out,
        model=model,
        network=network_key(model.fingerprint, options.precision, options.compile, device),
        frames=frames,
        protocol=protocol,
        threshold=math.inf if threshold is None else threshold,
        smallest=calibration.smallest if calibration else options.smallest or SMALLEST,
        heat=options.heat,
        maps=options.maps,
        pictures=options.pictures,
        worker=worker,
    ).run()
    return "" if counts is None else _summarize(options.out, score, threshold, calibration, counts)


def _summarize(
    out: Path, score: str, threshold: float | None, calibration: Calibration | None, counts: PredictionCounts
) -> str:
    head = f"{out}: {counts.frames} frames"
    if threshold is None:
        return f"{head}; no threshold, so no alarms"
    found = f"{counts.alarms} alarms in {counts.alarmed} of them, {score} above {threshold:.4g}"
    return f"{head}, {found}" + (f"; {calibration.describe()}" if calibration else "")


def calibrate(options: CalibrateOptions, worker: Worker = ALONE) -> Calibration | None:
    """Check all inputs, predict what is not finished, and write; None of all workers but one."""
    worker = join_task(options.task, worker)
    require_place(options.out, CALIBRATION_NAMES)
    protocol, score = _find_protocol(options.protocol), options.score
    source = options.find_source((score,), "--score")
    device = choose_device(options.device)
    test_set = _find_validation(options)
    bound = RiskBound(options.miss_rate, None if options.confidence is None else 1 - options.confidence)
    _require_enough(test_set, bound, options)
    model = options.open_model(source, score)
    return CalibrationRun(
        out=options.out,
        model=model,
        network=network_key(model.fingerprint, options.precision, options.compile, device),
        part=TestSetPart(test_set=test_set, protocols=[protocol], scores=model.scores),
        bound=bound,
        risk=options.risk,
        smallest=options.smallest,
        worker=worker,
    ).run()


def _find_validation(options: CalibrateOptions) -> TestSet:
    """Find the one set to calibrate on, which the guard of benchmarks lets pass."""
    where = f"--datasets {options.datasets}"
    test_sets = find_test_sets(options.datasets, own=read_own_sets(options.sets) if options.sets else ())
    found = {each.convention.folder: each for each in test_sets}
    usable = [name for name, each in found.items() if not each.convention.is_benchmark]
    name = options.validation or (usable[0] if len(usable) == 1 else "")
    if name in found and name not in usable:
        raise InputError(f"--validation {name}: is a benchmark, on which nothing may be chosen")
    if name not in usable:
        told = f"no validation set {name}" if name else f"{len(usable) or 'no'} validation sets; name one"
        advice = "PastedVal is one, and what --sets describes with use: validation"
        raise InputError(f"{where}: {told}; there are {', '.join(found)}; {advice}")
    check_masks(found[name])
    require_own_sets(
        [each for each in test_sets if each.convention.is_benchmark or each is found[name]], where
    )
    return found[name]


def _require_enough(test_set: TestSet, bound: RiskBound, options: CalibrateOptions) -> None:
    masks = (read_target(frame, test_set.convention) for frame in test_set.frames)
    count, needed = sum(bool((mask == ANOMALY).any()) for mask in masks), bound.least_frames()
    if count < needed:
        asked = f"--miss_rate {options.miss_rate:g}"
        asked += f" --confidence {options.confidence:g}" if options.confidence is not None else ""
        given = f"{test_set.convention.folder} has {count} frames with an anomaly"
        raise InputError(f"{asked}: needs {needed} frames with an anomaly at least; {given}")


def _find_protocol(name: str) -> Protocol:
    protocol = get_protocol(name)
    if protocol.size is not None:
        raise InputError(f"--protocol {name}: resizes pictures whatever their shape; native does not")
    return protocol
