# make demo    train both stages on the built-in world, export, evaluate, recommend
# make test    what CI runs: the check and the tests
# make check   lint, types and code that nobody calls
# make clean   remove the environment, caches and the demo's output
#
# An active environment (venv or conda) is used as it is; otherwise one is made in .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BASE_PYTHON ?= python3
ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),.venv)
BIN := $(ENV)/bin
PYTHON := $(BIN)/python
PIP := $(PYTHON) -m pip --disable-pip-version-check

# The FAISS wheel: `make demo EXTRA=gpu-cuvs` takes the build with CAGRA.
EXTRA ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

# The stamp says which checkout and extra were installed last; another one installs again.
STAMP := $(ENV)/.twotower-installed
INSTALLED := $(CURDIR) [$(EXTRA),dev]

.PHONY: help demo test test-slow check clean install
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: $(STAMP)

ifneq ($(shell cat '$(STAMP)' 2>/dev/null),$(INSTALLED))
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml constraints.txt
	@echo "environment: $(ENV)"
	@echo "FAISS and torch for: $(EXTRA) (nvidia-smi $(if $(filter cpu,$(EXTRA)),shows no GPU,works))"
	@test -x '$(PYTHON)' || $(BASE_PYTHON) -m venv '$(ENV)'
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip
	$(PIP) install --quiet -c constraints.txt torch
	@# All FAISS wheels install the same folder: none of another kind may stay.
	@$(PIP) uninstall --yes -qq faiss-cpu faiss-gpu faiss-gpu-cuvs
	$(PIP) install --quiet -c constraints.txt -e '.[$(EXTRA),dev]'
	@echo '$(INSTALLED)' > '$(STAMP)'

demo: $(STAMP)
	$(PYTHON) train.py experiment=demo
	$(PYTHON) export.py run=runs/demo/latest
	$(BIN)/twotower evaluate bundle=bundles/demo/current
	$(BIN)/twotower recommend bundle=bundles/demo/current user=u000042
	@echo
	@echo "run       runs/demo/latest         (curves: $(BIN)/tensorboard --logdir runs/demo/latest)"
	@echo "bundle    bundles/demo/current     (its evaluation: evaluations/demo)"
	@echo "next      $(BIN)/twotower recommend bundle=bundles/demo/current user=u000007"
	@echo "          $(BIN)/twotower serve bundle=bundles/demo/current"
	@echo "          $(PYTHON) train.py data=tables --help"

check: $(STAMP)
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(PYTHON) tests/dead_code.py

test: check
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile -m 'not slow'

test-slow: $(STAMP)
	$(PYTHON) -m pytest -m slow

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf runs/demo bundles/demo evaluations/demo prepared/synthetic-*
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
