import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal import masks
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, Neighbour, Provenance
from foveal.errors import BadInput, FovealError
from foveal.formats import FORMATS, coco, cvat, label_studio, predictions, voc, yolo
from foveal.formats.regions import detections, regions
from tests.foveal.test_dataset import picture, same

CLASSES = ("forklift", "pallet jack", "box: déjà", "42")
WIDTH, HEIGHT = 37, 53

finite = st.floats(0, 1, width=32)
text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@st.composite
def boxes_in(draw: st.DrawFn, width: int, height: int, models: bool = False) -> Detections:
    count = draw(st.integers(0, 4))
    corners = np.array(draw(st.lists(finite, min_size=4 * count, max_size=4 * count)), np.float32).reshape(-1, 2, 2)
    corners = np.sort(corners, axis=1) * np.array([width, height], np.float32)
    labels = draw(st.lists(st.integers(0, len(CLASSES) - 1), min_size=count, max_size=count))
    if not models:
        return Detections.build(corners.reshape(-1, 4), 1.0, labels, CLASSES)
    scores = draw(st.lists(finite, min_size=count, max_size=count))
    neighbours = st.builds(Neighbour, text, st.floats(-1, 1), st.sampled_from(CLASSES), st.booleans())
    evidence = st.builds(
        Provenance, text, st.none() | text, st.tuples(text), st.tuples(neighbours), st.sampled_from(["accept", None])
    )
    return Detections.build(
        corners.reshape(-1, 4),
        np.array(scores, np.float32),
        labels,
        CLASSES,
        probabilities=np.array(draw(st.lists(finite, min_size=count, max_size=count)), np.float32),
        provenance=tuple(draw(st.lists(evidence, min_size=count, max_size=count))),
    )


metadata = st.dictionaries(text, text | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False), max_size=3)
quick = settings(max_examples=100, deadline=None)
eager = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def once(path: Path) -> Path:
    return path if path.exists() else picture(path, WIDTH, HEIGHT)


def make(folder: Path, truths: list[Detections | None], **rest: object) -> Dataset:
    samples = [
        Sample(str(i), once(folder / "src" / f"{i}.png"), WIDTH, HEIGHT, truth, **rest)
        for i, truth in enumerate(truths, start=1)
    ]
    return Dataset.build(samples, CLASSES)


def alike(a: Dataset, b: Dataset, ignore: dict[str, object] | None = None) -> None:
    """Equal sample by sample, but for where the files lie."""
    assert a.classes == b.classes
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.path.read_bytes() == right.path.read_bytes()
        changes = {"path": Path(), **(ignore or {})}
        assert same(replace(left, **changes), replace(right, **changes)), (left, right)


@quick
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_coco_boxes_are_exact(values: list[float]) -> None:
    box = np.sort(np.array(values, np.float32).reshape(2, 2), axis=0).reshape(4)
    read = predictions.from_xywh(json.loads(json.dumps(predictions.to_xywh(box))), "here")
    if (box >= 0).all():
        assert np.array_equal(read, box)
    # a corner beside zero of a box that begins far outside the image is finer than x + width can say in doubles
    np.testing.assert_allclose(read, box, rtol=6e-8, atol=1e-9)


@quick
@given(st.integers(1, 9000), st.integers(1, 9000), st.data())
def test_label_studio_regions_give_the_boxes_back(width: int, height: int, data: st.DataObject) -> None:
    boxes = data.draw(boxes_in(width, height, models=True))
    result = json.loads(json.dumps(regions(boxes, width, height)))
    found = detections({"result": result}, CLASSES, width, height)
    np.testing.assert_allclose(found.boxes, boxes.boxes, rtol=6e-8, atol=1e-11)
    assert found.label_names == boxes.label_names
    assert np.array_equal(found.scores, boxes.scores)
    assert not len(boxes) or found.provenance == boxes.provenance


@eager
@given(st.lists(st.none() | boxes_in(WIDTH, HEIGHT), min_size=1, max_size=3), st.lists(text, max_size=2), metadata)
def test_coco_keeps_everything(tmp_path: Path, truths: list, captions: list[str], extra: dict) -> None:
    dataset = make(tmp_path, truths, captions=tuple(captions), metadata=extra, label="day")
    dataset.write(tmp_path / "out", "coco")
    alike(dataset, Dataset.open(tmp_path / "out"))


@eager
@given(st.lists(boxes_in(WIDTH, HEIGHT, models=True), min_size=1, max_size=3))
def test_coco_keeps_pseudo_labels_with_their_evidence(tmp_path: Path, truths: list) -> None:
    dataset = make(tmp_path, [t if len(t) else Detections.empty(CLASSES) for t in truths])
    dataset.write(tmp_path / "out.json", "coco")
    alike(dataset, Dataset.open(tmp_path / "out.json"))


@eager
@given(st.lists(st.none() | boxes_in(WIDTH, HEIGHT), min_size=1, max_size=3))
def test_yolo_is_exact_to_the_float(tmp_path: Path, truths: list) -> None:
    if all(truth is None for truth in truths):
        truths = [Detections.empty(CLASSES)]
    dataset = make(tmp_path, truths)
    dataset.write(tmp_path / "out", "yolo")
    for left, right in zip(dataset, Dataset.open(tmp_path / "out"), strict=True):
        assert (left.truth is None) == (right.truth is None)
        if left.truth is not None and right.truth is not None:
            # a fraction of the image is a double; near zero a float32 is finer than that
            np.testing.assert_allclose(left.truth.boxes, right.truth.boxes, rtol=6e-8, atol=1e-13)
            assert left.truth.label_names == right.truth.label_names


@eager
@given(st.lists(st.integers(0, 40), min_size=4, max_size=4), st.integers(1, 9))
def test_yolo_and_label_studio_keep_fractional_boxes(tmp_path: Path, corners: list[int], parts: int) -> None:
    x, y = sorted(corners[:2]), sorted(corners[2:])
    box = np.array([[x[0], y[0], x[1], y[1]]], np.float32) / np.float32(parts)
    dataset = make(tmp_path, [Detections.build(box, 1.0, [3], CLASSES)])
    for name in ("yolo", "label_studio"):
        dataset.write(tmp_path / name, name)
        truth = Dataset.open(tmp_path / name)[0].truth
        assert truth is not None
        np.testing.assert_allclose(truth.boxes, box, rtol=0, atol=1e-12)


@eager
@given(st.lists(st.none() | boxes_in(WIDTH, HEIGHT), min_size=1, max_size=3), metadata)
def test_label_studio_keeps_annotations(tmp_path: Path, truths: list, extra: dict) -> None:
    dataset = make(tmp_path, truths, metadata=extra, captions=("a", "b"))
    dataset.write(tmp_path / "out", "label_studio")
    opened = Dataset.open(tmp_path / "out")
    alike(dataset, opened, {"truth": None})
    for left, right in zip(dataset, opened, strict=True):
        assert (left.truth is None) == (right.truth is None)
        if left.truth is not None and right.truth is not None:
            np.testing.assert_allclose(left.truth.boxes, right.truth.boxes, rtol=6e-8, atol=1e-13)


@eager
@given(st.lists(boxes_in(WIDTH, HEIGHT, models=True), min_size=1, max_size=2))
def test_predictions_keep_the_whole_record(tmp_path: Path, made: list[Detections]) -> None:
    dataset = make(tmp_path, [None] * len(made))
    predictions.write(tmp_path / "predictions.json", dataset, made)
    label_studio.write(dataset, tmp_path / "tasks.json", predictions=made, model_version="owl@1")
    opened = label_studio.read(tmp_path / "tasks.json", images=tmp_path / "src")
    assert all(sample.truth is None for sample in opened), "a prediction is no truth"
    for found in (
        predictions.read(tmp_path / "predictions.json", dataset),
        label_studio.read_predictions(tmp_path / "tasks.json", dataset, "owl@1"),
    ):
        for left, right in zip(made, found, strict=True):
            np.testing.assert_allclose(left.boxes, right.boxes, rtol=6e-8, atol=1e-13)
            assert np.array_equal(left.scores, right.scores)
            if len(left):
                assert np.array_equal(left.probabilities, right.probabilities)  # type: ignore[arg-type]
                assert left.provenance == right.provenance


@eager
@given(st.lists(text, min_size=1, max_size=3), metadata)
def test_captions_keep_captions_and_metadata(tmp_path: Path, captions: list[str], extra: dict) -> None:
    dataset = make(tmp_path, [None, None], captions=tuple(captions), metadata=extra)
    dataset = Dataset.build(dataset, ())
    dataset.write(tmp_path / "out", "captions")
    alike(dataset, Dataset.open(tmp_path / "out"))


def test_image_folders(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "dog/deep/1.png"):
        picture(tmp_path / "in" / name, colour=name.partition("/")[0].replace("cat", "red").replace("dog", "blue"))
    (tmp_path / "in" / "dog" / "broken.jpg").write_bytes(b"<html>")
    dataset = Dataset.open(tmp_path / "in")
    assert dataset.classes == ("cat", "dog")
    assert [(s.id, s.label) for s in dataset] == [("cat/1.png", "cat"), ("dog/1.png", "dog"), ("dog/deep/1.png", "dog")]
    assert [path.name for path, _ in dataset.skipped] == ["broken.jpg"]
    assert "is not an image" in dataset.skipped[0][1]
    for name in ("image_folder", "images"):
        dataset.write(tmp_path / name, name)
        assert Dataset.open(tmp_path / name, name).ids == dataset.ids
    assert Dataset.open(tmp_path / "image_folder").fingerprint == dataset.fingerprint


def test_plain_folders_and_single_images(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "2021" / "a.png", 7, 5)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"")
    dataset = Dataset.open(tmp_path / "in")
    assert (dataset[0].id, dataset[0].width, dataset[0].height, dataset[0].label) == ("2021/a.png", 7, 5, None)
    assert len(dataset.skipped) == 1
    assert len(Dataset.open(tmp_path / "in" / "2021" / "a.png")) == 1
    with pytest.raises(BadInput, match=r"no usable image.*received 1 that cannot be read"):
        Dataset.open(tmp_path / "in" / "bad.jpg")


def test_equal_names_from_two_folders_do_not_collide(tmp_path: Path) -> None:
    truth = Detections.empty(CLASSES)
    samples = [
        Sample(str(i), picture(tmp_path / "src" / folder / "1.png", 5, 5, colour), 5, 5, truth)
        for i, (folder, colour) in enumerate([("a", "red"), ("b", "blue"), ("c", "green")])
    ]
    dataset = Dataset.build(samples, CLASSES)
    for name in ("coco", "yolo", "label_studio"):
        dataset.write(tmp_path / name, name)
        opened = Dataset.open(tmp_path / name)
        assert sorted(s.path.read_bytes() for s in opened) == sorted(s.path.read_bytes() for s in samples)


def instances(folder: Path, **changes: object) -> Path:
    """A minimal COCO file with odd ids, beside its images."""
    picture(folder / "images" / "a.jpg", 20, 10)
    picture(folder / "images" / "b.jpg", 20, 10)
    content = {
        "images": [
            {"id": 900_000_000_001, "file_name": "a.jpg", "width": 20, "height": 10},
            {"id": -3, "file_name": "b.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": -3, "category_id": 90, "bbox": [210.4, 50.4, 28.8, 21.6], "area": 1},
            {"id": 2, "image_id": -3, "category_id": 7, "bbox": [1, 1, 2, 2], "iscrowd": 1},
            {"id": 3, "image_id": 900_000_000_001, "category_id": 7, "bbox": [0, 0, 4, 4],
             "segmentation": [[0, 0, 4, 0, 4, 4]]},
        ],
        "categories": [{"id": 90, "name": "box"}, {"id": 7, "name": "person"}],
    }  # fmt: skip
    content.update(changes)
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def test_coco_ids_crowds_and_shapes(tmp_path: Path) -> None:
    dataset = Dataset.open(instances(tmp_path).parent)
    assert dataset.classes == ("person", "box")
    assert dataset.category_ids == (7, 90)
    assert dataset.ids == ("900000000001", "-3")
    truth = dataset[1].truth
    assert truth is not None
    assert truth.label_names == ["box"], "a crowd is no object"
    assert json.loads(str(dataset[1].metadata["crowd"])) == [{"bbox": [1.0, 1.0, 2.0, 2.0], "category": "person"}]
    assert dataset[1].width == 20, "a missing size is read from the header"
    dataset.write(tmp_path / "out", "coco")
    again = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert [c["id"] for c in again["categories"]] == [7, 90]
    assert {tuple(a["bbox"]): a["iscrowd"] for a in again["annotations"]} == {
        (0, 0, 4, 4): 0, (210.4, 50.4, 28.8, 21.6): 0, (1, 1, 2, 2): 1,
    }  # fmt: skip
    assert again["annotations"][0]["segmentation"] == [[0, 0, 4, 0, 4, 4]]
    assert same(replace(Dataset.open(tmp_path / "out")[1], path=Path()), replace(dataset[1], path=Path()))


@pytest.mark.parametrize("place", ["", "images", "../images", "../images/train2017", "../train2017"])
def test_coco_images_are_found_where_people_keep_them(tmp_path: Path, place: str) -> None:
    source = instances(tmp_path / "annotations")
    target = (source.parent / place).resolve()
    target.mkdir(parents=True, exist_ok=True)
    for image in list((source.parent / "images").glob("*.jpg")):
        image.rename(target / image.name)
    moved = source.rename(source.with_name("instances_train2017.json"))
    assert len(Dataset.open(moved)) == 2


def test_coco_missing_images(tmp_path: Path) -> None:
    source = instances(tmp_path)
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(BadInput, match=r"names 1 of 2 images that are missing, the first b\.jpg.*skip_missing"):
        Dataset.open(source)
    dataset = coco.read(source, skip_missing=True)
    assert dataset.ids == ("900000000001",)
    assert dataset.skipped == ((Path("b.jpg"), "missing"),)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(BadInput, match="2 of 2"):
        coco.read(source, skip_missing=True)


def box(**changes: object) -> list[dict]:
    return [{"id": 5, "image_id": -3, "category_id": 7, "bbox": [0, 0, 1, 1], **changes}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]}, "names 'cat' more than once"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}, "two categories one id"),
        ({"categories": [{"name": "cat"}]}, "malformed category"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}] * 2}, "two images one id"),
        ({"images": [{"id": 1}]}, "malformed image"),
        ({"images": 3}, "is not a COCO file"),
        ({"annotations": box(image_id=1)}, "annotation of an image that it does not list"),
        ({"annotations": box(category_id=1)}, "category 1; expected one of 7, 90"),
        ({"annotations": box(bbox=[0, 0, -1, 1])}, r"annotation 5, has an impossible box.*\[0, 0, -1, 1\]"),
        ({"annotations": box(bbox=[0, 0, 1])}, "annotation 5, has a malformed box"),
        ({"annotations": box(bbox=None)}, "malformed box"),
        ({"annotations": box(bbox=[0, 0, "nan", 1])}, "impossible box"),
    ],
)
def test_coco_mistakes_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Dataset.open(instances(tmp_path, **changes))


def test_coco_without_categories_is_unlabelled_and_captions_are_read(tmp_path: Path) -> None:
    captions = [{"id": 1, "image_id": -3, "caption": "one"}, {"id": 2, "image_id": -3, "caption": "two"}]
    dataset = Dataset.open(instances(tmp_path, categories=[], annotations=captions))
    assert dataset[1].truth is None
    assert dataset[1].captions == ("one", "two")


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [\n}')
    with pytest.raises(BadInput, match=r"a\.json is not JSON.*line 2"):
        Dataset.open(tmp_path / "a.json")


def test_a_world_folder_opens_with_truth_captions_and_metadata(tmp_path: Path) -> None:
    instances(tmp_path)
    (tmp_path / "captions.jsonl").write_text('{"image": "b.jpg", "captions": ["a box", "one box"]}\n')
    with (tmp_path / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["image", "camera", "hour", "code"], ["images/b.jpg", "north", "7.5", "007"]])
    sample = Dataset.open(tmp_path)[1]
    assert sample.captions == ("a box", "one box")
    assert sample.metadata.items() >= {"camera": "north", "hour": 7.5, "code": "007"}.items()
    assert len(sample.truth or ()) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0 0.5 0.5 0.1\n", r"a\.txt line 1 is malformed; expected class cx cy w h; received 3 numbers"),
        ("\n9 0.5 0.5 0.1 0.1\n", r"line 2 has no such class; expected 0\.\.1; received 9"),
        ("0.5 0.5 0.5 0.1 0.1\n", "no such class"),
        ("0 10 10 5 5\n", "not in fractions.*Divide x and w"),
        ("0 0.5 0.5 -0.1 0.1\n", "not in fractions"),
        ("0 nan 0.5 0.1 0.1\n", "malformed"),
        ("cat 0.5 0.5 0.1 0.1\n", "is not numbers"),
    ],
)
def test_yolo_mistakes_are_named(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Dataset.open(yolo_data(tmp_path, lines))


def yolo_data(folder: Path, lines: str, names: str = "[cat, dog]") -> Path:
    picture(folder / "images" / "train" / "a.jpg", 20, 10)
    picture(folder / "images" / "val" / "a.jpg", 20, 10, "blue")
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "labels" / "train" / "a.txt").write_text(lines)
    (folder / "data.yaml").write_text(f"path: /gone/machine\ntrain: images/train\nval: images/val\nnames: {names}\n")
    return folder


def test_yolo_splits_polygons_and_scores(tmp_path: Path) -> None:
    dataset = Dataset.open(yolo_data(tmp_path, "0 0.5 0.5 0.5 1 0.25\n1 0 0 0.5 0 0.5 0.5\n", "{0: cat, 1: dog}"))
    assert [(s.id, s.metadata["split"]) for s in dataset] == [("train/a.jpg", "train"), ("val/a.jpg", "val")]
    truth = dataset[0].truth
    assert truth is not None
    assert truth.boxes.tolist() == [[5, 0, 15, 10], [0, 0, 10, 5]]
    assert truth.scores.tolist() == [0.25, 1]
    assert dataset[1].truth is None
    dataset.write(tmp_path / "out", "yolo")
    assert Dataset.open(tmp_path / "out").fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[cat, cat]", "'cat' more than once"),
        ("{0: cat, 0: dog}", "names 0 twice"),
        ("{0: cat, 2: dog}", "with gaps"),
        ("null", "names no classes"),
    ],
)
def test_yolo_class_lists(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        yolo.read(yolo_data(tmp_path, "", names))


def test_yolo_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    with pytest.raises(BadInput, match="which is missing"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.jpg"}', "line 2 is no caption"),
        ('{"captions": ["x"]}', "line 2 is no caption"),
        ('{"image": "a.jpg", "captions": [1]}', "line 2 is no caption"),
        ("[1]", "line 2 is no JSON object"),
        ("{", "line 2 is not JSON"),
        ('{"image": "b.jpg", "caption": "x"}', r"names 1 of 2 images that are missing, the first b\.jpg"),
    ],
)
def test_caption_mistakes_are_named(tmp_path: Path, line: str, message: str) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "captions.jsonl").write_text('{"image": "a.jpg", "caption": "x"}\n' + line)
    with pytest.raises(BadInput, match=message):
        Dataset.open(tmp_path)


def test_caption_csv_merges_rows(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "pairs.csv").write_text('image,caption,camera\na.jpg,"one, two",north\na.jpg,three,north\n')
    sample = Dataset.open(tmp_path / "pairs.csv")[0]
    assert sample.captions == ("one, two", "three")
    assert sample.metadata == {"camera": "north"}


def exported(folder: Path, *regions: dict, **annotation: object) -> Path:
    picture(folder / "photo.jpg", 200, 100)
    task = {
        "id": 12,
        "data": {"image": "/data/upload/1/0a1b2c3d-photo.jpg", "camera": "north"},
        "annotations": [
            {"result": [], "was_cancelled": True},
            {"result": list(regions), "was_cancelled": False, **annotation},
        ],
        "predictions": [],
    }
    (folder / "export.json").write_text(json.dumps([task, {**task, "id": 13, "annotations": []}]))
    return folder / "export.json"


def region(name: str | None = "cat", **value: object) -> dict:
    shape = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, **value}
    return {"type": "rectanglelabels", "value": shape | ({"rectanglelabels": [name]} if name else {})}


def test_label_studio_exports_open(tmp_path: Path) -> None:
    choice = {"type": "choices", "value": {"choices": ["x"]}}
    turned = region("dog", rotation=90)
    shape = {"type": "polygonlabels", "value": {"points": [[0, 0], [50, 0], [0, 50]], "polygonlabels": ["cat"]}}
    dataset = Dataset.open(exported(tmp_path, region(), choice, turned, shape))
    assert dataset.ids == ("12", "13")
    assert dataset.classes == ("cat", "dog")
    truth = dataset[0].truth
    assert truth is not None
    np.testing.assert_allclose(truth.boxes, [[20, 20, 80, 60], [-20, 20, 20, 80], [0, 0, 100, 50]], atol=1e-5)
    assert dataset[1].truth is None
    assert dataset[0].metadata == {"camera": "north"}


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        ([region(None)], "a region has no class"),
        ([region() | {"image_rotation": 90}], "drawn on a turned image"),
        ([region(x="left")], "malformed"),
    ],
)
def test_label_studio_slips_skip_the_task(tmp_path: Path, regions: list[dict], reason: str) -> None:
    dataset = Dataset.open(exported(tmp_path, *regions))
    assert dataset.ids == ("13",)
    assert reason in dataset.skipped[0][1]


def test_label_studio_tasks_are_what_it_imports(tmp_path: Path) -> None:
    made = Detections.build(
        [[0, 0, WIDTH, HEIGHT / 2]], [0.5], [1], CLASSES, probabilities=np.array([0.9], np.float32),
        provenance=(Provenance("owl@1", neighbours=(Neighbour("n", 0.5, "x", True),), route="review"),),
    )  # fmt: skip
    dataset = make(tmp_path, [None, None])
    label_studio.write(dataset, tmp_path / "t.json", predictions=[made, Detections.empty(CLASSES)], model_version="v")
    tasks = json.loads((tmp_path / "t.json").read_text())
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=1.png"
    (prediction,) = tasks[0]["predictions"]
    (found,) = prediction["result"]
    assert (prediction["model_version"], round(prediction["score"], 3)) == ("v", 0.9)
    assert found["value"] == {
        "x": 0, "y": 0, "width": 100, "height": 50, "rotation": 0, "rectanglelabels": ["pallet jack"],
    }  # fmt: skip
    assert (found["from_name"], found["to_name"], found["original_width"]) == ("label", "image", WIDTH)
    assert found["meta"]["text"] == ["90%, review, 1/1 neighbours"]
    assert tasks[1]["predictions"][0]["result"] == [], "a missing result would drop the batch"
    config = ElementTree.parse(tmp_path / "t.xml").getroot()
    assert [label.get("value") for label in config.iter("Label")] == list(CLASSES)
    assert next(config.iter("RectangleLabels")).attrib == {"name": "label", "toName": "image"}
    with pytest.raises(BadInput, match="expected 2; received 1"):
        label_studio.write(dataset, tmp_path / "t.json", predictions=[made])


def test_predictions_keep_sample_ids_that_are_no_numbers(tmp_path: Path) -> None:
    images = [Sample(f"{n}.png", picture(tmp_path / f"{n}.png"), 20, 10) for n in "ab"]
    dataset = Dataset.build(images, CLASSES)
    made = [Detections.empty(CLASSES), Detections.build([[0, 0, 1, 1]], [0.5], [0], CLASSES)]
    records = predictions.to_records(dataset, made)
    assert records == [
        {"image_id": 2, "sample_id": "b.png", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    ]  # fmt: skip
    found = predictions.from_records(dataset.subset([1]), records)
    assert len(found[0]) == 1, "the id holds in a subset too"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"image_id": 1}], "record 0 of .* is not a detection"),
        ([{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], "for image 9, which the data lacks"),
        ([{"image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1], "score": 1}], "box of category 9"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 3}], "score lies outside"),
        ({}, "not a COCO result file"),
    ],
)
def test_wrong_predictions_are_named(tmp_path: Path, records: object, message: str) -> None:
    dataset = make(tmp_path, [None])
    (tmp_path / "p.json").write_text(json.dumps(records))
    with pytest.raises(BadInput, match=message):
        predictions.read(tmp_path / "p.json", dataset)


@pytest.mark.parametrize("name", ["captions", "image_folder", "yolo"])
def test_formats_say_what_they_need(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"no sample has|has no label"):
        make(tmp_path, [None]).write(tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_source_that_goes_missing_leaves_nothing_half_written(tmp_path: Path, name: str) -> None:
    dataset = make(tmp_path, [Detections.empty(CLASSES)] * 2, captions=("x",), label="day")
    dataset[1].path.unlink()
    with pytest.raises(BadInput, match=r"2\.png cannot be copied: No such file"):
        dataset.write(tmp_path / "out", name)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_upright_sizes_are_recorded(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "in" / "a.jpg", exif=exif)
    sample = Dataset.open(tmp_path / "in")[0]
    assert (sample.width, sample.height) == sample.image().size == (20, 30)


def exact(a: Detections | None, b: Detections | None) -> None:
    """The same boxes, labels and scores, to the last bit."""
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert np.array_equal(a.boxes, b.boxes)
        assert np.array_equal(a.scores, b.scores)
        assert a.label_names == b.label_names


@eager
@given(st.lists(st.none() | boxes_in(WIDTH, HEIGHT, models=True), min_size=1, max_size=3))
def test_voc_is_exact_to_the_float(tmp_path: Path, truths: list) -> None:
    plain = [None if t is None else replace(t, probabilities=None, provenance=None) for t in truths]
    if all(truth is None for truth in plain):
        plain = [Detections.empty(CLASSES)]
    dataset = make(tmp_path, plain)
    dataset.write(tmp_path / "out", "voc")
    back = {sample.path.name: sample.truth for sample in Dataset.open(tmp_path / "out")}
    assert Dataset.open(tmp_path / "out").classes == CLASSES
    assert set(back) == {sample.path.name for sample in dataset}
    for sample in dataset:
        exact(sample.truth, back[sample.path.name])


@eager
@given(st.lists(boxes_in(WIDTH, HEIGHT, models=True), min_size=1, max_size=3))
def test_cvat_is_exact_to_the_float(tmp_path: Path, truths: list) -> None:
    dataset = make(tmp_path, [replace(t, probabilities=None, provenance=None) for t in truths])
    dataset.write(tmp_path / "out", "cvat")
    for left, right in zip(dataset, Dataset.open(tmp_path / "out"), strict=True):
        exact(left.truth, right.truth)
    dataset.write(tmp_path / "alone.xml", "cvat")
    assert len(cvat.read(tmp_path / "alone.xml", images=tmp_path / "src")) == len(dataset)


EXPORT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><job><labels><label><name>box</name></label><label><name>disc</name></label></labels></job></meta>
<image id="0" name="a/one.png" width="37" height="53" subset="Train">
  <box label="box" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90" z_order="0"/>
  <polygon label="disc" points="1.5,2;7,3;4,9.25"><attribute name="dull">true</attribute></polygon>
  <mask label="disc" rle="1, 5, 24" left="3" top="4" width="5" height="6"/>
  <ellipse label="disc" cx="10" cy="20" rx="3" ry="4"/>
  <tag label="box"/>
</image>
<image id="1" name="two.png" width="37" height="53"/>
</annotations>"""


def test_what_cvat_exports(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a" / "one.png", WIDTH, HEIGHT)
    picture(tmp_path / "images" / "two.png", WIDTH, HEIGHT)
    (tmp_path / "annotations.xml").write_text(EXPORT)
    first, second = Dataset.open(tmp_path)
    assert first.truth is not None
    expected = [[13, 7, 17, 17], [1.5, 2, 7, 9.25], [3, 4, 8, 10], [7, 16, 13, 24]]
    np.testing.assert_allclose(first.truth.boxes, expected, atol=1e-5)
    assert first.truth.label_names == ["box", "disc", "disc", "disc"]
    assert second.truth is not None
    assert len(second.truth) == 0
    assert first.truth.attributes == ({}, {"dull": "true"}, {}, {})
    assert first.truth.masks is not None
    assert first.truth.masks[1] == "[[1.5, 2.0, 7.0, 3.0, 4.0, 9.25]]"
    kept = masks.decode(first.truth.masks[2], HEIGHT, WIDTH)
    assert kept.sum() == 5
    assert kept[4, 4:8].all()
    assert kept[5, 3]
    with pytest.raises(BadInput, match="a mask is malformed"):
        cvat.read(_text(tmp_path / "runs.xml", EXPORT.replace("1, 5, 24", "1, 5, 23")))
    with pytest.raises(BadInput, match="tracks of a video"):
        cvat.read(_text(tmp_path / "video.xml", EXPORT.replace("</meta>", "</meta><track id='0' label='box'/>")))
    with pytest.raises(BadInput, match="uses the label 'lid'"):
        cvat.read(_text(tmp_path / "lid.xml", EXPORT.replace('polygon label="disc"', 'polygon label="lid"')))
    with pytest.raises(BadInput, match="points as x,y"):
        cvat.read(_text(tmp_path / "points.xml", EXPORT.replace("7,3;", "7;")))
    with pytest.raises(BadInput, match="document type"):
        cvat.read(_text(tmp_path / "bomb.xml", "<!DOCTYPE x [<!ENTITY a 'b'>]>" + EXPORT.split("?>")[1]))
    with pytest.raises(BadInput, match="is not XML"):
        cvat.read(_text(tmp_path / "cut.xml", EXPORT[:200]))
    (tmp_path / "images" / "two.png").unlink()
    with pytest.raises(BadInput, match=r"1 of 2 images that are missing, the first two.png"):
        cvat.read(tmp_path)


def _text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


LABELIMG = """<annotation><folder>pics</folder><filename>one.jpg</filename><path>C:\\pics\\one.jpg</path>
<size><width>37</width><height>53</height><depth>3</depth></size><segmented>0</segmented>
<object><name>pallet jack</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object></annotation>"""


def test_what_labelimg_writes(tmp_path: Path) -> None:
    """XML beside the images, no list of classes, a file name that has changed since."""
    picture(tmp_path / "one.png", WIDTH, HEIGHT)
    (tmp_path / "one.xml").write_text(LABELIMG)
    (only,) = Dataset.open(tmp_path)
    assert only.truth is not None
    assert only.truth.boxes.tolist() == [[3, 4, 10, 20]]
    assert only.truth.label_names == ["pallet jack"]
    for wrong, said in (
        (LABELIMG.replace("<xmin>3", "<xmin>three"), "xmin is not a number"),
        (LABELIMG.replace("<xmin>3", "<xmin>30"), "negative extent"),
        (LABELIMG.replace("<name>pallet jack</name>", ""), "a name and a bndbox"),
    ):
        (tmp_path / "one.xml").write_text(wrong)
        with pytest.raises(BadInput, match=said):
            voc.read(tmp_path)
    (tmp_path / "one.xml").write_text(LABELIMG.replace("<width>37", "<width>38"))
    with pytest.raises(BadInput, match="38 x 53"):
        voc.read(tmp_path)


@pytest.mark.parametrize("kind", ["coco", "cvat", "label_studio"])
def test_masks_and_attributes_travel(tmp_path: Path, kind: str) -> None:
    ring = np.zeros((HEIGHT, WIDTH), bool)
    ring[20:40, 5:30] = True
    two = np.zeros((HEIGHT, WIDTH), bool)
    two[2:6, 2:6] = two[2:10, 20:30] = True
    drawn = (masks.encode(ring), "", masks.encode(two))
    said = ({"colour": "red", "worn": "no"}, {}, {"colour": "blue"})
    truth = Detections.build(
        [[5, 20, 30, 40], [0, 0, 9, 9], [2, 2, 30, 10]], 1.0, ["box", "box", "disc"], ["box", "disc"],
        masks=drawn, attributes=said,
    )  # fmt: skip
    data = Dataset.build([Sample("a", picture(tmp_path / "a.png", WIDTH, HEIGHT), WIDTH, HEIGHT, truth)], truth.names)
    data.write(tmp_path / "out", kind)
    (back,) = Dataset.open(tmp_path / "out")
    assert back.truth is not None
    assert back.truth.label_names == truth.label_names
    assert back.truth.attributes == said
    assert back.truth.masks is not None
    assert not back.truth.masks[1]
    np.testing.assert_array_equal(masks.decode(back.truth.masks[0], HEIGHT, WIDTH), ring)
    again = masks.decode(back.truth.masks[2], HEIGHT, WIDTH)
    if kind == "label_studio":  # one outline a region: the largest
        assert not again[2:6, 2:6].any()
        assert again[3:9, 21:29].all()
    else:
        np.testing.assert_array_equal(again, two)


def test_tools_offer_all_values_of_an_attribute(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", WIDTH, HEIGHT)
    truth = Detections.build([[0, 0, 9, 9]], 1.0, ["box"], ["box", "disc"])
    data = Dataset.build([Sample("a", tmp_path / "a.png", WIDTH, HEIGHT, truth)], truth.names)
    schema = {
        "box": {"colour": ["red", "blue"], "size": ["s", "m"]},
        "disc": {"colour": ["red", "blue"], "size": ["s", "l"]},
    }
    cvat.write(data, tmp_path / "cvat.xml", attributes=schema)
    assert "<values>__undefined__\nred\nblue</values>" in (tmp_path / "cvat.xml").read_text()
    label_studio.write(data, tmp_path / "tasks.json", attributes=schema)
    tree = ElementTree.parse(tmp_path / "tasks.xml")
    offered = {c.get("name"): (c.get("whenLabelValue"), [v.get("value") for v in c]) for c in tree.iter("Choices")}
    assert offered == {
        "colour": ("box,disc", ["red", "blue"]),
        "box.size": ("box", ["s", "m"]),
        "disc.size": ("disc", ["s", "l"]),
    }


def test_masks_are_checked() -> None:
    with pytest.raises(BadInput, match="of another size"):
        masks.decode(masks.encode(np.ones((4, 5), bool)), 5, 4)
    with pytest.raises(BadInput, match="malformed"):
        masks.decode("[[1, 2, 3]]", 5, 4)
    plain = json.dumps({"size": [2, 3], "counts": [1, 2, 3]})
    np.testing.assert_array_equal(masks.decode(plain, 2, 3), [[0, 1, 0], [1, 0, 0]])
    assert masks.box(plain, 2, 3) == (0, 0, 2, 2)
    assert masks.box(masks.encode(np.zeros((2, 3), bool)), 2, 3) is None
