# Every target that runs something makes its environment first; a second time that takes no time.
PYTHON ?= python3
LANE ?= onedl
# The operators of mmcv: portable (on torchvision, no compiler needed) or compiled.
OPS ?= portable
# Another PyTorch than the tested one: cpu (the build without CUDA), or a version such as 2.14.1.
TORCH ?=
VENV ?= .venv$(addprefix -torch-,$(TORCH))
RUN = $(VENV)/bin/python
# Tests run in two processes with a thread each: faster than one with two, and free of each other.
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal
CORE = tests/reparam tests/models tests/mmcv_ops tests/checkpoints tests/hooks tests/test_plug_in.py

.DEFAULT_GOAL := help
.PHONY: help env demo demo-seg demo-cls demo-reparam test test-core test-openmmlab test-all test-phone lint docs lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

env:  ## make .venv: PyTorch, the mm packages, repnext_mm (OPS=compiled TORCH=cpu|VERSION LANE=openmmlab PYTHON=...)
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
	$(PYTEST) -m 'not slow'

test-core: env  ## the tests of the algebra, the backbone, the hook, weights and operators: make test-core TORCH=2.14.1
	$(PYTEST) -m 'not slow' $(CORE)

test-openmmlab:  ## the tests on the packages that most existing pipelines run, in an environment of their own
	$(MAKE) env LANE=openmmlab VENV=.venv-openmmlab
	$(MAKE) -o env -o lint test VENV=.venv-openmmlab

test-all: lint  ## the slow tests too, with optional packages and the formats of phones whose packages fit the tested versions
	sed -n 's/^\([A-Za-z0-9_.-]*==[^ ;]*\).*/\1/p' requirements/locked/$(LANE).txt >$(VENV)/tested-versions.txt
	$(RUN) -m pip install --quiet -c $(VENV)/tested-versions.txt -e '.[ncnn,mnn,nncf,coco,tensorboard]'
	REPNEXT_MM_FRESH_PROCESSES=1 $(RUN) -m pytest

test-phone:  ## FORMAT=litert, executorch or coreai, whose packages want other versions, in an environment of its own
	$(MAKE) env VENV=.venv-$(FORMAT)
	.venv-$(FORMAT)/bin/python -m pip install --quiet -e '.[$(FORMAT)]'
	.venv-$(FORMAT)/bin/python -m pytest tests/export/test_mobile.py

lint: env  ## ruff (rules and formatter) and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy repnext_mm

docs: env  ## the documentation as a site, in build/site; a link that leads nowhere is an error
	@test -d build/docs || $(RUN) -m pip install --quiet --target build/docs -r requirements/docs.txt
	PYTHONPATH=build/docs $(RUN) -m sphinx -E -W --keep-going -q -c docs/site -d build/site-cache . build/site

lock:  ## renew the versions and hashes in requirements/locked (needs uv)
	bash requirements/lock.sh

clean:  ## remove caches and build leftovers; environments, data, runs and compiled wheels stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find repnext_mm tools tests configs -name __pycache__ -type d -prune -exec rm -rf {} +
