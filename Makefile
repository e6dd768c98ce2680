# Everything is set up by the targets themselves: `make demo` and `make test` work on a fresh Debian
# machine with Python 3.11. Stamp files keep a second run from doing it again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
WORKERS ?= 2
TESTS ?= tests
SOURCES := tinyq tests examples

.PHONY: help demo test test-tflite test-brevitas check bench lint types layers format transcript wheel clean system

help: ## list what matters
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo system ## train a digits network, compile it, run it on an emulated Cortex-M4
	$(BIN)/python examples/digits/demo.py

test: $(VENV)/.test system browser ## run all tests (TESTS=tests/cli for a part of them)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(TESTS)

test-tflite: $(VENV)/.tflite system ## the tests that need TensorFlow, which is 600 MB
	$(BIN)/python -m pytest -q tests/frontends/test_tflite.py

# An environment of its own: Brevitas needs an older setuptools than other packages may.
test-brevitas: system ## the tests that need Brevitas, in an environment of its own
	$(MAKE) --no-print-directory VENV=.venv-brevitas .venv-brevitas/.brevitas
	.venv-brevitas/bin/python -m pytest -q tests/frontends/test_other_quantizers.py

check: lint types layers test ## what must be green before a commit: lint, types, layers, tests

bench: $(VENV)/.test system ## measure the reference networks on every core (ARGS=--record to keep the figures)
	PYTHONPATH=tests $(BIN)/python -m bench $(ARGS)

lint: $(VENV)/.check ## ruff: rules and format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(VENV)/.check ## mypy, strict
	$(BIN)/mypy tinyq

layers: $(VENV)/.check ## no layer imports a higher one (the contract is in pyproject.toml)
	$(BIN)/lint-imports

format: $(VENV)/.check ## format the sources
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

wheel: $(VENV)/.test ## build dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build --no-isolation

clean: ## remove the virtual environment and everything that was built
	rm -rf $(VENV) .venv-brevitas build dist out *.egg-info

# The environments build on each other; each is made again when its pins change.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(MAKE) --no-print-directory apt PACKAGES=python3-venv
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements/run.txt requirements/demo.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) -r requirements/demo.txt
	@echo "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tinyq.pth"
	@printf '#!/bin/sh\nexec "%s" -m tinyq "$$@"\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/tinyq
	@chmod +x $(BIN)/tinyq
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.demo
	$(PIP) -r requirements/test.txt
	@touch $@

$(VENV)/.tflite: requirements/tflite.txt $(VENV)/.test
	$(PIP) -r requirements/tflite.txt
	@touch $@

$(VENV)/.brevitas: requirements/brevitas.txt $(VENV)/.test
	$(PIP) -r requirements/brevitas.txt
	@touch $@

$(VENV)/.check: requirements/check.txt $(VENV)/.test
	$(PIP) -r requirements/check.txt
	@touch $@

# Compilers and the emulator: installed only where one is missing.
system:
	@missing=""
	command -v qemu-system-arm >/dev/null || missing="$$missing qemu-system-arm"
	command -v arm-none-eabi-gcc >/dev/null || missing="$$missing gcc-arm-none-eabi"
	[[ "$$(arm-none-eabi-gcc -print-file-name=libc.a 2>/dev/null)" == /* ]] \
	  || missing="$$missing libnewlib-arm-none-eabi"
	command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"
	command -v clang >/dev/null || missing="$$missing clang"
	[ -z "$$missing" ] || $(MAKE) --no-print-directory apt PACKAGES="$$missing"

.PHONY: browser
browser: # opens the HTML report in a test
	@command -v chromium >/dev/null || $(MAKE) --no-print-directory apt PACKAGES=chromium

.PHONY: apt
apt:
	@command -v apt-get >/dev/null || { echo "Please install: $(PACKAGES)" >&2; exit 1; }
	sudo=""; [ "$$(id -u)" = 0 ] || sudo="sudo"
	$$sudo apt-get update -q
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(PACKAGES)

.ONESHELL:
