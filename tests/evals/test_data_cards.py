"""Data sheets: what is counted is right, what is not known is said, and the hub's library reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from evals.data_cards import QUESTIONS, UNKNOWN, About, data_sheet
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from tests.command import foveal

CLASSES = ("cat", "dog | hound")


@pytest.fixture
def pets(tmp_path: Path) -> Dataset:
    """Three pictures: two of equal bytes with boxes, one that nobody looked at."""
    samples: list[Sample] = []
    boxes = [[[0, 0, 10, 10], [0, 0, 50, 50]], []]
    labels = [["cat", "dog | hound"], []]
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (60, 40 + 10 * (number == 2)), (9, 9, 9)).save(path)
        truth = Detections.build(boxes[number], 1.0, labels[number], CLASSES) if number < 2 else None
        said = {
            "camera": "north" if number else "south",
            "time": f"2025-0{number + 1}-01T10:00:00+00:00",
            "lux": number,
        }
        samples.append(Sample(str(number), path, 60, 40 + 10 * (number == 2), truth, ("a pet",), metadata=said))
    return Dataset.build(samples, CLASSES)


def test_what_is_counted(pets: Dataset) -> None:
    text = data_sheet(pets, "runs/pets")
    for said in (
        "**pictures**: 3, 0.0 MB (3 png)",
        "**exact copies**: 1 of them, by their bytes",
        "60 x 40 to 60 x 50 pixels, median 60 x 40",
        "**boxes**: 2 on 2 pictures that were looked at, 1 each",
        "**looked at, and empty**: 1",
        "**not looked at**: 1",
        "**captions**: 3 on 3 pictures",
        "| cat | 1 | 1 | 1 | 0 | 0 |",
        r"| dog \| hound | 1 | 1 | 0 | 1 | 0 |",
        "| camera | 3 | north (2), south (1) |",
        "| lux | 3 | 0 to 2 |",
        "| time | 3 | 2025-01-01 to 2025-03-01 |",
        pets.fingerprint,
    ):
        assert said in text, said


def test_the_hub_library_reads_it(pets: Dataset) -> None:
    data = DatasetCard(data_sheet(pets, "runs/pets", About(licence="CC-BY-4.0", title="Pets", language=["en"]))).data
    told = data.to_dict()
    assert (told["license"], told["pretty_name"], told["language"]) == ("cc-by-4.0", "Pets", ["en"])
    assert told["size_categories"] == ["n<1K"]
    assert told["task_categories"] == ["object-detection", "image-to-text"]


def test_questions_are_answered_or_listed_as_open(pets: Dataset) -> None:
    asked = [question for questions in QUESTIONS.values() for question, _ in questions]
    nothing = data_sheet(pets, "pets")
    assert nothing.count(UNKNOWN) == len(asked) + 1  # and the licence
    assert all(f"- {question}" in nothing for question in asked)
    some = data_sheet(pets, "pets", About(motivation="To tell *cats* from dogs.", licence="MIT"))
    assert r"who paid for it?** To tell \*cats\* from dogs." in some
    assert f"- {asked[0]}" not in some
    assert some.count(UNKNOWN) == len(asked) - 1
    keys = {key: "said" for questions in QUESTIONS.values() for _, key in questions}
    assert "Every question above is answered." in data_sheet(pets, "pets", About(licence="MIT", **keys))


def test_pictures_with_one_label_each_and_none_at_all(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    labelled = Dataset.build([Sample("a", tmp_path / "a.png", 8, 8, label="cat")], ("cat",))
    text = data_sheet(labelled, "x")
    assert "| cat | 1 |" in text
    assert DatasetCard(text).data.to_dict()["task_categories"] == ["image-classification"]
    empty = data_sheet(Dataset.build([], ()), "x")
    assert "**pictures**: 0" in empty
    assert "task_categories" not in DatasetCard(empty).data.to_dict()


def test_the_command_refuses_an_about_file_with_other_keys(tmp_path: Path, pets: Dataset) -> None:
    (tmp_path / "about.yaml").write_text("motivaton: x\n")
    line = ["card", "data", str(tmp_path), "--out", str(tmp_path / "sheet.md")]
    assert "Did you mean motivation" in foveal(*line, "--about", str(tmp_path / "about.yaml")).error
    shown = foveal(*line, "--json")
    assert (shown.code, shown.json["images"], shown.json["unknown"]) == (0, 3, 14)
