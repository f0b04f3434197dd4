"""What the pages have in common: fields, pieces of page that are clicked on, and what a visitor's key allows."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import anyio.to_thread
import gradio as gr
from gradio.data_classes import ImageData

from serve.audit import Audit
from serve.engine import Engine
from serve.items import Item
from serve.keys import Key

if TYPE_CHECKING:
    from PIL.Image import Image

EXAMPLES = 10  # pictures to try detection and questions on
MOST_SIDE = 2048  # pixels of the longer side of a picture that a session remembers
NO_PICTURE = "Choose a picture, or try one of the archive's."
SKIP: Any = gr.skip()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
# Gradio would let one visitor at a time into a handler; how much goes on at once is the engine's to say.
OURS: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
QUIET: dict[str, Any] = {**OURS, "show_progress": "hidden"}


class Picture(gr.Image):
    """An image field that hands on the uploaded file as it is: decoding, with its limits, is the engine's."""

    is_template = True  # the browser draws it as Gradio's own image field

    def preprocess(self, payload: ImageData | None) -> Any:
        if payload is not None and payload.path is not None and not (payload.url or "").startswith("data:"):
            return payload.path  # Gradio has checked that it lies in its upload folder
        return super().preprocess(payload)


def picture_field(label: str = "Picture", height: int = 230) -> Picture:
    """The field for the picture that a page is about."""
    return Picture(
        label=label, type="filepath", sources=["upload", "clipboard"], height=height, buttons=[], elem_id="fv-image"
    )


def html(value: str = "", *, js: str | None = None, elem_id: str | None = None) -> Any:
    """A piece of page; with `js`, such as `PICK`, what it does in the browser."""
    return gr.HTML(value, js_on_load=js, apply_default_css=False, elem_id=elem_id)


def busy(where: Any) -> dict[str, Any]:
    """How an event shows that it is at work: on the piece of page where its result will be."""
    return {**OURS, "show_progress": "minimal", "show_progress_on": where}


def told(event: gr.EventData, name: str) -> str:
    """What the browser told with an event; empty where it told nothing of that name."""
    return str(getattr(event, name, None) or "")


async def pixels(engine: Engine, source: bytes | Item) -> Image:
    """An uploaded file, or an item of the archive, no larger than a session should remember."""
    image = await (engine.decode(source) if isinstance(source, bytes) else engine.picture(source))
    if max(image.size) > MOST_SIDE:
        image = image.copy()
        image.thumbnail((MOST_SIDE, MOST_SIDE))
    return image


def may_write(request: gr.Request) -> bool:
    """Whether the visitor's key may change things; without keys everyone may."""
    key = cast("Key | None", _scope(request).get("foveal.key"))
    return key is None or "write" in key.verbs


def may_see_figures(request: gr.Request) -> bool:
    """Whether the visitor's key may see what `/metrics` and `/v1/versions` tell; without keys everyone may."""
    key = cast("Key | None", _scope(request).get("foveal.key"))
    return key is None or "metrics" in key.verbs


async def note_change(request: gr.Request, what: str, archive: str, ids: Collection[str]) -> None:
    """Writes what a visitor changed where the server keeps an audit; `what` is the page and the click."""
    key, audit = (cast(Any, _scope(request).get(name)) for name in ("foveal.key", "foveal.audit"))
    if audit is not None and ids:
        facts = {"key": key and key.name, "method": "PAGE", "path": what, "status": 200}
        await anyio.to_thread.run_sync(lambda: cast(Audit, audit).write([(archive, id) for id in ids], **facts))


def _scope(request: gr.Request) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], request.request.scope)  # pyright: ignore[reportOptionalMemberAccess, reportUnknownMemberType]


def took(began: float) -> str:
    """The time since, for people."""
    seconds = time.perf_counter() - began
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds * 1000:.0f} ms"


def counted(count: int, thing: str, things: str | None = None) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def facts(engine: Engine) -> Sequence[str]:
    """What the bar on top says is served."""
    return [f"{counted(len(archive), 'picture')} in {name}" for name, archive in engine.archives.items()]
