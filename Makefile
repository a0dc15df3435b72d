# From a fresh clone: `make demo` runs the main job on the demo set, `make test` runs the checks and the tests.
# Both set up .venv first; a second time that takes no time.

PYTHON ?= python3
PIP_ARGS ?=
RATIO ?= 0.75
TEST_PROCESSES ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
WHAT_INSTALLING_READS := pyproject.toml setup.py constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow audit lint docs bench bindings cfgs clean

help: ## say what there is to make
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

demo: $(VENV)/.installed-demo ## prune the demo network by 75 % and measure it: about 7 minutes on two cores
	$(BIN)/prunedeploy build --ratio $(RATIO)

test: lint docs ## everything that must hold before a change goes in
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --durations 25

test-slow: $(VENV)/.installed-dev ## the tests that take minutes each, and all examples of the others
	PRUNEDEPLOY_TESTS=thorough $(BIN)/python -m pytest -m "(slow or hypothesis) and not gpu" --timeout 1800

docs: $(VENV)/.installed-dev ## the documentation as a site in site/, every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

audit: $(VENV)/.installed-dev ## known security holes of what is installed, where a service that knows them can be reached
	$(BIN)/python .ci/audit.py

lint: $(VENV)/.installed-dev ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev ## what we claim about speed, as programs that print it
	@set -e; for program in benchmarks/[!_]*.py; do echo "== $$program"; $(BIN)/python "$$program"; done

bindings: | $(BIN)/python ## fetch the Python bindings of full TensorRT, whose names the tests look up
	@$(fetch_bindings)

cfgs: $(VENV)/.installed-demo ## write configs/darknet again
	$(BIN)/python -m prunedeploy.models.yolov3_cfg configs/darknet

clean: ## remove what the other targets made, but not runs/
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(WHAT_INSTALLING_READS) | $(BIN)/python
	$(INSTALL) -e '.[cpu,train]'
	@$(install_rtx)
	@touch $@

$(VENV)/.installed-dev: $(WHAT_INSTALLING_READS) | $(BIN)/python
	$(INSTALL) -e '.[cpu,openvino,train,serve,video,tracing,cluster,dev]'
	@$(install_rtx)
	@$(fetch_bindings)
	@touch $@ $(VENV)/.installed-demo

# TensorRT for RTX is published for some platforms only, and everything but its own engines works without it.
define install_rtx
if [ "$$(uname -s)-$$(uname -m)" != Linux-x86_64 ]; then \
  echo "tensorrt-rtx is left out: it is for Linux on x86-64"; \
else \
  $(INSTALL) -e '.[rtx]' \
    || echo "tensorrt-rtx could not be installed: no TensorRT engines will be built, and their tests skip"; \
fi
endef

# A megabyte each, downloaded and not installed: tests look up the names that TensorRT's API has in them. The libraries
# themselves are not there, so nothing takes TensorRT for usable.
define fetch_bindings
for version in 10.0.1 10.16.1.11 11.4.0.106; do \
  $(BIN)/python -m pip download --disable-pip-version-check -q --no-deps --only-binary :all: $(PIP_ARGS) \
    -d $(VENV)/share/tensorrt-bindings tensorrt-cu12-bindings==$$version \
    || echo "TensorRT's bindings $$version could not be fetched: their test skips"; \
done
endef
