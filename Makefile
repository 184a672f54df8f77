# Everything a newcomer types. `make demo` and `make test` need python3 >= 3.11, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: demo demo-real test quick check lock clean
.PHONY: test-alone test-with-ray test-long-alone test-long-with-ray

demo: $(VENV)/.runs  ## the whole line on a phantom: DICOM to report, about 12 minutes
	$(BIN)/pmg demo --out demo

demo-real: $(VENV)/.runs $(VENV)/.real  ## the same on four real chest CT series
	$(BIN)/pmg demo --real --out demo-real

test: $(VENV)/.develops $(VENV)/.real $(VENV)/.scans $(VENV)/.alerts  ## every test
	$(MAKE) --jobs 2 test-alone test-with-ray
	$(MAKE) --jobs 2 test-long-alone test-long-with-ray

# Two at once, for one with Ray waits a lot; but never two with Ray, where each has two cores in mind.
test-alone:
	$(BIN)/python -m pytest -m "not long and not ray"

test-with-ray:
	$(BIN)/python -m pytest -m "not long and ray"

test-long-alone:
	$(BIN)/python -m pytest -m "long and not ray"

test-long-with-ray:
	$(BIN)/python -m pytest -m "long and ray"

quick: $(VENV)/.develops  ## the tests that neither train nor start Ray
	$(BIN)/python -m pytest -m "not slow and not long and not real"

check: $(VENV)/.develops  ## style, types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock:  ## pin what a fresh install resolves to
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet torch==2.13.0 ".[dev,bench]"
	build/lock/bin/pip freeze --exclude pmg | sed 's/^\(torch==[0-9.]*\)+.*/\1/' > constraints.txt

clean:
	rm -rf $(VENV) build demo demo-real *.egg-info

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pmg needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first, by its exact pin: a looser one lets pip pick another build.
$(VENV)/.runs: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(PIP) install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.develops: $(VENV)/.runs
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

# A scanner of manifests, apart: it pins other versions of what pmg needs.
$(VENV)/.scans: | $(VENV)/bin/pip
	$(PYTHON) -m venv $(VENV)/checkov
	$(VENV)/checkov/bin/pip install --quiet --disable-pip-version-check checkov==3.3.30
	@touch $@

# promtool, which runs the alerts of k8s/ against series, out of Debian's package and into the environment:
# with lists of its own, as any user, and nothing of the system changes. Where apt has none, its tests skip.
APT := $(CURDIR)/$(VENV)/apt
APT_GET := apt-get -qq -o Dir::State::Lists=$(APT)/lists -o Dir::Cache=$(APT) \
  -o APT::Sandbox::User=root -o Acquire::http::Timeout=30
$(VENV)/.alerts: | $(VENV)/bin/pip
	mkdir -p $(APT)/lists/partial $(APT)/archives/partial
	-cd $(APT) && $(APT_GET) update && $(APT_GET) download prometheus && \
	  dpkg-deb --extract prometheus_*.deb . && mv usr/bin/promtool ../bin
	rm -rf $(APT)
	@touch $@

# Packages that carry real CT series. They are read by path, never imported, hence no dependencies;
# pycerr's data is CC BY-NC and stays on the user's machine.
$(VENV)/.real: | $(VENV)/bin/pip
	$(PIP) install --quiet --no-deps pycerr==2.5.1 body-organ-analysis==1.0.3
	@touch $@
