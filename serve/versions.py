"""Versions of a detector in one server: production answers, a canary gets a share, a shadow is compared unseen.

The registry says which version is what (`foveal registry promote NAME VERSION --alias canary`), and a running server
follows it: a version is loaded and run before it answers anything, and the one that it replaces finishes what it has.
A canary that breaks a bar is withdrawn; a version that breaks one soon after it went into production is rolled back.
Whoever asked it while it failed is answered by the version that it stood in for.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from foveal.detections import Detections
from foveal.errors import BadInput, FovealError
from foveal.models import Detector, load_detector, parse_ref
from foveal.registry import CANARY, LATEST, PRODUCTION, SHADOW, Registry, holders
from serve.bars import Bars, Role, Version, disagreement, verdict
from serve.lanes import Lane, Overloaded

if TYPE_CHECKING:
    from PIL.Image import Image

    from serve.drift import Drift
    from serve.metrics import Metrics

log = logging.getLogger("foveal.serve")
FOLLOW_SECONDS = 2.0  # between looks at the registry
PROBATION = 1000  # requests that a new production version answers before the old one is let go
COMPARING = 8  # comparisons under way at once; more are left out, since nobody waits for them


@dataclass(frozen=True, slots=True)
class Answerer:
    """Which model gave an answer; `version` where it came from a registry."""

    name: str
    fingerprint: str
    version: int | None = None


class Rollout:
    """A `Detector` whose version changes while it answers; what it says of itself is what production says.

    Args:
        registry: folder with the versions.
        name: of the registered model.
        alias: whose holder is in production here.
        share: of the requests that a canary answers, and of those that a shadow, or the version before, is compared on.
        bars: see `Bars`.
        load: makes a version's detector; `load_detector` by default.

    Raises:
        UnknownName, IntegrityError: there is no such model or alias, or a file is damaged.
        BadInput: the share lies outside (0, 1].
    """

    def __init__(
        self,
        registry: Path,
        name: str,
        *,
        alias: str = PRODUCTION,
        share: float = 0.1,
        bars: Bars | None = None,
        load: Callable[[int], Detector] | None = None,
    ) -> None:
        if not 0 < share <= 1:
            raise BadInput("the share lies outside its range", expected="above 0, up to 1", received=f"{share:g}")
        self.registry, self.registered, self.alias = Registry(registry), name, alias
        self.share, self.bars = share, bars or Bars()
        self._load = load or (lambda number: load_detector(f"artifact:{name}@{number}", registry))
        number = int(self.registry.resolve(f"{name}@{alias}").name)
        self._first = number, self._load(number)
        self.name = f"artifact:{name}@{alias}"
        self._describe(self._first[1])
        self.canary: Version | None = None
        self.shadow: Version | None = None
        self.previous: Version | None = None  # while production is on probation
        self.refused: dict[int, str] = {}  # version -> why it is out, until the registry gives it an alias anew
        self._due: dict[str, float] = {"canary": 0.0, "compared": 0.0}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: set[tuple[str, str]] = set()  # (version, role) that the figures know
        self._comparing = 0

    def attach(self, served: str, lane: Callable[[str], Lane], metrics: Metrics, drift: Drift) -> None:
        """Prepares it to be served under the name `served`; done once, before anything is asked.

        Args:
            lane: makes the lane of a version, by its name.
        """
        self._served, self._lane, self._metrics, self._drift = served, lane, metrics, drift
        for bar in ("errors", "latency", "disagreement", "load"):
            metrics.rollbacks.labels(served, bar)  # from zero on, so that the first one is a rise
        self.production = self._version(*self._first, "production")
        self._tell()

    # What a detector says of itself.

    def detect(self, images: Sequence[Image], threshold: float = 0.05) -> list[Detections]:
        """As the version in production."""
        return self.production.model.detect(images, threshold)

    @property
    def versions(self) -> list[Version]:
        """Those that are loaded, production first."""
        return [one for one in (self.production, self.canary, self.shadow, self.previous) if one is not None]

    @property
    def settled(self) -> bool:
        """Whether nothing is compared with the version in production."""
        return len(self.versions) == 1

    # Answering.

    async def ask(self, image: Image, threshold: float) -> tuple[Answerer, Detections]:
        """What a version finds, and which.

        Raises:
            Overloaded: it could not be begun before the deadline.
            Otherwise what the version in production raises.
        """
        version = self.canary if self.canary is not None and self._turn("canary") else self.production
        began = time.perf_counter()
        try:
            found = await self._asked(version, image, threshold)
        except Overloaded:
            raise
        except Exception as error:
            took = time.perf_counter() - began
            spare = self.production if self.production is not version else self.previous
            if spare is None:
                raise
            found = await self._asked(spare, image, threshold)  # where this fails too the request is to blame
            log.warning("%s@%d failed, %d answered: %r", self.registered, version.number, spare.number, error)
            version.count(took, failed=True)
            self._judge(version)
            version = spare
        if version is self.canary:
            self._compare(version, self.production, found, image, threshold)
        elif version is self.production and (self.shadow or self.previous) and self._turn("compared"):
            if self.shadow is not None:
                self._compare(self.shadow, self.shadow, found, image, threshold)
            if self.previous is not None:
                self._compare(version, self.previous, found, image, threshold)
        return Answerer(self._served, version.model.fingerprint, version.number), found

    async def _asked(self, version: Version, image: Image, threshold: float) -> Detections:
        """What a version finds; what went well is counted here, what did not by who knows whom to blame."""
        began, outcome = time.perf_counter(), "error"
        labels = (self._served, str(version.number), version.role)
        try:
            call = functools.partial(found_by, version.model)
            found = await version.lane.run("detect", call, (image, threshold))
            outcome = "ok"
        except (Overloaded, asyncio.CancelledError):
            outcome = "refused"
            raise
        finally:
            self._metrics.version_requests.labels(*labels, outcome).inc()
        took = time.perf_counter() - began
        self._metrics.version_seconds.labels(*labels).observe(took)
        version.count(took, failed=False)
        self._drift.answered(version.lane.name, version.model, found, threshold)
        self._judge(version)
        return found

    def _turn(self, what: str) -> bool:
        """True for `share` of the calls, evenly spread."""
        self._due[what] += self.share
        if self._due[what] < 1:
            return False
        self._due[what] -= 1
        return True

    def _compare(self, version: Version, asked: Version, found: Detections, image: Image, threshold: float) -> None:
        """Has `asked` look at the picture too, in the background, and notes how far `version` and the other part."""
        if self._comparing >= COMPARING:
            return
        self._comparing += 1

        async def compare() -> None:
            try:
                other = await self._asked(asked, image, threshold)
            except Exception as error:
                log.warning("%s@%d failed on a comparison: %r", self.registered, asked.number, error)
                asked.count(None, failed=True)
                return
            finally:
                self._comparing -= 1
            version.disagreements.append(disagreement(found, other))
            self._metrics.version_disagreement.labels(self._served, version.role).set(version.disagreement or 0.0)
            self._judge(version)

        self._background(compare())

    # Judging.

    def _judge(self, version: Version) -> None:
        """Takes a canary, or a new version in production, back where it breaks a bar."""
        other = self.previous if version is self.production else self.production
        if other is None or version not in (self.production, self.canary):
            return
        if (broken := verdict(version, other, self.bars)) is not None:
            self._take_back(version, *broken)
        elif version is self.production and version.asked >= PROBATION:
            log.info("%s@%d is past its probation", self.registered, version.number)
            self.previous = None
            self._let_go(other)

    def _take_back(self, version: Version, bar: str, reason: str) -> None:
        """Out of the traffic at once; the registry is told after."""
        log.error("%s@%d is taken back: %s", self.registered, version.number, reason)
        self._metrics.rollbacks.labels(self._served, bar).inc()
        self.refused[version.number] = reason
        if version is self.canary:
            self.canary = None
            tell = functools.partial(self.registry.withdraw, self.registered, CANARY, of=version.number, reason=reason)
        else:
            assert self.previous is not None
            self.production, self.previous = self.previous, None
            self.production.begin("production")
            tell = functools.partial(
                self.registry.rollback, self.registered, self.alias, of=version.number, reason=reason
            )
        self._let_go(version)

        async def told() -> None:
            try:
                await anyio.to_thread.run_sync(tell)
            except (FovealError, OSError) as error:  # another server was faster, or the registry cannot be written
                log.error("the registry does not know that %s@%d is out: %s", self.registered, version.number, error)

        self._background(told())

    # Following the registry.

    async def follow(self) -> None:
        """Loads, swaps and lets go as the registry says, for ever."""
        seen: int | None = None
        while True:
            try:
                events = await anyio.to_thread.run_sync(self.registry.history, self.registered)
                for event in events[len(events) if seen is None else seen :]:
                    if event.action != "withdraw":
                        self.refused.pop(event.version, None)
                seen = len(events)
                await self._arrange(holders(events))
            except (FovealError, OSError) as error:
                log.error("the registry of %s cannot be read: %s", self.registered, error)
            except Exception:  # whatever a version or a log does, the server answers on
                log.exception("the registry of %s cannot be followed", self.registered)
            await asyncio.sleep(FOLLOW_SECONDS)

    async def _arrange(self, held: Mapping[str, int]) -> None:
        wanted = held.get(self.alias)
        if wanted is not None and wanted != self.production.number and wanted not in self.refused:
            new = await self._loaded(wanted, self.versions)
            if new is not None:
                self._swap(new)
        # One version has one role: whatever is in production is no canary, and a canary needs no shadow.
        taken = {self.production.number}
        roles: tuple[tuple[Role, Version | None], ...] = ((CANARY, self.canary), (SHADOW, self.shadow))
        for role, present in roles:
            number = held.get(role)
            number = None if number in taken or number in self.refused else number
            new = present if present is not None and present.number == number else None
            if number is not None and new is None:
                # From here on the loop may run other things, so what is there is looked at again.
                new = await self._loaded(number, [one for one in (self.canary, self.shadow) if one is not None])
                if new is not None:
                    new.begin(role)
                    self.production.seconds.clear()
            if role == CANARY:
                old, self.canary = self.canary, new
                self.shadow = None if self.shadow is new else self.shadow
            else:
                old, self.shadow = self.shadow, new
            if old is not None and old not in self.versions:
                self._let_go(old)
            if number is not None:
                taken.add(number)
        self._tell()

    def _swap(self, new: Version) -> None:
        """`new` answers from the next request on; the one before is kept while the new one is on probation."""
        old, before = self.production, self.previous
        self.production, self.previous = new, None if new is before else old
        self.canary = None if self.canary is new else self.canary
        self.shadow = None if self.shadow is new else self.shadow
        new.begin("production")
        old.begin("previous")
        for version in {old, before} - {None, new, self.previous}:
            assert version is not None
            self._let_go(version)
        log.info("%s@%d is in production, after %d", self.registered, new.number, old.number)

    async def _loaded(self, number: int, among: Sequence[Version]) -> Version | None:
        """The version, ready to answer; None where it cannot be used, which is remembered."""
        for version in among:
            if version.number == number:
                return version
        try:
            model = await anyio.to_thread.run_sync(self._load, number)
            version = self._version(number, model, "shadow")
            await warm(version.lane, model)
        except Exception as error:
            log.error("%s@%d stays out: %s", self.registered, number, error)
            self.refused[number] = f"it cannot be used: {error}"
            self._metrics.rollbacks.labels(self._served, "load").inc()
            return None
        if missing := [name for name in self.classes if name not in model.classes]:
            log.warning("%s@%d lacks classes of production: %s", self.registered, number, ", ".join(missing))
        log.info("%s@%d is warm, %d to a batch", self.registered, number, version.lane.most)
        return version

    def _version(self, number: int, model: Detector, role: Role) -> Version:
        return Version(number, model, self._lane(f"{self._served}@{number}"), role)

    def _let_go(self, version: Version) -> None:
        """Ends a version's thread once what it still has is answered."""
        self._background(version.lane.retire())
        self._drift.forget(version.lane.name)
        self._tell()

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _describe(self, model: Detector) -> None:
        self.fingerprint, self.classes = model.fingerprint, model.classes

    def _tell(self) -> None:
        self._describe(self.production.model)
        now = {(str(version.number), version.role) for version in self.versions}
        for number, role in self._told | now:
            self._metrics.version_info.labels(self._served, number, role).set((number, role) in now)
        self._told |= now

    def close(self) -> None:
        """Lets all threads go."""
        for version in self.versions:
            version.lane.close()


def detector_of(ref: str, registry: Path, share: float, bars: Bars) -> Detector:
    """The detector of a reference; one that is named by an alias of the registry changes with it."""
    parsed = parse_ref(ref)
    name, _, alias = parsed.target.partition("@")
    if parsed.scheme != "artifact" or alias in ("", LATEST) or alias.isdecimal():
        return load_detector(ref, registry)
    return Rollout(registry, name, alias=alias, share=share, bars=bars)


async def warm(lane: Lane, model: Detector) -> None:
    """Runs a detector once and measures what batches are worth."""
    from PIL import Image as pillow

    grey = pillow.new("RGB", (640, 480), (127, 127, 127))
    await lane.measure(functools.partial(found_by, model), (grey, 0.5))


def found_by(model: Detector, items: list[tuple[Image, float]]) -> list[Detections]:
    """For each (image, threshold) what a detector finds."""
    found = model.detect([image for image, _ in items], min(threshold for _, threshold in items))
    return [one[one.scores >= threshold] for one, (_, threshold) in zip(found, items, strict=True)]
