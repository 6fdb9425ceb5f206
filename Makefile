# Everything here works on a machine that has Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slurm test-gpu lint types lock

quickstart: .venv/installed
	$(BIN)/python run.py +experiments=quickstart

test: .venv/installed lint types
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not slow and not slurm" -n 2 --dist worksteal
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=85

# A real Slurm on this machine: the Debian packages slurm-wlm and munge. Some half an hour.
test-slurm: .venv/installed
	$(BIN)/python -m pytest -m slurm

# Where there is a GPU; with several also those of NCCL.
test-gpu: .venv/installed
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; \
	then $(BIN)/python -m pytest -m gpu; \
	else echo "no GPU: skipped"; fi

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/pyright

# The lock holds versions and no addresses, so that it serves every index and mirror.
# Bytecode is compiled once here: without it every start of torch costs seconds.
.venv/installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip sync -q --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install -q --no-deps --python $(BIN)/python -e .
	touch $@

lock:
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --all-extras --no-emit-index-url --no-annotate --no-header \
		--upgrade pyproject.toml -o requirements.lock
