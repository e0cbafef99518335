# `make demo` and `make test` need Python >= 3.11, pip and make; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= build/demo

.PHONY: demo test slow test-avx2 check docs peers lock clean

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: $(VENV)/installed  ## export, compare, report and gate on the three shipped models
	$(BIN)/python -m edgekit.deploy --parity --baseline exports/baseline.json --force --out $(DEMO)
	$(BIN)/python -m edgekit.deploy exports/scenes_ssdlite_035 --min map50=80 \
		--min map_change=-0.5 --force --out $(DEMO)/detection
	$(BIN)/python -m edgekit.deploy exports/scenes_deeplab_035 --min miou=50 \
		--min miou_change=-0.5 --force --out $(DEMO)/segmentation

test: $(VENV)/installed  ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/installed  ## the tests that take minutes each
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-avx2: $(VENV)/installed  ## the suite, and slow tests of one CPU's numbers, as without AVX-512
	$(BIN)/python benchmarks/as_avx2.py $(abspath $(BIN))/python -m pytest -n 2 --dist loadfile \
		--no-loadscope-reorder
	$(BIN)/python benchmarks/as_avx2.py $(abspath $(BIN))/python -m pytest tests/test_arrange.py \
		tests/test_train.py -m slow -k "form or alike"

check: $(VENV)/installed docs  ## lint, format, types, which room imports which, the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/installed  ## the site in build/site; a warning is an error (with --quiet it is none)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed-peers: $(VENV)/installed requirements-peers.lock
	$(BIN)/pip install --quiet --require-hashes -r requirements-peers.lock
	touch $@

peers: $(VENV)/installed-peers  ## edgekit's int8 beside other quantizers; PEERS='--hard-case' etc.
	$(BIN)/python benchmarks/peers.py $(PEERS)

lock:  ## write the lock files again from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra all --group dev --universal --python-version 3.11 \
		--generate-hashes --no-header --quiet --output-file requirements.lock
	uv pip compile pyproject.toml --extra peers --constraint requirements.lock --universal \
		--python-version 3.11 --generate-hashes --no-header --quiet \
		--output-file requirements-peers.lock

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
