.DEFAULT_GOAL := serve
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= data
REPOSITORY ?= models/repository
EXTRA ?= serve
LOWEST := .venv-lowest

.PHONY: help serve install tune test test-lowest test-ops test-docker docs rules image lock bench bench-gpu train export \
	depth crossvalidate format clean distclean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name it: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "venv is missing; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/%.stamp: requirements/%.txt pyproject.toml requirements/install.sh | $(BIN)/python
	@requirements/install.sh $(VENV) $*
	@touch $@ $(VENV)/serve.stamp

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

serve: $(VENV)/serve.stamp ## serve the bundled models on port 3000 (PORT=, HOST= and CONVSERVE_…= change that)
	@exec $(BIN)/python -m service

install: $(VENV)/$(EXTRA).stamp ## EXTRA=gpu, tensorrt, train or dev into .venv

tune: $(VENV)/serve.stamp ## measure this machine for a minute and write tuned.env, which make serve reads
	$(BIN)/python -m benchmarks.tune

test: $(VENV)/dev.stamp ## ruff, mypy and pytest with coverage, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile --cov --cov-report=
	@for tree in service models; do \
		echo "coverage of $$tree/: $$($(BIN)/coverage report --include="$$tree/*" --format=total)%"; \
	done

# uv resolves, pip installs; torch, which has no range, and the tests that need it are left out.
test-lowest: $(VENV)/dev.stamp ## the service's tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear $(LOWEST)
	$(BIN)/python requirements/builds.py | $(BIN)/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--extra dev --overrides requirements/cpu.overrides --output-file $(LOWEST)/requirements.txt pyproject.toml -
	@echo "Installing $(LOWEST)/requirements.txt: 250 MB, about a minute"
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -qq --no-deps --requirement $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation --editable .
	$(LOWEST)/bin/pytest --ignore tests/models --ignore tests/benchmarks --ignore tests/test_fifth_task.py

test-ops: $(VENV)/dev.stamp ## rules, alerts and dashboard with a real Prometheus, manifests with kubectl
	$(BIN)/pytest tests/ops

test-docker: $(VENV)/dev.stamp ## build the image and a Bento, run and break them; needs a Docker engine, or root
	$(BIN)/pytest tests/docker

docs: $(VENV)/dev.stamp ## the documentation as a site in site/; fails on broken links
	$(BIN)/python -m mkdocs build --strict

# The Prometheus operator takes rules in objects of its own only, and kustomize can put no file into one.
PROMETHEUSRULES := docker/kubernetes/components/prometheus/prometheusrules.yaml
rules: ## Kubernetes' copy of docker/prometheus/{rules,alerts}.yml
	@echo '# By `make rules`, from docker/prometheus.' > $(PROMETHEUSRULES)
	@for name in rules alerts; do \
		printf -- '---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: convserve-%s\nspec:\n' $$name; \
		sed 's/^./  &/' docker/prometheus/$$name.yml; \
	done >> $(PROMETHEUSRULES)

VARIANT ?= cpu
image: ## convserve:cpu, or VARIANT=gpu (OPTIONS=… for docker build)
	docker build --file docker/Dockerfile --target $(VARIANT) --tag convserve:$(VARIANT) \
		--build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
		--build-arg REVISION=$$(git describe --always --dirty --abbrev=40) $(OPTIONS) .

lock: $(VENV)/dev.stamp ## requirements/*.txt and the image's, as pyproject.toml asks (OPTIONS=--upgrade: the newest)
	requirements/lock.sh $(VENV) $(OPTIONS)

bench: $(VENV)/dev.stamp ## the service beside its limit and its peers: hours (OPTIONS=--quick: minutes)
	$(BIN)/python -m benchmarks.bench $(OPTIONS)

bench-gpu: $(VENV)/dev.stamp ## ways to run the networks on an NVIDIA GPU: nine minutes (OPTIONS=…)
	$(BIN)/python -m benchmarks.gpu $(OPTIONS)

format: $(VENV)/dev.stamp ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: $(VENV)/dev.stamp ## all recipes, one after the other (DATA=: folders made by python -m models.fetch)
	$(BIN)/python -m models.train classify --data $(DATA)/cifar10
	$(BIN)/python -m models.train alexnet --data $(DATA)/cifar10
	$(BIN)/python -m models.train segment --data $(DATA)/camvid
	$(BIN)/python -m models.train audio --data $(DATA)/digits
	$(BIN)/python -m models.train sounds --data $(DATA)/esc10
	$(BIN)/python -m models.train video --data $(DATA)/camera_motion

export: $(VENV)/dev.stamp ## publish what make train made as new versions (REPOSITORY=, by default the bundled one)
	$(BIN)/python -m models.export runs/classify --data $(DATA)/cifar10 --name cifar10 --default --repository $(REPOSITORY)
	$(BIN)/python -m models.export runs/alexnet --data $(DATA)/cifar10 --name alexnet --repository $(REPOSITORY)
	$(BIN)/python -m models.export runs/segment --data $(DATA)/camvid --name camvid --default --repository $(REPOSITORY)
	$(BIN)/python -m models.export runs/audio --data $(DATA)/digits --name digits --default --repository $(REPOSITORY)
	$(BIN)/python -m models.export runs/sounds --data $(DATA)/esc10 --name sounds --repository $(REPOSITORY)
	$(BIN)/python -m models.export runs/video --data $(DATA)/camera_motion --name camera-motion --default --repository $(REPOSITORY)

# Not served, so not exported.
depth: $(VENV)/dev.stamp ## train 20 and 56 layers with and without shortcuts, and evaluate each
	for recipe in plain20 residual20 plain56 residual56; do \
		$(BIN)/python -m models.train $$recipe --data $(DATA)/cifar10 && \
		$(BIN)/python -m models.evaluate runs/$$recipe --data $(DATA)/cifar10 || exit 1; \
	done

crossvalidate: $(VENV)/dev.stamp ## hold out each speaker of the digits and each fold of ESC-10 once
	$(BIN)/python -m models.crossvalidate audio --data $(DATA)/digits
	$(BIN)/python -m models.crossvalidate sounds --data $(DATA)/esc10

clean: ## remove what make made: environments, caches, build output
	rm -rf $(VENV) $(LOWEST) .coverage .mypy_cache .ruff_cache .pytest_cache *.egg-info build dist site
	find service models tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## and the benchmarks' environments and work in .bench
	rm -rf .bench
