# make demo     the whole demo workflow, from a bare clone to tables (two cores, no GPU, no downloads of data)
# make test     all tests
# make bench    speed and memory, as ratios
# make lint     format, lint, types, workflow
# make dag      docs/dag.svg, drawn by Snakemake (needs graphviz)
# make lock     requirements.lock from pyproject.toml (needs uv)

PYTHON ?= python3
CORES ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help env demo test bench lint dag lock

help:
	@sed -n '/^# make/s/^# //p' Makefile

env: $(READY)

# Once per change of the lock file: uv where there is one, pip otherwise.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Run: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; \
	  exit 1; }
	@if command -v uv >/dev/null; then \
	  { [ -x $(BIN)/python ] || uv venv --quiet --python "$$(command -v $(PYTHON))" $(VENV); } && \
	  uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock && \
	  uv pip install --quiet --python $(BIN)/python --no-deps --editable .; \
	else \
	  { [ -x $(BIN)/pip ] || $(PYTHON) -m venv --clear $(VENV); } && \
	  $(BIN)/python -m pip install --quiet -r requirements.lock && \
	  $(BIN)/python -m pip install --quiet --no-deps --editable .; \
	fi
	@touch $@

demo: $(READY)
	@$(BIN)/dseq-jepa follow --config configs/demo.yaml -- $(BIN)/snakemake --cores $(CORES)
	@for number in 1 2 3; do cat results/demo/tables/table$$number.md; echo; done
	@echo "Everything on one page: results/demo/report.html. Curves: $(BIN)/dseq-jepa dashboard --config configs/demo.yaml"

test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder

bench: $(READY)
	@for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check workflow
	$(BIN)/snakemake --lint

dag: $(READY)
	mkdir -p docs
	$(BIN)/snakemake results/demo/tracking/synced.json --rulegraph dot > docs/dag.dot
	dot -Grankdir=LR -Tsvg docs/dag.dot > docs/dag.svg && rm docs/dag.dot

lock:
	uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --all-extras --no-emit-index-url pyproject.toml -o requirements.lock
