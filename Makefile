# Two commands set everything up: `make demo` shows the model at work, `make test` runs the tests.
# CPU builds of torch on Linux: make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PIP_ARGS ?=
# Each test runs on one thread; two processes take half the time and 4 GB of memory.
PYTEST_ARGS ?= -n 2 --dist worksteal
# What meets transformers and its neighbours: the tests that the oldest versions have to pass as well.
LOWEST_VENV ?= .venv-lowest
LOWEST_TESTS = adapters asking checkpoint_keys_lladav cli configuration_lladav conversion diffusion_lladav \
  direct_loading features_lladav generation_configuration_lladav generation_lladav image_processing_lladav media \
  modeling_lladav pipelines processing_lladav publishing pushing registration remote_code sampling_lladav \
  scoring_lladav sources streaming trainer training_model training_results weights
# lmms-eval without its requirements, which do not go with the versions tested here, see pyproject.toml.
LMMS_EVAL = 'lmms-eval>=0.7.3' 'pytablewriter>=1.2' DataProperty 'chardet<7' mbstrdecoder pathvalidate tabledata tcolorpy 'typepy<2'
# gradio likewise.
GRADIO = 'gradio>=6' gradio-client groovy hf-gradio safehttpx
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: help demo test test-lowest fuzz lint types readme docs docs-serve notebook release clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt torch
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

# The shared tests of transformers and PEFT; without them their tests are skipped.
$(VENV)/.dev: $(VENV)/.run tests/ecosystem-sources.txt
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt --no-deps $(LMMS_EVAL) $(GRADIO)
	-$(VENV)/bin/python tests/ecosystem.py $(PIP_ARGS)
	@touch $@

demo: $(VENV)/.run  ## Draw a fresh scene, ask the bundled checkpoint about it, save the picture with the answers.
	$(VENV)/bin/lladav demo --output demo_out

test: $(VENV)/.dev  ## Run the tests, offline.
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -q $(PYTEST_ARGS)

$(LOWEST_VENV)/.dev: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints-lowest.txt torch
	$(LOWEST_VENV)/bin/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints-lowest.txt \
	  -e '.[train,video,serve]' pytest pytest-xdist hypothesis
	@touch $@

test-lowest: $(LOWEST_VENV)/.dev  ## Run what meets the libraries with the oldest versions that are allowed.
	HF_HUB_OFFLINE=1 $(LOWEST_VENV)/bin/python -m pytest -q $(PYTEST_ARGS) $(LOWEST_TESTS:%=tests/test_%.py)

fuzz: $(VENV)/.dev  ## Feed the library a hundred thousand hostile cases, in 20 minutes of a CPU.
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python tests/fuzz/run.py --report model_cards/results/fuzzing.json

lint: $(VENV)/.dev  ## Check style and formatting.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev  ## Check types.
	$(VENV)/bin/mypy

readme: $(VENV)/.dev  ## Render the tables of the README and the bundled model card from the result files.
	$(VENV)/bin/python model_cards/render_readme.py
	$(VENV)/bin/python model_cards/render_card.py

docs: $(VENV)/.dev  ## Build the site into site/; a broken link is an error.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet -f docs/mkdocs.yml

docs-serve: $(VENV)/.dev  ## Show the site while its pages are written.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs serve -f docs/mkdocs.yml

notebook: $(VENV)/.dev  ## Execute the notebook again, in place.
	$(VENV)/bin/python docs/notebooks/execute_notebook.py

release: $(VENV)/.dev  ## Build wheel and source archive into dist/, with a list of what was tested; audit that list.
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt -e '.[release]'
	rm -rf dist
	$(VENV)/bin/python -m hatchling build -d dist
	$(VENV)/bin/cyclonedx-py environment --of JSON -o dist/sbom.json $(VENV)/bin/python
	$(VENV)/bin/pip-audit -r constraints.txt --no-deps --disable-pip

clean:  ## Remove the environment and everything generated.
	rm -rf $(VENV) $(LOWEST_VENV) demo_out runs site dist .pytest_cache .mypy_cache .ruff_cache
