"""`foveal serve`, and the keys that a server asks for."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foveal.options import BlurPrompts, BlurRef, BlurThreshold
from foveal.printing import Json, emit, emit_rows
from foveal.registry_cli import DEFAULT_REGISTRY, RegistryDir

if TYPE_CHECKING:
    from foveal.models import VisionLanguageModel

DEFAULT_KEYS = Path("runs/keys.sqlite")
MERGED = Path("runs/vllm")  # models with adapters that vLLM cannot take
KeysFile = Annotated[Path, typer.Option("--keys", metavar="FILE", help="File of keys.")]
KeyName = Annotated[str, typer.Argument(help="Whose key it is.")]

keys_app = typer.Typer(no_args_is_help=True, help="Who may ask a server what.")


def serve(
    context: typer.Context,
    archive: Annotated[Path | None, typer.Option("--archive", metavar="DIR", help="Archive to search.")] = None,
    detector: Annotated[str | None, typer.Option(metavar="REF", help="Detector to serve.")] = None,
    open_detector: Annotated[
        str | None, typer.Option(metavar="REF", help="Detector that takes classes as text.")
    ] = None,
    vlm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF",
            help="Model that answers questions; vllm:REF runs it in vLLM, installed for the Python that "
            "FOVEAL_VLLM_PYTHON names; http://HOST:PORT/v1 asks a server with some (its key in FOVEAL_VLM_KEY). "
            "Repeatable.",
        ),
    ] = None,
    vlm_family: Annotated[
        str | None, typer.Option(metavar="NAME", help="How the models of such a server write boxes, e.g. qwen2_5_vl.")
    ] = None,
    vllm_options: Annotated[
        str, typer.Option(metavar="WORDS", help="For vLLM's own command line, e.g. '--max-model-len 4096'.")
    ] = "",
    prelabels: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Finished labelling job: label more as it did.")
    ] = None,
    memory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Memory of labelled crops, to classify and verify with.")
    ] = None,
    label_studio: Annotated[
        str | None, typer.Option(metavar="URL", help="Where Label Studio is; key in LABEL_STUDIO_API_KEY.")
    ] = None,
    corrections: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what annotators do, as Label Studio's webhook tells it.")
    ] = None,
    review: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Finished labelling job: its doubtful boxes on a page.")
    ] = None,
    gold: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Labelled images that job learned from, to show beside.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="Host that pictures may be fetched from; repeatable.")
    ] = None,
    jobs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep jobs that fetch pictures here; jobs.sqlite in the archive by default."),
    ] = None,
    keys: Annotated[Path | None, typer.Option(metavar="FILE", help="Ask for keys; see `foveal keys add`.")] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write who saw or changed what, a line of JSON each.")
    ] = None,
    blur: BlurRef = None,
    blur_prompts: BlurPrompts = None,
    blur_threshold: BlurThreshold = 0.2,
    retain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DAYS[:FILTER]", help="Remove what was added longer ago than that for good, daily; repeatable."
        ),
    ] = None,
    cache: Annotated[
        float, typer.Option(metavar="MEGABYTES", min=0, help="Of detections given again for the same file; 0: none.")
    ] = 0.0,
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Web page that may call this server; repeatable.")
    ] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    share: Annotated[
        float, typer.Option(help="Of the requests that a canary answers, or that versions are compared on.")
    ] = 0.1,
    bar: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="When a version is taken back: errors=0.02, latency=2, disagreement=0.5, least=50; repeatable.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(help="How the log on stderr is written: for people, or a line of JSON each."),
    ] = "text",
    otlp: Annotated[
        str | None, typer.Option(metavar="URL", help="Collector that OpenTelemetry traces are sent to.")
    ] = None,
    demo: Annotated[bool, typer.Option(help="Mount the pages, those that can work.")] = True,
    json_: Json = False,
) -> None:
    """Serve search, detection and embeddings over HTTP.

    Example: foveal serve --archive runs/archive --detector artifact:depot@production
    """
    from serve import logs

    gather = context.with_resource(logs.writing(log_format))
    from distill.prelabel import load_labeller
    from foveal.models import load_encoder, load_open_detector
    from retrieval.archive import Archive
    from retrieval.blur import load_blur
    from retrieval.memory import ExemplarMemory
    from retrieval.memory_files import Stored
    from retrieval.retention import Rule
    from retrieval.sources_web import Web
    from serve.app import create_app
    from serve.audit import Audit
    from serve.bars import Bars
    from serve.corrections import Corrections
    from serve.jobs import Jobs
    from serve.keys import Keys
    from serve.label_studio import Pictures
    from serve.reviewing import STORE, ReviewJob
    from serve.server import serve as run
    from serve.tracing import exporting
    from serve.versions import detector_of

    traces = context.with_resource(exporting(otlp)) if otlp else None
    opened = Archive.open(archive) if archive else None
    encoder = load_encoder(opened.encoder) if opened is not None else None
    remembered = None
    if memory is not None:
        stored = Stored.read(memory)
        own = encoder if encoder is not None and encoder.fingerprint == stored.fingerprint else None
        remembered = ExemplarMemory.load(memory, own or load_encoder(stored.encoder))
    kept = corrections or (review / STORE if review else None)
    told = Corrections(kept) if kept else None
    served = create_app(
        archive=opened,
        encoder=encoder,
        detector=detector_of(detector, registry, share, Bars.read(bar or ())) if detector else None,
        open_detector=load_open_detector(open_detector) if open_detector else None,
        models=_vlms(vlm or (), vlm_family, shlex.split(vllm_options), context),
        labeller=load_labeller(prelabels, registry=registry) if prelabels else None,
        pictures=Pictures(label_studio, os.environ.get("LABEL_STUDIO_API_KEY"), Web(allow_host or ())),
        memory=remembered,
        corrections=told,
        review=ReviewJob(review, gold, told) if review else None,
        jobs=Jobs(jobs) if jobs else None,
        keys=Keys(keys) if keys else None,
        audit=Audit(audit) if audit else None,
        blur=load_blur(blur, blur_prompts, blur_threshold, registry),
        retain=[Rule.parse(rule) for rule in retain or ()],
        cache_bytes=round(cache * 2**20),
        origins=cors_origin or (),
        traces=traces,
        demo=demo,
    )
    gather()  # of libraries that came with the models
    run(served, host, port, on_ready=lambda url: emit({"url": url}, json_))


def _vlms(
    refs: Sequence[str], family: str | None, options: Sequence[str], context: typer.Context
) -> dict[str, VisionLanguageModel]:
    """The first is `vlm`, further ones go by their reference; processes of vLLM end with the command."""
    from foveal.models import load_vlm
    from foveal.options import live_progress
    from serve import vllm_models
    from serve.vlm_http import remote_vlms

    there: dict[str, VisionLanguageModel] = {}
    if own := [ref for ref in refs if ref.startswith(vllm_models.PREFIX)]:
        servers, models = vllm_models.start(own, vllm_models.python_of(), MERGED, options, live_progress())
        for server in servers:
            context.call_on_close(server.stop)
        there = dict(zip(own, models, strict=True))
    loaded: list[VisionLanguageModel] = []
    for ref in refs:
        if ref in there:
            loaded.append(there[ref])
        elif ref.startswith(("http://", "https://")):
            loaded += remote_vlms(ref, key=os.environ.get("FOVEAL_VLM_KEY"), family=family)
        else:
            loaded.append(load_vlm(ref))
    return {"vlm" if number == 0 else one.name: one for number, one in enumerate(loaded)}


@keys_app.command("add")
def keys_add(
    name: KeyName,
    verb: Annotated[
        list[str], typer.Option(metavar="VERB", help="search, detect, ask, embed, write, metrics or pages; repeatable.")
    ],
    archive: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Archive that it may see; repeatable. All by default.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second.")] = None,
    quota: Annotated[int | None, typer.Option(help="Requests a day.")] = None,
    days: Annotated[float | None, typer.Option(help="Until it ends.")] = None,
    keys: KeysFile = DEFAULT_KEYS,
    json_: Json = False,
) -> None:
    """Make a key and show it, this once. A running server knows it at once.

    Example: foveal keys add annotators --verb detect --verb search --rate 20
    """
    from serve.keys import Keys

    emit({"name": name, "key": Keys(keys).add(name, verb, archives=archive, rate=rate, quota=quota, days=days)}, json_)


@keys_app.command("list")
def keys_list(keys: KeysFile = DEFAULT_KEYS, json_: Json = False) -> None:
    """The keys, what they are for, and how often they were used today.

    Example: foveal keys list
    """
    from serve.keys import Keys

    store = Keys(keys)
    used: dict[str, int] = store.used() if keys.is_file() else {}
    rows: list[dict[str, Any]] = [
        {
            "name": key.name,
            "verbs": ", ".join(sorted(key.verbs)),
            "archives": "all" if key.archives is None else ", ".join(sorted(key.archives)),
            "rate": key.rate,
            "quota": key.quota,
            "today": used.get(key.name, 0),
            "ends": None if key.expires is None else datetime.fromtimestamp(key.expires, UTC).isoformat(" ", "minutes"),
        }
        for key in store.list()
    ]
    if json_:
        emit({"keys": rows}, True)
    else:
        emit_rows(rows)


@keys_app.command("rotate")
def keys_rotate(
    name: KeyName,
    grace: Annotated[float, typer.Option(min=0, help="Hours that the old key still works.")] = 24.0,
    keys: KeysFile = DEFAULT_KEYS,
    json_: Json = False,
) -> None:
    """Make a new key with the rights of the old one.

    Example: foveal keys rotate annotators --grace 48
    """
    from serve.keys import Keys

    emit({"name": name, "key": Keys(keys).rotate(name, grace_hours=grace)}, json_)


@keys_app.command("revoke")
def keys_revoke(name: KeyName, keys: KeysFile = DEFAULT_KEYS, json_: Json = False) -> None:
    """Take a key back, from the next request on.

    Example: foveal keys revoke annotators
    """
    from serve.keys import Keys

    emit({"name": name, "revoked": Keys(keys).revoke(name)}, json_)
