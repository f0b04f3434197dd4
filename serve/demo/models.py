"""*Models*: what is loaded, which versions answer and how they do, what each model costs. Nothing is changed here."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio.to_thread
import gradio as gr

from foveal import artifacts
from foveal.errors import FovealError
from foveal.registry import CANARY, GATED, PRODUCTION, SHADOW, Event
from foveal.registry_cli import DEFAULT_REGISTRY
from foveal.schemas import RolloutCard
from serve import fragments as show
from serve.calls import kind_of
from serve.demo import models_fragments as drawn
from serve.demo.models_fragments import Command
from serve.demo.scripts import MODELS
from serve.demo.shared import QUIET, html, may_see_figures, told
from serve.engine import Engine
from serve.model_figures import Cost, Drifted, costs, drifts
from serve.operations import card
from serve.versions import Rollout

SECONDS = 5.0  # between looks
WITHOUT = (
    "This key may see which models there are. How they do, what they cost and which versions answer is for keys with "
    "the verb metrics: whoever runs the server can make one."
)


@dataclass(frozen=True, slots=True)
class Followed:
    """A registered model at one moment, or why nothing can be said of it."""

    card: RolloutCard | None
    commands: Sequence[Command] = ()
    problem: FovealError | OSError | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """All that takes the verb `metrics`, at one moment."""

    costs: dict[str, Cost]
    drifts: dict[str, Drifted]
    followed: dict[str, Followed]


class ModelsPage:
    """What the page does.

    Args:
        kept: seconds that one look at the figures serves all visitors.
    """

    def __init__(self, engine: Engine, kept: float = SECONDS / 2) -> None:
        self.engine, self.kept = engine, kept
        self._lock = threading.Lock()
        self._seen: tuple[float, Figures] | None = None

    async def look(self, figures: bool) -> str:
        """Every model; with `figures` also how it does."""
        seen = await anyio.to_thread.run_sync(self._figures) if figures else None
        cards = [self._drawn(name, seen) for name in self.engine.models]
        return "".join([show.note(WITHOUT) if seen is None else "", *cards, drawn.legend() if seen else ""])

    def _drawn(self, name: str, seen: Figures | None) -> str:
        model = self.engine.models[name]
        facts = drawn.facts(
            name, kind_of(model), model.name, model.fingerprint, tuple(getattr(model, "classes", ())),
            getattr(model, "dimension", None),
        )  # fmt: skip
        if seen is None:
            return drawn.model(facts)
        parts = [drawn.cost(seen.costs.get(name, Cost()))]
        followed = seen.followed.get(name)
        if followed is None:
            parts += [drawn.drift(seen.drifts[name])] if name in seen.drifts else []
        elif followed.card is not None:
            now = datetime.now(UTC)
            parts += [drawn.versions(followed.card, seen.drifts), drawn.events(followed.card, now)]
            parts += [drawn.commands(followed.commands)]
        else:
            problem = followed.problem
            parts += [show.problem(problem if isinstance(problem, FovealError) else FovealError(str(problem)))]
        return drawn.model(facts, *parts)

    def _figures(self) -> Figures:
        with self._lock:
            if self._seen is None or time.monotonic() - self._seen[0] >= self.kept:
                self.engine.drift.collect()
                metrics, rollouts = self.engine.metrics, self.engine.rollouts
                made = Figures(
                    costs(metrics, rollouts),
                    drifts(metrics),
                    {name: _followed(name, rollout) for name, rollout in rollouts.items()},
                )
                self._seen = time.monotonic(), made
            return self._seen[1]


def _followed(name: str, rollout: Rollout) -> Followed:
    try:
        now = card(name, rollout)
        return Followed(now, commands(rollout, now))
    except (FovealError, OSError) as error:  # the registry cannot be read; the models go on answering
        return Followed(None, problem=error)


def commands(rollout: Rollout, now: RolloutCard) -> list[Command]:
    """What can be done next, as lines for a shell; a text where a step makes no sense at the moment."""
    roles = {version.role: version.version for version in now.versions}
    newest = int(rollout.registry.resolve(rollout.registered).name)
    production, canary, shadow = now.versions[0].version, roles.get("canary"), roles.get("shadow")
    next_one = next((one for one in (canary, shadow, newest) if one not in (None, production)), None)
    trial = next((one for one in (shadow, newest) if one not in (None, production, canary)), None)
    made: list[Command] = []
    if next_one is None:
        made.append(Command("Promote", note="nothing newer than production is registered"))
    else:
        made.append(_promotion(rollout, f"Put version {next_one} into production", next_one, rollout.alias))
    if trial is None:
        made.append(Command("Try as canary", note="no other version is there to try"))
    else:
        made.append(_promotion(rollout, f"Try version {trial} as canary", trial, CANARY))
    for alias, number in ((CANARY, canary), (SHADOW, shadow)):
        if number is not None:
            line = _line(rollout, "withdraw", alias=None if alias == CANARY else alias)
            made.append(Command(f"Withdraw version {number} as {alias}", line))
    if canary is None and shadow is None:
        made.append(Command("Withdraw", note="there is no canary and no shadow"))
    before = _before(rollout.registry.history(rollout.registered), rollout.alias)
    if before is None:
        made.append(Command("Roll back", note=f"only one version has been {rollout.alias}"))
    else:
        line = _line(rollout, "rollback", alias=None if rollout.alias == PRODUCTION else rollout.alias)
        made.append(Command(f"Roll back to version {before}", line))
    return made


def _promotion(rollout: Rollout, what: str, number: int, alias: str) -> Command:
    folder = rollout.registry.resolve(f"{rollout.registered}@{number}")
    passed = artifacts.read(folder, verify=False).metrics.get("gate_passed") is True
    gates = () if passed or alias not in GATED else ("--gates", "gates.yaml", "--results", "report.json")
    line = _line(rollout, "promote", str(number), *gates, alias=None if alias == PRODUCTION else alias)
    notes = [] if passed or alias not in GATED else ["it has passed no gate yet: name the gates and its report"]
    notes += ["it is out for the reason above"] if number in rollout.refused else []
    return Command(what, line, "; ".join(notes))


def _line(rollout: Rollout, verb: str, *more: str, alias: str | None) -> str:
    root = rollout.registry.root
    where = () if root == DEFAULT_REGISTRY else ("--registry", str(root))
    which = () if alias is None else ("--alias", alias)
    return shlex.join(["foveal", "registry", verb, rollout.registered, *more[:1], *which, *more[1:], *where])


def _before(events: Sequence[Event], alias: str) -> int | None:
    """The version that a roll-back would bring back."""
    stack: list[int] = []
    for event in (one for one in events if one.alias == alias):
        if event.action == "promote":
            stack.append(event.version)
        else:
            del stack[-1 if event.action == "rollback" else 0 :]
    return stack[-2] if len(stack) > 1 else None


def draw(engine: Engine, page: gr.Blocks) -> None:
    """Puts the page into what is being built."""
    it = ModelsPage(engine)
    html(show.heading("Models", "What answers here, how it does, and what it costs."))
    shown = html(elem_id="fv-models", js=MODELS)
    timer = gr.Timer(SECONDS)

    async def look(request: gr.Request) -> str:
        return await it.look(may_see_figures(request))

    async def turn(event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Asks for no news while the page is hidden, and for the latest once it is seen again."""
        if told(event, "do") == "away":
            return gr.Timer(active=False), gr.skip()  # pyright: ignore[reportUnknownMemberType]
        return gr.Timer(active=True), await look(request)

    page.load(look, None, shown, **QUIET)
    timer.tick(look, None, shown, **QUIET)
    shown.pick(turn, None, [timer, shown], **QUIET)
