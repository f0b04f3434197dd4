"""`foveal archive search`: every option does what it says, and hits are told to people and to programs."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from foveal.detections import FloatArray
from retrieval.archive import Archive
from retrieval.ingest import identity
from tests.command import Outcome, foveal
from tests.retrieval.pixels import PixelEncoder, write_images


class FirstWord(PixelEncoder):
    """A text is the colour that its first word names, or one of its own."""

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return super().encode_texts([_colour(text) for text in texts])


def _colour(text: str) -> str:
    word = text.split()[0]
    return word if word in ImageColor.colormap else f"#{zlib.crc32(text.encode()) & 0xFFFFFF:06x}"


@pytest.fixture(autouse=True)
def _known_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.models.load_encoder", lambda *_: FirstWord())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty-four noisy colours in turn, the first of them twice, one red on its left and blue on its right."""
    made = write_images(tmp_path_factory.mktemp("world") / "images", 24)
    twin, both = (made[0].with_name(name) for name in ("twin.png", "both.png"))
    shutil.copy(made[0], twin)
    halves = Image.new("RGB", (80, 40), "red")
    halves.paste((0, 0, 255), (40, 0, 80, 40))
    halves.save(both)
    return [*made, twin, both]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, images: list[Path]) -> Path:
    path = tmp_path_factory.mktemp("kept") / "archive"
    Archive.create(path, PixelEncoder()).add(images[0].parent, PixelEncoder())
    return path


def search(archive: Path, *options: str) -> Outcome:
    shown = foveal("archive", "search", "--archive", str(archive), *options)
    assert shown.code == 0, shown.err
    return shown


def ids(archive: Path, *options: str) -> list[str]:
    return [hit["id"] for hit in search(archive, *options, "--json").json["hits"]]


def test_parts_are_weighed_and_told(archive: Path, images: list[Path]) -> None:
    liked, disliked = identity(str(images[1])), identity(str(images[2]))
    found = search(
        archive, "--text", "red", "--text", "blue *0.5", "--image", f"{images[8]}*2", "--id", liked,
        "--not-text", "green", "--not-image", f"{images[3]}*.25", "--not-id", f"{disliked}*1e-1", "--json",
    ).json  # fmt: skip
    for hit in found["hits"]:
        assert [(part["part"], part["weight"]) for part in hit["parts"]] == [
            ("text 'red'", 1), ("text 'blue'", 0.5), (f"image {images[8].name}", 2), (f"item {liked}", 1),
            ("not text 'green'", -0.5), (f"not image {images[3].name}", -0.25), (f"not item {disliked}", -0.1),
        ]  # fmt: skip
        assert sum(part["amount"] for part in hit["parts"]) == pytest.approx(hit["similarity"], abs=1e-5)


def test_an_image_an_item_and_a_crop_are_looked_for(archive: Path, images: list[Path]) -> None:
    assert ids(archive, "--id", identity(str(images[5]))) == ids(archive, "--image", str(images[5]))
    both = ("--image", str(images[-1]))
    assert ids(archive, *both)[0] == identity(str(images[-1]))
    assert ids(archive, *both, "--box", "0,0,40,40") == ids(archive, "--text", "red")
    assert ids(archive, *both, "--box", "40, 0, 80, 40") == ids(archive, "--text", "blue")


@pytest.mark.parametrize("kind", ["text", "image", "id"])
def test_what_it_should_be_unlike_sinks(archive: Path, images: list[Path], kind: str) -> None:
    red = {"text": "red", "image": str(images[0]), "id": identity(str(images[0]))}[kind]
    every = ("--text", "purple", "-k", "26")
    plain, moved = ids(archive, *every), ids(archive, *every, f"--not-{kind}", f"{red}*0.7")
    assert moved.index(identity(str(images[0]))) > plain.index(identity(str(images[0])))


def test_each_text_is_put_into_the_templates(archive: Path) -> None:
    plain, filled, meant = (
        search(archive, *asked, "--json").json["hits"][0]["similarity"]
        for asked in (
            ("--text", "green"),
            ("--text", "green", "--template", "dark{}", "--template", "dark{} too"),
            ("--text", "darkgreen"),
        )
    )
    assert filled == pytest.approx(meant, abs=1e-5)
    assert filled != pytest.approx(plain, abs=1e-3)


def test_near_duplicates_collapse_and_are_counted(archive: Path, images: list[Path]) -> None:
    twins = {identity(str(images[0])), identity(str(images[-2]))}
    asked = ("--image", str(images[0]), "-k", "2")
    assert set(ids(archive, *asked)) == twins
    found = search(archive, *asked, "--collapse", "--json").json
    assert (found["collapsed"], [hit["collapsed"] for hit in found["hits"]]) == (1, [1, 0])
    assert "stands for 1 near-duplicate too" in search(archive, *asked, "--collapse").out


def test_programs_are_told_everything(archive: Path) -> None:
    found = search(archive, "--text", "red", "--words", "red", "--filter", "hour < 12", "-k", "2", "--json").json
    assert (found["filter"], found["kept"], found["collapsed"], found["reason"]) == ("hour < 12", 12, 0, None)
    assert [hit["keywords"] for hit in found["hits"]] == [["red"], ["red"]]
    following = search(
        archive, "--text", "red", "--words", "red", "--filter", "hour < 12", "-k", "2", "--cursor", found["cursor"],
        "--json",
    ).json  # fmt: skip
    assert not {hit["id"] for hit in found["hits"]} & {hit["id"] for hit in following["hits"]}


def test_people_are_told_why_when_they_ask(archive: Path) -> None:
    asked = ("--text", "red", "--text", "dimgray*0.5", "--not-text", "blue", "--words", "red", "--filter", "hour < 12")
    told, plain = search(archive, *asked, "-k", "1", "--explain").out, search(archive, *asked, "-k", "1").out
    lines = [line.strip() for line in told.splitlines()]
    amounts = {line[9:]: float(line[:7]) for line in lines if line.startswith(("+", "-"))}
    assert list(amounts) == ["text 'red'", "text 'dimgray', weight 0.5", "not text 'blue', weight 0.5"]
    assert sum(amounts.values()) == pytest.approx(float(lines[1].split()[0]), abs=1e-3)
    assert "words matched: red" in lines
    assert lines[-1] == "12 images fit hour < 12"
    for line in (*amounts, "words matched", "images fit"):
        assert line not in plain


@pytest.mark.parametrize("columns", [80, 120])
def test_hits_fit_a_terminal_and_can_be_copied(
    archive: Path, images: list[Path], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = search(archive, "--image", str(images[7]), "-k", "3", "--explain").out.splitlines()
    (uri,) = [line for line in lines if line.endswith(str(images[7]))]
    assert uri.split()[1:] == [str(images[7])]
    assert any(line.split()[:2] == ["id", f"{identity(str(images[7]))},"] for line in lines)
    assert all(len(line) <= columns and line == line.rstrip() for line in lines if "/" not in line)


def test_a_text_that_ends_like_a_weight_is_given_one(archive: Path) -> None:
    (hit,) = search(archive, "--text", "red 2*4*1", "-k", "1", "--json").json["hits"]
    assert (hit["parts"][0]["part"], hit["parts"][0]["weight"]) == ("text 'red 2*4'", 1)
    (hit,) = search(archive, "--text", "red *.jpg", "-k", "1", "--json").json["hits"]
    assert (hit["parts"][0]["part"], hit["parts"][0]["weight"]) == ("text 'red *.jpg'", 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text", "red*0"], "'*0', which is no weight"),
        (["--text", "red*-0.5"], "--not-text"),
        (["--text", "red*1,5"], "'*1,5', which is no weight"),
        (["--not-id", "x*1000"], "up to 100"),
        (["--text", "*0.5"], "empty"),
        (["--not-text", "red"], "--id"),
        (["--id", "nobody"], "no item 'nobody'"),
        (["--text", "red", "--box", "0,0,9,9"], "one --image; received 0"),
        (["--image", "a.png", "--image", "b.png", "--box", "0,0,9,9"], "one --image; received 2"),
        (["--image", "both.png", "--box", "0,0,9"], "X1,Y1,X2,Y2"),
        (["--image", "both.png", "--box", "90,0,120,40"], "80 x 40"),
        (["--image", "both.png", "--box", "0,0,nan,40"], "80 x 40"),
        (["--image", "none.png"], "none.png"),
        (["--image", "both.png", "--template", "a {}"], "no text"),
        (["--text", "red", "--template", "a photo"], "exactly one {}"),
        (["--text", "red", *["--id", "x"] * 64], "at most 64"),
        (["--text", "red", "--diversity", "1"], "diversity"),
    ],
)
def test_what_makes_no_sense_is_refused(
    archive: Path, images: list[Path], options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images[0].parent)
    shown = foveal("archive", "search", "--archive", str(archive), *options)
    assert shown.code == 1
    assert said in shown.error
    assert "defect" not in shown.error


def test_it_says_once_that_nobody_calibrated(archive: Path, images: list[Path], tmp_path: Path) -> None:
    shutil.copytree(archive, tmp_path / "an archive")
    copy, hint = tmp_path / "an archive", f"run `foveal archive calibrate --archive '{tmp_path / 'an archive'}'`"
    assert search(copy, "--text", "red").err.count(hint) == 1
    assert hint in search(copy, "--text", "red", "--image", str(images[0])).err
    for silent in (["--image", str(images[0])], ["--words", "red"], ["--text", "red", "--json"]):
        assert "calibrate" not in search(copy, *silent).err
    assert foveal("archive", "calibrate", "--archive", str(copy)).code == 0
    shown = search(copy, "--text", "red", "-k", "1")
    assert "calibrate" not in shown.err
    assert shown.out.split()[:3] == ["similarity", "probability", "image"]
