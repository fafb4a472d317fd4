# Every target sets up what it needs in .venv; nothing here is needed to work by hand (CONTRIBUTING.md).
PYTHON ?= python3
VENV := .venv
FLOOR := .venv-floor
NEWEST := .venv-newest
DOCS := .venv-docs
SERVE := .venv-serve
BIN := $(VENV)/bin
ARGS ?=
# Two workers with one thread each: the whole suite is sized for two cores. They take the files in the order that
# tests/conftest.py gives them.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := -m pytest $(PYTEST_ARGS) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help quickstart demo evidence evidence-sample test test-slow test-floor test-newest test-trl newest lock lint format families zoo notebooks browser browser-test gpu-test gpu-report serve-test pretrain pretrain-vlbart shipped-adapters bench-quantised bench-size bench-e2e docs release audit clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed  ## Adapt, evaluate, export and compare a real VLM (ARGS=--no-demo: no page)
	$(BIN)/mmdora quickstart $(ARGS)

demo: $(VENV)/.installed  ## The page with the bundled base and two adapters of it (ARGS="base=… mine=…": other models)
	$(BIN)/mmdora demo $(ARGS)
STUDIES := $(sort $(wildcard configs/study/*.yaml))
EVIDENCE := docs/evidence/results.jsonl
evidence: $(VENV)/.installed-study  ## Run what is missing of the studies, on as many runs as it takes; writes docs/evidence.md
	$(BIN)/mmdora study $(STUDIES) --results $(EVIDENCE) --report docs/evidence.md $(ARGS)

evidence-sample: $(VENV)/.installed-study  ## A cell of the studies once more, held against the committed one; then the page
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/mmdora study $(STUDIES) --results $(EVIDENCE) --again 1 $(ARGS)
	$(BIN)/mmdora study $(STUDIES) --results $(EVIDENCE) --report build/evidence.md --only-report
	cmp build/evidence.md docs/evidence.md

test: lint  ## Lint, type check, layer contract and the whole test suite
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

test-slow: $(VENV)/.installed-dev  ## The long forms of tests of which `make test` runs a sample
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m slow

test-floor: $(FLOOR)/.installed  ## The suite on the lowest versions that pyproject.toml allows (7 GB in .venv-floor)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(FLOOR)/bin/python $(PYTEST)

test-newest: newest  ## Type check and suite on the newest versions there are (7 GB in .venv-newest)
	$(NEWEST)/bin/pyright --pythonpath $(NEWEST)/bin/python
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(NEWEST)/bin/python $(PYTEST)

lock:  ## Write the newest versions there are to constraints.txt (make test-newest first; Python 3.11)
	rm -rf $(NEWEST)
	$(MAKE) newest
	$(NEWEST)/bin/python tests/versions.py lock > constraints.txt.new
	mv constraints.txt.new constraints.txt

lint: $(VENV)/.installed-dev  ## ruff, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

families: $(VENV)/.installed-dev  ## Every family down the whole path, on tiny checkpoints; writes docs/models.md
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.families.table

zoo: $(VENV)/.installed-dev  ## DoRA on every architecture of transformers, each part alone and all; writes docs/zoo.md
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.families.zoo

browser: $(VENV)/.installed-browser  ## Get Chromium, if there is none
	$(BIN)/python tests/browser/chromium.py

browser-test: browser  ## The page in a real headless browser
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser $(ARGS)

notebooks: $(VENV)/.installed-notebooks  ## Execute the notebooks of examples/ and keep their outputs (ARGS=NAME.ipynb: one)
	HF_HUB_OFFLINE=1 $(BIN)/python examples/execute.py $(ARGS)

bench-quantised: $(VENV)/.installed-dev  ## A step on a base in 4 bits beside PEFT's, and what may be merged into what
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/quantised.py $(ARGS)

bench-size: $(VENV)/.installed-dev  ## LLaVA-1.5-7B's size on a CPU in 4 bits: inspect, load, a step (17 GB of disk for a while)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/size.py $(ARGS)

bench-e2e: $(VENV)/.installed-trl  ## A whole training beside TRL's SFTTrainer with PEFT: CPU time and memory
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/e2e.py $(ARGS)

test-trl: $(VENV)/.installed-trl  ## An injected model under transformers' Trainer and TRL's trainers
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/train/test_other_trainers.py $(ARGS)

gpu-test: $(VENV)/.installed-dev  ## On CUDA: train, kill, resume and merge in bf16; the Triton kernels against torch and float64
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/gpu $(ARGS)

gpu-report: $(VENV)/.installed-dev  ## Measure on one GPU of 80 GB, in 12 minutes, what a CPU cannot; writes runs/gpu-report/gpu.md (ARGS=--small: on a CPU)
	HF_HUB_OFFLINE=1 PYTHONPATH=.:benchmarks $(BIN)/python -m gpu_report $(ARGS)

serve-test: $(VENV)/.installed-dev $(SERVE)/.installed  ## Exports served by a real vLLM on the CPU (7 GB in .venv-serve); writes docs/serving.md
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.serving $(SERVE)/bin/python $(ARGS)

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

SHIPPED := runs/shipped
shipped-adapters: $(VENV)/.installed  ## Make the adapters that `mmdora demo` shows anew: those of the quickstart
	$(BIN)/mmdora quickstart --no-demo --out $(SHIPPED)
	for method in lora dora; do \
	  cp $(SHIPPED)/$$method/adapter/adapter_config.json $(SHIPPED)/$$method/adapter/adapter_model.safetensors \
	    $(SHIPPED)/$$method/adapter/mmdora.json mmdora/assets/easy-vqa/$$method/ || exit 1; \
	done

docs: $(DOCS)/.installed  ## Build the site of the guide into build/site; a dead link is an error
	$(DOCS)/bin/python docs/site_pages.py build/docs
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict

release: $(VENV)/.installed-release  ## Build dist/*.whl and dist/*.tar.gz, and check them
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/release.py dist

audit: $(VENV)/.installed-dev  ## Known vulnerabilities of what is installed
	$(BIN)/pip-audit --local --skip-editable

clean:  ## Remove the environments and build leftovers (runs/ stays)
	rm -rf $(VENV) $(FLOOR) $(NEWEST) $(DOCS) $(SERVE) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache

# A stamp per set of extras: installation is repeated only when pyproject.toml or the lock changes. pip and setuptools
# are the lock's too, and an isolated build would fetch a setuptools of its own. pip would compile every module of torch,
# which takes as long as the rest of the installation; Python compiles the few that are imported.
COMMA := ,
define install
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --no-compile -c constraints.txt --no-build-isolation -e $(1)
endef

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,".[dev]")
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(call install,".[dev$(COMMA)browser]")
	@touch $@

$(VENV)/.installed-study: $(VENV)/.installed-dev
	$(call install,".[dev$(COMMA)study]")
	@touch $@

$(VENV)/.installed-notebooks: $(VENV)/.installed-dev
	$(call install,".[dev$(COMMA)notebooks]")
	@touch $@

$(VENV)/.installed-trl: $(VENV)/.installed-dev
	$(call install,".[dev$(COMMA)trl]")
	@touch $@

$(VENV)/.installed-release: $(VENV)/.installed-dev
	$(call install,".[dev$(COMMA)release]")
	@touch $@

$(FLOOR)/.installed: pyproject.toml tests/versions.py | $(FLOOR)/bin/python
	$(FLOOR)/bin/python tests/versions.py floor > $(FLOOR)/floor.txt
	$(FLOOR)/bin/python -m pip install --quiet --upgrade pip
	$(FLOOR)/bin/python -m pip install --no-compile -r $(FLOOR)/floor.txt
	$(FLOOR)/bin/python -m pip install --no-build-isolation --no-deps -e .
	@touch $@

# The site is made from the command line and the docstrings, which need neither torch nor the rest.
$(DOCS)/.installed: pyproject.toml constraints.txt tests/versions.py | $(DOCS)/bin/python
	$(DOCS)/bin/python tests/versions.py docs > $(DOCS)/docs.txt
	$(DOCS)/bin/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(DOCS)/bin/python -m pip install --quiet -c constraints.txt -r $(DOCS)/docs.txt
	$(DOCS)/bin/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

# vLLM wants an older transformers than ours, so it has an environment of its own.
$(SERVE)/.installed: tests/serving/install.py | $(SERVE)/bin/python
	$(SERVE)/bin/python tests/serving/install.py
	@touch $@

newest: | $(NEWEST)/bin/python
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip setuptools
	$(NEWEST)/bin/python -m pip install --no-compile --upgrade --upgrade-strategy eager --no-build-isolation -e ".[dev,browser,trl,study,docs,release,notebooks]"

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mmdora needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1)."; \
	  echo "Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $* || { rm -rf $*; \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
