"""JSON as everything behind it can take it: UTF-8, real numbers, whole characters, and no deeper than anyone needs.

Python's own reader lets more through: half characters ("\\ud800"), which no file or database can hold, NaN, and nesting
that later steps give up on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from itertools import chain
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

DEPTH = 64  # of lists and objects in each other


def parse(body: bytes) -> Any:
    """What a body says.

    Raises:
        json.JSONDecodeError: it is not such JSON.
    """
    try:
        text = body.decode("utf-8-sig")
        data = json.loads(text, parse_constant=_refused)
        if "\\u" in text:
            json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError("not UTF-8", "", error.start) from None
    except UnicodeEncodeError:
        raise json.JSONDecodeError("half a character (a lone surrogate)", "", 0) from None
    except RecursionError:
        raise json.JSONDecodeError(f"nested deeper than {DEPTH}", "", 0) from None
    except ValueError as error:  # a number of thousands of digits
        raise json.JSONDecodeError(str(error), "", 0) from None
    if text.count("[") + text.count("{") > DEPTH:
        _check_depth(data)
    return data


class StrictRoute(APIRoute):
    """A route whose body is read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, over such a request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_Strict(request.scope, request.receive))

        return strict


class _Strict(Request):
    async def json(self) -> Any:
        return parse(await self.body())


def _refused(constant: str) -> Any:
    raise json.JSONDecodeError(f"{constant} is not a number in JSON", "", 0)


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(DEPTH + 1):
        inner = (list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list)))
        level = list(chain.from_iterable(inner))
        if not level:
            return
    raise json.JSONDecodeError(f"nested deeper than {DEPTH}", "", 0)
