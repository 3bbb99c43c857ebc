"""Shards become an endless stream of batches that can start anywhere, the same for any number of workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shards.augment import AugmentConfig, crop_scene, jitter_color
from shards.batch import Batch, stack_samples
from shards.errors import InputError
from shards.order import BatchPositions, SampleOrder, require_shards_for_workers, sample_generator
from shards.reader import ShardReader, decode_sample, open_shards, require_scenes
from shards.schema import Sample

Transform = Callable[[Sample, np.random.Generator], Sample]
"""Changes a scene, such as by pasting objects; draws from nothing but the generator. It may write into the
scene's arrays: nobody else has them."""


@runtime_checkable
class StagedTransform(Protocol):
    """A transform that says where it stands, and that may differ from epoch to epoch."""

    @property
    def before_crop(self) -> bool:
        """Whether it wants the whole frame instead of the crop."""
        ...

    def for_epoch(self, epoch: int) -> Transform:
        """Return the transform of one epoch."""
        ...


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Which scenes are read, and how they become batches."""

    shards: tuple[str, ...] = ()
    """Folders written by `jobs.prepare`, tar files, or patterns such as `data/train-{000000..000031}.tar`."""
    split: str = "train"
    """Which part of the folders to read."""
    crop: tuple[int, int] = (1024, 1024)
    """(height, width) of what the network sees, in pixels."""
    batch_size: int = 4
    """Scenes per process and micro-batch."""
    workers: int = 2
    """Loader processes per training process; 0 decodes in the training process itself."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise InputError(
                f"data.crop: got {list(self.crop)}; (height, width), both at least 1, are needed"
            )
        if self.batch_size < 1:
            raise InputError(f"data.batch_size: got {self.batch_size}; at least 1 is needed")
        if self.workers < 0:
            raise InputError(f"data.workers: got {self.workers}; 0 or more are needed")


class SceneDataset(Dataset[Sample | InputError]):
    """Makes the scene at any position of the sequence.

    A user's mistake is returned, not raised: the DataLoader would bury its one line in a worker's traceback.
    """

    def __init__(
        self,
        reader: ShardReader,
        config: StreamConfig,
        seed: int,
        transform: Transform | StagedTransform | None,
    ) -> None:
        self.reader = reader
        self.config = config
        self.order = SampleOrder(len(reader), seed)
        self.transform = transform

    def __getitem__(self, position: int) -> Sample | InputError:
        try:
            return self.make_scene(position)
        except InputError as error:
            return error

    def make_scene(self, position: int) -> Sample:
        """Decode, crop, transform and recolour the sample at `position`.

        The transform stands between the crop and the colours. After the crop, because the sizes of pasted
        objects then hold for what the network sees, and nothing is pasted outside of the window. Before the
        colours, because object and scene then share one camera: an object that kept its own brightness
        would be recognised by that alone. A `StagedTransform` may ask for the whole frame instead, as some
        published methods do: the crop, the zoom and the mirroring then act on the objects too.
        """
        epoch, index = self.order.at(position)
        key = self.reader.keys[index]
        sample = decode_sample(key, self.reader.read(index))
        varied = sample_generator("augment", self.order.seed, epoch, key)
        transform, before_crop = self._transform_of(epoch)
        drawn = sample_generator("transform", self.order.seed, epoch, key)
        if before_crop:
            sample = transform(sample, drawn)
        sample = crop_scene(sample, self.config.augment, self.config.crop, varied)
        if not before_crop:
            sample = transform(sample, drawn)
        image = jitter_color(sample.image, self.config.augment.color, varied)
        return Sample(key=sample.key, image=image, label=sample.label)

    def _transform_of(self, epoch: int) -> tuple[Transform, bool]:
        """Return an epoch's transform, and whether it comes before the crop."""
        if isinstance(self.transform, StagedTransform):
            return self.transform.for_epoch(epoch), self.transform.before_crop
        return self.transform or _change_nothing, False


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

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader())
        try:
            while True:
                batch = next(batches, None)
                if batch is None:
                    return
                if isinstance(batch, InputError):
                    raise batch
                self.position += self.positions.global_batch
                yield batch
        finally:
            del batches  # ends the workers now; a traceback would keep this frame, and them, alive

    def _loader(self) -> DataLoader[Sample | InputError]:
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
    transform: Transform | StagedTransform | None = None,
    num_batches: int | None = None,
) -> Stream:
    """Open the shards and return this process's batches.

    The loader is already split over the processes: do not give it to `accelerator.prepare`, which would
    split it once more and leave half of the data unread.

    Args:
        seed: of the order, the augmentation and the transform; a whole number >= 0.
        rank: number of this process, 0 to world_size - 1.
        world_size: training processes.
        start_position: samples that all processes together have already consumed.
        transform: applied between crop and colour jitter, or before the crop; see `SceneDataset.make_scene`.
        num_batches: where to end; None never does.

    Raises:
        InputError: the shards are unfit, hold no scenes, or are fewer than the processes that read them.
    """
    if not config.shards:
        raise InputError(
            "data.shards: the list is empty; give a folder of shards, a .tar file or a pattern of them"
        )
    assert 0 <= rank < world_size
    assert start_position >= 0
    reader = open_shards(config.shards, config.split)
    require_scenes(reader)
    require_shards_for_workers(reader.num_shards, world_size, config.workers)
    dataset = SceneDataset(reader, config, seed, transform)
    positions = BatchPositions(
        start=start_position,
        rank=rank,
        world_size=world_size,
        batch_size=config.batch_size,
        num_batches=num_batches,
    )
    return Stream(dataset, positions)


def _change_nothing(sample: Sample, _: np.random.Generator) -> Sample:
    return sample


def _collate(samples: Sequence[Sample | InputError]) -> Batch | InputError:
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    return stack_samples([sample for sample in samples if isinstance(sample, Sample)])


def _start_worker(_: int) -> None:
    """Keep a worker on one core, and leave signals to the training process, which ends its workers itself.

    Schedulers signal every process of a job; a worker that died of it would take the run down before it
    could save.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where SIGTERM ends a worker whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_parent_only, daemon=True).start()


def _obey_the_parent_only() -> None:
    """End this worker when its parent sends SIGTERM, as it does on its way out; nobody else's counts."""
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
