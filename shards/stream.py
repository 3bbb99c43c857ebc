"""Endless streams of batches out of shards: start anywhere, equal for any number of workers."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from shards.augment import choose_crop, recolor_inside, resize_crop, resize_label
from shards.batch import Batch, stack_samples
from shards.color import jitter_as_upstream, jitter_color
from shards.config import StreamConfig
from shards.cores import keep_memory
from shards.errors import InputError
from shards.order import BatchPositions, SampleOrder, sample_generator
from shards.reader import ShardReader, open_shards
from shards.scene import read_scene, require_scenes
from shards.schema import DEFAULT_SIZE, Sample, Transform

logger = logging.getLogger(__name__)

Finished = tuple[Sample, tuple[str, ...]]
"""A finished scene, and what was wrong with those that it stands in for."""


class SceneDataset(Dataset[Finished | InputError]):
    """Makes the scene at any position of the sequence.

    A user's mistake is returned, not raised: the DataLoader would bury its one line in a worker's traceback.
    """

    def __init__(self, reader: ShardReader, config: StreamConfig, seed: int, transform: Transform) -> None:
        self.reader = reader
        self.config = config
        self.order = SampleOrder(len(reader), seed)
        self.transform = transform

    def __getitem__(self, position: int) -> Finished | InputError:
        """Make the scene at `position`, or the next readable one of the same epoch.

        Which one stands in depends on the shards alone, whatever the number of ranks and workers.
        """
        epoch, place = divmod(position, self.order.num_samples)
        errors: list[str] = []
        for ahead in range(min(self.config.max_errors + 1, self.order.num_samples)):
            stand_in = epoch * self.order.num_samples + (place + ahead) % self.order.num_samples
            try:
                return self.make_scene(stand_in), tuple(errors)
            except InputError as error:
                errors.append(str(error))
        if len(errors) == 1:
            return InputError(errors[0])
        return _too_many(len(errors), len(errors) - 1, errors[-1])

    def make_scene(self, position: int) -> Sample:
        """Decode, crop, transform and recolour the sample at `position`.

        The transform stands between the crop and the colours. After the crop, because the sizes of pasted
        objects then hold for what the network sees, and nothing is pasted outside of the window. Before the
        colours, because object and scene then share one camera: an object that kept its own brightness
        would be recognised by that alone. A transform may ask for the whole frame instead, as some published
        methods do: the crop, the zoom and the mirroring then act on the objects too.
        """
        epoch, index = self.order.at(position)
        scene = read_scene(self.reader, index)
        varied = sample_generator("augment", self.order.seed, epoch, scene.key)
        drawn = sample_generator("transform", self.order.seed, epoch, scene.key)
        before_crop, augment, label = self.transform.before_crop, self.config.augment, scene.label
        if before_crop:
            frame = self.transform(scene.decode(), drawn, epoch)
            crop, label = choose_crop(frame.label, augment, self.config.crop, varied), frame.label
            picture = frame.image[crop.rows, crop.columns]
        else:
            crop = choose_crop(label, augment, self.config.crop, varied)
            picture = scene.picture.decode(crop.rows, crop.columns)
        sample = Sample(key=scene.key, image=resize_crop(picture, crop), label=resize_label(label, crop))
        if not before_crop:
            sample = self.transform(sample, drawn, epoch)
        jitter = jitter_color if augment.recipe == "ours" else jitter_as_upstream
        image = recolor_inside(sample.image, crop, lambda part: jitter(part, augment.color, varied))
        return Sample(key=sample.key, image=image, label=sample.label)


class Stream:
    """One process's share of the batches; iterate once.

    Every rank takes the same number of samples per step, so `position` is the same on all of them and is
    the only thing that a checkpoint needs.
    """

    def __init__(self, dataset: SceneDataset, positions: BatchPositions) -> None:
        self.dataset = dataset
        self.positions = positions
        self.position = positions.start
        """Samples that all processes together have consumed when the last batch was handed out."""
        self._unreadable: set[str] = set()

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader())
        try:
            for batch in batches:
                if isinstance(batch, InputError):
                    raise batch
                self._tolerate(batch.errors)
                self.position += self.positions.global_batch
                yield batch
        finally:
            del batches  # ends the workers now; a traceback would keep this frame, and them, alive

    def _tolerate(self, errors: Sequence[str]) -> None:
        """Tell of unreadable samples, each once, and stop where there are too many."""
        allowed = self.dataset.config.max_errors
        for error in dict.fromkeys(errors):
            if error in self._unreadable:
                continue
            self._unreadable.add(error)
            if (count := len(self._unreadable)) > allowed:
                raise _too_many(count, allowed, error)
            logger.warning("unreadable, %d of %d allowed: %s", count, allowed, error)

    def _loader(self) -> DataLoader[Finished | InputError]:
        workers = self.dataset.config.workers
        return DataLoader(
            self.dataset,
            batch_sampler=self.positions,
            collate_fn=_collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # or it would draw from the global one, and a restart once more
            pin_memory=torch.cuda.is_available(),
        )


def build_stream(
    config: StreamConfig,
    *,
    seed: int,
    rank: int,
    world_size: int,
    start_position: int = 0,
    transform: Transform | None = None,
    num_batches: int | None = None,
) -> Stream:
    """Open the shards and return this process's batches.

    The loader is already split over the processes: do not give it to `accelerator.prepare`, which would
    split it once more and leave half of the data unread.

    Args:
        seed: of the order, the augmentation and the transform; a whole number >= 0.
        start_position: samples that all processes together have already consumed.
        transform: applied between crop and colour jitter, or before the crop; see `SceneDataset.make_scene`.
        num_batches: where to end; None never does.
    """
    assert 0 <= rank < world_size
    assert start_position >= 0
    config = config if any(config.crop) else replace(config, crop=DEFAULT_SIZE)
    reader = open_shards(config.shards, config.split, cache=config.cache, max_errors=config.max_errors)
    for error in reader.errors:
        logger.warning("left out: %s", error)
    require_scenes(reader)
    share = {"rank": rank, "world_size": world_size, "batch_size": config.batch_size}
    positions = BatchPositions(start=start_position, num_batches=num_batches, **share)
    return Stream(SceneDataset(reader, config, seed, transform or Transform()), positions)


def _too_many(count: int, allowed: int, last: str) -> InputError:
    told = f"{count} samples cannot be read, {allowed} are allowed; the last: {last}"
    return InputError(f"data.max_errors: {told}")


def _collate(scenes: Sequence[Finished | InputError]) -> Batch | InputError:
    for scene in scenes:
        if isinstance(scene, InputError):
            return scene
    finished = [scene for scene in scenes if not isinstance(scene, InputError)]
    return stack_samples([sample for sample, _ in finished], [e for _, errors in finished for e in errors])


def _start_worker(_: int) -> None:
    """Keep a worker on one core, and leave signals to the training process, which ends its workers itself.

    Schedulers signal every process of a job; a worker that died of it would take the run down before it
    could save.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_memory()
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where SIGTERM ends a worker whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_parent_only, daemon=True).start()


def _obey_the_parent_only() -> None:
    """End this worker when its parent sends SIGTERM, as it does on its way out; nobody else's counts."""
    parent = multiprocessing.parent_process()  # not os.getppid(), which may be a server that forks for it
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
