"""Labelling as a job: any dataset in, boxes with known precision out, resumable at any moment.

    foveal prelabel images/ --ontology ontology.yaml --gold gold/ --teacher bundled:owl --out prelabels/

Work goes to a folder beside `out`, a chunk of images at a time, so memory stays flat and a killed job continues after
its finished chunks with byte-identical results; `out` itself appears at the end, whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from distill.attributes import AttributeReader
from distill.gold import check_gold, fit_labeller
from distill.judge import Judge, load_banks, save_banks
from distill.labeller import Labeller, Memory, PrelabelSettings
from distill.ontology import Ontology
from distill.outcome import REPORT, PrelabelReport, gold_report, load_report, report_of
from distill.parts import MEMORY, Parts
from distill.prelabels import RECORDS, load_prelabels, write_prelabels
from distill.records import Chunks
from distill.routing import Routing
from distill.teacher import DenseDetector
from distill.workers import Done, Load, Work, in_turn
from foveal import artifacts
from foveal.dataset import Dataset
from foveal.errors import BadInput, IntegrityError
from foveal.models import OpenDetector
from foveal.progress import Progress
from foveal.segmenters import Segmenter

__all__ = ["PrelabelReport", "PrelabelSettings", "load_prelabels", "load_report", "prelabel"]

CALIBRATION, BANKS = "calibration.json", "banks.npz"
COST_SECONDS = 10.0  # between two lines about what a job costs
Loaded = tuple[OpenDetector | DenseDetector, Memory | None, Segmenter | None]


def prelabel(
    source: Dataset | str | Path,
    ontology: Ontology,
    teacher: OpenDetector | DenseDetector,
    gold: Dataset | str | Path,
    memory: Memory | None,
    out: str | Path,
    settings: PrelabelSettings | None = None,
    progress: Progress | None = None,
    *,
    through: Callable[[Load, Iterable[Work]], Iterator[Done]] = in_turn,
    parts: Callable[[], Loaded] | None = None,
    segmenter: Segmenter | None = None,
    price: float | None = None,
) -> PrelabelReport:
    """Label every image of `source`, using no label but those of `gold`; labels that `source` has are not looked at.

    Args:
        memory: exemplars that verify the teacher's boxes and may overrule its labels; None to go without.
        through: who labels: this process, `workers.Processes` or `workers.RayActors`. Which of them it is changes no
            box, but for what floating point rounds otherwise on another number of threads.
        segmenter: draws a mask for each box that is not rejected.
        parts: loads teacher, memory and segmenter again, in other processes; it must be picklable. `Parts` are also
            recorded, and the memory kept in `out`, so that later rounds and servers can label the same way.
        price: of an hour of all the machines together, in any currency.
        out: folder for `predictions.coco.json`, `accepted.coco.json`, `label_studio.json` with `label_config.xml`,
            `review.json` (most valuable first), `boxes.jsonl`, `calibration.json`, `banks.npz`, `prelabel.json` and
            the manifest. A finished job of the same inputs is not run again.

    Raises:
        BadInput: the gold set cannot calibrate, `out` holds another job, or no image of `source` can be read.
    """
    out, began = Path(out), time.perf_counter()
    settings = settings or PrelabelSettings()
    source = source if isinstance(source, Dataset) else Dataset.open(source)
    gold = gold if isinstance(gold, Dataset) else Dataset.open(gold)
    if not len(source):
        raise BadInput("there is nothing to label", expected="at least one image")
    check_gold(gold, ontology)
    job = _job(source, ontology, teacher, gold, memory, settings, segmenter)
    finished = _finished(out, job)
    if finished is not None:
        if progress is not None:
            progress.note(f"{out} holds this job already")
        return finished
    if parts is None and through is not in_turn:
        raise BadInput("other processes need to load the teacher themselves", remedy="Give `parts`.")
    work = out.parent / f".{out.name}.work"
    with Chunks(work / "chunks", job, len(source)) as chunks:
        labeller, gold_report = _calibrated(work, job, ontology, teacher, gold, memory, settings, segmenter, progress)
        load = partial(_loaded, work, ontology, settings, parts) if parts is not None else (lambda: labeller)
        _run(chunks, source, load, through, price, progress)
        with artifacts.staged(out) as folder:
            records = chunks.join(folder / RECORDS)
            report = report_of(records, out, job, source, labeller, gold_report, time.perf_counter() - began, price)
            write_prelabels(folder, source, records, labeller.classes, ontology)
            for name in (CALIBRATION, BANKS):
                shutil.copyfile(work / name, folder / name)
            described = {**settings.model_dump(), "ontology": ontology.model_dump(mode="json")}
            if isinstance(parts, Parts):
                shutil.copytree(parts.memory, folder / MEMORY)
                described["parts"] = parts.recorded()
            (folder / REPORT).write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
            artifacts.seal(
                folder,
                name=out.name,
                kind="prelabels",
                parents=[labeller.fingerprint, *([memory.fingerprint] if memory is not None else [])],
                data={
                    "source": source.fingerprint,
                    "gold": gold.fingerprint,
                    "images": len(source),
                    "gold_images": len(gold),
                },
                config=described,
                metrics={"gold": gold_report, "boxes": report.boxes, "expected_precision": report.expected_precision},
            )
    shutil.rmtree(work)
    return report


def load_labeller(out: str | Path, parts: Callable[[], Loaded] | None = None, registry: Path | None = None) -> Labeller:
    """The labeller of a finished job, to label more images the same way.

    Args:
        parts: loads teacher, memory and segmenter; None: as the job recorded them.
        registry: of registered teachers.

    Raises:
        BadInput: `out` is no job's folder, does not say what labelled it, or ran with another teacher or memory.
        IntegrityError: a file differs from the manifest.
        UnknownName, Unavailable: a model is no longer there.
    """
    out = Path(out)
    manifest = artifacts.read(out)
    if manifest.kind != "prelabels":
        raise BadInput(f"{out} is {manifest.kind}", expected="a folder that `foveal prelabel` wrote")
    teacher, memory, segmenter = (parts or Parts.of(out, registry))()
    labeller, _ = _restored(out, ontology_of(manifest), teacher, memory, settings_of(manifest), segmenter)
    if labeller.fingerprint not in manifest.parents or (
        memory is not None and memory.fingerprint not in manifest.parents
    ):
        raise BadInput(
            f"{out} was made with another teacher or memory",
            expected=", ".join(manifest.parents),
            received=", ".join([labeller.fingerprint, *([memory.fingerprint] if memory else [])]),
        )
    return replace(labeller, name=f"prelabels:{out}")


def settings_of(manifest: artifacts.Manifest) -> PrelabelSettings:
    """How the job of this manifest decided."""
    return PrelabelSettings(**{k: v for k, v in manifest.config.items() if k in PrelabelSettings.model_fields})


def ontology_of(manifest: artifacts.Manifest) -> Ontology:
    """What the job of this manifest looked for."""
    return Ontology.model_validate(manifest.config["ontology"])


def _job(
    source: Dataset,
    ontology: Ontology,
    teacher: OpenDetector | DenseDetector,
    gold: Dataset,
    memory: Memory | None,
    settings: PrelabelSettings,
    segmenter: Segmenter | None,
) -> str:
    described: dict[str, Any] = {
        "source": source.fingerprint,
        "ontology": ontology.model_dump(mode="json"),
        "teacher": getattr(teacher, "fingerprint", type(teacher).__name__),
        "gold": gold.fingerprint,
        "memory": None if memory is None else memory.fingerprint,
        "settings": settings.model_dump(),
        "version": 1,  # of the method: raise it when the same inputs would give other boxes
    }
    if segmenter is not None:
        described["masks"] = segmenter.fingerprint
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _finished(out: Path, job: str) -> PrelabelReport | None:
    if not (out / REPORT).is_file():
        return None
    try:
        artifacts.read(out)
        report = load_report(out)
    except (IntegrityError, TypeError, ValueError):
        return None  # damaged: made anew
    if report.job != job:
        raise BadInput(
            f"{out} holds the pre-labels of another job (other images, gold set, teacher or settings)",
            remedy="Choose another --out, or remove that folder.",
        )
    return report


def _calibrated(
    work: Path,
    job: str,
    ontology: Ontology,
    teacher: OpenDetector | DenseDetector,
    gold: Dataset,
    memory: Memory | None,
    settings: PrelabelSettings,
    segmenter: Segmenter | None,
    progress: Progress | None,
) -> tuple[Labeller, dict[str, Any]]:
    """The labeller, from the work folder where an earlier run left it, and what gold says of it."""
    if (work / CALIBRATION).is_file() and (work / BANKS).is_file():
        return _restored(work, ontology, teacher, memory, settings, segmenter)
    labeller, summary = fit_labeller(ontology, teacher, gold, memory, settings, progress, segmenter)
    with artifacts.staged(work / BANKS, folder=False) as path:
        save_banks(labeller.banks, path)
    described: dict[str, Any] = {
        "job": job,
        "judge": labeller.judge.to_json(),
        "without_memory": labeller.plain.to_json(),
        "routing": labeller.routing.to_json(),
        "gold": gold_report(summary, labeller.routing),
    }
    if labeller.reader is not None:
        described["attributes"] = labeller.reader.to_json()
        described["gold"]["attributes"] = labeller.reader.report()
    artifacts.write_text(work / CALIBRATION, json.dumps(described, indent=1) + "\n")
    # Read back, so that a run that was killed and one that was not judge with the very same numbers.
    return _restored(work, ontology, teacher, memory, settings, segmenter)


def _restored(
    folder: Path,
    ontology: Ontology,
    teacher: OpenDetector | DenseDetector,
    memory: Memory | None,
    settings: PrelabelSettings,
    segmenter: Segmenter | None = None,
) -> tuple[Labeller, dict[str, Any]]:
    data = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
    model = f"{getattr(teacher, 'name', 'teacher')}@{getattr(teacher, 'fingerprint', '')[:12]}"
    reader = None
    if "attributes" in data and memory is not None:
        reader = AttributeReader.from_json(data["attributes"], ontology, memory.encoder)
    labeller = Labeller(
        ontology,
        teacher,
        memory,
        settings,
        load_banks(folder / BANKS),
        Judge.from_json(data["judge"]),
        Judge.from_json(data["without_memory"]),
        Routing.from_json(data["routing"]),
        "labeller",
        model,
        reader,
        segmenter,
    )
    return labeller, data["gold"]


def _loaded(work: Path, ontology: Ontology, settings: PrelabelSettings, parts: Callable[[], Loaded]) -> Labeller:
    """The calibrated labeller of the job in `work`, in a process of its own."""
    teacher, memory, segmenter = parts()
    return _restored(work, ontology, teacher, memory, settings, segmenter)[0]


def _run(
    chunks: Chunks,
    source: Dataset,
    load: Load,
    through: Callable[[Load, Iterable[Work]], Iterator[Done]],
    price: float | None,
    progress: Progress | None,
) -> None:
    """Label the chunks that are missing."""
    missing = chunks.missing
    left = sum(len(chunks.rows(k)) for k in missing)
    began, done, told = time.perf_counter(), 0, 0.0
    if progress is not None:
        progress.start("prelabel", len(source))
        progress.advance(len(source) - left)
    for chunk, records in through(load, ((k, [source[row] for row in chunks.rows(k)]) for k in missing)):
        chunks.write(chunk, records)
        done += len(records)
        if progress is not None:
            progress.advance(len(records))
            seconds = time.perf_counter() - began
            if price is not None and seconds - told > COST_SECONDS:
                spent, told = price * seconds / 3600, seconds
                progress.note(f"cost {spent:.4g} so far, about {spent * (left - done) / done:.4g} to go")
    if progress is not None:
        progress.finish()
