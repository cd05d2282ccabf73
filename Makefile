# Everything runs in .venv; nothing needs activating. `make help` lists the targets.
SHELL := /bin/sh
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

ARGS ?=
NAME ?= mnist5k
PORT ?= 5000
WORKERS ?= auto
IMAGE ?= qexp
TORCH_INDEX ?=

# xdist runs one process a core (at most 4), so torch gets one thread in each: two pools of threads on two cores are slower.
PYTEST_HERE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
PYTEST := $(PYTEST_HERE) -n $(WORKERS) --maxprocesses 4 --dist loadfile
# Tests that bear no others in their process come first; pytest's 5 says that ARGS chose none of them.
ALONE = $(PYTEST_HERE) -m "alone $(1)" $(ARGS) || test $$? -eq 5

.PHONY: help setup dev try sweep test cover test-more test-all lint format docs ui report docker clean

help: ## show this help
	@echo "Usage: make TARGET [NAME=value]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

setup: $(RUN) ## make .venv and install what running needs, with the versions of constraints.txt (TORCH_INDEX=URL: torch from there)

dev: $(DEV) ## the same, and what tests, make lint, make docs and all runtimes need

# A stamp is older than its two inputs whenever what should be installed has changed.
$(RUN): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch and qexp into $(VENV): some minutes"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch, qexp and what its tests need into $(VENV): many minutes"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e '.[dev]'
	@touch $(RUN) $@

# A name on PATH may be a shim that runs nothing, so each candidate is asked for its version.
$(BIN)/python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Making $(VENV) with $$($$python --version) ($$python)"; \
	    $$python -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "$$python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)." >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "qexp needs Python >= 3.11; none was found as python3 or python3.11 to python3.13. Name one: make PYTHON=/path/to/python" >&2; \
	exit 1

try: $(RUN) ## a page in about a minute: four epochs on 1 797 small digits, and 3, 4 and 8 bit copies of each (ARGS="seed=1 ...")
	$(BIN)/python -m qexp.train data=digits train=smoke train.epochs=4 bits=3,4,8 -m $(ARGS)

sweep: $(RUN) ## train once on the bundled data, compare 4, 8 and 16 bit copies of every epoch (ARGS="seed=1 ...")
	$(BIN)/python -m qexp.train bits=4,8,16 -m $(ARGS)

test: $(DEV) ## run the tests and the examples in docstrings, without those marked slow or gpu (ARGS="-k name")
	$(call ALONE,and not slow and not gpu)
	$(PYTEST) -m "not alone and not slow and not gpu" $(ARGS)

cover: $(DEV) ## the tests of `make test`, and which lines of qexp they ran: build/coverage/index.html
	$(PIP) -e '.[cover]'
	rm -f .coverage .coverage.*
	PYTEST_ADDOPTS="--cov --cov-append --cov-report=html:build/coverage --cov-report=xml:build/coverage.xml" $(MAKE) test

test-more: $(DEV) ## run the tests marked slow, without those marked gpu: what `make test` leaves out (ARGS="-k name")
	$(call ALONE,and slow and not gpu)
	$(PYTEST) -m "not alone and slow and not gpu" $(ARGS)

test-all: $(DEV) ## run every test; those that need a GPU skip themselves where there is none
	$(call ALONE,)
	$(PYTEST) -m "not alone" $(ARGS)

lint: $(DEV) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV) ## build the documents' site in build/site, offline; any warning is an error
	$(BIN)/python scripts/write_site.py build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

ui: $(RUN) ## open the runs in MLflow's UI on 127.0.0.1 (PORT=5000)
	$(BIN)/python -m qexp.ui mlflow=true port=$(PORT)

report: $(RUN) ## write the tables and figures of one experiment again from the journal (NAME=mnist5k)
	$(BIN)/python -m qexp.report name=$(NAME)

docker: ## build the image for NVIDIA GPUs (needs Docker and NVIDIA's registry)
	docker build -t $(IMAGE) .

clean: ## remove caches and builds; .venv, runs/ and results/ stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage .coverage.* *.egg-info
	find qexp tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
