"""Data sheets in Hugging Face's card format: the questions of Datasheets for Datasets (arXiv 1803.09010).

What the data itself tells is counted; what only people can say comes from an `about` file; the rest is said to be
unknown, question by question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from evals.cards import licence_fields
from evals.markdown import bullets, inline, number, table
from foveal.dataset import Dataset, Sample
from foveal.images import content_hash
from foveal.progress import Progress, track

UNKNOWN = "Not known."
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))
SMALL, MEDIUM = 32**2, 96**2  # COCO's box sizes, square pixels
MOST = 30  # rows of a table


class About(BaseModel):
    """What only people can say of a data set: its file is YAML of these keys, all of them optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str | None = None
    licence: str | None = None
    language: list[str] = []
    motivation: str | None = None  # why it was made, by whom, who paid
    people: str | None = None  # whether people are shown, whether they know and agreed
    sensitive: str | None = None  # offensive, confidential or personal content
    collection: str | None = None  # how, when, where, by whom the pictures were taken
    sampling: str | None = None  # of what larger set it is a part, and how it was chosen
    preprocessing: str | None = None
    labelling: str | None = None  # by whom, by which guideline, how checked
    noise: str | None = None  # known errors
    uses: str | None = None
    not_for: str | None = None
    distribution: str | None = None
    maintenance: str | None = None
    contact: str | None = None


# Heading -> the questions under it: what is asked, and the key of `About` that answers it.
QUESTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "Motivation": (("Why was it made, by whom, and who paid for it?", "motivation"),),
    "People and sensitive content": (
        ("Are people shown, do they know, and did they agree?", "people"),
        ("Is anything in it offensive, confidential or personal?", "sensitive"),
    ),
    "Collection": (
        ("How, when, where and by whom were the pictures taken?", "collection"),
        ("Of what larger set is it a part, and how was it chosen?", "sampling"),
    ),
    "Preprocessing and labelling": (
        ("What was done to the pictures?", "preprocessing"),
        ("Who labelled them, by which guideline, and how was that checked?", "labelling"),
        ("Which errors are known?", "noise"),
    ),
    "Uses": (("What is it for?", "uses"), ("What should it not be used for?", "not_for")),
    "Distribution": (("Who may have it, and under which terms?", "distribution"),),
    "Maintenance": (("Who keeps it, and how are errors mended?", "maintenance"), ("Who answers questions?", "contact")),
}


def data_sheet(dataset: Dataset, source: str, about: About | None = None, progress: Progress | None = None) -> str:
    """The sheet as Markdown; reads every file once for its hash.

    Raises:
        BadImage: a file cannot be read.
    """
    about, samples = about or About(), list(dataset)
    hashes = [content_hash(sample.path) for sample in track(progress, samples, "read pictures")]
    title = about.title or Path(source).resolve().name
    parts = [f"# {inline(title)}", "## Composition", *_composition(dataset, samples, hashes)]
    unknown: list[str] = []
    for heading, questions in QUESTIONS.items():
        parts.append(f"## {heading}")
        for question, key in questions:
            said = getattr(about, key)
            parts.append(f"**{question}** {inline(said) if said else UNKNOWN}")
            unknown += [] if said else [question]
    parts += ["## Licence", inline(about.licence) if about.licence else UNKNOWN]
    unknown += [] if about.licence else ["Under which licence is it?"]
    parts += ["## What is not known", bullets(unknown) if unknown else "Every question above is answered."]
    fingerprint = f"Fingerprint of pictures and labels: `{dataset.fingerprint}`."
    return _front_matter(dataset, samples, title, about) + "\n\n".join([*parts, "## Version", fingerprint]) + "\n"


def _front_matter(dataset: Dataset, samples: Sequence[Sample], title: str, about: About) -> str:
    count = len(samples)
    tasks = [
        name
        for name, there in (
            ("object-detection", any(sample.truth is not None for sample in samples)),
            ("image-classification", any(sample.label is not None for sample in samples)),
            ("image-to-text", any(sample.captions for sample in samples)),
        )
        if there
    ]
    data = {
        **licence_fields(about.licence or "unknown"),
        "pretty_name": title,
        "size_categories": [next((name for limit, name in SIZES if count < limit), "n>10M")],
        **({"task_categories": tasks} if tasks else {}),
        **({"language": about.language} if about.language else {}),
        "tags": ["foveal", "image"],
    }
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n\n"


def _composition(dataset: Dataset, samples: Sequence[Sample], hashes: Sequence[str]) -> list[str]:
    copies = len(hashes) - len(set(hashes))
    sides = np.array([[sample.width, sample.height] for sample in samples]).reshape(-1, 2)
    kinds = Counter(sample.path.suffix.lower().lstrip(".") for sample in samples)
    looked = [sample for sample in samples if sample.truth is not None]
    captions = [len(sample.captions) for sample in samples]
    size = sum(path.stat().st_size for path in {sample.path for sample in samples})
    files = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    facts = {
        "pictures": f"{len(samples):,}, {size / 1e6:,.1f} MB ({files})",
        "exact copies": f"{copies:,} of them, by their bytes" if copies else "none",
        "near-duplicates": "not looked for (`foveal archive duplicates`)",
        "files left out as unreadable": f"{len(dataset.skipped):,}",
    }
    if len(samples):
        facts["width x height"] = (
            f"{sides[:, 0].min()} x {sides[:, 1].min()} to {sides[:, 0].max()} x {sides[:, 1].max()} pixels, "
            f"median {np.median(sides[:, 0]):g} x {np.median(sides[:, 1]):g}"
        )
    if looked:
        boxes = [len(sample.truth) for sample in looked if sample.truth is not None]
        each = number(float(np.mean(boxes)))
        facts["boxes"] = f"{sum(boxes):,} on {len(looked):,} pictures that were looked at, {each} each"
        facts["looked at, and empty"] = f"{sum(count == 0 for count in boxes):,}"
        facts["not looked at"] = f"{len(samples) - len(looked):,}"
    if any(captions):
        facts["captions"] = f"{sum(captions):,} on {sum(count > 0 for count in captions):,} pictures"
    parts = [bullets((f"**{name}**: {value}" for name, value in facts.items()), escape=False)]
    if rows := _classes(samples):
        parts += ["Classes:", rows]
    if rows := _metadata(samples):
        parts += ["Metadata:", rows]
    return parts


def _classes(samples: Sequence[Sample]) -> str:
    """Boxes and pictures of each class by COCO's sizes, or pictures where whole pictures have labels."""
    boxes: Counter[str] = Counter()
    pictures: Counter[str] = Counter()
    sizes: dict[str, Counter[str]] = {}
    for sample in samples:
        truth = sample.truth
        if truth is not None and len(truth):
            area = np.prod(truth.boxes[:, 2:] - truth.boxes[:, :2], axis=1)
            for name, value in zip(truth.label_names, area.tolist(), strict=True):
                boxes[name] += 1
                kind = "small" if value < SMALL else "medium" if value < MEDIUM else "large"
                sizes.setdefault(name, Counter())[kind] += 1
            pictures.update(set(truth.label_names))
        if sample.label is not None:
            pictures[sample.label] += 1
    if not pictures:
        return ""
    names = [name for name, _ in (boxes or pictures).most_common()]
    if not boxes:
        return table(("class", "pictures"), [[inline(name), f"{pictures[name]:,}"] for name in names], "lr")
    rows = [
        [inline(n), f"{boxes[n]:,}", f"{pictures[n]:,}", *(f"{sizes[n][k]:,}" for k in ("small", "medium", "large"))]
        for n in names
    ]
    columns = ("class", "boxes", "pictures", "small (below 32² px)", "medium", "large (from 96² px)")
    return table(columns, rows, "lrrrrr")


def _metadata(samples: Sequence[Sample]) -> str:
    """What each field says: a range of numbers or times, or the most frequent words."""
    names = sorted({name for sample in samples for name in sample.metadata})
    rows: list[list[str]] = []
    for name in names[:MOST]:
        values = [sample.metadata[name] for sample in samples if name in sample.metadata]
        rows.append([inline(name), f"{len(values):,}", _told(values)])
    return table(("field", "pictures", "values"), rows, "lrl") if rows else ""


def _told(values: Sequence[str | int | float]) -> str:
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values):
        return (
            number(min(numbers))
            if min(numbers) == max(numbers)
            else f"{number(min(numbers))} to {number(max(numbers))}"
        )
    words = [str(value) for value in values]
    times = [time for time in map(_time, words) if time is not None]
    if len(times) == len(words):
        return f"{min(times):%Y-%m-%d} to {max(times):%Y-%m-%d}"
    counts = Counter(words)
    if len(counts) > MOST and counts.most_common(1)[0][1] == 1:
        return f"{len(counts):,} different"
    shown = ", ".join(f"{inline(word)} ({count:,})" for word, count in counts.most_common(6))
    return shown + (f", and {len(counts) - 6:,} more" if len(counts) > 6 else "")


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None) if len(text) >= 10 else None
    except ValueError:
        return None
