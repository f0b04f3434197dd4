"""Archives that are embedded anew while they are served: a generation answers until the next one's encoder is warm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio.to_thread

from foveal.errors import FovealError
from foveal.models import Encoder
from retrieval.settings import Settings
from serve import calls

if TYPE_CHECKING:
    from serve.engine import Engine

log = logging.getLogger("foveal.serve")
FOLLOW_SECONDS = 2.0  # between looks at the archives


async def follow(engine: Engine, load: Callable[[str], Encoder]) -> None:
    """Moves each archive to the generation that `foveal archive reembed` swapped in, for ever."""
    refused: dict[str, Settings] = {}  # what cannot be served, until the archive changes again
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        for name, store in engine.archives.folders.items():
            try:
                settings = await anyio.to_thread.run_sync(Settings.read, store.path)
                if settings.generation != store.settings.generation and settings != refused.get(name):
                    refused[name] = settings  # until it has gone well
                    await move(engine, name, settings, load)
                    del refused[name]
            except (FovealError, OSError) as error:
                log.error("archive %s stays with its generation: %s", name, error)
            except Exception:
                log.exception("archive %s stays with its generation", name)


async def move(engine: Engine, name: str, settings: Settings, load: Callable[[str], Encoder]) -> None:
    """Serves another generation of an archive, with the encoder that made it; nothing waits and nothing is refused.

    Raises:
        FovealError: the encoder cannot be loaded, or is not the one that made the vectors.
    """
    store, old = engine.archives.folders[name].at(settings), engine.encoder_of[name]
    key = next((k for k, m in engine.models.items() if m.fingerprint == settings.fingerprint), None)
    if key is None:
        encoder: Encoder = await anyio.to_thread.run_sync(load, settings.encoder)
        store.require(encoder)
        shared = sum(used == old for used in engine.encoder_of.values()) > 1
        key = settings.encoder if shared else old
        lane = engine.lane(key)
        await calls.warm_up(lane, encoder)
        before = engine.lanes.get(key)
        engine.models[key], engine.lanes[key] = encoder, lane
        if before is not None:
            retiring = asyncio.create_task(before.retire())
            engine.background.add(retiring)
            retiring.add_done_callback(engine.background.discard)
    engine.archives[name], engine.encoder_of[name] = store, key
    engine.drift.watch(key, store)
    log.info("archive %s is served in generation %d, by %s", name, settings.generation, settings.encoder)
