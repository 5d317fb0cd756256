# Development of r2kd_ext; `make help` lists the targets. Every target that needs the package
# installs it into its own virtual environment first, and again when its sources have changed.
#   PYTHON  the interpreter to make the environment with (3.10 to 3.13; default python3)
#   VENV    the environment's folder (default .venv)
#   ARGS    further arguments of pytest, of `r2kd demo` or of benchmarks/run.py
# Settings of the build (R2KD_CUDA, CXX, ...) are environment variables: see setup.py.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

SHELL := /bin/bash
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ENVIRONMENT := $(VENV)/.environment
INSTALLED := $(VENV)/.installed
PACKAGE := setup.py CMakeLists.txt pyproject.toml MANIFEST.in README.md LICENSE \
  $(shell find csrc r2kd_ext -not -name '*.so' -not -name '*.pyc' -not -name __pycache__)

# The suite runs beside the tests, where only the installed package can be imported. Two workers;
# threads that wait give their processor away, which by default they keep from the other worker.
PYTEST := cd python_tests && R2KD_EXPECT_INSTALLED=1 OMP_WAIT_POLICY=passive \
  $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

SANITIZED := build/sanitized
SANITIZER_TESTS := test_correlation.py test_correlation_inputs.py test_correlation_numerics.py \
  test_sparse_kernels.py test_winograd_conv2d.py

.PHONY: help install test demo bench bench-docs lint cuda-check gpu-check sanitize sdist clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 - /p' $(firstword $(MAKEFILE_LIST))

$(ENVIRONMENT): constraints-dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or sys.exit( \
	  f"error: r2kd_ext supports Python 3.10 to 3.13, $(PYTHON) is {v[0]}.{v[1]}; " \
	  "name another by PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch -c constraints-dev.txt
	@touch $@

$(INSTALLED): $(ENVIRONMENT) $(PACKAGE)
	$(PIP) install '.[dev]' -c constraints-dev.txt
	@touch $@

install: $(INSTALLED)  ## create the environment and install the package with its dev extra

test: $(INSTALLED)  ## the whole test suite, against the installed package
	$(PYTEST) $(ARGS)

demo: $(INSTALLED)  ## distil a small student on real images (a few minutes)
	$(BIN)/r2kd demo $(ARGS)

bench: $(INSTALLED)  ## all benchmarks of the CPU, in less than 10 minutes on 2 cores
	$(BIN)/python benchmarks/run.py $(ARGS)

bench-docs: $(INSTALLED)  ## tables and plots of README and docs, from benchmarks/results/ alone
	$(BIN)/python benchmarks/docs.py

lint: $(INSTALLED)  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

cuda-check: $(INSTALLED)  ## compile the CUDA kernels for each architecture; no GPU needed
	$(BIN)/python tools/cuda_check.py

# With $(PYTHON) as it is, since a GPU machine may have no network to make an environment from.
gpu-check:  ## all that needs a GPU: tests, compute-sanitizer, benchmark (9 minutes)
	$(PYTHON) tools/gpu_check.py

# Python itself is not instrumented, so the runtime comes by LD_PRELOAD; libstdc++ with it, since
# the runtime looks for its exception functions when it starts. Python leaks on purpose at exit.
sanitize: $(INSTALLED)  ## the kernels under the address and undefined-behaviour sanitizers
	rm -rf $(SANITIZED)
	R2KD_SANITIZE=1 R2KD_CUDA=off $(PIP) install -q . --no-deps --no-build-isolation \
	  --target $(SANITIZED)
	cd python_tests && PYTHONPATH=$(abspath $(SANITIZED)) \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) \
	    $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(BIN)/python -m pytest -p no:cacheprovider -m 'not slow' $(SANITIZER_TESTS) $(ARGS)

sdist: $(INSTALLED)  ## a source distribution in dist/, and from it a wheel
	rm -rf dist
	$(BIN)/python setup.py -q sdist
	$(PIP) wheel -q --no-deps -w dist dist/*.tar.gz

clean:  ## remove the environment and what was built; runs/ stays
	rm -rf .venv build dist
