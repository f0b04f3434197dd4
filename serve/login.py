"""Where someone at a browser gives their key, once: it stays in a cookie that only this server is sent."""

from __future__ import annotations

import html
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from evals.look import mark, variables
from serve.keys import Keys, Refused
from serve.middleware import COOKIE

DAYS = 30
_STYLE = """
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--paper);color:var(--ink);
  font:16px/1.5 system-ui,sans-serif}
form{width:min(22rem,calc(100vw - 5rem));padding:1.75rem;background:var(--card);border:1px solid var(--line);
  border-radius:12px}
h1{display:flex;gap:.6rem;align-items:center;margin:0 0 1rem;font-size:1.25rem}
label,button,input{display:block;width:100%;box-sizing:border-box;font:inherit}
input{margin:.4rem 0 1rem;padding:.6rem;color:var(--ink);background:var(--paper);border:1px solid var(--line);
  border-radius:8px}
button{padding:.6rem;border:0;border-radius:8px;background:var(--accent);color:var(--on-accent);font-weight:700;
  cursor:pointer}
p{margin:0 0 1rem;color:var(--soft)}
"""


def login(keys: Keys) -> APIRouter:
    """The page and what its button does."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    async def page(next: Annotated[str, Query(max_length=2000)] = "/") -> HTMLResponse:
        return _page(next, "This server wants a key. Whoever runs it can make one.")

    @router.post("/login")
    async def enter(
        request: Request, key: Annotated[str, Form(max_length=200)], next: Annotated[str, Form(max_length=2000)] = "/"
    ) -> Response:
        try:
            await anyio.to_thread.run_sync(keys.admit, key.strip(), "pages")
        except Refused as error:
            return _page(next, f"{error.message[:1].upper()}{error.message[1:]}.", 403)
        response = RedirectResponse(_inside(next), 303)
        response.set_cookie(
            COOKIE, key.strip(), max_age=DAYS * 86_400, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    return router


def _inside(path: str) -> str:
    """The path if it lies on this server, else the first page."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"


def _page(next: str, message: str, status: int = 200) -> HTMLResponse:
    dark = f"@media(prefers-color-scheme:dark){{:root{{{variables(1)}}}}}"
    return HTMLResponse(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Foveal</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>:root{{{variables(0)}}}{dark}{_STYLE}</style>
<form method="post" action="/login"><h1>{mark(28)}Foveal</h1><p role="status">{html.escape(message)}</p>
<label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<input type="hidden" name="next" value="{html.escape(_inside(next), quote=True)}">
<button>Open</button></form></html>""",
        status,
        {"Cache-Control": "no-store", "X-Frame-Options": "DENY"},
    )
