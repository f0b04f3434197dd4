"""The sample world: rendered pictures of a depot and its inspection lines, with exact truth.

Two domains share ten kinds of object. `base` is broad: 22 kinds in clean rooms before good cameras. `site` is where a
team would deploy: those ten kinds and four that `base` never shows, in other rooms, in poorer light, before noisier
cameras, with paint bought in other amounts. The same (seed, domain, size) gives the same pixels in any process.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from foveal import masks
from foveal.worldkit.camera import CAMERAS, draw_light, draw_time, expose, illuminate
from foveal.worldkit.catalogue import KINDS, SHOWN
from foveal.worldkit.language import VOCABULARY, captions, questions
from foveal.worldkit.places import STYLES, furnish
from foveal.worldkit.scene import Domain, Question, Scene, WorldObject
from foveal.worldkit.stage import compose, populate

__all__ = ["VOCABULARY", "Domain", "Question", "Scene", "WorldObject", "kinds", "render", "write"]

STRIDE = 1_000_003  # scenes one `write` may make before its seeds meet those of the next `seed`
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
_DOMAIN_NUMBER: dict[Domain, int] = {"base": 0, "site": 1}


def kinds(domain: Domain | None = None) -> tuple[str, ...]:
    """Names of the kinds that may appear in `domain`; of every kind when it is None."""
    return tuple(KINDS) if domain is None else SHOWN[_known(domain)]


def render(seed: int, domain: Domain = "base", size: int = 224) -> Scene:
    """Draw scene number `seed` (>= 0) of `domain`, `size` (>= 64) pixels a side."""
    if seed < 0 or size < 64:
        raise ValueError(f"expected seed >= 0 and size >= 64, received seed {seed} and size {size}")
    for attempt in range(100):
        rng = np.random.Generator(np.random.PCG64([_DOMAIN_NUMBER[_known(domain)], seed, attempt]))
        place = furnish(rng, domain, size)
        light = draw_light(rng, domain)
        camera = CAMERAS[domain][int(rng.integers(len(CAMERAS[domain])))]
        time = draw_time(rng, domain, light)
        items, objects, placed = populate(rng, domain, place, size, float(rng.uniform(*STYLES[domain].zoom)))
        if len(objects) < 2:
            continue
        picture = compose(rng, place, items, light)
        illuminate(rng, picture, light)
        metadata: dict[str, str | int | float] = {
            "domain": domain,
            "seed": seed,
            "camera": camera.name,
            "time": time,
            "light": light.name,
            "place": place.name,
            "size": size,
        }
        return Scene(
            image=expose(rng, picture, camera),
            objects=tuple(objects),
            captions=captions(rng, place.name, light, objects, placed),
            questions=questions(rng, domain, objects, placed),
            metadata=metadata,
        )
    raise RuntimeError(f"scene {seed} of {domain} stayed empty; choose another seed")


def write(
    out: Path,
    domain: Domain,
    count: int,
    seed: int = 0,
    size: int = 224,
    labels: bool = True,
    progress: Callable[[int], None] | None = None,
    workers: int = 1,
) -> Path:
    """Render `count` scenes into a new folder `out` and return it.

    Scene i has seed `seed * STRIDE + i`, so splits written with different `seed` never share a scene. `out` receives
    images/, metadata.csv and, with `labels`, instances.json (COCO, RLE masks), captions.jsonl and questions.jsonl. It
    appears all at once when everything is written. `progress` is called with 1 for each scene done.

    Raises FileExistsError if `out` exists and is not empty, ValueError if `count` is not in 1..STRIDE.
    """
    if not 1 <= count <= STRIDE:
        raise ValueError(f"expected 1 to {STRIDE} scenes, received {count}; use another seed for more")
    if workers < 1:
        raise ValueError(f"expected at least one worker, received {workers}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        (parts / "images").mkdir()
        known = _known(domain)
        jobs: Iterator[Job] = ((str(parts / "images"), seed * STRIDE + i, known, size, labels) for i in range(count))
        with _mapped(jobs, workers) as records:
            _save(parts, domain, records, labels, progress)
        parts.chmod(0o777 & ~_umask())
        if out.exists():
            out.rmdir()
        parts.rename(out)
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(error.errno, error.strerror, error.filename or str(out)) from error
    finally:
        shutil.rmtree(parts, ignore_errors=True)  # nothing where it was moved
    return out


Job = tuple[str, int, Domain, int, bool]
Record = dict[str, Any]  # one scene as JSON, made where the pixels are so that processes exchange little


def _known(domain: Domain) -> Domain:
    if domain not in SHOWN:
        raise ValueError(f"no domain {domain!r}; choose from {', '.join(SHOWN)}")
    return domain


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def _mapped(jobs: Iterator[Job], workers: int) -> Generator[Iterator[Record]]:
    """Records of `jobs` in their order."""
    if workers == 1:
        yield map(_work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield pool.imap(_work, jobs, chunksize=8)


def _work(job: Job) -> Record:
    folder, seed, domain, size, labels = job
    scene = render(seed, domain, size)
    name = f"{domain}-{seed:07d}.jpg"
    done, encoded = cv2.imencode(".jpg", np.ascontiguousarray(scene.image[..., ::-1]), _JPEG)
    if not done:
        raise RuntimeError(f"OpenCV could not encode {name}")
    (Path(folder) / name).write_bytes(encoded.tobytes())
    record: Record = {"file_name": name, "metadata": scene.metadata}
    if labels:
        record["captions"] = scene.captions
        record["questions"] = [asdict(question) for question in scene.questions]
        record["annotations"] = [_annotation(seen) for seen in scene.objects]
    return record


def _annotation(seen: WorldObject) -> Record:
    x0, y0, x1, y1 = seen.box
    return {
        "category": seen.kind,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(seen.mask.sum()),
        "iscrowd": 0,
        "segmentation": json.loads(masks.encode(seen.mask)),
        "attributes": {"colour": seen.colour, "material": seen.material, "state": seen.state},
        "visible": round(seen.visible, 4),
    }


def _save(
    parts: Path, domain: Domain, records: Iterator[Record], labels: bool, progress: Callable[[int], None] | None
) -> None:
    """Write every file beside the images."""
    numbers = {name: number for number, name in enumerate(kinds(domain), 1)}
    images: list[Record] = []
    annotations: list[Record] = []
    with _text(parts / "captions.jsonl") as said, _text(parts / "questions.jsonl") as asked:
        for number, record in enumerate(records, 1):
            meta = record["metadata"]
            images.append(
                {"id": number, "file_name": record["file_name"], "width": meta["size"], "height": meta["size"]} | meta
            )
            path = f"images/{record['file_name']}"
            if labels:
                said.write(json.dumps({"image": path, "captions": record["captions"]}) + "\n")
                for question in record["questions"]:
                    asked.write(json.dumps({"image": path} | question) + "\n")
                for seen in record["annotations"]:
                    home = {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": numbers[seen.pop("category")],
                    }
                    annotations.append(home | seen)
            if progress is not None:
                progress(1)
    if labels:
        categories = [{"id": number, "name": name} for name, number in numbers.items()]
        truth = {"images": images, "annotations": annotations, "categories": categories}
        (parts / "instances.json").write_text(json.dumps(truth), encoding="utf-8")
    else:
        (parts / "captions.jsonl").unlink()
        (parts / "questions.jsonl").unlink()
    with (parts / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        columns = ["file_name", *(key for key in images[0] if key not in ("id", "file_name", "width", "height"))]
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(images)


def _text(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8")
