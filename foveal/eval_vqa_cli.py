"""`foveal eval vqa`: questions to a vision-language model, here or behind a server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from foveal.errors import BadInput, UnknownName
from foveal.eval_cli import ResultFile, ResultName, keep
from foveal.options import live_progress
from foveal.printing import Json, emit

if TYPE_CHECKING:
    from foveal.vlms import TransformersVLM
    from serve.vlm_http import RemoteVLM


def vqa(
    data: Annotated[
        list[str], typer.Option("--data", metavar="SOURCE", help="Dialogues, questions or boxes; repeatable.")
    ],
    vlm: Annotated[
        str,
        typer.Option(
            "--vlm",
            metavar="REF",
            help="Vision-language model, optionally +adapter; or http://HOST:PORT[#MODEL], a server with some (its key "
            "in FOVEAL_VLM_KEY).",
        ),
    ],
    vlm_family: Annotated[
        str | None, typer.Option(metavar="NAME", help="How a server's model writes boxes, e.g. qwen2_5_vl.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer may have.")] = 64,
    out: ResultFile = None,
    name: ResultName = None,
    json_: Json = False,
) -> None:
    """Exact match and ANLS of answers, and IoU of answered boxes.

    Example: foveal eval vqa --data runs/site --vlm hf:Qwen/Qwen2.5-VL-3B-Instruct --out runs/eval/vqa.json
    """
    from adapt.dialogues import open_dialogues
    from adapt.vlm_score import evaluate, pictures
    from evals.results import Stopwatch

    dialogues, watch, model = open_dialogues(data, live_progress()), Stopwatch(), _model(vlm, vlm_family)
    for path, reason in dialogues.skipped:
        typer.echo(f"left out {path}: {reason}", err=True)
    measured = evaluate(model, dialogues, max_tokens, live_progress())
    settings, said = {"max_tokens": max_tokens}, ", ".join(data)
    keep("vqa", watch, measured, vlm, model, said, pictures(dialogues), out, name, settings, dialogues.fingerprint)
    emit(measured.figures, json_)


def _model(reference: str, family: str | None) -> TransformersVLM | RemoteVLM:
    """What a reference names.

    Raises:
        BadInput: a family for a model that is loaded here, or a server with several models and none named.
        UnknownName: the server has no such model.
    """
    from foveal.served import is_server

    if not is_server(reference):
        from adapt.vlm_score import load

        if family is not None:
            raise BadInput(f"{reference} says itself how it writes boxes", remedy="Leave out --vlm-family.")
        return load(reference)
    from serve.vlm_http import remote_vlms

    url, _, wanted = reference.partition("#")
    if urlsplit(url).path in ("", "/"):
        url = f"{url.rstrip('/')}/v1"
    found = {one.model: one for one in remote_vlms(url, key=os.environ.get("FOVEAL_VLM_KEY"), family=family)}
    if wanted and wanted not in found:
        raise UnknownName("served model", wanted, found)
    if not wanted and len(found) > 1:
        raise BadInput(f"{url} serves {', '.join(found)}", expected="one of them", remedy=f"Ask {url}#MODEL.")
    return found[wanted] if wanted else next(iter(found.values()))
