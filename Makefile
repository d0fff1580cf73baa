# make demo: from a fresh clone to a trained model and its pictures.   make test: likewise for the tests.
# Both create .venv once and reuse it; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
COMMA := ,
# With an NVIDIA GPU also jax[cuda12]. TPU: make demo EXTRAS=train,tpu
EXTRAS ?= train$(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo ,cuda12)
INSTALLED := $(VENV)/installed-$(subst $(COMMA),-,$(EXTRAS))
DEVELOPER := $(INSTALLED)-sweep-dev
# One more than the cores, because many slow tests wait for other processes.
SLOW_WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')

.PHONY: demo test slow lint peers clean

demo: $(INSTALLED)
	$(VENV)/bin/python launch.py --config=configs/demo.py
	@echo
	@echo "The samples are in $$(ls runs/demo/samples/*.png | tail -1). To go on:"
	@echo "  $(VENV)/bin/python launch.py --config=configs/demo.py --mode=sample --config.sampling.solver=unipc --config.sampling.num_steps=10"
	@echo "  $(VENV)/bin/python launch.py --config=configs/demo.py --mode=evaluate"
	@echo "  $(VENV)/bin/python launch.py --config=configs/vp_digits_conditional.py"

test: $(DEVELOPER)
	$(VENV)/bin/python -m pytest -q -n auto --maxprocesses=4 --dist worksteal

slow: $(DEVELOPER)
	$(VENV)/bin/python -m pytest -q -m slow -n $(SLOW_WORKERS) --dist worksteal

lint: $(DEVELOPER)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

peers: $(DEVELOPER) $(VENV)/installed-peers
	$(VENV)/bin/python -m pytest -q -m peers -n auto --maxprocesses=4 --dist loadfile

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -e ".[$(EXTRAS)]"
	@touch $@

$(DEVELOPER): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -e ".[$(EXTRAS),sweep,dev]"
	@touch $@

$(VENV)/installed-peers: tests/peers/requirements.txt tests/peers/requirements-alone.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r tests/peers/requirements.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps -r tests/peers/requirements-alone.txt
	@touch $@
