# `make sample` and `make test` start from a fresh clone: they set everything up first, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

# OpenMP threads that spin while they wait slow down everything else on a small machine.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0

.PHONY: help setup sample test test-slow lint format bench figures notebooks docs docs-serve wheel clean data train

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv and install everything, once

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	rm -f $(VENV)/installed-*
	touch $@

sample: $(STAMP)  ## the main job: "a red heart", unsteered and steered, into outputs/
	$(BIN)/steer sample prompt="a red heart" reward=clip seed=0 out=outputs

test: $(STAMP)  ## the tests, on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist loadfile

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)  ## rewrite the code as ruff formats it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure all figures anew (hours; goes on where it stopped), and write them into the pages
	$(BIN)/steer bench all out=docs/results
	$(MAKE) figures

figures: $(STAMP)  ## write what docs/results holds into README.md and docs/figures.md
	$(BIN)/python scripts/figures.py

notebooks: $(STAMP)  ## run the notebooks and store what they show
	$(BIN)/python scripts/notebooks.py

docs: $(STAMP)  ## the site of the documentation, build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(STAMP)  ## the same in a browser, built anew as files change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

wheel: $(STAMP)  ## build dist/steer-*.whl
	$(BIN)/python -m hatchling build -t wheel

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist outputs .pytest_cache .ruff_cache

data: $(STAMP)  ## build the emoji data set anew (needs npm; the packaged one is the same, bit for bit)
	npm install --no-save --prefix build/npm @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6 \
		@iconify-json/twemoji@1.2.5 emojibase-data@17.0.0
	$(BIN)/python scripts/build_emoji.py build/npm/node_modules steer/data/assets

train: $(STAMP)  ## train the embedded weights from scratch, in order (hours)
	$(BIN)/python scripts/bank.py
	$(BIN)/python scripts/train_clip.py configs/train/emoji-clip.json
	$(BIN)/python scripts/train_clip.py configs/train/emoji-clip-judge.json
	$(BIN)/python scripts/train_autoencoder.py configs/train/autoencoder.json
	$(BIN)/steer train experiment=emoji
	$(BIN)/python scripts/ship.py runs/emoji emoji
	$(BIN)/python scripts/train_autoencoder.py configs/train/decoder.json
	$(BIN)/steer train experiment=emoji-posterior
	$(BIN)/python scripts/ship.py runs/emoji-posterior emoji
	$(BIN)/python scripts/train_shapes_autoencoder.py configs/train/shapes-autoencoder.json
	$(BIN)/steer train experiment=shapes
	$(BIN)/steer train experiment=shapes-jumps
	$(BIN)/python scripts/ship.py runs/shapes-jumps shapes
	$(BIN)/python scripts/train_shapes_autoencoder.py configs/train/shapes-decoder.json
