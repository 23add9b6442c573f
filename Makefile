# The two commands that matter: `make demo` and `make test`. Both create .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1

.PHONY: demo test test-everywhere check controls clean

demo: .venv/installed
	$(BIN)/fedsim run quickstart

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile
	$(BIN)/python tests/everywhere.py mkl-avx2 mkl-compatible -k "rules or gram or ranks or clip_bounds or threads"

# The numerical tests as on other processors and on other numbers of threads.
test-everywhere: .venv/installed
	$(BIN)/python tests/everywhere.py

# Faults that an audit must see and correct runs that it must pass, 20 seeds each: about an hour.
controls: .venv/installed
	$(BIN)/python -m fedsim.experiments.audit.controls --seeds 20

# The folders are mapped to fedsim.* at install time; a type checker sees the mapping through links.
check: .venv/installed
	rm -rf .typecheck && mkdir -p .typecheck/fedsim
	cd .typecheck/fedsim && ln -s ../../fedsim/* . && for f in strategies attacks datasets experiments; do ln -s ../../$$f $$f; done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=.typecheck $(BIN)/mypy -p fedsim
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf .venv .typecheck build *.egg-info
