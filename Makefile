# Every target sets up what it needs in .venv; nothing here is needed to work by hand (CONTRIBUTING.md).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Two workers with one thread each: the whole suite is sized for two cores.
PYTEST_ARGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format browser browser-test gpu-test pretrain pretrain-vlbart wheel audit clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed  ## Adapt, evaluate, export and compare a real VLM (ARGS=--no-demo: no page)
	$(BIN)/mmdora quickstart $(ARGS)

test: lint  ## Lint, type check, layer contract and the whole test suite
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

browser: $(VENV)/.installed-browser  ## Get Chromium, if there is none
	$(BIN)/python tests/browser/chromium.py

browser-test: browser  ## The page in a real headless browser
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser $(ARGS)

gpu-test: $(VENV)/.installed-dev  ## On CUDA: train, kill, resume and merge in bf16; the Triton kernels against torch and float64
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/gpu $(ARGS)

PRETRAIN := runs/pretrain
pretrain: $(VENV)/.installed  ## Make the bundled base anew in runs/pretrain (about an hour on 2 cores)
	$(BIN)/mmdora prep scenes --out $(PRETRAIN)/scenes --rows 80000 --held-out 2000 --presence 0.6
	$(BIN)/python -m mmdora.pretrain.tiny_llava $(PRETRAIN)/untrained
	$(BIN)/mmdora train configs/tiny/pretrain_1_projector.yaml
	$(BIN)/mmdora export $(PRETRAIN)/stage1 $(PRETRAIN)/stage1_merged
	$(BIN)/mmdora train configs/tiny/pretrain_2_all.yaml
	$(BIN)/mmdora export $(PRETRAIN)/stage2 $(PRETRAIN)/tiny-llava
	$(BIN)/mmdora eval $(PRETRAIN)/tiny-llava --data $(PRETRAIN)/scenes/test.jsonl

VLBART := $(PRETRAIN)/vlbart
pretrain-vlbart: $(VENV)/.installed  ## Make tiny-vlbart anew in runs/pretrain/vlbart (about an hour and a half on 2 cores)
	$(BIN)/mmdora prep scenes --kind questions --out $(VLBART)/questions --rows 60000 --held-out 1000
	$(BIN)/mmdora prep scenes --kind pair-questions --out $(VLBART)/pair-questions --rows 15000 --held-out 250
	$(BIN)/mmdora prep scenes --kind names --out $(VLBART)/names --rows 20000
	$(BIN)/mmdora prep scenes --kind clip-features --out $(VLBART)/clip-features --rows 8000
	$(BIN)/mmdora prep scenes --kind questions --out $(VLBART)/2/questions --rows 8000 --held-out 1000
	$(BIN)/mmdora prep scenes --kind places --out $(VLBART)/2/places --rows 12000
	$(BIN)/mmdora prep scenes --kind names --out $(VLBART)/2/names --rows 40000
	$(BIN)/mmdora prep scenes --kind clip-features --out $(VLBART)/2/clip-features --rows 24000
	$(BIN)/python -m mmdora.pretrain.tiny_vlbart $(VLBART)/untrained
	$(BIN)/mmdora train configs/tiny/pretrain_vlbart_1.yaml
	$(BIN)/mmdora export $(VLBART)/stage1 $(VLBART)/stage1_merged
	$(BIN)/python -m mmdora.pretrain.tiny_vlbart $(VLBART)/stage1_merged --louder-order
	$(BIN)/mmdora train configs/tiny/pretrain_vlbart_2.yaml
	$(BIN)/mmdora export $(VLBART)/stage2 $(VLBART)/tiny-vlbart

wheel: $(VENV)/.installed-dev  ## Build dist/*.whl
	$(BIN)/python -m build --wheel

audit: $(VENV)/.installed-dev  ## Known vulnerabilities of what is installed
	$(BIN)/pip-audit --local --skip-editable

clean:  ## Remove .venv and build leftovers (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache

# A stamp per set of extras: installation is repeated only when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -e ".[dev,browser]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mmdora needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1)."; \
	  echo "Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
