# Every target sets up what it needs: a virtual environment in .venv (Python 3.11 if there is one, else python3) with
# the pinned packages of constraints.txt. Choose another interpreter with `make PYTHON=python3.13 test`.

# The first of $(2) that runs and satisfies the condition $(1); a name that only a shim knows does not run.
find_python = $(shell for python in $(2); do \
	"$$python" -c 'import sys, venv; sys.exit(not ($(1)))' 2>/dev/null && echo "$$python" && break; done)

PYTHON ?= $(call find_python, sys.version_info >= (3$(,)11), python3.11 python3)
PYENV_PYTHONS = $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.1[2-9]*/bin/python)
PYTHON_ARVIZ1 ?= $(call find_python, sys.version_info >= (3$(,)12), \
	python3.12 python3.13 python3.14 python3 $(PYENV_PYTHONS))
, := ,

BIN = .venv/bin
PIP_INSTALL = -m pip install --quiet --quiet --disable-pip-version-check
# One thread a test process: torch's own threads only slow down two processes on two cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
NUMPY_ONLY_TESTS = tests/diagnostics tests/test_arviz_io.py tests/test_plotting.py tests/test_plot_flow.py

.PHONY: help demo test test-arviz1 test-slow mutations lint docs bench clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo "make demo       the elliptic inverse problem: report here, figures in build/demo"
	@echo "make test       the fast tests (and those of the numpy-only parts with ArviZ 1.x)"
	@echo "make test-slow  the tests that take minutes"
	@echo "make mutations  deliberate faults in formulas, each of which a test must notice"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the documentation, in docs/_build/html (minutes: it runs the examples)"
	@echo "make bench      every script in benchmarks/ (hours)"
	@echo "make clean      remove what the targets made, the environments too"

demo: .venv/.installed-netcdf
	mkdir -p build/demo
	MPLBACKEND=Agg $(BIN)/python examples/example_elliptic.py

test: .venv/.installed-test
	$(PYTEST) -n 2
	@$(if $(PYTHON_ARVIZ1),$(MAKE) --no-print-directory test-arviz1,\
		echo "No Python 3.12 or newer found: the tests with ArviZ 1.x are left out.")

test-arviz1: .venv-arviz1/.installed
	OMP_NUM_THREADS=1 .venv-arviz1/bin/python -m pytest -q -n 2 $(NUMPY_ONLY_TESTS)

test-slow: .venv/.installed-test-slow
	$(PYTEST) -m slow

mutations: .venv/.installed-test
	$(BIN)/python tests/mutations.py

lint: .venv/.installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/.installed-docs
	MPLBACKEND=Agg $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: .venv/.installed-netcdf
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean:
	rm -rf .venv .venv-arviz1 build docs/_build docs/gallery docs/generated docs/sg_execution_times.rst
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info

# Stamps: an environment that was made half is made anew, and a change of pins or dependencies installs again.
.venv/.created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer, with venv, is needed: make PYTHON=/path/to/python"; exit 1; }
	rm -rf .venv
	"$(PYTHON)" -m venv .venv
	touch $@

.venv/.installed-%: .venv/.created pyproject.toml constraints.txt
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[$*]'
	touch $@

.venv-arviz1/.installed: pyproject.toml constraints-arviz1.txt
	rm -rf .venv-arviz1
	"$(PYTHON_ARVIZ1)" -m venv .venv-arviz1
	.venv-arviz1/bin/python $(PIP_INSTALL) -r constraints-arviz1.txt
	.venv-arviz1/bin/python $(PIP_INSTALL) --no-deps -e .
	touch $@
