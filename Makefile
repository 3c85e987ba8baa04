# Every target that runs something makes its environment first; a second time that takes no time.
PYTHON ?= python3
LANE ?= onedl
# Operators of mmcv: portable (on torchvision, no compiler) or compiled.
OPS ?= portable
# Another PyTorch than the tested one: cpu (the build without CUDA) or a version.
TORCH ?=
VENV ?= .venv$(addprefix -torch-,$(TORCH))
RUN = $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help env demo demo-seg demo-cls demo-reparam test test-openmmlab test-all lint lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

env:  ## make .venv: PyTorch, the mm packages of the OneDL lane, repnext_mm itself
	@$(PYTHON) tools/setup_env.py --lane $(LANE) --venv $(VENV) --ops $(OPS) $(addprefix --torch ,$(TORCH))

demo: env  ## train Mask R-CNN with RepNeXt-M0 on digit scenes, test it in train form and fused
	$(RUN) tools/demo.py detection

demo-seg: env  ## the same for Semantic FPN
	$(RUN) tools/demo.py segmentation

demo-cls: env  ## the same for classifying handwritten digits
	$(RUN) tools/demo.py classification

demo-reparam: env  ## train a small RepVGG and RepNeXt-M0 on digits, fold both, compare accuracy and time
	$(RUN) tools/demo_reparam.py

test: lint  ## ruff, mypy, and the tests that are not marked slow
	$(RUN) -m pytest -m 'not slow'

test-openmmlab:  ## the tests on the packages that most existing pipelines run, in an environment of their own
	$(MAKE) env LANE=openmmlab VENV=.venv-openmmlab
	.venv-openmmlab/bin/python -m pytest -m 'not slow'

test-all: lint  ## the slow tests too
	$(RUN) -m pytest

lint: env  ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m mypy repnext_mm

lock:  ## renew the versions and hashes in requirements/locked (needs uv)
	bash requirements/lock.sh

clean:  ## remove caches and build leftovers; environments, data, runs and compiled wheels stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find repnext_mm tools tests configs -name __pycache__ -type d -prune -exec rm -rf {} +
