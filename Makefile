# Two commands do everything, set-up included: `make demo` (the whole walk) and `make test`.
# TORCH=cpu (or cu126, ...) takes PyTorch's wheels for that from where PyTorch keeps them; uv knows the place.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STORE ?= runs
TORCH ?=
PYTEST_ARGS ?=
PYTEST_JOBS ?= 2

.PHONY: demo demo-slurm test drills check bench docs screenshots first-hour install clean help

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
ifeq ($(TORCH),)
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
else
	$(BIN)/python -m pip install -qq uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend $(TORCH) --constraint constraints.txt --editable '.[dev]'
endif
	touch $@

install: $(VENV)/.installed ## a virtual environment in .venv with everything

demo: install ## the quickstart: pictures -> tokens -> a trained MaskGIT -> samples -> scores (minutes, no GPU)
	MASKGIT_STORE=$(STORE) $(BIN)/maskgit run experiment=quickstart
	@echo "report: $(STORE)/experiments/quickstart/report/files/report.html"
	@echo "next:   $(BIN)/maskgit ui          (the MLflow window)"

demo-slurm: install ## the same on a throw-away real SLURM on this machine (Debian's packages)
	$(BIN)/python -m tools.dev_cluster demo

test: install ## the default tests (minutes)
	$(BIN)/python -m pytest -m "not slow" -n $(PYTEST_JOBS) --dist loadfile $(PYTEST_ARGS)

drills: install ## the long drills too
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: install ## ruff, formatting, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install ## all benchmarks; renews docs/benchmarks.md
	$(BIN)/python -m tools.bench

docs: install ## the documentation as a site in site/; a broken link fails
	$(BIN)/python -m pip install -qq --constraint constraints.txt '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

screenshots: install ## renews the documentation's pictures from the runs in $(STORE)
	$(BIN)/python -m tools.screenshots --store $(STORE)

first-hour: install ## renews docs/first_hour.md: PICTURES=FOLDER, a newcomer's commands in a fresh clone
	$(BIN)/python -m tools.first_hour --pictures $(PICTURES)

clean: ## removes the environment and caches, never a store
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
