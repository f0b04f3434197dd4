"""The page of a gate: the verdict, every check with its reason, and what the figures were measured on."""

from __future__ import annotations

from evals.evidence import Evidence
from evals.report import Cell, Report, State
from evals.verdicts import GateReport

TITLES = {"pass": "The gate is open", "fail": "The gate says no", "cannot tell": "The gate cannot tell"}


def page(report: GateReport, evidence: Evidence, gates: str) -> Report:
    """The verdict over the gates of the file called `gates`, and the evidence that it rests on."""
    facts = [("gates", gates), ("results", ", ".join(evidence.results) or "a report")]
    if evidence.incumbent:
        facts.append(("incumbent", ", ".join(sorted({r.subject.reference for r in evidence.incumbent.values()}))))
    if evidence.artifact is not None:
        facts.append(("artifact", str(evidence.artifact)))
    stopping = [check.name for check in report.checks if not check.passed]
    said = f"What stops it: {', '.join(stopping)}." if stopping else f"All {len(report.checks)} gates hold."
    made = Report(TITLES[report.word], said, facts=facts)
    words = [check.word for check in report.checks]
    tiles: list[tuple[str, str, str, State | None]] = [
        ("hold", str(words.count("pass")), "", "good"),
        ("say no", str(words.count("fail")), "", "bad" if "fail" in words else None),
        ("cannot tell", str(words.count("cannot tell")), "too little data", "warn" if "cannot tell" in words else None),
    ]
    made.section("Gates").figures(tiles).checks(report)
    changes = {
        check.name: (check.value, check.low, check.high)
        for check in report.checks
        if check.op == "change" and check.value is not None and check.low is not None and check.high is not None
    }
    if changes:
        from evals import plots

        made.section("Against the incumbent", "Changes with their 95% intervals, on the same items.")
        made.plot(plots.differences(changes, x="change"), "Candidate less incumbent")
    _sources(made, evidence)
    return made


def _sources(report: Report, evidence: Evidence) -> None:
    sides = {"candidate": evidence.results, "incumbent": evidence.incumbent}
    rows: list[list[Cell]] = [
        [
            result.name,
            side,
            result.subject.reference,
            f"{result.data.source} ({result.data.fingerprint[:8]})",
            result.data.images,
            len(result),
            f"{result.created:%Y-%m-%d %H:%M}",
        ]
        for side, results in sides.items()
        for result in results.values()
    ]
    if rows:
        report.section("What it rests on")
        report.table(("result", "of", "model", "data", "images", "items", "date"), rows, stack=True)
