"""What may be wrong with the files of an archive beside its table and index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveal.errors import BadInput, FovealError, IntegrityError
from retrieval.feedback import Feedback
from retrieval.relevance import Model
from retrieval.settings import FILE, Settings

if TYPE_CHECKING:
    from retrieval.quarantine import Quarantine
    from retrieval.reader import Reader
    from retrieval.words import Words


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something wrong."""

    told: str
    mend: Callable[[], None] | None = None  # None: it cannot be made anew from what is here


def flaws(archive: Reader, quarantine: Quarantine, words: Words) -> Iterator[Flaw]:
    """What is found; locks are the caller's.

    Raises:
        Unavailable: another process is writing to one of the SQLite files.
    """
    yield from _descriptions(archive)
    for told in quarantine.damage():
        yield Flaw(told, quarantine.compact)
    try:
        view = archive.snapshot()
    except (FovealError, OSError, ValueError):  # the table cannot be read, which is told already
        pass
    else:
        if told := words.damage(view):
            yield Flaw(told, lambda: words.purge(view))
    if told := Feedback(archive.path / "feedback.sqlite").damage():
        yield Flaw(told)
    try:
        Model.read(archive.folder / "relevance.json")
    except IntegrityError as error:
        yield Flaw(str(error))


def _descriptions(archive: Reader) -> Iterator[Flaw]:
    """The `archive.json` of each generation; that of the one served is a copy of the archive's own."""
    for folder in sorted((archive.path / "generations").iterdir()):
        served = folder == archive.folder
        try:
            same = Settings.read(folder) == archive.settings
        except IntegrityError as error:
            yield Flaw(str(error), (lambda: archive.settings.write(archive.folder)) if served else None)
        except BadInput:  # there is none, as in one that is only begun, or a newer Foveal wrote it
            if served:
                yield Flaw(f"{folder / FILE} was missing", lambda: archive.settings.write(archive.folder))
        else:
            if served and not same:
                yield Flaw(f"{folder / FILE} and {archive.path / FILE} differ; restore them from a backup")


def mended(found: Iterator[Flaw], repair: bool) -> tuple[list[str], list[str]]:
    """What is wrong still, and what has been put right."""
    wrong: list[str] = []
    right: list[str] = []
    for flaw in list(found):
        try:
            if repair and flaw.mend is not None:
                flaw.mend()
                right.append(flaw.told)
                continue
        except IntegrityError:
            pass
        wrong.append(flaw.told)
    return wrong, right
