"""Conversations about images: one type, and a reader for each form they are written in."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from foveal.detections import FloatArray
from foveal.errors import BadImage, BadInput
from foveal.formats.places import Locator, first_character, read_json
from foveal.images import content_hash, decode
from foveal.progress import Progress, track

IMAGE_WORD = "<image>"  # LLaVA's mark of where the image stands
LISTS = ("questions.jsonl", "conversations.json", "messages.jsonl")  # what a folder may hold
Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One image and what is asked and answered about it; or a phrase and its boxes, put in a family's words later."""

    image: Path
    turns: tuple[tuple[str, str], ...] = ()  # question, answer
    phrase: str | None = None
    boxes: FloatArray | None = None  # (N, 4) of the phrase, x1 y1 x2 y2 as shares of the upright image

    def key(self) -> str:
        """Everything but the image, as text that two equal dialogues share."""
        boxes = None if self.boxes is None else np.round(self.boxes, 6).tolist()
        return json.dumps([self.turns, self.phrase, boxes])


@dataclass(slots=True)
class Dialogues:
    """Dialogues whose images decode, the images that do not, and a fingerprint over words and image bytes."""

    items: list[Dialogue]
    skipped: list[tuple[Path, str]] = field(default_factory=list[tuple[Path, str]])
    images: int = 0  # different ones, the skipped included
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.items)


def open_dialogues(sources: Sequence[str | Path], progress: Progress | None = None) -> Dialogues:
    """The dialogues of one or more files or folders, in order; images that cannot be decoded are left out and listed.

    Raises:
        BadInput: a source is none of the known forms, a line is malformed, or no dialogue is left.
    """
    read = [dialogue for source in sources for dialogue in _read(Path(source).expanduser())]
    hashes: dict[Path, str] = {}
    bad: dict[Path, str] = {}
    for path in track(progress, list(dict.fromkeys(d.image for d in read)), "check images"):
        try:
            decode(path)
            hashes[path] = content_hash(path)
        except BadImage as error:
            bad[path] = error.message
    kept = [dialogue for dialogue in read if dialogue.image in hashes]
    if not kept:
        path, reason = next(iter(bad.items()), (Path(sources[0]), "it is empty"))
        raise BadInput(f"no dialogue is left of {', '.join(map(str, sources))}", received=f"{path}: {reason}")
    digest = hashlib.sha256()
    for dialogue in kept:
        digest.update(f"{hashes[dialogue.image]}{dialogue.key()}".encode())
    return Dialogues(kept, list(bad.items()), len(hashes) + len(bad), digest.hexdigest())


def _read(source: Path) -> list[Dialogue]:
    if source.is_dir():
        listed = next((source / name for name in LISTS if (source / name).is_file()), None)
        return read_boxes(source) if listed is None else _read(listed)
    if not source.is_file():
        raise BadInput(f"{source} does not exist", expected="a file or folder of dialogues", remedy="Check the path.")
    if source.suffix.lower() == ".csv":
        return read_table(source)
    if source.suffix.lower() == ".jsonl":
        return read_lines(source)
    if first_character(source) == "[":
        return read_llava(source)
    return read_boxes(source)


def read_lines(source: Path) -> list[Dialogue]:
    """JSON lines in one of `FORMS`: OpenAI's messages, LLaVA's conversations, or questions with answers.

    `{"image", "question", "answer"}` is also how `foveal world` writes its questions. Forms may be mixed.

    Raises:
        BadInput: a line is none of them; names it.
    """
    locator, found = Locator(source.parent), list[Dialogue]()
    with source.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{source} line {number}"
            try:
                entry: Any = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadInput(f"{where} is not JSON: {error.msg}") from error
            found.append(_entry(entry, where, locator))
    return found


def read_llava(source: Path) -> list[Dialogue]:
    """LLaVA's JSON: a list of `{"image", "conversations": [{"from": "human" | "gpt", "value"}]}`.

    Raises:
        BadInput: an entry is malformed; names it by its place in the list.
    """
    locator = Locator(source.parent)
    return [_entry(e, f"{source} entry {i}", locator) for i, e in enumerate(read_json(source), 1)]


def read_table(source: Path) -> list[Dialogue]:
    """CSV with the columns image, question and answer.

    Raises:
        BadInput: a column is missing, or a row lacks a value; names the line.
    """
    locator, found = Locator(source.parent), list[Dialogue]()
    with source.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        lacking = {"image", "question", "answer"} - set(rows.fieldnames or ())
        if lacking:
            raise BadInput(
                f"{source} line 1 lacks {', '.join(sorted(lacking))}",
                expected="the columns image, question and answer",
                received=", ".join(rows.fieldnames or ()),
            )
        for row in rows:
            found.append(_question(row, f"{source} line {rows.line_num}", locator))
    return found


def read_boxes(source: Path) -> list[Dialogue]:
    """COCO, or any other dataset with boxes: one dialogue for each class that an image holds.

    Raises:
        BadInput: it is no dataset, or has no boxes.
    """
    from foveal.dataset import Dataset

    found: list[Dialogue] = []
    for sample in Dataset.open(source):
        if sample.truth is None:
            continue
        sides = np.array([sample.width, sample.height] * 2, dtype=np.float32)
        names = np.array(sample.truth.label_names)
        for name in dict.fromkeys(names.tolist()):
            boxes = (sample.truth.boxes[names == name] / sides).astype(np.float32)
            found.append(Dialogue(sample.path, phrase=name, boxes=boxes))
    if not found:
        raise BadInput(f"{source} holds neither dialogues nor boxes", expected=f"COCO boxes, or {', '.join(LISTS)}")
    return found


def _entry(entry: Any, where: str, locator: Locator) -> Dialogue:
    """One dialogue of whatever form its keys show."""
    if isinstance(entry, dict):
        fields = cast("Entry", entry)
        for key, reader in FORMS.items():
            if key in fields:
                return reader(fields, where, locator)
    raise BadInput(
        f"{where} is no dialogue",
        expected=f"an object with one of {', '.join(FORMS)}",
        received=f"the keys {', '.join(map(str, entry))}" if isinstance(entry, dict) else type(entry).__name__,
    )


def _messages(entry: Entry, where: str, locator: Locator) -> Dialogue:
    """OpenAI's form; a system message is put before the first question, since not every family has such a role."""
    said: list[tuple[str, str]] = []
    images: list[str] = [entry["image"]] if isinstance(entry.get("image"), str) else []
    for message in _objects(entry["messages"], where, "messages"):
        role, content = str(message.get("role")), message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        words: list[str] = []
        for part in _objects(parts, where, "content"):
            kind = part.get("type")
            if kind in ("text", "input_text"):
                words.append(str(part.get("text", "")))
            elif kind in ("image", "image_url", "input_image"):
                images.append(_address(part, where))
            else:
                raise BadInput(f"{where} has a part of type {kind!r}", expected="text, image_url or image")
        said.append((role, " ".join(words).strip()))
    if said and said[0][0] in ("system", "developer"):
        (_, rules), *said = said
        said[:1] = [(said[0][0], f"{rules}\n\n{said[0][1]}")] if said else []
    return _dialogue(said, ("user", "assistant"), images, where, locator)


def _address(part: Entry, where: str) -> str:
    address: Any = part.get("image_url", part.get("image"))
    if isinstance(address, dict):
        address = cast("Entry", address).get("url")
    if not isinstance(address, str):
        raise BadInput(f"{where} has an image without a path")
    return address.removeprefix("file://")


def _conversations(entry: Entry, where: str, locator: Locator) -> Dialogue:
    said = [
        (str(turn.get("from")), str(turn.get("value", "")).replace(IMAGE_WORD, "").strip())
        for turn in _objects(entry["conversations"], where, "conversations")
    ]
    image: Any = entry.get("image")
    images: list[str] = image if isinstance(image, list) else [image] if isinstance(image, str) else []
    return _dialogue(said, ("human", "gpt"), images, where, locator)


def _question(entry: Entry, where: str, locator: Locator) -> Dialogue:
    said = [("q", str(entry.get("question") or "").strip()), ("a", str(entry.get("answer") or "").strip())]
    image = entry.get("image")
    return _dialogue(said, ("q", "a"), [str(image)] if image else [], where, locator)


# The key that shows a form -> its reader.
FORMS: dict[str, Callable[[Entry, str, Locator], Dialogue]] = {
    "messages": _messages,
    "conversations": _conversations,
    "question": _question,
}


def _dialogue(
    said: list[tuple[str, str]], roles: tuple[str, str], images: list[str], where: str, locator: Locator
) -> Dialogue:
    if len(images) != 1:
        raise BadInput(f"{where} has {len(images)} images", expected="one")
    if "://" in images[0] or images[0].startswith("data:"):
        raise BadInput(
            f"{where} names the image {images[0][:60]}",
            expected="a path beside the file: nothing is fetched because data says so",
            remedy="Download the images first.",
        )
    expected = [roles[i % 2] for i in range(len(said))]
    if not said or len(said) % 2 or [role for role, _ in said] != expected:
        raise BadInput(
            f"{where} does not take turns",
            expected=f"{roles[0]}, {roles[1]} and so on, an answer last",
            received=", ".join(role for role, _ in said) or "nothing",
        )
    empty = [role for role, text in said if not text]
    if empty:
        raise BadInput(f"{where} has an empty {'question' if empty[0] == roles[0] else 'answer'}")
    texts = [text for _, text in said]
    path = locator.find(images[0]) or locator.folders[0] / images[0]  # a missing one is listed with the unreadable
    return Dialogue(path, tuple(zip(texts[::2], texts[1::2], strict=True)))


def _objects(value: Any, where: str, name: str) -> Iterator[Entry]:
    items = cast("list[Any]", value) if isinstance(value, list) else None
    if items is None or not all(isinstance(item, dict) for item in items):
        raise BadInput(f"{where} has {name} that cannot be read", expected="a list of objects")
    yield from cast("list[Entry]", items)
