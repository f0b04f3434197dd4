"""Exporters warn about themselves and draw their progress on stdout, which belongs to the answer."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout

TALKERS = ("nncf", "torch.onnx", "torch.utils.cpp_extension", "onnxscript", "onnx_ir")


@contextmanager
def quiet() -> Generator[None]:
    """Only errors are heard while a model is converted; what a converter gets wrong is found by a parity check."""
    levels = {name: logging.getLogger(name).level for name in TALKERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
