# Two commands are enough on a machine with Python 3.11+, git and make: `make run` serves, `make test` checks.
# Everything is installed into .venv and nowhere else; .ci/run calls the same targets as people do.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
# So that the first start is as quick as the second.
COMPILE := $(BIN)/python -m compileall -q kafscale workers supervisor
SEEDS ?= 1000
JOBS ?= 2
# For each fault of make soak. (The shell knows SECONDS as something else, so it is never exported.)
SECONDS ?= 300
FUZZ_SECONDS ?= 600
# More arguments for the program that a target runs: make run ARGS="--workers 2", make test ARGS="-k groups".
ARGS ?=

# The first interpreter that is new enough; PYTHON=... overrides.
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13 python3.14,\
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))

# A venv that doesn't run, is of an old Python or serves another folder (the checkout was moved) is made anew.
# -I keeps the current folder off the path, so that what is asked is what the venv has.
VENV_IS_SOUND := $(shell $(BIN)/python -I -c 'import os, sys, kafscale; sys.exit(sys.version_info < (3, 11) or not \
	os.path.samefile(os.path.dirname(os.path.dirname(kafscale.__file__)), "$(CURDIR)"))' 2>/dev/null && echo yes)
ifneq ($(VENV_IS_SOUND),yes)
.PHONY: $(VENV)/.created
endif

.PHONY: help
help:  ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.created:
ifeq ($(VENV_IS_SOUND),yes)
	@touch $@
else
	@if [ -z "$(PYTHON)" ]; then echo "Kafscale needs Python 3.11 or newer; none was found (make PYTHON=...)." >&2; exit 1; fi
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
endif

# A stamp is touched last, so an install that was broken off is done again.
$(VENV)/.runtime: pyproject.toml $(VENV)/.created
	@echo "Installing Kafscale into $(VENV)"
	@$(INSTALL) --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/.development: pyproject.toml $(VENV)/.created
	@echo "Installing Kafscale and what tests and checks need into $(VENV)"
	@$(INSTALL) --editable '.[test,lint]'
	@$(COMPILE)
	@touch $@ $(VENV)/.runtime

# The S3 server of benchmarks and soaks pins versions of its own, so it gets an environment of its own.
MINISTACK := .venv-ministack
$(MINISTACK)/.installed: pyproject.toml
	@echo "Installing an S3 server for benchmarks into $(MINISTACK)"
	@$(PYTHON) -m venv --clear $(MINISTACK)
	@$(PYTHON) -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['ministack']))" \
		> $(MINISTACK)/wanted.txt
	@$(MINISTACK)/bin/python -m pip install --quiet --disable-pip-version-check --no-input -r $(MINISTACK)/wanted.txt
	@touch $@

.PHONY: ministack
ministack: $(MINISTACK)/.installed  ## Make .venv-ministack, with an S3 server for benchmarks

# What looks at the code and its dependencies from outside, and the broker as users install it, for it to look at.
SUPPLY := .venv-supply
$(SUPPLY)/.installed: pyproject.toml
	@echo "Installing bandit, pip-audit and cyclonedx-bom into $(SUPPLY), and Kafscale into $(SUPPLY)/runtime"
	@$(PYTHON) -m venv --clear $(SUPPLY)
	@$(PYTHON) -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['supply']))" \
		> $(SUPPLY)/wanted.txt
	@$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check --no-input -r $(SUPPLY)/wanted.txt
	@$(PYTHON) -m venv --clear --without-pip $(SUPPLY)/runtime
	@$(SUPPLY)/bin/python -m pip --python $(SUPPLY)/runtime install --quiet --disable-pip-version-check --no-input .
	@touch $@

.PHONY: check-supply
check-supply: $(SUPPLY)/.installed  ## bandit over the code, pip-audit (needs pypi.org) over what it is installed with
	$(SUPPLY)/bin/bandit --quiet --configfile pyproject.toml --recursive kafscale workers supervisor
	@$(SUPPLY)/bin/python -m pip --python $(SUPPLY)/runtime freeze --exclude kafscale > $(SUPPLY)/installed.txt
	$(SUPPLY)/bin/pip-audit --strict --no-deps --disable-pip --requirement $(SUPPLY)/installed.txt

.PHONY: sbom
sbom: $(SUPPLY)/.installed  ## A bill of materials of the installed broker: dist/sbom.json (CycloneDX)
	@mkdir -p dist
	$(SUPPLY)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate \
		--output-file dist/sbom.json $(SUPPLY)/runtime/bin/python
	@# The version is not in pyproject.toml, so the bill lacks it.
	@$(SUPPLY)/runtime/bin/python -c "import json, kafscale; bill = json.load(open('dist/sbom.json')); \
		bill['metadata']['component']['version'] = kafscale.__version__; json.dump(bill, open('dist/sbom.json', 'w'), indent=2); \
		print('dist/sbom.json: CycloneDX', bill['specVersion'] + ',', len(bill['components']), 'components')"

.PHONY: venv
venv: $(VENV)/.development  ## Make .venv with all that development needs

.PHONY: run
run: $(VENV)/.runtime  ## Serve on 127.0.0.1:9092, data in ./data
	@exec $(BIN)/kafscale serve --data-dir ./data $(ARGS)

.PHONY: cluster
cluster: $(VENV)/.development $(MINISTACK)/.installed  ## Three brokers with an etcd and an S3 of their own, and a kill to watch
	@exec $(BIN)/python -m loadtest.local_cluster $(ARGS)

.PHONY: lint
lint: $(VENV)/.development  ## ruff, mypy --strict and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: test
test: lint  ## The checks and tests that CI runs
	@scratch=$$(mktemp -d "$${TMPDIR:-/tmp}/kafscale.XXXXXX"); trap 'rm -rf "$$scratch"' EXIT; \
	TMPDIR="$$scratch" $(BIN)/python -m pytest -rs --durations=10 \
		-n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: test-cluster
test-cluster: $(VENV)/.development $(MINISTACK)/.installed  ## Brokers as processes on etcd and S3, killed and stopped under load
	@scratch=$$(mktemp -d "$${TMPDIR:-/tmp}/kafscale.XXXXXX"); trap 'rm -rf "$$scratch"' EXIT; \
	TMPDIR="$$scratch" $(BIN)/python -m pytest -m cluster -s $(ARGS) tests/e2e/test_cluster.py tests/e2e/test_shared_cluster.py \
		tests/e2e/test_zones.py tests/e2e/test_local_cluster.py

.PHONY: test-clients
test-clients: $(VENV)/.development  ## Every client library by every listener and way to log in
	@scratch=$$(mktemp -d "$${TMPDIR:-/tmp}/kafscale.XXXXXX"); trap 'rm -rf "$$scratch"' EXIT; \
	TMPDIR="$$scratch" $(BIN)/python -m pytest -m "clients or not clients" -v -rs $(ARGS) \
		tests/e2e/test_security_clients.py tests/e2e/test_clients_page.py tests/e2e/test_acls.py

.PHONY: soak
soak: $(VENV)/.development $(MINISTACK)/.installed  ## SECONDS=300 of every fault, on processes; the result is docs/soak.md
	@scratch=$$(mktemp -d "$${TMPDIR:-/tmp}/kafscale.XXXXXX"); trap 'rm -rf "$$scratch"' EXIT; \
	TMPDIR="$$scratch" $(BIN)/python -m tests.soak.run --seconds $(SECONDS) --write $(ARGS)

.PHONY: test-acls
test-acls: $(VENV)/.development  ## A million random decisions, compiled rules against a naive reading
	$(BIN)/python -m tests.unit.security.differential --decisions 1000000 $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.development  ## Bent frames, SASL messages, headers, tokens and ACLs for FUZZ_SECONDS=600
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS) $(ARGS)

.PHONY: sim
sim: $(VENV)/.development  ## Simulate SEEDS=1000 clusters under faults
	$(BIN)/python -m tests.sim.run --seeds $(SEEDS) --jobs $(JOBS) $(ARGS)

.PHONY: day
day: $(VENV)/.development  ## A worker's day on a bucket in compressed time: objects and dollars, hour by hour
	$(BIN)/python -m tests.bench.day $(ARGS)

.PHONY: model
model: $(VENV)/.development  ## Explore the model of ownership further than CI does
	$(BIN)/python -m tests.model.run $(ARGS)

.PHONY: demo
demo: $(VENV)/.development  ## 336,776 flights through three clients, with the rates
	@$(BIN)/python -m loadtest.demo $(ARGS)

.PHONY: bench
bench: $(VENV)/.development  ## Measure; the result is docs/bench.md
	$(BIN)/python -m loadtest.bench $(ARGS)

.PHONY: bench-security
bench-security: $(VENV)/.development  ## Measure what ACLs, TLS and logins cost; the result is docs/bench-security.md
	$(BIN)/python -m tests.bench.acls --write $(ARGS)
	$(BIN)/python -m tests.bench.transport --write $(ARGS)

.PHONY: bench-s3
bench-s3: $(VENV)/.development $(MINISTACK)/.installed  ## Measure on S3 and etcd; the result is docs/bench-s3.md
	$(BIN)/python -m tests.bench.s3 $(ARGS)

.PHONY: docs
docs: $(VENV)/.development  ## Write anew the pages that follow from the code
	$(BIN)/python -m kafscale config --markdown > docs/settings.md
	$(BIN)/python -m tests.docs_apis > docs/apis.md
	$(BIN)/python -m tests.docs_file_map

.PHONY: clean
clean:  ## Remove .venv and all caches; the data stays
	rm -rf $(VENV) $(MINISTACK) $(SUPPLY) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
