"""The same application on a Ray cluster: replicas behind Ray Serve, and registered detectors that they share.

    pip install 'foveal[ray]'
    serve run serve.ray_app:build archives=/data/archive keys=/data/keys.sqlite most=4
    serve deploy deploy/ray/serve.yaml

The commands are Ray's own. Each replica holds the models that `foveal serve` would hold; those of `shared` are held by
replicas of their own instead, which may have GPUs: each keeps a few versions in memory, and a request goes to one that
has the version already. Archives, keys and registries lie on a file system that all replicas see.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field

from foveal.detections import Detections
from foveal.errors import BadInput, Unavailable
from foveal.models import Detector, load_detector
from serve import logs
from serve.bars import Bars
from serve.launch import Launch
from serve.versions import Rollout

try:
    from ray import serve as ray_serve
except ImportError as error:
    raise Unavailable("Ray Serve is not installed", remedy="pip install 'foveal[ray]'") from error

serve: Any = ray_serve  # whose decorators say little of what they return

if TYPE_CHECKING:
    from PIL.Image import Image
    from ray.serve.handle import DeploymentHandle

SECONDS = 60.0  # for an answer of a shared detector, loading it included
GATHER_SECONDS = 5.0  # for the figures of all replicas
LOG_FORMAT: logs.Format = "json"


class RayLaunch(Launch):
    """What is served, and by how many replicas."""

    demo: bool = False  # pages keep their visitors in one process
    least: int = Field(default=1, ge=1)  # replicas, at any time
    most: int = Field(default=1, ge=1)
    ongoing: float = Field(default=8.0, gt=0)  # requests that a replica works on before there shall be more of them
    cpus: float = Field(default=1.0, gt=0)  # of a replica
    shared: tuple[str, ...] = ()  # registered detectors, as `artifact:NAME@ALIAS`
    shared_least: int = Field(default=1, ge=1)
    shared_most: int = Field(default=1, ge=1)
    shared_cpus: float = Field(default=1.0, gt=0)
    shared_gpus: float = Field(default=0.0, ge=0)
    token: str = Field(default_factory=lambda: secrets.token_hex(8))  # of this start, which its replicas have in common
    versions: int = Field(default=3, ge=1)  # that a replica of the shared detectors keeps in memory


def build(args: RayLaunch) -> ray_serve.Application:
    """The application that `serve run` and `serve deploy` start.

    Raises:
        BadInput: a shared detector is not named by an alias of the registry, or the replicas cannot be so many.
    """
    for least, most in ((args.least, args.most), (args.shared_least, args.shared_most)):
        if most < least:
            raise BadInput("there cannot be so many replicas", expected=f"most >= least, {least}", received=str(most))
    for ref in args.shared:
        if not re.fullmatch(r"artifact:[^@]+@\D[^@]*", ref):
            raise BadInput(f"{ref} cannot be shared", expected="a registered detector, artifact:NAME@ALIAS")
    whole = args.model_copy(update=_absolute(args))
    front = serve.deployment(serve.ingress()(Front)).options(
        name="front",
        autoscaling_config=_scaling(args.least, args.most, args.ongoing),
        max_ongoing_requests=1000,  # what is too much is refused by the application, with a time to come back
        ray_actor_options={"num_cpus": args.cpus},
        graceful_shutdown_timeout_s=10.0,
    )
    if not args.shared:
        return front.bind(whole, None)
    held = serve.deployment(Held).options(
        name="held",
        autoscaling_config=_scaling(args.shared_least, args.shared_most, 2.0),
        ray_actor_options={"num_cpus": args.shared_cpus, "num_gpus": args.shared_gpus},
    )
    return front.bind(whole, held.bind(whole.registry, whole.versions))


class Front:
    """A replica of the application."""

    async def __init__(self, launch: RayLaunch, held: DeploymentHandle[Any] | None) -> None:
        self._open = ExitStack()
        # On a thread: this one waits for what asks the shared detectors.
        self._app = await asyncio.to_thread(self._started, launch, held)

    def _started(self, launch: RayLaunch, held: DeploymentHandle[Any] | None) -> FastAPI:
        gather = self._open.enter_context(logs.writing(LOG_FORMAT))
        together = Path(gettempdir()) / f"foveal-{launch.token}"
        together.mkdir(mode=0o700, exist_ok=True)
        shared = {ref: _rollout(ref, launch, held) for ref in launch.shared if held is not None}
        context = launch.model_copy(update={"together": together}).application(shared, self._everyone)
        app = self._open.enter_context(context)
        app.state.local_only = launch.keys is None  # without keys, only who is on this machine may ask
        gather()
        return app

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def _everyone(self) -> bytes:
        """The figures of all replicas, each with its name."""
        here = serve.get_replica_context()
        handle = serve.get_deployment_handle(here.deployment, here.app_name)
        return merged(await handle.broadcast("figures").results_async(timeout_s=GATHER_SECONDS))

    def figures(self) -> tuple[str, str]:
        """(This replica's name, its figures in Prometheus' text form.)"""
        return serve.get_replica_context().replica_id.unique_id, self._app.state.engine.figures().decode()

    def check_health(self) -> None:
        """Raises where a model failed, so that another replica takes this one's place."""
        if (failure := self._app.state.engine.failure) is not None:
            raise RuntimeError(failure)

    def __del__(self) -> None:
        self._open.close()


class Held:
    """A replica of the shared detectors."""

    def __init__(self, registry: Path, versions: int) -> None:
        async def load(version: str) -> Detector:
            return await asyncio.to_thread(load_detector, f"artifact:{version}", registry)

        self._loaded: Any = serve.multiplexed(max_num_models_per_replica=versions)(load)
        self._one = asyncio.Lock()

    async def about(self) -> tuple[str, tuple[str, ...]]:
        """(Fingerprint, classes) of the version that is asked for."""
        model = await self._loaded(serve.get_multiplexed_model_id())
        return model.fingerprint, tuple(model.classes)

    async def detect(self, images: Sequence[np.ndarray], threshold: float) -> list[Detections]:
        """What it finds in upright RGB images (H, W, 3) uint8; one batch at a time."""
        from PIL import Image as pillow

        model = await self._loaded(serve.get_multiplexed_model_id())
        async with self._one:
            return await asyncio.to_thread(model.detect, [pillow.fromarray(image) for image in images], threshold)


class Shared:
    """A `Detector` that runs in a replica of `Held`.

    Raises:
        Unavailable: from any call, when no replica answers in time.
    """

    def __init__(self, version: str, held: DeploymentHandle[Any]) -> None:
        self.name, self._held = f"artifact:{version}", held.options(multiplexed_model_id=version)
        self.fingerprint, self.classes = self._answer(self._held.about.remote())

    def detect(self, images: Sequence[Image], threshold: float = 0.05) -> list[Detections]:
        """As `foveal.models.Detector`."""
        return self._answer(self._held.detect.remote([np.asarray(image) for image in images], threshold))

    def _answer(self, response: Any) -> Any:
        try:
            return response.result(timeout_s=SECONDS)
        except TimeoutError:
            raise Unavailable(f"{self.name} does not answer", remedy="Try again in a moment.") from None


def merged(told: Iterable[tuple[str, str]]) -> bytes:
    """Figures of several replicas as one text, told apart by the label `replica`."""
    families: dict[str, Metric] = {}
    for replica, text in told:
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Told(families.values()))
    return generate_latest(registry)


class _Told:
    """A collector of figures that are known already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Generator[Metric]:
        yield from self._families


def _rollout(ref: str, launch: RayLaunch, held: DeploymentHandle[Any]) -> Rollout:
    name, _, alias = ref.removeprefix("artifact:").partition("@")
    return Rollout(
        launch.registry, name, alias=alias, share=launch.share, bars=Bars.read(launch.bars),
        load=lambda number: Shared(f"{name}@{number}", held),
    )  # fmt: skip


def _scaling(least: int, most: int, ongoing: float) -> dict[str, Any]:
    return {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": ongoing}


def _absolute(launch: RayLaunch) -> dict[str, Any]:
    """Paths as they are here: a replica has another working folder."""
    fields = ((name, getattr(launch, name)) for name in type(launch).model_fields)
    paths: dict[str, Any] = {name: value.absolute() for name, value in fields if isinstance(value, Path)}
    archives = tuple(uri if "://" in uri else str(Path(uri).absolute()) for uri in launch.archives)
    return {**paths, "archives": archives}
