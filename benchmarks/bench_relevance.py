"""Is a hit's probability true, and is "nothing matches" said when it should be? On the sample world, with exact truth.

    python benchmarks/bench_relevance.py                           # the bundled CLIP on its own domain
    python benchmarks/bench_relevance.py --domain site --encoder bundled:clip+ADAPTER
    python benchmarks/bench_relevance.py --prior                   # writes retrieval/relevance_prior.py

Each kind of object is held out in turn, with a fifth of the others: its name is cut out of the captions before the
model is fitted to them, in an archive of its own. The kind is then asked for in that archive, and in one without any
image that shows it. `prior` does the same without any caption; its own fit has seen other scenes of the domain base,
and with them the kinds.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evals.intervals import wilson
from evals.reliability import ece
from evals.zero_shot import TEMPLATES
from foveal import world
from foveal.detections import BoolArray, FloatArray
from foveal.images import decode
from foveal.models import Encoder, load_encoder
from foveal.worldkit.catalogue import COLOURS, KINDS
from retrieval import relevance_fit
from retrieval.archive import Archive
from retrieval.logistic import Logistic
from retrieval.query import SearchQuery

ROOT = Path(__file__).resolve().parents[1]
FOLDS = 5
K = 50
NOWHERE = (
    "an elephant", "a dog on grass", "a person riding a bicycle", "a sandy beach", "a plate of food", "a mountain lake",
    "a wedding", "a cat", "an airplane", "a portrait of a woman",
)  # fmt: skip


@dataclass(slots=True)
class Site:
    """Scenes with their vectors and their truth."""

    vectors: FloatArray  # (N, D)
    captions: list[str]
    shown: dict[str, BoolArray]  # phrase -> (N,) which scenes show it

    @classmethod
    def render(cls, folder: Path, domain: world.Domain, count: int, seed: int, encoder: Encoder) -> Site:
        if not (folder / "instances.json").is_file():
            world.write(folder, domain, count, seed)
        truth = json.loads((folder / "instances.json").read_text())
        files = [image["file_name"] for image in truth["images"]]
        place = {image["id"]: number for number, image in enumerate(truth["images"])}
        names = {kind["id"]: kind["name"] for kind in truth["categories"]}
        shown: dict[str, BoolArray] = {}
        for seen in truth["annotations"]:
            kind = names[seen["category_id"]]
            for phrase in (kind, f"{seen['attributes']['colour']} {kind}"):
                shown.setdefault(phrase, np.zeros(len(files), dtype=bool))[place[seen["image_id"]]] = True
        said = {}
        for line in (folder / "captions.jsonl").read_text().splitlines():
            record = json.loads(line)
            said[Path(record["image"]).name] = record["captions"][0]
        images = (folder / "images" / name for name in files)
        batches = [encoder.encode_images([decode(path) for path in batch]) for batch in _batches(images, 64)]
        return cls(np.concatenate(batches), [said[name] for name in files], shown)

    def archive(self, folder: Path, encoder: Encoder, rows: Sequence[int], captions: Sequence[str] | None) -> Archive:
        made = Archive.create(folder, encoder)
        made.add_vectors(
            [f"/{n}.jpg" for n in rows],
            self.vectors[rows],
            fingerprint=encoder.fingerprint,
            metadata=[{"scene": n} | ({} if captions is None else {"caption": captions[n]}) for n in rows],
        )
        relevance_fit.calibrate(made, encoder)
        return made


@dataclass(slots=True)
class Tally:
    """Answers to one sort of query."""

    present: list[bool] = field(default_factory=list)  # whether each query that something answers was answered
    absent: list[bool] = field(default_factory=list)  # whether each other query was refused
    probability: list[float] = field(default_factory=list)  # of the hits that were returned
    right: list[bool] = field(default_factory=list)
    answerable: list[bool] = field(default_factory=list)  # whether anything answers the query of each hit

    def ask(self, archive: Archive, encoder: Encoder, text: str, shown: BoolArray | None) -> None:
        found = archive.search(SearchQuery(text=text, k=K), encoder)
        if shown is None:
            self.absent.append(found.nothing)
        else:
            self.present.append(not found.nothing)
        for hit in found:
            assert hit.probability is not None
            self.probability.append(hit.probability)
            self.answerable.append(shown is not None)
            self.right.append(shown is not None and bool(shown[int(hit.metadata["scene"])]))

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def figures(self) -> dict[str, Any]:
        p, y, answerable = (np.array(values) for values in (self.probability, self.right, self.answerable))
        near = (p >= 0.4) & (p < 0.6)
        over = p >= 0.5
        return {
            "present answered": _share(self.present),
            "absent refused": _share(self.absent),
            "right at 0.4-0.6": _share(y[near].tolist()),
            "right at 0.4-0.6 where something answers": _share(y[near & answerable].tolist()),
            "right at >= 0.5": _share(y[over].tolist()),
            "hits": len(p),
            "ece": round(ece(p, y), 3) if len(p) else None,
        }


def _share(values: Sequence[bool]) -> str:
    if not values:
        return "-"
    low, high = wilson(sum(values), len(values))
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}] of {len(values)}"


def _batches(items: Iterator[Path], size: int) -> Iterator[list[Path]]:
    batch: list[Path] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def measure(site: Site, encoder: Encoder, captioned: bool, folder: Path) -> dict[str, dict[str, Any]]:
    """Figures for kinds, coloured kinds and what is nowhere in the world."""
    tallies = {name: Tally() for name in ("kinds", "coloured kinds", "nowhere")}
    everything = np.arange(len(site.vectors))
    kinds = [kind for kind in KINDS if kind in site.shown]
    order = np.random.default_rng(0).permutation(len(kinds))
    for fold in range(FOLDS):
        held = [kinds[n] for n in order[fold::FOLDS]]
        cut = re.compile("|".join(rf"\b({kind}|{KINDS[kind].plural})\b" for kind in held))
        captions = [cut.sub(",", text) for text in site.captions] if captioned else None
        whole = site.archive(folder / f"{fold}", encoder, everything.tolist(), captions)
        for text in (*NOWHERE, *(_a(kind) for kind in KINDS if kind not in kinds)):
            tallies["nowhere"].ask(whole, encoder, text, None)
        for kind in held:
            without = np.flatnonzero(~site.shown[kind]).tolist()
            lacking = site.archive(folder / f"{fold}-{kind}", encoder, without, captions)
            tallies["kinds"].ask(whole, encoder, _a(kind), site.shown[kind])
            tallies["kinds"].ask(lacking, encoder, _a(kind), None)
            for colour in COLOURS:
                shown = site.shown.get(f"{colour} {kind}")
                tallies["coloured kinds"].ask(whole, encoder, _a(f"{colour} {kind}"), shown)
    tallies["kinds and coloured kinds"] = tallies["kinds"] + tallies["coloured kinds"]
    tallies["everything"] = tallies["kinds and coloured kinds"] + tallies["nowhere"]
    return {name: tally.figures() for name, tally in tallies.items()}


def ensembles(site: Site, encoder: Encoder) -> dict[str, str]:
    """Precision of the first hit for short concepts, asked bare, in one template and in an ensemble of them."""
    concepts = [phrase for phrase, shown in site.shown.items() if shown.sum() >= 5]
    ways: dict[str, tuple[str, ...]] = {"bare": (), "a {}": ("a {}",), "ensemble": TEMPLATES}
    found: dict[str, str] = {}
    for name, templates in ways.items():
        vectors = np.stack([SearchQuery(text=text, templates=templates).vector(encoder) for text in concepts])
        first = np.argmax(vectors @ site.vectors.T, axis=1)
        found[name] = _share([bool(site.shown[text][n]) for text, n in zip(concepts, first, strict=True)])
    return found


def write_prior(site: Site, encoder: Encoder) -> None:
    """Fits the prior to the truth itself and writes it as code."""
    contrast = encoder.encode_texts(list(relevance_fit.CONTRAST))
    said = {_a(phrase): shown for phrase, shown in site.shown.items() if shown.sum() >= relevance_fit.LEAST_IMAGES}
    embedded = encoder.encode_texts(list(said))
    nowhere = dict.fromkeys(
        (*relevance_fit.NOWHERE, *relevance_fit.unsaid(said)), np.zeros(len(site.vectors), dtype=bool)
    )
    embedded = np.concatenate([embedded, encoder.encode_texts(list(nowhere))])
    asked = relevance_fit.ask(site.vectors, {**said, **nowhere}, embedded, contrast, encoder.logit_scale)
    queries = Logistic.flat(np.stack([one.evidence.query for one in asked]))
    hits = np.concatenate([one.evidence.hits for one in asked])
    presence, _, _, _ = relevance_fit.learn(asked, queries, _padded(hits))
    odds = [float(presence(one.evidence.query[None])[0]) for one in asked]
    stacked = np.concatenate(
        [np.column_stack([one.evidence.hits, np.full(len(one.right), o)]) for one, o in zip(asked, odds, strict=True)]
    )
    presence, _, hit, _ = relevance_fit.learn(asked, queries, Logistic.flat(stacked))
    lines = [f"{name} = {_code(model)}" for name, model in (("PRESENCE", presence), ("HIT", hit))]
    file = ROOT / "retrieval" / "relevance_prior.py"
    head = file.read_text().split("PRESENCE =")[0]
    file.write_text(head + "\n".join([*lines, ""]))


def _padded(hits: np.ndarray) -> Logistic:
    return Logistic.flat(np.column_stack([hits, np.zeros(len(hits))]))


def _code(model: Logistic) -> str:
    def numbers(values: Sequence[float]) -> str:
        return f"({', '.join(f'{value:.4f}' for value in values)})"

    return (
        f"Logistic({numbers(model.weights)}, {model.intercept:.4f}, {numbers(model.means)}, {numbers(model.spreads)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", choices=("base", "site"), default="base")
    parser.add_argument("--encoder", default="bundled:clip")
    parser.add_argument("--scenes", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=71)
    parser.add_argument("--world", type=Path, help="a folder to keep the rendered scenes in, or with scenes in it")
    parser.add_argument("--prior", action="store_true", help="fit and write the prior")
    options = parser.parse_args()
    encoder = load_encoder(options.encoder)
    with tempfile.TemporaryDirectory() as folder:
        scenes = options.world or Path(folder) / "world"
        seed = options.seed + 1 if options.prior else options.seed
        site = Site.render(scenes, options.domain, options.scenes, seed, encoder)
        if options.prior:
            write_prior(site, encoder)
            return
        print(json.dumps({"first hit right": ensembles(site, encoder)}, indent=1))
        for name, captioned in (("captions", True), ("prior", False)):
            figures = measure(site, encoder, captioned, Path(folder) / name)
            print(json.dumps({name: figures}, indent=1), flush=True)


if __name__ == "__main__":
    main()
