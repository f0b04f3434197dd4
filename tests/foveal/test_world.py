"""The sample world keeps its promises: same seed, same pixels; and the truth is true."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from foveal import world
from foveal.worldkit.catalogue import KINDS
from foveal.worldkit.language import NUMBERS, OPPOSITE
from foveal.worldkit.sprites import DRAWINGS, sprite

DOMAINS: tuple[world.Domain, ...] = ("base", "site")
SCENES = [world.render(seed, domain) for domain in DOMAINS for seed in range(30)]
SITE_ONLY = set(world.kinds("site")) - set(world.kinds("base"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_seed_same_scene_whatever_was_drawn_before(domain: world.Domain) -> None:
    first = world.render(5, domain)
    sprite.cache_clear()
    world.render(6, domain)
    again = world.render(5, domain)
    assert np.array_equal(first.image, again.image)
    assert (first.captions, first.questions, first.metadata) == (again.captions, again.questions, again.metadata)
    assert [seen.box for seen in first.objects] == [seen.box for seen in again.objects]
    assert not np.array_equal(first.image, world.render(6, domain).image)


def test_kinds_of_the_two_domains() -> None:
    assert len(world.kinds()) == 26 == len(set(world.kinds()))
    assert len(world.kinds("base")) == 22
    assert len(world.kinds("site")) == 14
    assert len(SITE_ONLY) == 4
    assert set(DRAWINGS) == set(KINDS)


def test_scenes_have_the_promised_shape() -> None:
    for scene in SCENES:
        assert scene.image.shape == (224, 224, 3)
        assert scene.image.dtype == np.uint8
        assert 2 <= len(scene.objects) <= 8
        assert scene.image.std() > 8


@pytest.mark.parametrize("size", [96, 320])
def test_other_sizes(size: int) -> None:
    scene = world.render(2, "site", size)
    assert scene.image.shape == (size, size, 3)
    assert all(seen.mask.shape == (size, size) for seen in scene.objects)


def test_a_surface_wider_than_its_grain_is_painted() -> None:
    """A pallet of 480 pixels reached past the grain's 512 where its piece of it began far in."""
    assert world.render(4, "base", 512).image.shape == (512, 512, 3)


def test_boxes_are_tight_and_masks_disjoint() -> None:
    for scene in SCENES:
        assert np.sum([seen.mask for seen in scene.objects], axis=0).max() <= 1
        for seen in scene.objects:
            rows, columns = np.flatnonzero(seen.mask.any(1)), np.flatnonzero(seen.mask.any(0))
            assert seen.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert 0.3 <= seen.visible <= 1


def test_objects_keep_to_the_catalogue() -> None:
    for scene in SCENES:
        for seen in scene.objects:
            kind = KINDS[seen.kind]
            assert seen.kind in world.kinds("base" if scene.metadata["domain"] == "base" else "site")
            assert seen.colour in kind.colours
            assert seen.material in kind.materials
            assert seen.state in ("whole", *kind.states)
            assert seen.phrase.endswith(seen.kind)


def test_words_come_from_the_vocabulary() -> None:
    known = set(world.VOCABULARY)
    assert len(known) <= 250
    for scene in SCENES:
        texts = [*scene.captions, *(seen.phrase for seen in scene.objects)]
        texts += [text for question in scene.questions for text in (question.question, question.answer)]
        for text in texts:
            assert re.fullmatch(r"[a-z]+((,? )[a-z]+)*", text), text
            assert set(text.replace(",", "").split()) <= known


def test_base_never_names_what_only_the_site_shows() -> None:
    names = {name for kind in SITE_ONLY for name in (kind, KINDS[kind].plural)}
    for scene in SCENES:
        if scene.metadata["domain"] == "base":
            said = " ".join([*scene.captions, *(question.question for question in scene.questions)])
            assert not any(name in said for name in names)


def test_counts_in_captions_are_true() -> None:
    for scene in SCENES:
        counted = Counter(seen.kind for seen in scene.objects)
        told: Counter[str] = Counter()
        for name in world.kinds():
            for number, words in enumerate(NUMBERS):
                told[name] += number * len(re.findall(rf"\b{words} {KINDS[name].plural}\b", scene.captions[2]))
            told[name] += len(re.findall(rf"\ban? {name}\b", scene.captions[2]))
        assert +told == counted


def test_first_caption_names_every_object() -> None:
    for scene in SCENES:
        for seen in scene.objects:
            several = seen.phrase.removesuffix(seen.kind) + KINDS[seen.kind].plural
            assert seen.phrase in scene.captions[0] or several in scene.captions[0]


def test_first_captions_tell_scenes_apart() -> None:
    firsts = [scene.captions[0] for scene in SCENES]
    assert len(set(firsts)) == len(firsts)


def answer(scene: world.Scene, question: str) -> str:
    """Answer from boxes and attributes alone, by other code than wrote the question."""
    objects = {seen.kind: seen for seen in scene.objects}
    counted = Counter(seen.kind for seen in scene.objects)
    if question == "how many things are there":
        return NUMBERS[len(scene.objects)]
    if found := re.fullmatch(r"how many (.+) are there", question):
        return NUMBERS[sum(n for name, n in counted.items() if KINDS[name].plural == found[1])]
    if found := re.fullmatch(r"is there an? (.+)", question):
        return "yes" if counted[found[1]] else "no"
    if found := re.fullmatch(r"what colour is the (.+)", question):
        return objects[found[1]].colour
    if found := re.fullmatch(r"what state is the (.+) in", question):
        return objects[found[1]].state
    found = re.fullmatch(rf"is the (.+) ({'|'.join(OPPOSITE)}) the (.+)", question)
    assert found, question
    p, q = objects[found[1]].box, objects[found[3]].box
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[found[2]]
    return "yes" if sign * (p[axis] + p[axis + 2] - q[axis] - q[axis + 2]) > 0 else "no"


def test_answers_are_true() -> None:
    asked: Counter[str] = Counter()
    for scene in SCENES:
        for question in scene.questions:
            asked[question.kind] += 1
            assert answer(scene, question.question) == question.answer, question
    assert set(asked) == {"count", "presence", "colour", "state", "relation"}


@pytest.mark.parametrize("kind", list(KINDS))
def test_states_and_colours_show(kind: str) -> None:
    what = KINDS[kind]
    plain = sprite(kind, what.colours[0], what.materials[0], "whole", 0)
    for state in what.states:
        material = "metal" if state == "rusty" else what.materials[0]
        assert material in what.materials
        other = sprite(kind, what.colours[0], material, state, 0)
        assert other.shape != plain.shape or np.abs(other.astype(int) - plain).mean() > 1
    other = sprite(kind, what.colours[1], what.materials[0], "whole", 0)
    assert np.abs(other.astype(int) - plain).mean() > 1


def test_write_leaves_a_complete_folder(tmp_path: Path) -> None:
    seen: list[int] = []
    out = world.write(tmp_path / "set", "site", 4, seed=3, size=128, progress=seen.append)
    assert seen == [1, 1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    names = sorted(path.name for path in (out / "images").iterdir())
    assert names == [f"site-{3 * world.STRIDE + i:07d}.jpg" for i in range(4)]
    truth = json.loads((out / "instances.json").read_text())
    assert [image["file_name"] for image in truth["images"]] == names
    assert [category["name"] for category in truth["categories"]] == list(world.kinds("site"))
    assert [category["id"] for category in truth["categories"]] == list(range(1, 15))
    scene = world.render(3 * world.STRIDE, "site", 128)
    mine = [note for note in truth["annotations"] if note["image_id"] == 1]
    assert len(mine) == len(scene.objects)
    for note, real in zip(mine, scene.objects, strict=True):
        x0, y0, x1, y1 = real.box
        assert note["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert note["attributes"] == {"colour": real.colour, "material": real.material, "state": real.state}
        assert note["area"] == real.mask.sum()
    said = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert said[0] == {"image": f"images/{names[0]}", "captions": list(scene.captions)}
    asked = [json.loads(line) for line in (out / "questions.jsonl").read_text().splitlines()]
    assert set(asked[0]) == {"image", "question", "answer", "kind"}
    with (out / "metadata.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["file_name"] for row in table] == names
    assert table[0]["camera"] == scene.metadata["camera"]
    decoded = cv2.imread(str(out / "images" / names[0]))
    assert decoded is not None
    assert np.abs(decoded[..., ::-1].astype(int) - scene.image).mean() < 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools 2.0.11 decodes the NumPy 1 way
def test_written_masks_decode_to_the_truth(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    out = world.write(tmp_path / "set", "base", 1, size=96)
    notes = json.loads((out / "instances.json").read_text())["annotations"]
    for note, seen in zip(notes, world.render(0, "base", 96).objects, strict=True):
        assert np.array_equal(coco.decode(note["segmentation"]).astype(bool), seen.mask)


def test_without_labels_no_truth_is_written(tmp_path: Path) -> None:
    out = world.write(tmp_path / "set", "site", 2, size=96, labels=False)
    assert sorted(path.name for path in out.iterdir()) == ["images", "metadata.csv"]


def test_more_workers_change_nothing(tmp_path: Path) -> None:
    one = world.write(tmp_path / "one", "base", 3, seed=1, size=96)
    two = world.write(tmp_path / "two", "base", 3, seed=1, size=96, workers=2)
    assert files(one) == files(two)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    done: list[int] = []

    def stop(step: int) -> None:
        done.append(step)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.write(tmp_path / "set", "base", 4, size=96, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_write_refuses_a_used_folder_and_bad_counts(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        world.write(tmp_path, "base", 1)
    with pytest.raises(ValueError, match="received 0"):
        world.write(tmp_path / "new", "base", 0)
    with pytest.raises(ValueError, match="choose from base, site"):
        world.kinds("nowhere")  # pyright: ignore[reportArgumentType]
