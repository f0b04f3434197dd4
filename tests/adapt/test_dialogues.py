"""Dialogues read from every form they are written in, and what is wrong with a line said where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapt.dialogues import Dialogue, open_dialogues
from foveal import world
from foveal.errors import BadInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, one beside the file and one in images/."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    Image.new("RGB", (40, 20), "red").save(folder / "a.png")
    Image.new("RGB", (20, 40), "blue").save(folder / "images" / "b.png")
    return folder


def lines(folder: Path, *entries: Any, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def user(text: str, image: Any) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    return {"role": "user", "content": content}


def test_openai_messages(folder: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user("colour?", "a.png"),
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    bare = [{"role": "user", "content": "colour?"}, {"role": "assistant", "content": "blue"}]
    found = open_dialogues([lines(folder, {"messages": messages}, {"messages": bare, "image": "b.png"})])
    assert found.items == [
        Dialogue(folder / "a.png", (("Be brief.\n\ncolour?", "red"), ("sure?", "yes"))),
        Dialogue(folder / "images" / "b.png", (("colour?", "blue"),)),
    ]


def test_llava(folder: Path) -> None:
    entry = {
        "id": 1,
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\ncolour?"}, {"from": "gpt", "value": "red"}],
    }
    (folder / "llava.json").write_text(json.dumps([entry]))
    expected = [Dialogue(folder / "a.png", (("colour?", "red"),))]
    assert open_dialogues([folder / "llava.json"]).items == expected
    assert open_dialogues([lines(folder, entry)]).items == expected


def test_tables(folder: Path) -> None:
    (folder / "table.csv").write_text('image,question,answer\na.png,"colour, please?",red\nb.png,tall?,yes\n')
    found = open_dialogues([folder / "table.csv"])
    assert [d.turns for d in found.items] == [(("colour, please?", "red"),), (("tall?", "yes"),)]
    entries = [{"image": d.image.name, "question": d.turns[0][0], "answer": d.turns[0][1]} for d in found.items]
    again = open_dialogues([lines(folder, *entries)])
    assert again.items == found.items
    assert again.fingerprint == found.fingerprint
    assert open_dialogues([lines(folder, *entries[:1])]).fingerprint != found.fingerprint


def test_the_sample_worlds_questions_and_boxes(tmp_path: Path) -> None:
    made = world.write(tmp_path / "world", "base", 2, size=64)
    asked = open_dialogues([made])
    written = [json.loads(line) for line in (made / "questions.jsonl").read_text().splitlines()]
    assert [d.turns for d in asked.items] == [((q["question"], q["answer"]),) for q in written]
    boxes = open_dialogues([made / "instances.json"])
    truth = json.loads((made / "instances.json").read_text())
    pairs = {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
    assert len(boxes) == len(pairs)
    drawn = [d.boxes for d in boxes.items if d.boxes is not None]
    assert sum(len(b) for b in drawn) == len(truth["annotations"])
    first = np.array(truth["annotations"][0]["bbox"]) / 64
    np.testing.assert_allclose(drawn[0][0], [*first[:2], *(first[:2] + first[2:])], atol=1e-6)
    both = open_dialogues([made, made / "instances.json"])
    assert (len(both), both.images) == (len(asked) + len(boxes), 2)


QUESTION = {"image": "a.png", "question": "colour?", "answer": "red"}
BAD = [
    ({"image": "a.png"}, "line 2 is no dialogue; expected an object with one of messages"),
    ([1], "line 2 is no dialogue"),
    ({**QUESTION, "answer": ""}, "line 2 has an empty answer"),
    ({"question": "colour?", "answer": "red"}, "line 2 has 0 images"),
    ({**QUESTION, "image": "https://example.org/a.png"}, "line 2 names the image https.*nothing is fetched"),
    ({**QUESTION, "image": "data:image/png;base64,AAAA"}, "line 2 names the image data"),
    ({"messages": [user("?", "a.png")]}, "line 2 does not take turns"),
    ({"messages": [user("?", "a.png"), user("?", "b.png")]}, "line 2 has 2 images"),
    ({"messages": [{"role": "user", "content": 3}]}, "line 2 has content that cannot be read"),
    ({"messages": "hello"}, "line 2 has messages that cannot be read"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "line 2 has a part of type 'audio'"),
    ({"image": "a.png", "conversations": [{"from": "gpt", "value": "red"}]}, "line 2 does not take turns"),
]


@pytest.mark.parametrize(("entry", "message"), BAD)
def test_a_bad_line_is_named(folder: Path, entry: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_dialogues([lines(folder, QUESTION, entry)])


def test_bad_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        open_dialogues([folder / "nothing.jsonl"])
    (folder / "bad.jsonl").write_text('{"image": "a.png"\n')
    with pytest.raises(BadInput, match=r"bad\.jsonl line 1 is not JSON"):
        open_dialogues([folder / "bad.jsonl"])
    (folder / "bad.csv").write_text("image,question\na.png,colour?\n")
    with pytest.raises(BadInput, match=r"bad\.csv line 1 lacks answer"):
        open_dialogues([folder / "bad.csv"])
    (folder / "empty.jsonl").write_text("")
    with pytest.raises(BadInput, match="no dialogue is left"):
        open_dialogues([folder / "empty.jsonl"])


def test_bad_images_are_left_out_and_listed(folder: Path) -> None:
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    entries = [QUESTION, {**QUESTION, "image": "cut.png"}, {**QUESTION, "image": "gone.png"}]
    found = open_dialogues([lines(folder, *entries, entries[1])])
    assert [d.image.name for d in found.items] == ["a.png"]
    assert [path.name for path, _ in found.skipped] == ["cut.png", "gone.png"]
    assert found.images == 3
    with pytest.raises(BadInput, match="no dialogue is left"):
        open_dialogues([lines(folder, *entries[1:])])
