# make help lists the targets. Everything is installed in .venv, when a target first needs it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# On Linux plain "torch" brings gigabytes of CUDA; without an NVIDIA card take PyTorch's CPU build instead.
TORCH_VERSION ?= 2.13.0
ifeq ($(shell uname -sm):$(shell command -v nvidia-smi),Linux x86_64:)
TORCH ?= torch==$(TORCH_VERSION)+cpu --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
else
TORCH ?= torch==$(TORCH_VERSION)
endif
# Likewise half the size, where it exists.
ifeq ($(shell uname -sm),Linux x86_64)
TENSORFLOW ?= tensorflow-cpu
else
TENSORFLOW ?= tensorflow
endif

.PHONY: help demo test test-slow test-without-torch test-python lint docs notebooks dist clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

PHOTOS := src/kakao_models/photos
demo: $(VENV)/.main  ## classify the photographs inside the package with align-small and draw demo.png
	cd $(PHOTOS) && "$(CURDIR)/$(BIN)/kakao-models" classify *.jpg --labels-file labels.txt \
		--model align-small --top-k 3 --picture "$(CURDIR)/demo.png"
	@echo "The same as a picture: demo.png"

test: $(VENV)/.test  ## everything but full-size models
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		echo "No chromium: the web page is not tested in a browser. On Debian: apt-get install chromium"
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart 0  # a new worker would wait for ever

test-slow: $(VENV)/.test  ## the tests of full-size models (up to 10 GB of memory)
	$(BIN)/python -m pytest -m slow -n 1

# Flax and TensorFlow need no PyTorch: their models, loading and training, in an environment that has none. What compiles
# longest, which "make test" runs too, is left out.
QUICK := 'not align_a and not ghost and not devices and not lamb_steps and not fit and not replicas and not half_precision'
WITHOUT_TORCH := .venv-without-torch
test-without-torch: $(WITHOUT_TORCH)/.test  ## the tests of Flax and TensorFlow in an environment without PyTorch
	$(WITHOUT_TORCH)/bin/python -c 'import importlib.util as util; assert util.find_spec("torch") is None, "PyTorch is here"'
	$(WITHOUT_TORCH)/bin/python -m pytest -n $(WORKERS) --dist loadfile \
		tests/align/test_modeling_flax.py tests/align/test_modeling_tf.py tests/vit/test_modeling_flax.py \
		tests/vit/test_modeling_tf.py tests/train/test_loss_flax.py tests/train/test_lamb_tf.py tests/align/test_config.py \
		-k $(QUICK)

# make test-python PYTHON_VERSION=3.13: uv finds or downloads that Python. RESOLUTION=lowest-direct takes the oldest release of
# each dependency that setup.py allows; UV_OPTIONS= takes PyTorch from PyPI. TensorFlow has no release for Python 3.14.
PYTHON_VERSION ?= 3.12
RESOLUTION ?= highest
UV_OPTIONS ?= --torch-backend cpu
OTHER := .venv-$(PYTHON_VERSION)-$(RESOLUTION)
ifneq ($(PYTHON_VERSION),3.14)
OTHER_KERAS := $(TENSORFLOW) keras
OTHER_KERAS_TESTS := tests/align/test_modeling_tf.py tests/vit/test_modeling_tf.py
endif
test-python: $(BIN)/python  ## a quick part of the tests on another Python or on the oldest dependencies
	$(BIN)/python -m pip install --quiet 'uv>=0.9'
	$(BIN)/uv venv --quiet --clear --python $(PYTHON_VERSION) $(OTHER)
	$(BIN)/uv pip install --quiet --python $(OTHER) --resolution $(RESOLUTION) $(UV_OPTIONS) \
		$(OTHER_KERAS) -e '.[torch,flax,test]'
	$(OTHER)/bin/python -m pytest -n $(WORKERS) --dist loadfile tests/align/test_config.py \
		tests/align/test_modeling_torch.py tests/vit/test_modeling_torch.py tests/align/test_modeling_flax.py \
		tests/vit/test_modeling_flax.py $(OTHER_KERAS_TESTS) -k $(QUICK)

lint: $(VENV)/.lint  ## ruff: style and imports; ty: the types of the core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

DOCS := .venv-docs
docs: $(DOCS)/.docs  ## the documentation site, into build/site; a warning or a broken link is an error
	DISABLE_MKDOCS_2_WARNING=true $(DOCS)/bin/mkdocs build --strict

notebooks: $(VENV)/.notebooks  ## execute the notebooks and write their outputs back; an error in a cell ends it
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

dist: $(VENV)/.dist  ## wheel and sdist, into dist/; the wheel is tested in a fresh environment outside the clone
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	PYTHON='$(PYTHON)' .ci/check_wheel dist/*.whl $(TORCH)

clean:  ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) $(WITHOUT_TORCH) $(DOCS) .venv-3.* build dist .pytest_cache .ruff_cache demo.png

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kakao-models needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# ty reads the types of the packages that the tests install.
$(VENV)/.lint: $(VENV)/.test Makefile
	$(BIN)/python -m pip install --quiet 'ruff>=0.9' 'ty==0.0.108'
	touch $@

$(VENV)/.main: setup.py Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[torch]'
	touch $@

$(VENV)/.test: $(VENV)/.main setup.py Makefile
	$(BIN)/python -m pip install --quiet $(TENSORFLOW) -e '.[torch,keras,flax,convert,train,evaluate,data,search,demo,export,serve,fast,heic,test,test-torch]'
	touch $@

$(WITHOUT_TORCH)/.test: setup.py Makefile
	$(PYTHON) -m venv $(WITHOUT_TORCH)
	$(WITHOUT_TORCH)/bin/python -m pip install --quiet $(TENSORFLOW) -e '.[keras,flax,test]'
	touch $@

$(DOCS)/.docs: setup.py pyproject.toml Makefile
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -e '.[docs]'
	touch $@

$(VENV)/.notebooks: $(VENV)/.test
	$(BIN)/python -m pip install --quiet -e '.[notebooks]'
	touch $@

$(VENV)/.dist: Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet 'build>=1.2' 'twine>=6.1'
	touch $@
