"""From what the command line says to an application, in as many processes or replicas as there are to be."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from fastapi import FastAPI
from opentelemetry.trace import TracerProvider
from pydantic import BaseModel, ConfigDict, Field, field_validator

from distill.prelabel import load_labeller
from foveal.errors import BadInput
from foveal.models import Encoder, Runtime, VisionLanguageModel, load_encoder, load_open_detector, load_vlm
from retrieval.archive import Archive
from retrieval.blur import load_blur
from retrieval.gpu import Gpu
from retrieval.memory import ExemplarMemory
from retrieval.memory_files import Stored
from retrieval.retention import Rule
from retrieval.sources_web import Web
from retrieval.stores import AnyArchive, open_archive
from serve.app import create_app
from serve.audit import Audit
from serve.bars import Bars
from serve.calls import Model
from serve.corrections import Corrections
from serve.jobs import Jobs
from serve.keys import Keys
from serve.label_studio import Pictures
from serve.reviewing import STORE, ReviewJob
from serve.spending import Spending
from serve.tracing import exporting
from serve.versions import detector_of
from serve.vlm_http import RemoteVLM, remote_vlms


class Launch(BaseModel):
    """What `foveal serve` was told; see its help. It can be sent to other processes and machines."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    archives: tuple[str, ...] = ()  # folders, or places in databases; see `retrieval.stores`
    detector: str | None = None
    open_detector: str | None = None
    vlms: tuple[str, ...] = ()
    vlm_family: str | None = None
    in_vllm: Mapping[str, RemoteVLM] = Field(default_factory=dict[str, RemoteVLM])  # those of `vlms` that run there
    prelabels: Path | None = None
    memory: Path | None = None
    label_studio: str | None = None
    corrections: Path | None = None
    review: Path | None = None
    gold: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    jobs: Path | None = None
    keys: Path | None = None
    audit: Path | None = None
    blur: str | None = None
    blur_prompts: str | None = None
    blur_threshold: float = 0.2
    retain: tuple[str, ...] = ()
    cache_megabytes: float = 0.0
    cors_origins: tuple[str, ...] = ()
    registry: Path = Path("runs/registry")
    device: str | None = None
    runtime: Runtime = "torch"
    gpu_search: bool = False
    share: float = 0.1
    bars: tuple[str, ...] = ()
    otlp: str | None = None
    demo: bool = True
    together: Path | None = None  # folder in which several processes keep what they count together

    @field_validator("archives", mode="before")
    @classmethod
    def _one(cls, given: object) -> object:
        """Where all that is told is text, as by `serve run`, it is one archive."""
        return (given,) if isinstance(given, str) else given

    @contextmanager
    def application(
        self, models: Mapping[str, Model] | None = None, figures: Callable[[], Awaitable[bytes]] | None = None
    ) -> Generator[FastAPI]:
        """The application with its models loaded; traces that it still holds are sent at the end.

        Args:
            models: further models, by the names that requests use.
            figures: those of all processes that serve; None: this one knows them.

        Raises:
            FovealError: whatever keeps a model, archive or file from being used.
        """
        with exporting(self.otlp) if self.otlp is not None else nullcontext() as traces:
            yield self._application(traces, dict(models or {}), figures)

    def _application(
        self,
        traces: TracerProvider | None,
        models: dict[str, Model],
        figures: Callable[[], Awaitable[bytes]] | None,
    ) -> FastAPI:
        keys = self._keys()
        archives = self._archives()
        encoders = {store.fingerprint: store.encoder for store in archives.values()}
        loaded = [self._encoder(reference) for reference in encoders.values()]
        remembered = None
        if self.memory is not None:
            stored = Stored.read(self.memory)
            own = next((one for one in loaded if one.fingerprint == stored.fingerprint), None)
            remembered = ExemplarMemory.load(self.memory, own or self._encoder(stored.encoder))
        kept = self.corrections or (self.review / STORE if self.review else None)
        told = Corrections(kept) if kept else None
        detector = self.detector and detector_of(self.detector, self.registry, self.share, Bars.read(self.bars))
        return create_app(
            archive=archives,
            encoder=loaded[0] if loaded else None,
            encoders=self._encoder,
            detector=detector or None,
            open_detector=load_open_detector(self.open_detector, self.device) if self.open_detector else None,
            models={**dict(zip(list(encoders.values())[1:], loaded[1:], strict=True)), **self._vlms(), **models},
            labeller=load_labeller(self.prelabels, registry=self.registry) if self.prelabels else None,
            pictures=Pictures(self.label_studio, os.environ.get("LABEL_STUDIO_API_KEY"), Web(self.allow_hosts)),
            memory=remembered,
            corrections=told,
            review=ReviewJob(self.review, self.gold, told) if self.review else None,
            jobs=Jobs(self.jobs) if self.jobs else None,
            keys=keys,
            audit=Audit(self.audit) if self.audit else None,
            blur=load_blur(self.blur, self.blur_prompts, self.blur_threshold, self.registry),
            retain=[Rule.parse(rule) for rule in self.retain],
            cache_bytes=round(self.cache_megabytes * 2**20),
            origins=self.cors_origins,
            traces=traces,
            figures=figures,
            demo=self.demo,
        )

    def _archives(self) -> dict[str, AnyArchive]:
        found: dict[str, AnyArchive] = {}
        for uri in self.archives:
            store = open_archive(uri)
            if store.name in found:
                raise BadInput(
                    f"two archives are named {store.name!r}",
                    received=uri,
                    remedy="Rename the folder or collection of one.",
                )
            found[store.name] = store
        if self.gpu_search:
            folders = [store for store in found.values() if isinstance(store, Archive)]
            if not folders:
                raise BadInput("no archive here is searched by faiss", remedy="Leave --gpu-search away.")
            gpu = Gpu()
            for store in folders:
                store.search_on(gpu)
        return found

    def _keys(self) -> Keys | None:
        if self.keys is None:
            return None
        keys = Keys(self.keys, self._spending())
        if not keys.list():
            raise BadInput(
                f"{self.keys} holds no keys: nobody would be let in",
                remedy=f"foveal keys add NAME --verb search --keys {self.keys}, or name the file that holds them.",
            )
        return keys

    def _encoder(self, reference: str) -> Encoder:
        return load_encoder(reference, self.device, self.runtime)

    def _spending(self) -> Spending:
        return Spending(None if self.together is None else self.together / "spending.sqlite")

    def _vlms(self) -> dict[str, VisionLanguageModel]:
        """The first is `vlm`, further ones go by their reference."""
        loaded: list[VisionLanguageModel] = []
        for ref in self.vlms:
            if ref in self.in_vllm:
                loaded.append(self.in_vllm[ref])
            elif ref.startswith(("http://", "https://")):
                loaded += remote_vlms(ref, key=os.environ.get("FOVEAL_VLM_KEY"), family=self.vlm_family)
            else:
                loaded.append(load_vlm(ref, self.device))
        return {"vlm" if number == 0 else one.name: one for number, one in enumerate(loaded)}
