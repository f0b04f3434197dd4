"""`foveal scenarios ...`: cases that must not fail, run, checked and added to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foveal.options import live_progress
from foveal.printing import Json, emit, emit_rows
from foveal.registry_cli import DEFAULT_REGISTRY, RegistryDir

if TYPE_CHECKING:
    from PIL.Image import Image

    from evals.results import Measured, Subject
    from evals.scenario_form import Search
    from evals.scenario_growth import Draft
    from evals.scenario_judging import Found, Subjects
    from evals.scenario_suite import Suite
    from foveal.detections import Detections

SuiteFile = Annotated[Path, typer.Argument(metavar="SUITE", help="YAML file of cases.")]
DEEPER = 100  # hits looked at so that a miss can be told its rank

scenarios_app = typer.Typer(no_args_is_help=True, help="Cases that must not fail.")


@scenarios_app.command("run")
def scenarios_run(
    suite: SuiteFile,
    detector: Annotated[
        str | None, typer.Option(metavar="REF", help="Tried by detect cases; also http://HOST:PORT of a server.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(metavar="REF", help="Tried by classify cases.")] = None,
    vlm: Annotated[str | None, typer.Option(metavar="REF", help="Tried by answer cases; also a server.")] = None,
    archive: Annotated[str | None, typer.Option(metavar="DIR", help="Tried by search cases; also a server.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only these kinds, or cases by name; repeatable.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each case is run, to find flaky ones.")] = 1,
    noise: Annotated[
        int, typer.Option(min=0, max=32, help="Grey levels added or taken at random from the second run on.")
    ] = 0,
    registry: RegistryDir = DEFAULT_REGISTRY,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Keep the result, and a page with every case beside it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What gates call the result; scenarios by default.")] = None,
    json_: Json = False,
) -> None:
    """Run every case; the exit code is 1 when a blocker fails or is flaky.

    Example: foveal scenarios run scenarios.yaml --detector artifact:depot@candidate --repeats 3 --noise 2
    """
    from evals.results import Data, Stopwatch, result_path
    from evals.scenario_suite import load
    from evals.scenarios import measure
    from foveal.errors import BadInput

    path = None if out is None else result_path(out)
    if noise and repeats == 1:
        raise BadInput("--noise is for repeated runs", expected="--repeats 2 or more")
    watch, chosen = Stopwatch(), load(suite).only(only or ())
    chosen.verify()
    subjects, subject = _subjects(chosen, detector, encoder, vlm, archive, registry)
    measured = measure(chosen, subjects, repeats=repeats, noise=noise, progress=live_progress())
    if path is not None:
        from evals.pages import write

        dataset = chosen.dataset()
        data = Data(source=str(suite), fingerprint=chosen.fingerprint, images=len(dataset))
        settings = {"repeats": repeats, "noise": noise, "only": only or []}
        page = write(watch.result("scenarios", measured, subject, data, name=name, settings=settings), path, dataset)
        typer.echo(f"kept in {path}; look at {page}", err=True)
    _tell(measured, json_)
    if measured.figures["blockers_failed"]:
        raise typer.Exit(1)


def _tell(measured: Measured, json_: bool) -> None:
    items = measured.items
    rows = [
        {
            "verdict": "holds" if passed else "flaky" if flaky else "FAILS",
            "severity": severity,
            "case": name,
            "margin": round(margin, 3),
            "seen": reason,
        }
        for name, passed, flaky, margin, reason, severity in zip(
            items["id"], items["passed"], items["flaky"], items["margin"], items["reason"],
            measured.slices["severity"], strict=True,
        )
    ]  # fmt: skip
    if json_:
        emit({**measured.figures, "verdicts": rows}, True)
        return
    emit_rows(rows)
    told = measured.figures
    typer.echo(
        f"{told['passed']} of {told['cases']} cases hold; {told['blockers_failed']} blockers fail; "
        f"{told['flaky']} flaky",
        err=True,
    )


def _subjects(
    suite: Suite, detector: str | None, encoder: str | None, vlm: str | None, archive: str | None, registry: Path
) -> tuple[Subjects, Subject]:
    from evals.results import Subject
    from evals.scenario_judging import Subjects
    from foveal.models import load_encoder, load_vlm
    from foveal.served import ServedVLM, connect, is_server

    detect, classes, model = (None, None, None) if detector is None else _detector(detector, suite, registry)
    naming = None if encoder is None else load_encoder(encoder)
    talking: Any = None
    if vlm is not None:
        talking = connect(vlm, ["vlm"]) if is_server(vlm) else load_vlm(vlm)
        assert isinstance(talking, ServedVLM) or not is_server(vlm)  # what `connect` was asked for
    subjects = Subjects(detect, classes, naming, talking, None if archive is None else _archive(archive))
    given = {detector: model, encoder: naming, vlm: talking, archive: None}
    refs = [ref for ref in given if ref is not None]
    if len(refs) == 1 and refs[0] != archive and not is_server(refs[0]):
        return subjects, Subject.of(refs[0], given[refs[0]])
    prints = [getattr(one, "fingerprint", None) for one in given.values() if one is not None]
    return subjects, Subject(reference=" + ".join(refs), fingerprint=prints[0] if len(prints) == 1 else None)


def _detector(
    ref: str, suite: Suite, registry: Path
) -> tuple[Callable[[Sequence[Image], float], list[Detections]], tuple[str, ...] | None, Any]:
    """How it is asked, the classes it is limited to, and the model; one that takes texts gets the suite's."""
    from foveal.models import DETECTORS, load_detector, load_open_detector, parse_ref
    from foveal.served import ServedOpenDetector, connect, is_server

    if is_server(ref):
        model: Any = connect(ref, ["detector", "open-detector"])
        closed = not isinstance(model, ServedOpenDetector)
    else:
        closed = parse_ref(ref).scheme in (*DETECTORS, "artifact")
        model = load_detector(ref, registry) if closed else load_open_detector(ref)
    if closed:
        return model.detect, tuple(model.classes), model
    prompts = suite.prompts
    return (lambda images, threshold: model.detect(images, prompts, threshold)), None, model


def _archive(ref: str) -> Callable[[Search], Found]:
    from evals.scenario_judging import Found
    from foveal.served import is_server

    if is_server(ref):
        from foveal.client import Client
        from foveal.schemas import SearchRequest

        client = Client(ref)

        def ask(asked: Search) -> Found:
            request = SearchRequest(
                text=asked.text, k=asked.within, filter=asked.filter
            )  # it limits k to its own taste
            answer = client.send(request)
            hashes = tuple(client.item(hit.id, answer.archive).content_hash for hit in answer.hits)
            return Found(hashes, tuple(Path(hit.uri).name for hit in answer.hits), answer.reason)

        return ask

    from foveal.models import load_encoder
    from retrieval.query import SearchQuery
    from retrieval.stores import open_archive

    opened = open_archive(ref)
    encoder = load_encoder(opened.encoder)

    def find(asked: Search) -> Found:
        results = opened.search(SearchQuery(text=asked.text, k=_depth(asked), filter=asked.filter), encoder)
        known = opened.items([hit.id for hit in results], ["content_hash"])
        hashes = tuple(str(known[hit.id]["content_hash"]) for hit in results)
        return Found(hashes, tuple(Path(hit.uri).name for hit in results), results.reason)

    return find


def _depth(asked: Search) -> int:
    return 1 if asked.nothing else max(asked.within, DEEPER)


@scenarios_app.command("check")
def scenarios_check(suite: SuiteFile, json_: Json = False) -> None:
    """Check a suite without running it: its form, and that its pictures are those it was locked with.

    Example: foveal scenarios check scenarios.yaml
    """
    from evals.scenario_suite import load

    loaded = load(suite)
    loaded.verify()
    _summary(loaded, json_)


@scenarios_app.command("lock")
def scenarios_lock(suite: SuiteFile, json_: Json = False) -> None:
    """Hold the pictures of a suite fast as they are now; look at them first.

    Example: foveal scenarios lock scenarios.yaml
    """
    from evals.scenario_suite import load

    loaded = load(suite)
    loaded.write_lock()
    _summary(loaded, json_)


def _summary(suite: Suite, json_: bool) -> None:
    from collections import Counter

    counts = Counter(case.severity for case in suite.cases)
    emit(
        {
            "suite": suite.title,
            "cases": len(suite.cases),
            **{f"{name}s": counts[name] for name in ("blocker", "major", "minor")},
            "images": len(list(suite.samples())),
            "fingerprint": suite.fingerprint,
            "lock": str(suite.lock_path),
        },
        json_,
    )


@scenarios_app.command("add")
def scenarios_add(
    suite: SuiteFile,
    source: Annotated[
        str,
        typer.Option("--from", metavar="CORRECTIONS", help="A reviewed prelabel job, or any corrected, labelled set."),
    ],
    owner: Annotated[str, typer.Option(help="Who answers for these cases.")],
    severity: Annotated[Literal["blocker", "major", "minor"], typer.Option(help="How bad a failure is.")] = "major",
    why: Annotated[str | None, typer.Option(help="Why they exist; else what was corrected.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, the most corrected first.")] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="From which a box counts as found.")] = 0.3,
    iou: Annotated[float, typer.Option(min=0.05, max=1, help="With the corrected box.")] = 0.5,
    reference: Annotated[
        bool, typer.Option("--reference", help="Name the pictures where they lie instead of copying them.")
    ] = False,
    json_: Json = False,
) -> None:
    """Turn corrections into cases: boxes that people drew, renamed or moved far must be found from now on.

    Boxes that people removed must not come back; far is an overlap of less than --iou. From a labelled set that tells
    nothing of what was wrong, every box of every picture is demanded.

    Example: foveal scenarios add scenarios.yaml --from runs/prelabels --owner "night shift" --severity blocker
    """
    from evals.scenario_growth import grow

    drafts = sorted(_drafts(Path(source), iou), key=lambda draft: -(len(draft.missed) + len(draft.wrong)))
    names = grow(
        suite, drafts[:limit], owner=owner, severity=severity, source=source, score=score, iou=iou, why=why,
        copy=not reference,
    )  # fmt: skip
    emit({"suite": str(suite), "added": len(names), "known": len(drafts[:limit]) - len(names), "names": names}, json_)


def _drafts(source: Path, iou: float) -> Iterator[Draft]:
    from evals.scenario_growth import Draft
    from foveal.dataset import Dataset
    from foveal.detections import Detections

    if (source / "boxes.jsonl").is_file():  # a labelling job
        from distill.mistakes import mistakes

        yield from (Draft(one.sample.path, one.missed, one.wrong) for one in mistakes(source, iou))
        return
    for sample in Dataset.open(source):
        if sample.truth is not None and len(sample.truth):
            yield Draft(sample.path, sample.truth, Detections.empty(()))
