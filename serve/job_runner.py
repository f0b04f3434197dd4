"""What does the jobs: fetches addresses, and adds their pictures in batches, one job at a time, behind the requests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import anyio
import anyio.to_thread
from filelock import FileLock, Timeout

from foveal.errors import FovealError, Unavailable
from retrieval.archive import Archive
from retrieval.sources_web import Web
from serve.audit import Audit, NotAudited
from serve.engine import Engine
from serve.jobs import Address, Fate, Jobs, Told
from serve.uploads import Upload, id_of

log = logging.getLogger("foveal.serve")
T = TypeVar("T")
BATCH = 16  # pictures that are added together; requests wait for one such batch at most
FETCHES = 4  # at once
TRIES = 3  # of an address whose host does not answer
PAUSE = 1.0  # seconds before the second of them, doubling
IDLE = 5.0  # seconds between looks for jobs that another process took in, and did not live to do
HELD = 2.0  # seconds before asking again for what another process holds
LONGEST = 2.0  # seconds that a batch lets requests go first


@dataclass(frozen=True, slots=True)
class Fetched:
    """What lay at an address: a picture, or a reason why there is none."""

    address: Address
    upload: Upload | None
    reason: str = ""


class Runner:
    """Does the jobs of a file, as long as `run` runs; of several servers over one file one at a time does."""

    def __init__(self, engine: Engine, jobs: Jobs, web: Web, audit: Audit | None = None) -> None:
        self.jobs, self._engine, self._web, self._audit = jobs, engine, web, audit
        self._wake = anyio.Event()
        self._limiter = anyio.CapacityLimiter(2)  # threads for the file
        self._fetching = anyio.CapacityLimiter(FETCHES)
        self._looking = anyio.Lock()

    def wake(self) -> None:
        """There is a new job."""
        self._wake.set()

    async def run(self) -> None:
        """Does what there is, then waits for more, for ever."""
        lock = FileLock(self.jobs.file.with_name(self.jobs.file.name + ".lock"), thread_local=False)
        while True:
            self._wake = anyio.Event()
            try:
                await self._count()
                if await self._off(self.jobs.next) is None:
                    with anyio.move_on_after(IDLE):
                        await self._wake.wait()
                    continue
                await self._off(lambda: lock.acquire(timeout=0))
            except (Timeout, FovealError, OSError) as error:
                if not isinstance(error, Timeout):
                    log.error("jobs wait: %s", error)
                await anyio.sleep(HELD)
                continue
            try:
                while (job := await self._off(self.jobs.next)) is not None:
                    await self._whole(job)
            except (FovealError, OSError) as error:  # of the file itself
                log.error("jobs wait: %s", error)
                await anyio.sleep(HELD)
            finally:
                lock.release()

    async def _whole(self, job: Told) -> None:
        """Does a job to its end, or fails it."""
        try:
            while batch := await self._off(lambda: self.jobs.waiting(job.id, BATCH)):
                await self._batch(job, batch)
                await self._count()
                await self._give_way()
        except Exception as error:
            log.exception("job %s failed", job.id)
            told = str(error) if isinstance(error, FovealError) else f"{type(error).__name__}; see the server's log"
            await self._end(job, "failed", told)
        else:
            await self._end(job, "done")

    async def _end(self, job: Told, state: Literal["done", "failed"], told: str | None = None) -> None:
        if await self._off(lambda: self.jobs.end(job.id, state, told)):
            self._engine.metrics.jobs.labels(job.archive, state).inc()

    async def _count(self) -> None:
        self._engine.metrics.job_addresses.set(await self._off(self.jobs.left))

    async def _batch(self, job: Told, batch: list[Address]) -> None:
        found: list[Fetched] = []

        async def fetch(address: Address) -> None:
            found.append(await self._fetched(job, address))

        async with anyio.create_task_group() as tasks:
            for address in batch:
                tasks.start_soon(fetch, address)
        found.sort(key=lambda one: one.address.place)
        fates: dict[Address, tuple[Fate, str]] = {
            one.address: ("rejected", one.reason) for one in found if one.upload is None
        }
        pictures = [(one.address, one.upload) for one in found if one.upload is not None]
        if pictures:
            _, store = self._engine.archives.folder(job.archive)
            uploads = [upload for _, upload in pictures]
            ids, fresh = await self._off(lambda: _known(store, uploads))
            places = [address.place for (address, _), new in zip(pictures, fresh, strict=True) if new]
            await self._off(lambda: self.jobs.about_to_add(job.id, places))
            if (kept := await self._added(job, uploads, ids)) is None:
                return
            seen: set[str] = set()
            for (address, _), (id, status), new in zip(pictures, kept, fresh, strict=True):
                # Of a picture that is there twice the first was added; one of a batch that was cut short, then.
                added = (new or address.fresh) and id not in seen
                fates[address] = ("added" if added else "unchanged" if status == "added" else status, "")
                seen.add(id)
        await self._off(lambda: self.jobs.done(job.id, fates))
        for fate, _ in fates.values():
            self._engine.metrics.job_pictures.labels(job.archive, fate).inc()

    async def _fetched(self, job: Told, address: Address) -> Fetched:
        """A picture that can be read, and was blurred where that is asked for; or why not."""
        parts = urlsplit(address.url)
        name = unquote(parts.path.rpartition("/")[2])[:200] or parts.hostname or "picture"
        # No passwords, no keys.
        source = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        try:
            data = await self._read(address.url)
            async with self._looking:  # one at a time: requests have pictures to decode too
                await self._engine.decode(data)
                upload = Upload(name, data, {"source": source, **job.metadata})
                return Fetched(address, await self._off(lambda: upload.through(self._engine.blur)))
        except (FovealError, OSError, ValueError) as error:
            return Fetched(address, None, str(error)[:500])

    async def _read(self, url: str) -> bytes:
        """What lies there, asked for anew where the host does not answer."""
        for turn in range(TRIES - 1):
            try:
                return await anyio.to_thread.run_sync(self._web.read, url, limiter=self._fetching)
            except OSError:
                await anyio.sleep(PAUSE * 2**turn)
        return await anyio.to_thread.run_sync(self._web.read, url, limiter=self._fetching)

    async def _added(self, job: Told, uploads: list[Upload], ids: list[str]) -> list[tuple[str, Fate]] | None:
        """(Id, what became of it) of each picture, once that is written down and nobody else writes to the archive.

        None where the job has ended by then.
        """
        told = self._audit is None
        while True:
            try:
                if self._audit is not None and not told:
                    shown = [(job.archive, id) for id in ids]
                    await self._off(partial(self._audit.write, shown, event="job", job=job.id, key=job.key))
                    told = True
                _, kept, _ = await self._engine.add(uploads, job.archive)
                return [(one.id, one.status) for one in kept]
            except (Unavailable, NotAudited) as error:
                log.warning("job %s waits: %s", job.id, error)
                await anyio.sleep(HELD)
                if not await self._off(lambda: self.jobs.waiting(job.id, 1)):
                    return None

    async def _give_way(self) -> None:
        """Lets what requests wait for go first, within reason."""
        with anyio.move_on_after(LONGEST):
            await anyio.sleep(0.01)
            while any(lane.ahead() > 0 for lane in self._engine.lanes.values()):
                await anyio.sleep(0.05)

    async def _off(self, call: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(call, limiter=self._limiter)


def _known(store: Archive, uploads: list[Upload]) -> tuple[list[str], list[bool]]:
    """(Id of each picture, whether the archive does not hold it)."""
    ids = [id_of(store, upload.data) for upload in uploads]
    known = store.items(ids, ("uri",))
    return ids, [id not in known for id in ids]
