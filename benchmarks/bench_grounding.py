"""Are answers from an archive right, and do they cite the right image? On the sample world, with exact truth.

    python benchmarks/bench_grounding.py                                       # the bundled models, unadapted
    python benchmarks/bench_grounding.py --domain site --encoder bundled:clip+ADAPTER --vlm bundled:vlm+ADAPTER

Each question is about a kind of object that exactly one of `--among` images shows, once: its colour, its state, and
whether there is one. The last is also asked of the other images alone, where the answer is no and
everything else has none. Images are looked at even where the search finds that nothing matches: `right` is what the
images say, `nothing` how often the search says so, `answered` how often neither is wrong. `oracle` is what the model
says of the right image, `nearest` of the best hit alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from evals.intervals import wilson
from evals.vqa import exact_match
from foveal import world
from foveal.images import decode
from foveal.models import VisionLanguageModel, load_encoder, load_vlm
from foveal.runtime import describe_machine
from foveal.worldkit.catalogue import KINDS
from retrieval.archive import Archive
from retrieval.grounding import GroundedAnswer, answer
from retrieval.relevance_fit import calibrate


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its answer, and the image that has it; without one where the archive lacks the kind."""

    sort: str
    question: str
    truth: str
    image: int | None
    among: tuple[int, ...]


def questions(scenes: Sequence[Counter[str]], objects: Any, among: int, each: int, seed: int) -> list[Asked]:
    """`each` draws a kind: one image that shows it once, and `among` - 1 that do not."""
    rng, asked = np.random.default_rng(seed), list[Asked]()
    for kind in sorted({kind for scene in scenes for kind in scene}):
        once = [n for n, scene in enumerate(scenes) if scene[kind] == 1]
        without = np.array([n for n, scene in enumerate(scenes) if not scene[kind]])
        if len(without) < among - 1:
            continue
        for image in rng.permutation(once)[:each].tolist():
            others = rng.choice(without, among - 1, replace=False).tolist()
            whole = tuple(sorted([image, *others]))
            seen = next(o for o in objects[image] if o["kind"] == kind)
            article = "an" if kind[0] in "aeiou" else "a"
            asked.append(Asked("colour", f"what colour is the {kind}", seen["colour"], image, whole))
            if KINDS[kind].states:
                asked.append(Asked("state", f"what state is the {kind} in", seen["state"], image, whole))
            asked.append(Asked("there", f"is there {article} {kind}", "yes", image, whole))
            asked.append(Asked("not there", f"is there {article} {kind}", "no", None, tuple(others)))
            asked.append(Asked("absent", f"what colour is the {kind}", "", None, tuple(others)))
    return asked


def mean(values: Sequence[bool]) -> dict[str, float]:
    """Share, with its 95% interval."""
    low, high = wilson(sum(values), len(values))
    return {"share": sum(values) / len(values), "low": low, "high": high}


class Once:
    """A model that answers each question about a picture once, however often it is asked."""

    def __init__(self, vlm: VisionLanguageModel) -> None:
        self.name, self.fingerprint, self._vlm = vlm.name, vlm.fingerprint, vlm
        self._known: dict[tuple[bytes, str], str] = {}

    def answer(self, image: Any, question: str, max_tokens: int = 64) -> str:
        key = hashlib.sha256(image.tobytes()).digest(), question
        if key not in self._known:
            self._known[key] = self._vlm.answer(image, question, max_tokens)
        return self._known[key]

    def locate(self, image: Any, phrase: str, max_tokens: int = 128) -> Any:
        return self._vlm.locate(image, phrase, max_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="bundled:clip")
    parser.add_argument("--vlm", default="bundled:vlm")
    parser.add_argument("--domain", choices=("base", "site"), default="base")
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--among", type=int, default=40)
    parser.add_argument("--each", type=int, default=8, help="questions of each sort a kind")
    parser.add_argument("-k", type=int, nargs="+", default=[4])
    parser.add_argument("--captions", action="store_true", help="calibrate relevance on the captions, not on the prior")
    parser.add_argument("--seed", type=int, default=51, help="of the scenes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    encoder, vlm = load_encoder(options.encoder), Once(load_vlm(options.vlm))
    with tempfile.TemporaryDirectory() as folder:
        root = world.write(Path(folder) / "scenes", options.domain, options.scenes, options.seed)
        truth = json.loads((root / "instances.json").read_text())
        names = {c["id"]: c["name"] for c in truth["categories"]}
        objects: defaultdict[int, list[dict[str, str]]] = defaultdict(list)
        for seen in truth["annotations"]:
            objects[seen["image_id"] - 1].append({"kind": names[seen["category_id"]], **seen["attributes"]})
        scenes = [Counter(o["kind"] for o in objects[n]) for n in range(options.scenes)]
        said = [json.loads(line)["captions"][0] for line in (root / "captions.jsonl").read_text().splitlines()]
        paths = [root / "images" / image["file_name"] for image in truth["images"]]
        vectors = np.concatenate(
            [encoder.encode_images([decode(path) for path in paths[i : i + 32]]) for i in range(0, len(paths), 32)]
        )
        archive = Archive.create(Path(folder) / "archive", encoder)
        facts = [{"number": n, **({"caption": said[n]} if options.captions else {})} for n in range(len(paths))]
        ids = archive.add_vectors(
            [str(path) for path in paths], vectors, fingerprint=encoder.fingerprint, metadata=facts
        )
        calibrate(archive, encoder)
        place = {id: n for n, id in enumerate(ids)}
        rows: list[dict[str, Any]] = []
        for one in questions(scenes, objects, options.among, options.each, options.seed):
            numbers = ", ".join(map(str, one.among))
            for k, check in product(options.k, (False, True)):
                found = answer(
                    one.question, archive, encoder, vlm, k=k, filter=f"number IN ({numbers})", check=check, anyway=True
                )
                rows.append({"check": check, **judged(one, k, found, place, vlm, paths)})
    report: dict[str, Any] = {"machine": describe_machine(), "settings": {k: str(v) for k, v in vars(options).items()}}
    report["results"] = summary(rows)
    print(json.dumps(report["results"], indent=1))
    if options.out:
        options.out.write_text(json.dumps({**report, "rows": rows}, indent=1))


def judged(
    one: Asked, k: int, found: GroundedAnswer, place: dict[str, int], vlm: Once, paths: Sequence[Path]
) -> dict[str, Any]:
    """One answer against its truth."""
    cited = [place[citation.id] for citation in found.citations]
    oracle = None if one.image is None else vlm.answer(decode(paths[one.image]), one.question)
    nearest = found.citations[0].answer if found.citations else None
    right = bool(exact_match(found.text, [one.truth]))
    return {
        "sort": one.sort,
        "k": k,
        "question": one.question,
        "truth": one.truth,
        "text": found.text,
        "right": right,
        "nothing": found.nothing,
        "answered": found.nothing if one.image is None else not found.nothing and right,
        "agreement": found.agreement,
        "cited": one.image in cited,
        "first": cited[:1] == [one.image],
        "oracle": oracle is not None and bool(exact_match(oracle, [one.truth])),
        "nearest": nearest is not None and bool(exact_match(nearest, [one.truth])),
        "probabilities": [citation.probability for citation in found.citations],
        "answers": [citation.answer for citation in found.citations],
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By sort and k."""
    grouped: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[f"{row['sort']}, k={row['k']}{', checked' if row['check'] else ''}"].append(row)
    measured = ("right", "nothing", "answered", "cited", "first", "oracle", "nearest")
    return {
        name: {"questions": len(mine), **{key: mean([row[key] for row in mine]) for key in measured}}
        for name, mine in grouped.items()
    }


if __name__ == "__main__":
    main()
