# make serve            serves the bundled models on port 3000 (PORT=, HOST=, CONVSERVE_…= change things)
# make test             ruff, mypy, pytest: everything, as CI runs it
# make test-ops         rules, alerts and dashboard with a real Prometheus, manifests with kubectl: to be installed before
# make test-docker      builds the image and a Bento, runs and breaks them; needs a Docker engine, or root to start one
# make rules            what Kubernetes needs of docker/prometheus/{rules,alerts}.yml: after each change to them
# make image            convserve:cpu (VARIANT=gpu: convserve:gpu), with this commit on its label (OPTIONS=…: docker build's)
# make lock             the image's packages, with their hashes, as pyproject.toml asks for (OPTIONS=--upgrade: the newest)
# make train DATA=…     all recipes, one after the other, from folders made by `python -m models.fetch`
# make export           publishes what `make train` made, as new versions (REPOSITORY=, by default the bundled one)
# make depth            20 and 56 layers with and without shortcuts, the same otherwise: what residual links mend
# make crossvalidate    each speaker of the digits and each fold of ESC-10 held out once, and the means
# make tune             measures this machine for a minute and writes the settings it found, which make serve reads
# make bench            the service beside its limit and its peers: a few hours (OPTIONS=--quick for a glance)
# make bench-gpu        ways to run the networks on an NVIDIA GPU, beside its limits: nine minutes (OPTIONS=…)
# make format           lets ruff mend what it can
.DEFAULT_GOAL := serve
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= data
REPOSITORY ?= models/repository

.PHONY: serve tune test test-ops test-docker rules image lock bench bench-gpu train export depth crossvalidate format clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name it: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "venv is missing; on Debian: apt-get install python3-venv"; exit 1; }

# Only what serving needs; torch is not among it.
$(VENV)/serve.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/serve.stamp

serve: $(VENV)/serve.stamp
	@exec $(BIN)/python -m service

tune: $(VENV)/serve.stamp
	$(BIN)/python -m service.tune

test: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-ops: $(VENV)/dev.stamp
	$(BIN)/pytest tests/ops

test-docker: $(VENV)/dev.stamp
	$(BIN)/pytest tests/docker

.PHONY: docs
docs: $(VENV)/dev.stamp ## the documentation as a site in site/; fails on broken links
	$(BIN)/python -m mkdocs build --strict

# The Prometheus operator takes rules in objects of its own only, and kustomize can put no file into one.
PROMETHEUSRULES := docker/kubernetes/components/prometheus/prometheusrules.yaml
rules:
	@echo '# By `make rules`, from docker/prometheus.' > $(PROMETHEUSRULES)
	@for name in rules alerts; do \
		printf -- '---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: convserve-%s\nspec:\n' $$name; \
		sed 's/^./  &/' docker/prometheus/$$name.yml; \
	done >> $(PROMETHEUSRULES)

VARIANT ?= cpu
image:
	docker build --file docker/Dockerfile --target $(VARIANT) --tag convserve:$(VARIANT) \
		--build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
		--build-arg REVISION=$$(git describe --always --dirty --abbrev=40) $(OPTIONS) .

LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' $(OPTIONS)
lock: $(VENV)/dev.stamp
	$(BIN)/$(LOCK) pyproject.toml --overrides docker/cpu.overrides --output-file docker/requirements-cpu.txt
	$(BIN)/$(LOCK) pyproject.toml --extra gpu --output-file docker/requirements-gpu.txt

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.bench $(OPTIONS)

bench-gpu: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.gpu $(OPTIONS)

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: $(VENV)/dev.stamp
	$(BIN)/python -m models.train classify --data $(DATA)/cifar10
	$(BIN)/python -m models.train alexnet --data $(DATA)/cifar10
	$(BIN)/python -m models.train segment --data $(DATA)/camvid
	$(BIN)/python -m models.train audio --data $(DATA)/digits
	$(BIN)/python -m models.train sounds --data $(DATA)/esc10
	$(BIN)/python -m models.train video --data $(DATA)/camera_motion

export: $(VENV)/dev.stamp
	$(BIN)/python -m models.export runs/classify --data $(DATA)/cifar10 --name cifar10 --default --repository $(REPOSITORY)
	$(BIN)/python -m models.export runs/alexnet --data $(DATA)/cifar10 --name alexnet --repository $(REPOSITORY)
	$(BIN)/python -m models.export runs/segment --data $(DATA)/camvid --name camvid --default --repository $(REPOSITORY)
	$(BIN)/python -m models.export runs/audio --data $(DATA)/digits --name digits --default --repository $(REPOSITORY)
	$(BIN)/python -m models.export runs/sounds --data $(DATA)/esc10 --name sounds --repository $(REPOSITORY)
	$(BIN)/python -m models.export runs/video --data $(DATA)/camera_motion --name camera-motion --default --repository $(REPOSITORY)

# Not served, so not exported.
depth: $(VENV)/dev.stamp
	for recipe in plain20 residual20 plain56 residual56; do \
		$(BIN)/python -m models.train $$recipe --data $(DATA)/cifar10 && \
		$(BIN)/python -m models.evaluate runs/$$recipe --data $(DATA)/cifar10 || exit 1; \
	done

crossvalidate: $(VENV)/dev.stamp
	$(BIN)/python -m models.crossvalidate audio --data $(DATA)/digits
	$(BIN)/python -m models.crossvalidate sounds --data $(DATA)/esc10

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info build dist
