"""`foveal eval detection`: boxes or masks of a predictions file, a model or a running server against truth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.errors import BadInput
from foveal.eval_cli import ResultFile, ResultName
from foveal.options import live_progress
from foveal.printing import Json, emit
from foveal.registry_cli import DEFAULT_REGISTRY, RegistryDir

if TYPE_CHECKING:
    from PIL.Image import Image

    from evals.results import Data, Subject
    from foveal.dataset import Dataset
    from foveal.detections import Detections
    from foveal.models import Detector, OpenDetector

LOWEST = 0.001  # score from which boxes count: average precision needs the whole curve
BATCH = 8  # images detected at once


def detection(
    truth: Annotated[Path, typer.Option(metavar="SOURCE", help="COCO instances, or a labelled data folder.")],
    predictions: Annotated[Path | None, typer.Option(metavar="FILE", help="COCO results list.")] = None,
    detector: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Detector to run on the truth's images, or the http address of a server."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="TEXTS", help='What an open detector is asked, a text a class: "a crate,a drum"; else the names.'
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(metavar="PX", help="Side that the detector sees.")] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Compare masks in place of boxes.")] = False,
    segmenter: Annotated[
        str | None, typer.Option(metavar="REF", help="Segment Anything model that draws the detector's masks.")
    ] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    out: ResultFile = None,
    name: ResultName = None,
    json_: Json = False,
) -> None:
    """COCO average precision, and what each kind of mistake costs, of a predictions file, a detector or a server.

    Example: foveal eval detection --truth truth.json --predictions predictions.json
    """
    from evals.detection import measure
    from evals.pages import write
    from evals.results import Stopwatch, result_path

    if (predictions is None) == (detector is None):
        raise BadInput("there must be one thing to measure", expected="--predictions FILE or --detector REF")
    if segmenter is not None and (detector is None or not masks):
        raise BadInput("--segmenter draws the masks of a detector's boxes", expected="--detector REF --masks")
    path = None if out is None else result_path(out)
    dataset, watch, model = _pictures(truth, detector is not None, path is not None), Stopwatch(), None
    settings: dict[str, Any] = {}
    if detector is not None:
        assert dataset is not None  # they were needed
        model = _model(detector, dataset, prompts, registry, size)
        found = _detected(model, dataset, segmenter)
        told = {"threshold": LOWEST, "prompts": prompts, "size": size, "segmenter": segmenter}
        settings = {key: value for key, value in told.items() if value is not None}
    else:
        found = predictions
    assert found is not None  # one of the two was given
    # A COCO file says more than the dataset it opens as: the areas of objects.
    known = dataset if dataset is not None and (detector is not None or truth.is_dir()) else truth
    measured = measure(known, found, masks=masks, samples=dataset or ())
    if path is not None:
        task = "segmentation" if masks else "detection"
        data = _data(truth, dataset, measured.figures["images"])
        subject = _subject(detector or str(predictions), model)
        result = watch.result(task, measured, subject, data, name=name, settings=settings)
        typer.echo(f"kept in {path}; look at {write(result, path, dataset)}", err=True)
    emit(measured.figures, json_)


def _pictures(truth: Path, needed: bool, wanted: bool) -> Dataset | None:
    """The truth with its images; of a COCO file whose images lie elsewhere None, where nothing needs them."""
    from foveal.dataset import Dataset

    if not (needed or wanted or truth.is_dir()):
        return None
    try:
        return Dataset.open(truth)
    except BadInput as error:
        if needed or truth.is_dir():
            raise
        typer.echo(f"the page shows no pictures: {error}", err=True)
        return None


def _model(reference: str, dataset: Dataset, prompts: str | None, registry: Path, size: int | None) -> Detector:
    """What a reference names as a detector of the dataset's classes.

    Raises:
        BadInput: prompts for a detector that takes none, or not one a class.
    """
    from foveal.models import DETECTORS, OPEN_DETECTORS, load_detector, load_open_detector, parse_ref
    from foveal.served import connect, is_server

    texts = [text.strip() for text in prompts.split(",")] if prompts is not None else None
    if texts is not None and not len(texts) == len(set(texts)) == len(dataset.classes):
        raise BadInput(
            "--prompts needs a text a class, each another",
            expected=f"{len(dataset.classes)}, in this order: {', '.join(dataset.classes)}",
            received=str(len(set(texts))),
        )
    if is_server(reference):
        kind = "detector" if texts is None else "open-detector"
        served: Any = connect(reference, [kind], os.environ.get("FOVEAL_API_KEY"))
        return served if texts is None else _Prompted(served, texts, dataset.classes)
    scheme = parse_ref(reference).scheme
    if scheme in OPEN_DETECTORS and scheme not in DETECTORS:
        return _Prompted(load_open_detector(reference), texts or dataset.classes, dataset.classes)
    if texts is not None:
        raise BadInput(f"{reference} finds the classes it was trained for, and takes no --prompts")
    return load_detector(reference, registry, size=size)


class _Prompted:
    """An open detector that is always asked the same, as a detector of the classes that the prompts stand for."""

    def __init__(self, detector: OpenDetector, prompts: Sequence[str], classes: Sequence[str]) -> None:
        self.name, self.fingerprint, self.classes = detector.name, detector.fingerprint, tuple(classes)
        self._detector, self._prompts = detector, list(prompts)

    def detect(self, images: Sequence[Image], threshold: float = 0.05) -> list[Detections]:
        """As `Detector`'s."""
        return [replace(one, names=self.classes) for one in self._detector.detect(images, self._prompts, threshold)]


def _detected(model: Detector, dataset: Dataset, segmenter: str | None) -> list[Detections]:
    from foveal.masks import encode
    from foveal.progress import track
    from foveal.segmenters import load_segmenter

    draws = None if segmenter is None else load_segmenter(segmenter)
    found: list[Detections] = []
    samples = iter(track(live_progress(), dataset, f"run {model.name}"))
    while batch := [sample.image() for sample in islice(samples, BATCH)]:
        for image, one in zip(batch, model.detect(batch, LOWEST), strict=True):
            drawn = None if draws is None else tuple(encode(mask) for mask in draws.masks(image, one.boxes))
            found.append(one if drawn is None else replace(one, masks=drawn))
    return found


def _subject(reference: str, model: Detector | None) -> Subject:
    from evals.results import Subject
    from foveal.detectors import ExportedDetector

    if isinstance(model, ExportedDetector):  # also where an alias of the registry names it
        return Subject.of(f"onnx:{model.folder}", model).model_copy(update={"reference": reference})
    if model is None or reference.startswith("http"):
        return Subject(reference=reference, fingerprint=getattr(model, "fingerprint", None))
    return Subject.of(reference, model)


def _data(truth: Path, dataset: Dataset | None, images: int) -> Data:
    from evals.results import Data
    from foveal.artifacts import file_hash

    fingerprint = file_hash(truth) if dataset is None else dataset.fingerprint
    return Data(source=str(truth), fingerprint=fingerprint, images=images)
