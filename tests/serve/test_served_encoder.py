"""A running server as an encoder: the same vectors, and so the same figures, as the model it serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI

from evals.results import read
from foveal import world
from foveal.errors import BadInput, Unavailable
from foveal.models import Encoder, load_encoder
from foveal.served import ServedEncoder, connect
from serve.app import create_app
from serve.server import running
from tests.command import foveal
from tests.serve.conftest import COLOURS, ColourDetector, ColourEncoder, draw
from tests.tiny import tiny_clip

BOX = (4, 6, 20, 30)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"open_clip:{tiny_clip(tmp_path_factory.mktemp('clip'))}"


@pytest.fixture(scope="module")
def local(tiny: str) -> Encoder:
    return load_encoder(tiny)


@pytest.fixture(scope="module")
def url(local: Encoder) -> Iterator[str]:
    with running(create_app(encoder=local)) as address:
        yield address


def served(url: str) -> ServedEncoder:
    found = connect(url, ["encoder"])
    assert isinstance(found, ServedEncoder)
    return found


def test_it_embeds_as_the_model_does(url: str, local: Encoder) -> None:
    remote = served(url)
    assert isinstance(remote, Encoder)
    for name in ("fingerprint", "dimension", "logit_scale"):
        assert getattr(remote, name) == getattr(local, name)
    images = [draw((colour, BOX), size=(64 + number, 48)) for number, colour in enumerate([*COLOURS] * 5)]
    np.testing.assert_allclose(remote.encode_images(images), local.encode_images(images), atol=1e-5)
    texts = [f"{number} {colour}" for number, colour in enumerate([*COLOURS] * 20)]  # more than one request holds
    np.testing.assert_allclose(remote.encode_texts(texts), local.encode_texts(texts), atol=1e-5)
    assert remote.encode_images([]).shape == remote.encode_texts([]).shape == (0, local.dimension)


@pytest.mark.parametrize("task", ["zero-shot", "retrieval"])
def test_a_server_is_measured_like_its_model(url: str, tiny: str, tmp_path: Path, task: str) -> None:
    world.write(tmp_path / "site", "site", 5, seed=4, workers=1)
    figures = {}
    for name, reference in (("local", tiny), ("served", url)):
        kept = tmp_path / f"{name}.json"
        line = ("eval", task, "--data", str(tmp_path / "site"), "--encoder", reference, "--out", str(kept), "--json")
        shown = foveal(*line)
        assert shown.code == 0, shown.err
        figures[name] = shown.json
    assert figures["served"] == pytest.approx(figures["local"], abs=1e-6)
    remote, own = read(tmp_path / "served.json").subject, read(tmp_path / "local.json").subject
    assert (remote.reference, remote.fingerprint) == (url, own.fingerprint)
    assert (remote.licence, remote.megabytes) == (None, None)


def test_a_server_without_an_encoder_is_told() -> None:
    with running(create_app(detector=ColourDetector())) as address, pytest.raises(BadInput, match="serves no encoder"):
        served(address)


def test_another_model_in_between_is_noticed() -> None:
    class Changing(ColourEncoder):
        pass

    model = Changing()
    app: FastAPI = create_app(encoder=model)
    with running(app) as address:
        remote = served(address)
        assert len(remote.encode_texts(["red"])) == 1
        model.fingerprint = "f" * 64
        with pytest.raises(Unavailable, match="has loaded another model since this began"):
            remote.encode_texts(["red"])


def test_a_server_that_does_not_tell_its_scale_is_refused(tmp_path: Path) -> None:
    class Silent(ColourEncoder):
        logit_scale = None  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    world.write(tmp_path / "site", "site", 1, workers=1)
    with running(create_app(encoder=Silent())) as address:  # pyright: ignore[reportArgumentType]
        shown = foveal("eval", "zero-shot", "--data", str(tmp_path / "site"), "--encoder", address)
    assert "does not tell the scale of its encoder" in shown.error
