"""Training batches: which sample is where in a run, reading and augmenting it, and what to do about broken ones.

Everything about a sample of a run is a function of (seed, epoch, position): which one it is, which caption is drawn,
how it is cropped. So processes and workers share a run without talking to each other, and one that was killed goes on
with exactly the samples that are left.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from kakao_models.samples.columns import BY_NAME, Columns, as_sample, named
from kakao_models.samples.shards import Source
from kakao_models.train.gradcache import ghost_chunks
from kakao_models.train.order import MixedOrder, Mixture, Order
from kakao_models.train.transform import DataError, SampleTransform

if TYPE_CHECKING:
    import datasets

_ATTEMPTS = 20  # samples tried in the place of a broken one
SizeOf = Callable[[int], int]  # number of a batch in the run -> number of its size among `Resolutions`
UNUSABLE = (ValueError, OSError, KeyError, TypeError)  # raised by a sample that cannot be read


class TrainData(Dataset):
    """Samples of a source by (epoch, position). A broken one is replaced by another, drawn at random, and counted."""

    def __init__(self, source: Source, prepare: SampleTransform, seed: int = 0, window: int = 16):
        self.source, self.prepare, self.seed = source, prepare, seed
        mixed = isinstance(source, Mixture)
        self.order = MixedOrder(source, seed, window) if mixed else Order(source.counts, seed, window)
        source.hold(window + 1)  # the shards of a window, and one that a broken sample's replacement comes from

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: tuple[int, ...]) -> dict:
        """A prepared sample with its `id`, and `failures`: (key, reason) of the broken ones before it.

        Args:
            place: epoch and position, and with `Resolutions` the number of one of them.
        """
        epoch, position, *size = place
        prepare = self.prepare.at(*size or [None])
        random = np.random.default_rng([self.seed, epoch, position, 1])
        failures: list[tuple[str, str]] = []
        for _ in range(_ATTEMPTS):
            shard, row = self.order.locate(epoch, position)
            key = f"shard {shard}, row {row}"
            try:
                sample = self.source.read(shard, row)
                key = sample.key
                identity = self.source.identify(sample, shard, row)
                return prepare(sample, random) | {"id": identity, "failures": failures}
            except DataError:
                raise
            except UNUSABLE as error:
                failures.append(named(error, key))
            position = int(random.integers(len(self)))
        raise DataError(f"{_ATTEMPTS} samples in a row cannot be used:\n  {_listed(failures)}; ...")


class StreamData(IterableDataset):
    """Batches of a streaming `datasets.IterableDataset`, without end: each epoch it is shuffled anew and begun again.

    Every process, and every worker of it, reads its own part. Broken samples are left out. What fills no batch at the
    end of an epoch goes into the first one of the next.
    """

    def __init__(
        self,
        dataset: "datasets.IterableDataset",
        prepare: SampleTransform,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        columns: Columns = BY_NAME,
        needs: Sequence[str] = ("image",),
    ):
        from datasets.distributed import split_dataset_by_node

        shuffled = dataset.shuffle(seed=seed, buffer_size=10_000)
        self.dataset = split_dataset_by_node(shuffled, rank=rank, world_size=world)  # which also splits among workers
        self.prepare, self.batch_size, self.rank, self.seed = prepare, batch_size, rank, seed
        names = list(dataset.features or next(iter(dataset), {}))
        self.fields = columns.find(names, needs, "data")
        self.size_of: SizeOf | None = None

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        items, failures, epoch, batch = [], [], 0, number  # the DataLoader takes a batch of each worker in turns
        while True:
            self.dataset.set_epoch(epoch)
            usable = False
            for row, record in enumerate(self.dataset):
                random = np.random.default_rng([self.seed, epoch, self.rank, number, row])
                key = f"row {row} of worker {number} of process {self.rank}"
                try:
                    sample = as_sample(record, key, self.fields)
                    key = sample.key
                    identity = 0, None if sample.id is None else str(sample.id)
                    prepare = self.prepare.at(self.size_of(batch) if self.size_of else None)
                    items.append(prepare(sample, random) | {"id": identity})
                except DataError:
                    raise
                except UNUSABLE as error:
                    failures.append(named(error, key))
                    continue
                usable = True
                if len(items) == self.batch_size:
                    items[0]["failures"] = failures
                    yield self.prepare.collate(items)
                    items, failures, batch = [], [], batch + workers
            if not usable and number == 0:
                raise DataError(f"the stream had no usable sample in a whole epoch. {_listed(failures)}")
            if not usable:  # fewer shards than workers
                return
            epoch += 1


class GlobalBatches(Sampler):
    """Places of this process's share of each batch. The samples of an epoch that fill no batch are left out of it.

    Processes share a batch by whole ghost batches, so that together they do what one process would (`ghost_chunks`);
    if a share is not a multiple of `ghost`, in consecutive samples. `size_of` gives the number of a batch's resolution.

    Raises:
        DataError: there are fewer samples than a batch has. ValueError: processes cannot share a batch evenly.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        ghost: int | None = None,
        size_of: SizeOf | None = None,
    ):
        if batch_size % world:
            raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {world} processes")
        if samples < batch_size:
            raise DataError(f"{samples} samples are fewer than a batch of {batch_size}: choose a smaller batch_size")
        share = batch_size // world
        exact = ghost and share % ghost == 0 and batch_size % ghost == 0
        rows = ghost_chunks(batch_size, share, ghost if exact else None)[rank] if world > 1 else range(batch_size)
        self.rows, self.batch_size, self.epoch = [int(row) for row in rows], batch_size, 0
        self.batches, self.size_of = samples // batch_size, size_of

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        epoch = self.epoch
        for number in range(self.batches):
            size = (self.size_of(epoch * self.batches + number),) if self.size_of else ()
            yield [(epoch, number * self.batch_size + row, *size) for row in self.rows]


class Loader(DataLoader):
    """A DataLoader that tells its batches the epoch, and draws no random numbers of the run."""

    def __init__(self, data: TrainData | StreamData, batches: GlobalBatches | None, workers: int, pin_memory: bool):
        streaming = isinstance(data, StreamData)
        super().__init__(
            data,
            batch_size=None if streaming else 1,
            batch_sampler=batches,
            collate_fn=None if streaming else data.prepare.collate,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # the base seed of workers is drawn from it
        )

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, GlobalBatches):
            self.batch_sampler.set_epoch(epoch)


class Failures:
    """Counts broken samples: a warning where they pass 1 % of all, an error at 50 %. `log` takes their keys."""

    def __init__(self, log: Callable[[str], None], warn: Callable[[str], None]):
        self.log, self.warn, self.broken, self.sound, self._warned = log, warn, 0, 0, False

    def count(self, sound: int, failures: Sequence[tuple[str, str]]) -> None:
        """One batch.

        Raises:
            DataError: half of all samples so far are broken, of at least 64.
        """
        self.broken, self.sound = self.broken + len(failures), self.sound + sound
        for key, reason in failures:
            self.log(f"{key}: {reason}")
        total = self.broken + self.sound
        message = f"{self.broken} of {total} samples are broken ({self.broken / total:.1%}); the last: "
        if total >= 64 and self.broken >= 0.5 * total:
            raise DataError(message + _listed(failures))
        if failures and self.broken >= 0.01 * total and total >= 64 and not self._warned:
            self._warned = True
            self.warn(message + ": ".join(failures[-1]))


def _listed(failures: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{key}: {reason}" for key, reason in failures[:3])
