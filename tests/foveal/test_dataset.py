import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.dataset import Dataset, Sample, check_classes
from foveal.detections import Detections, Neighbour, Provenance
from foveal.errors import BadImage, BadInput, UnknownName


def picture(path: Path, width: int = 20, height: int = 10, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    evidence = Provenance("owl@1", "site", ("owl", "dino"), (Neighbour("n1", 0.5, "cat", True),), "accept")
    rich = Detections.build(
        [[1, 2, 3.5, 4], [0, 0, 9, 9]],
        [0.5, 0.75],
        [1, 0],
        ["cat", "dog"],
        probabilities=np.array([0.25, 1], np.float32),
        masks=("", "[[1, 2, 3, 2, 3, 4]]"),
        attributes=({"colour": "red", "parts": 2}, {}),
        provenance=(evidence, Provenance("owl@1")),
    )
    paths = [picture(tmp_path / f"{i}.png", colour=c) for i, c in enumerate(["red", "green", "blue"])]
    return [
        Sample("a", paths[0], 20, 10, rich, ("a red field", "rot"), "plain", {"camera": "n", "hour": 7, "lux": 0.5}),
        Sample("b", paths[1], 20, 10, Detections.empty(["cat", "dog"])),
        Sample("c", paths[2], 20, 10),
    ]


def same(a: Sample, b: Sample) -> bool:
    if replace(a, truth=None) != replace(b, truth=None) or (a.truth is None) != (b.truth is None):
        return False
    if a.truth is None or b.truth is None:
        return True
    arrays = ("boxes", "scores", "labels", "probabilities")
    equal = all(np.array_equal(getattr(a.truth, n), getattr(b.truth, n)) for n in arrays[:3])
    probabilities = (a.truth.probabilities, b.truth.probabilities)
    equal &= (probabilities[0] is None) == (probabilities[1] is None)
    equal &= probabilities[0] is None or np.array_equal(probabilities[0], probabilities[1])
    told = ("names", "masks", "attributes", "provenance")
    return bool(equal) and all(getattr(a.truth, name) == getattr(b.truth, name) for name in told)


def test_samples_come_back_as_they_went_in(samples: list[Sample]) -> None:
    dataset = Dataset.build(iter(samples), ["cat", "dog"])
    assert len(dataset) == 3
    assert all(same(a, b) for a, b in zip(samples, dataset, strict=True))
    assert same(dataset[-1], samples[2])
    assert dataset.ids == ("a", "b", "c")
    assert dataset[2].truth is None
    assert dataset[1].truth is not None
    with pytest.raises(IndexError):
        dataset[3]


def test_subset_keeps_order_and_truth(samples: list[Sample]) -> None:
    dataset = Dataset.build(samples, ["cat", "dog"], category_ids=[7, 3])
    part = dataset.subset(np.array([2, 0]))
    assert part.ids == ("c", "a")
    assert same(part[1], samples[0])
    assert part.category_ids == (7, 3)
    assert len(dataset.subset([])) == 0


def test_many_samples_in_batches(tmp_path: Path) -> None:
    box = Detections.build([[0, 0, 1, 1]], 1.0, [0], ["x"])
    dataset = Dataset.build((Sample(str(i), tmp_path / "a.png", 5, 5, box) for i in range(1300)), ["x"])
    assert [sample.id for sample in dataset] == [str(i) for i in range(1300)]
    assert dataset[1299].id == "1299"


def test_truth_is_renumbered_by_name(samples: list[Sample]) -> None:
    dataset = Dataset.build(samples, ["dog", "bird", "cat"])
    truth = dataset[0].truth
    assert truth is not None
    assert truth.label_names == ["dog", "cat"]
    with pytest.raises(BadInput, match="'a' has boxes of class dog; expected one of cat"):
        Dataset.build(samples, ["cat"])


def test_duplicates_are_named(samples: list[Sample]) -> None:
    with pytest.raises(BadInput, match="'cat', 'dog' more than once"):
        Dataset.build(samples, ["cat", "dog", "cat", "dog"])
    with pytest.raises(BadInput, match="1 sample ids occur more than once, the first 'a'"):
        Dataset.build([samples[0], samples[0]], ["cat", "dog"])
    with pytest.raises(BadInput, match="empty class name"):
        check_classes(["a", " "])


def test_fingerprint_follows_content_not_place(samples: list[Sample], tmp_path: Path) -> None:
    def fingerprint(changed: list[Sample], classes: tuple[str, ...] = ("cat", "dog")) -> str:
        return Dataset.build(changed, classes).fingerprint

    base = fingerprint(samples)
    moved = tmp_path / "elsewhere.png"
    moved.write_bytes(samples[0].path.read_bytes())
    assert fingerprint([replace(samples[0], path=moved), *samples[1:]]) == base
    truth = samples[0].truth
    assert truth is not None
    different = [
        fingerprint([replace(samples[0], id="z"), *samples[1:]]),
        fingerprint([replace(samples[0], truth=truth[[0]]), *samples[1:]]),
        fingerprint([replace(samples[0], truth=None), *samples[1:]]),
        fingerprint([replace(samples[0], captions=()), *samples[1:]]),
        fingerprint([replace(samples[0], path=picture(tmp_path / "x.png", colour="pink")), *samples[1:]]),
        fingerprint(samples[:2]),
        fingerprint(samples, ("cat", "dog", "bird")),
    ]
    assert len({base, *different}) == 8
    with pytest.raises(BadImage, match="cannot be read"):
        fingerprint([replace(samples[0], path=tmp_path / "gone.png")])


def test_hugging_face_table_shares_the_memory(samples: list[Sample]) -> None:
    table = Dataset.build(samples, ["cat", "dog"]).table
    assert table.num_rows == 3
    assert table[0]["labels"] == [1, 0]
    assert table.filter(lambda row: row["label"] == "plain").num_rows == 1


def test_with_truth_replaces_boxes(samples: list[Sample]) -> None:
    dataset = Dataset.build(samples, ["cat", "dog"])
    other = [Detections.build([[0, 0, 1, 1]], 1.0, [0], ["bird"]), None, None]
    changed = dataset.with_truth(other, ["bird"])
    assert changed.classes == ("bird",)
    assert len(changed[0].truth or ()) == 1
    assert changed[0].captions == samples[0].captions
    with pytest.raises(BadInput, match="expected 3; received 2"):
        dataset.with_truth(other[:2])


def test_an_image_of_another_size_than_its_boxes_is_refused(samples: list[Sample]) -> None:
    assert samples[0].image().size == (20, 10)
    with pytest.raises(BadImage, match="expected 10 x 20; received 20 x 10"):
        replace(samples[0], width=10, height=20).image()


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere does not exist"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(UnknownName, match=r"no format 'coc'.*coco"):
        Dataset.open(tmp_path, "coc")
    with pytest.raises(BadInput, match="in no known data format"):
        Dataset.open(tmp_path)


def test_import_stays_light() -> None:
    code = (
        "import sys, foveal.dataset, foveal.formats, foveal.registry, foveal.config, foveal.runtime, foveal.progress;"
    )
    code += (
        "print([m for m in ('torch','transformers','datasets','pyarrow','rich','filelock','PIL') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).strip() == "[]"
