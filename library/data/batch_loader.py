"""Batches in the sampler's order, made ahead of their use on threads of this process.

Decoding and reading release the interpreter, so threads do what processes would, and there is nothing
to start, to keep alive, to send through a pipe or to end: what goes wrong is raised where the batch
is asked for, whatever it is.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from library.data.datasets import TrainDataset, collate
from library.data.stored import UnfitFile
from library.errors import UserError

if TYPE_CHECKING:
    from library.data.ahead import Ahead
    from library.data.bucket_sampler import BucketBatchSampler
    from library.data.data_types import Batch, Sample, SampleRequest

logger = logging.getLogger(__name__)
Requests = list["SampleRequest"]


class BatchLoader:
    """One epoch's batches each time it is iterated over, from the place where the sampler was set.

    threads: how many make batches, and how many batches are made ahead; 0: each when asked for
    pin:     whether the batches lie in pinned memory, from where a GPU fetches them by itself
    ahead:   what else is made of a batch where it is made
    """

    def __init__(
        self,
        dataset: TrainDataset,
        sampler: BucketBatchSampler,
        *,
        threads: int,
        pin: bool = False,
        ahead: Ahead | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.threads = threads
        self.pin = pin
        self.ahead = ahead

    def __iter__(self) -> Iterator[Batch]:
        """Raises what the making of a batch raised, in its turn; the batches before it come first."""
        if not self.threads:
            for requests in self.sampler:  # map() would end the epoch at a StopIteration
                yield self.make(requests)
            return
        ended = threading.Event()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="batches")
        waiting: deque[tuple[Requests, Future[Batch | None]]] = deque()
        try:
            for requests in self.sampler:
                waiting.append((requests, pool.submit(self.make_ahead, requests, ended)))
                if len(waiting) > self.threads:
                    yield self.take(*waiting.popleft())
            while waiting:
                yield self.take(*waiting.popleft())
        finally:  # the loop has stopped, or failed: nothing is begun any more
            ended.set()
            pool.shutdown(cancel_futures=True)

    def take(self, requests: Requests, future: Future[Batch | None]) -> Batch:
        batch = future.result()
        return self.make(requests) if batch is None else batch

    def make_ahead(self, requests: Requests, ended: threading.Event) -> Batch | None:
        """The batch, or None when it takes the device: that is the training's alone."""
        try:
            return self.make(requests, ended, rebuild=False)
        except UnfitFile:
            return None
        except (KeyboardInterrupt, SystemExit) as error:  # not what a user or the program asked for
            raise RuntimeError(f"loading pictures raised {error!r}") from error

    def make(
        self, requests: Requests, ended: threading.Event | None = None, *, rebuild: bool = True
    ) -> Batch:
        """Load and collate. Raises UnfitFile for what would have to be made anew, unless `rebuild`."""
        samples = []
        for request in requests:
            if ended is not None and ended.is_set():
                raise CancelledError
            samples.append(self.load(request, rebuild))
        batch = collate(samples)
        if self.ahead:
            batch = self.ahead.make(batch)
        if self.pin:
            batch = batch.pin_memory()
        return self.ahead.send(batch) if self.ahead else batch

    def load(self, request: SampleRequest, rebuild: bool) -> Sample:
        try:
            return self.dataset.sample(request, rebuild=rebuild)
        except (UserError, UnfitFile):
            raise
        except Exception:
            logger.error("failed to load %s", self.dataset.catalogue.images[request.index].path)
            raise
