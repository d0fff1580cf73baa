# make demo: from a fresh clone to a trained model and its pictures.   make test: likewise for the tests.
# Both create .venv once and reuse it; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
# With an NVIDIA GPU requirements.txt, without one requirements-cpu.txt. TPU: make REQUIREMENTS=requirements-tpu.txt
REQUIREMENTS ?= $(shell if nvidia-smi -L 2>/dev/null | grep -q GPU; then echo requirements.txt; else echo requirements-cpu.txt; fi)
INSTALLED := $(VENV)/installed-$(REQUIREMENTS)

.PHONY: demo test slow lint peers clean

demo: $(INSTALLED)
	$(VENV)/bin/python launch.py --config=configs/vp_digits.py
	@echo "Look at runs/vp_digits/samples/; for figures: $(VENV)/bin/python launch.py --config=configs/vp_digits.py --mode=evaluate"

test: $(INSTALLED) $(VENV)/installed-requirements-sweep.txt $(VENV)/installed-requirements-dev.txt
	$(VENV)/bin/python -m pytest -q -n auto --maxprocesses=4 --dist worksteal

slow: $(INSTALLED) $(VENV)/installed-requirements-sweep.txt $(VENV)/installed-requirements-dev.txt
	$(VENV)/bin/python -m pytest -q -m slow -n auto --maxprocesses=4 --dist worksteal

lint: $(INSTALLED) $(VENV)/installed-requirements-sweep.txt $(VENV)/installed-requirements-dev.txt
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

peers: $(INSTALLED) $(VENV)/installed-requirements-dev.txt $(VENV)/installed-requirements-peers.txt $(VENV)/installed-requirements-peers-alone.txt
	$(VENV)/bin/python -m pytest -q -m peers

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(REQUIREMENTS) requirements-base.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r $(REQUIREMENTS)
	@touch $@

$(VENV)/installed-requirements-%-alone.txt: requirements-%-alone.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --no-deps -r $<
	@touch $@

$(VENV)/installed-requirements-%.txt: requirements-%.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r $<
	@touch $@
