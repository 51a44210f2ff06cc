# Everything runs in a virtual environment that these targets make; nothing else is needed but Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := datasets/glove-100-10k.h5
DEMO := build/demo.tq
# A checkout's folder `datasets` must not shadow another package of that name.
export PYTHONSAFEPATH := 1
# BLAS threads that wait would take the cores from our own.
export OPENBLAS_NUM_THREADS := 1

.PHONY: demo test lint typecheck browser wheel nightly accuracy bench bench-report clean

$(VENV)/base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/base
	mkdir -p build
	$(BIN)/tqindex build $(SAMPLE) --output $(DEMO) --force
	$(BIN)/tqindex search $(DEMO) $(SAMPLE) -k 10 --output build/demo-hits.h5 --force

test: lint typecheck browser
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not nightly'

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The page of results is opened in a real browser by a test, which says so and is skipped where there is none.
browser:
	@if [ ! -x /usr/bin/chromium ] && [ "$$(id -u)" = 0 ] && grep -qs '^ID=debian' /etc/os-release; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq --no-install-recommends chromium; } >/dev/null 2>&1 \
		|| echo 'chromium cannot be installed: its test is skipped'; \
	fi

# The wheel in an environment of its own, away from the clone: what a user gets.
wheel: $(VENV)/dev
	rm -rf build/wheel build/wheel-venv
	$(BIN)/python -m build --wheel --outdir build/wheel . >/dev/null
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install --quiet --disable-pip-version-check build/wheel/*.whl
	cd / && $(CURDIR)/build/wheel-venv/bin/python -c 'import tqindex.gpu, tqindex.bench, tqindex; tqindex.Index'
	cd / && $(CURDIR)/build/wheel-venv/bin/tqindex --version

# mypy reads the installed wheel, as a user's mypy would: here it would find the clone's ./tqindex first, and without
# the packages that are kept beside it.
typecheck: wheel
	cd build && ../$(BIN)/python -m mypy --config-file ../pyproject.toml --python-executable wheel-venv/bin/python -p tqindex

# Full-size promises: half an hour on two cores.
nightly: $(VENV)/dev
	$(BIN)/python -m pytest -m 'nightly or not nightly'

# Recall of every codec, and of the packages that are installed, on any FILE of vectors.
accuracy: $(VENV)/dev
	$(BIN)/tqindex bench run recall --file $(FILE)

# All suites, base size: 40 minutes on two cores; goes on where it stopped.
bench: $(VENV)/dev
	$(BIN)/tqindex bench run

# The page and plots of the committed results, and the README's blocks.
bench-report: $(VENV)/dev
	$(BIN)/python -m tqindex.bench.report.command --output benchmarks/results --readme README.md

clean:
	rm -rf $(VENV) build dist *.egg-info
