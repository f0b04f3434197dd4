"""XML from strangers: parsed without entities, a large file one element at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from foveal.errors import BadInput

HEAD = 64 * 2**10  # bytes within which a document type declaration would stand


def elements(path: Path, *names: str) -> Iterator[ElementTree.Element]:
    """The elements called one of `names`, in document order, each forgotten after its turn.

    Raises:
        BadInput: not XML, not UTF-8, or with a document type declaration, through which entities come.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD)
            if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head[:4]:
                raise BadInput(f"{path} is not UTF-8", remedy="Save it as UTF-8.")
            if b"<!DOCTYPE" in head or b"<!ENTITY" in head:
                raise BadInput(f"{path} declares a document type, which is not read", expected="plain XML")
            stream.seek(0)
            inside = 0
            for event, element in ElementTree.iterparse(stream, ("start", "end")):
                if element.tag in names:
                    inside += 1 if event == "start" else -1
                    if event == "end" and not inside:
                        yield element
                if event == "end" and not inside:
                    element.clear()
    except ElementTree.ParseError as error:
        raise BadInput(f"{path} is not XML: {error}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def root_name(path: Path) -> str:
    """The name of the root element, or an empty string where there is none to read."""
    try:
        with path.open("rb") as stream:
            for _, element in ElementTree.iterparse(stream, ("start",)):
                return str(element.tag)
    except (ElementTree.ParseError, OSError, ValueError):
        pass
    return ""


def number(text: str | None, where: str) -> float:
    """A finite number; BadInput names the place."""
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if value - value != 0:
        raise BadInput(f"{where} is not a number", received=repr(text))
    return value
