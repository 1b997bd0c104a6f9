# make demo   install into .venv and run the main job on the digits that come with the package
# make test   install into .venv with the test tools; lint, types, all tests
# make lint   ruff and mypy only
# make clean  remove .venv, build output, caches, and the demo's run
#
# make test also installs tflite-runtime 2.14, which needs numpy below 2, into .venv-tflite-runtime, where Python 3.9 to
# 3.11 is there; elsewhere the tests that need it say that they are skipped.
#
# Needs Python 3.11 or newer (choose one with  make PYTHON=python3.12 demo). Nothing outside this folder is written,
# apart from pip's own cache.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
OLD_VENV := .venv-tflite-runtime
BIN := $(VENV)/bin
INPUTS := setup.cfg pyproject.toml constraints.txt
PYTORCH_CPU := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: help demo test lint tflite-runtime clean

help:
	@sed -n '1,4s/^# //p' Makefile

demo: $(VENV)/.stamp-demo
	@echo "== edgeprune demo: prune, fine-tune, export, verify and measure a small network"
	@$(BIN)/edgeprune demo

test: lint tflite-runtime
	@echo "== tests: two processes, one thread each"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/.stamp-test
	@echo "== ruff: rules and format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy: types"
	@$(BIN)/mypy

# Not a failure where it cannot be had: there is no wheel for Python 3.12, nor for every platform.
tflite-runtime:
	@if [ -e $(OLD_VENV)/.stamp ]; then exit 0; fi; \
	for candidate in $(PYTHON) python3.11 python3.10 python3.9; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 12))' 2>/dev/null; then chosen=$$candidate; break; fi; \
	done; \
	echo "== installing tflite-runtime 2.14 into $(OLD_VENV)"; \
	if [ -n "$$chosen" ] && "$$chosen" -m venv $(OLD_VENV) \
	  && $(OLD_VENV)/bin/python -m pip --disable-pip-version-check install --quiet tflite-runtime==2.14.0 numpy==1.26.4; \
	then touch $(OLD_VENV)/.stamp; \
	else rm -rf $(OLD_VENV); echo "tflite-runtime cannot be had here: the tests that need it are skipped"; fi

$(VENV)/.stamp-demo: $(VENV)/.stamp-torch $(INPUTS)
	@echo "== installing edgeprune and the TFLite converter (about 2 GB in $(VENV); later runs skip this)"
	@$(PIP) -e '.[tflite]'
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-torch $(INPUTS)
	@echo "== installing edgeprune, the TFLite converter and the test tools (about 2 GB in $(VENV); later runs skip this)"
	@$(PIP) -e '.[tflite,test]'
	@touch $(VENV)/.stamp-demo $@

# PyPI's torch for Linux brings several GB of GPU libraries. PyTorch's own index has one without; where that cannot
# be reached, or pip is configured to know another, pip chooses.
$(VENV)/.stamp-torch: $(VENV)/.stamp-venv constraints.txt
	@if $(BIN)/python -c "import urllib.request as r; r.urlopen('$(PYTORCH_CPU)/torch/', timeout=10)" 2>/dev/null; \
	then echo "== installing torch without GPU libraries from $(PYTORCH_CPU)"; index="--extra-index-url $(PYTORCH_CPU)"; \
	else echo "== installing torch ($(PYTORCH_CPU) cannot be reached: from pip's own index)"; index=""; fi; \
	$(PIP) $$index torch
	@touch $@

$(VENV)/.stamp-venv:
	@for candidate in $(PYTHON) python3.13 python3.12 python3.11; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then chosen=$$candidate; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo "error: edgeprune needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)"; \
	  echo "  fix: install one and name it:  make PYTHON=/path/to/python3.11 demo"; exit 1; \
	fi; \
	echo "== making a virtual environment in $(VENV) with $$($$chosen --version)"; \
	if ! "$$chosen" -m venv $(VENV); then \
	  echo "error: $$chosen cannot make a virtual environment"; \
	  echo "  fix: on Debian and Ubuntu:  apt-get install -y python3-venv"; exit 1; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) $(OLD_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/digitsnet-r50
