# make demo   trains on this machine and prints what it did      (needs Python >= 3.10 and Java >= 17)
# make test   all tests; make test-fast leaves out those that need Java or minutes
# make check  format, lint, types
# make docs   the site, in build/site
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNEL := CMakeLists.txt $(wildcard src/kernel/*)

.PHONY: demo test test-fast check docs format clean

demo: $(INSTALLED)
	$(BIN)/fatwood demo

test: test-fast
	$(BIN)/pytest -q -n 2 --dist loadfile -m "spark or slow"

test-fast: $(INSTALLED)
	$(BIN)/pytest -q -n 2 -m "not spark and not slow"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python docs/build_site.py

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(INSTALLED): pyproject.toml constraints.txt $(KERNEL)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
