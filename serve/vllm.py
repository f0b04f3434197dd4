"""vLLM as a process of its own: started, watched, started again when it dies, and stopped.

It pins its own torch, so it lives in an environment of its own: its Python is named by `FOVEAL_VLLM_PYTHON`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx

from foveal.errors import BadInput, Unavailable

log = logging.getLogger("foveal.serve")
START_SECONDS = 600.0  # a large model is read, compiled and measured first
STOP_SECONDS = 15.0
LOOK_SECONDS = 1.0
PAUSES = (1.0, 5.0, 30.0)  # before it is started again: the first, second and any further time
STEADY_SECONDS = 300.0  # after which the next death is a first one again
ANSWERS = 5.0  # seconds in which a healthy server says that it is one
HUNG_SECONDS = 30.0  # without an answer, after which a server that had answered is ended
TAIL = 30  # lines of its log that are shown when it does not start


class VllmServer:
    """One vLLM over one base model.

    Args:
        python: of the environment that vLLM is installed in.
        model: folder, or a name of the hub.
        adapters: folders of LoRA adapters by the name that requests use, of rank 64 at most.
        options: further words for vLLM's own command line.
    """

    def __init__(
        self, python: Path, model: str, *, adapters: Mapping[str, Path] | None = None, options: tuple[str, ...] = ()
    ) -> None:
        if not python.is_file():
            raise BadInput(
                f"{python} does not exist", expected="the Python of an environment with vLLM",
                remedy="Set FOVEAL_VLLM_PYTHON, see README.",
            )  # fmt: skip
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.line = _command(python, model, self.port, dict(adapters or {}), options)
        self.deaths = 0
        self.local = Path(model).is_dir()
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> VllmServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def start(self, seconds: float = START_SECONDS) -> None:
        """Returns once it answers.

        Raises:
            Unavailable: it ends, or does not answer within `seconds`; with the end of its log.
        """
        self._launch()
        deadline = time.monotonic() + seconds
        while not self.healthy():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                ended = self._process.poll()
                self.stop()
                raise Unavailable(
                    f"vLLM {'does not answer' if ended is None else f'ended with {ended}'}",
                    received="\n".join(self._tail)[-2000:],
                    remedy="Its own words above say why.",
                )
            time.sleep(0.2)
        self._watcher = threading.Thread(target=self._watch, name="vllm-watch", daemon=True)
        self._watcher.start()

    def healthy(self) -> bool:
        """Whether it answers now."""
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=ANSWERS).status_code == 200
        return False

    def stop(self) -> None:
        """Ends it and its workers, and returns when they are gone."""
        self._stopping.set()
        self._end()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None

    def _launch(self) -> None:
        environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if self.local:
            environment["HF_HUB_OFFLINE"] = "1"
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; of no effect on GPUs
        self._process = subprocess.Popen(
            self.line, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._read, args=(self._process,), name="vllm-log", daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._tail.append(line.rstrip())
            log.debug("vllm: %s", line.rstrip())

    def _watch(self) -> None:
        """Starts it again when it has died or hangs."""
        began = heard = time.monotonic()
        answered = True  # since it was started; until then it reads its model, and may take as long as at first
        while not self._stopping.wait(LOOK_SECONDS):
            assert self._process is not None
            if self._process.poll() is None:
                if self.healthy():
                    heard, answered = time.monotonic(), True
                silent = time.monotonic() - heard
                if silent < (HUNG_SECONDS if answered else START_SECONDS):
                    continue
                log.error("vLLM has not answered for %.0f s, it is ended", silent)
                self._end()
            if time.monotonic() - began > STEADY_SECONDS:
                self.deaths = 0
            pause = PAUSES[min(self.deaths, len(PAUSES) - 1)]
            self.deaths += 1
            log.error("vLLM ended with %s, it is started again in %g s", self._process.poll(), pause)
            self._end()  # workers that it left behind
            if self._stopping.wait(pause):
                return
            self._launch()
            began = heard = time.monotonic()
            answered = False

    def _end(self) -> None:
        if self._process is None:
            return
        for word in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, word)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        # The group may outlive its leader.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _command(python: Path, model: str, port: int, adapters: Mapping[str, Path], options: tuple[str, ...]) -> list[str]:
    line = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "base"]
    line += ["--host", "127.0.0.1", "--port", str(port), *options]
    if adapters:
        rank = max(json.loads((folder / "adapter_config.json").read_text())["r"] for folder in adapters.values())
        line += ["--enable-lora", "--max-lora-rank", str(max(8, 1 << (rank - 1).bit_length())), "--lora-modules"]
        line += [f"{name}={folder}" for name, folder in adapters.items()]
    return line


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
