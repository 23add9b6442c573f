# The two commands that matter: `make demo` and `make test`. Both create .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1

.PHONY: demo test test-everywhere check linked docs matrix dist tagged controls clean

demo: .venv/installed
	$(BIN)/fedsim run quickstart

test: check docs
	$(BIN)/python -m pytest -n 2 --dist loadfile
	$(BIN)/python tests/everywhere.py mkl-avx2 mkl-compatible -k "rules or gram or ranks or clip_bounds or threads"

# The numerical tests as on other processors and on other numbers of threads.
test-everywhere: .venv/installed
	$(BIN)/python tests/everywhere.py

# Faults that an audit must see and correct runs that it must pass, 20 seeds each: about an hour.
controls: .venv/installed
	$(BIN)/python -m fedsim.experiments.audit.controls --seeds 20

# The folders are mapped to fedsim.* at install time; a type checker sees the mapping through links.
linked: .venv/installed
	rm -rf .typecheck && mkdir -p .typecheck/fedsim
	cd .typecheck/fedsim && ln -s ../../fedsim/* . && for f in strategies attacks datasets experiments; do ln -s ../../$$f $$f; done

check: linked
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=.typecheck $(BIN)/mypy -p fedsim

# The site, in build/site.
docs: linked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Python, Flower and torch in all versions that are to be had here; writes docs/compatibility.md. Stopped, it goes on.
matrix: .venv/installed
	$(BIN)/python tests/matrix.py

# The wheel and the sdist, in dist/.
dist: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

# make tagged TAG=v1.2.3 fails where that is not the version.
tagged: .venv/installed
	test "$(TAG)" = "v$$($(BIN)/fedsim --version | cut -d' ' -f2)"

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf .venv .typecheck build dist *.egg-info
