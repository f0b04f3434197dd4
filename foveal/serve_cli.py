"""`foveal serve`, and the keys that a server asks for."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foveal.options import BlurPrompts, BlurRef, BlurThreshold, DeviceName, EncoderRuntime
from foveal.printing import Json, emit, emit_rows
from foveal.registry_cli import DEFAULT_REGISTRY, RegistryDir

if TYPE_CHECKING:
    from serve.vlm_http import RemoteVLM

DEFAULT_KEYS = Path("runs/keys.sqlite")
MERGED = Path("runs/vllm")  # models with adapters that vLLM cannot take
KeysFile = Annotated[Path, typer.Option("--keys", metavar="FILE", help="File of keys.")]
KeyName = Annotated[str, typer.Argument(help="Whose key it is.")]

keys_app = typer.Typer(no_args_is_help=True, help="Who may ask a server what.")


def serve(
    context: typer.Context,
    archive: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|URI",
            help="Archive to search, or milvus://HOST/NAME. Repeatable; the first is the default, and the one that "
            "the pages Ask and Curate are about.",
        ),
    ] = None,
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
    device: DeviceName = None,
    runtime: EncoderRuntime = "torch",
    gpu_search: Annotated[
        bool, typer.Option("--gpu-search", help="Hold archives' vectors on the first GPU as well; needs faiss-gpu.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Processes, each with the models; more than one make no pages, which keep visitors in one."
        ),
    ] = 1,
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
    from serve.launch import Launch

    launch = Launch(
        archives=tuple(archive or ()),
        detector=detector,
        open_detector=open_detector,
        vlms=tuple(vlm or ()),
        vlm_family=vlm_family,
        in_vllm=_in_vllm(vlm or (), shlex.split(vllm_options), context),
        prelabels=prelabels,
        memory=memory,
        label_studio=label_studio,
        corrections=corrections,
        review=review,
        gold=gold,
        allow_hosts=tuple(allow_host or ()),
        jobs=jobs,
        keys=keys,
        audit=audit,
        blur=blur,
        blur_prompts=blur_prompts,
        blur_threshold=blur_threshold,
        retain=tuple(retain or ()),
        cache_megabytes=cache,
        cors_origins=tuple(cors_origin or ()),
        registry=registry,
        device=device,
        runtime=runtime,
        gpu_search=gpu_search,
        share=share,
        bars=tuple(bar or ()),
        otlp=otlp,
        demo=demo,
    )

    def ready(url: str) -> None:
        emit({"url": url}, json_)

    if workers > 1:
        from serve.workers import serve_many

        together = Path(context.with_resource(TemporaryDirectory(prefix="foveal-")))
        alike = {"together": together, "demo": False, "cache_megabytes": cache / workers}
        serve_many(
            launch.model_copy(update=alike).application,
            workers,
            host,
            port,
            together=together,
            log_format=log_format,
            on_ready=ready,
        )
        return
    from serve.server import serve as run

    app = context.with_resource(launch.application())
    gather()  # of libraries that came with the models
    run(app, host, port, on_ready=ready)


def _in_vllm(refs: Sequence[str], options: Sequence[str], context: typer.Context) -> dict[str, RemoteVLM]:
    """Models that run in vLLM, by their references; its processes end with the command."""
    from foveal.options import live_progress
    from serve import vllm_models

    own = [ref for ref in refs if ref.startswith(vllm_models.PREFIX)]
    if not own:
        return {}
    servers, models = vllm_models.start(own, vllm_models.python_of(), MERGED, options, live_progress())
    for server in servers:
        context.call_on_close(server.stop)
    return dict(zip(own, models, strict=True))


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
