# make install | test | lint | types | check | gpu-check | gpu-study | demo | finetune-demo | clean-demo
#
# Variables: VENV (folder of the environment), PYTHON (interpreter it is made from), TORCH and TRITON (what pip
# installs first; a machine with CUDA takes the same TORCH and gets the build that its package index offers),
# WORKERS (test processes), BUDGET (minutes of gpu-study), CORPUS (its text: *.jsonl.zst, val.jsonl.zst held out).

VENV ?= .venv
TORCH ?= torch==2.13.0
TRITON ?= triton==3.9.0
WORKERS ?= 2

NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

PY = $(VENV)/bin/python
# Without a CUDA device DeepSpeed is told so, otherwise it looks for other accelerators first.
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
ifeq ($(HAS_GPU),0)
export DS_ACCELERATOR ?= cpu
endif
export PATH := $(abspath $(VENV))/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: install test lint types check gpu-check gpu-study demo finetune-demo clean-demo
.DEFAULT_GOAL := install

install: $(VENV)/.installed

# torch comes first and exactly: an open range would let pip choose the multi-gigabyte CUDA build on any machine.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "latentpt needs Python 3.11 or newer; name one with make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt "$(TORCH)"
	$(PY) -c 'import triton' 2>/dev/null || $(PY) -m pip install --quiet "$(TRITON)"
	$(PY) -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

# One thread a process: the tests compare numbers, and WORKERS processes share the cores.
test: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: install
	$(VENV)/bin/mypy

check: lint types test

# On a machine with a CUDA device: the GPU's tests, then every kernel beside torch, in at most ten minutes. What is found
# goes to docs/results/gpu/<chip>.json as it is found; cut, it goes on where it stopped when it is started again.
gpu-check: install
	$(PY) kernels/bench/check.py --seconds 570

# The scaling study of docs/scaling.md on one GPU: what fits into BUDGET minutes, the cheapest runs first; the next call
# goes on. Out of time, it writes the report from the runs that are finished; a training that failed ends it before.
COMPARE = $(PY) launch/compare.py
BUDGET ?= 30
CORPUS ?= ../shared/data/corpus
STUDY = --config configs/comparisons/ladder-gpu.yaml

gpu-study: install data/pile8k/train/manifest.json data/pile8k/validation/folders.json
	$(COMPARE) plan $(STUDY)
	$(COMPARE) run $(STUDY) --minutes $(BUDGET) || test $$? -eq 1
	$(COMPARE) report $(STUDY)
	mkdir -p docs/results/gpu/ladder
	cd runs/ladder-gpu && cp report.md *.png results.json runs.csv raw.tar.xz $(CURDIR)/docs/results/gpu/ladder

data/pile8k/tokenizer.json: | install
	$(PY) -m data_prep train_tokenizer --input $(CORPUS)/00.jsonl.zst --output $@ --vocab-size 8192 --sample 6M

data/pile8k/train/manifest.json: data/pile8k/tokenizer.json
	$(PY) -m data_prep tokenize --input '$(CORPUS)/0*.jsonl.zst' --tokenizer $< --output $(@D)

data/pile8k/validation/folders.json: data/pile8k/tokenizer.json
	$(PY) -m data_prep tokenize --input $(CORPUS)/val.jsonl.zst --tokenizer $< --output $(@D) --split-by-source

# From nothing to a report: a corpus every Python has, a tokenizer, shards, three arms at equal tokens, one page.
# Interrupted, it goes on where it stopped; clean-demo starts over.
ARMS = --config configs/comparisons/demo.yaml

demo: install demo/data/train/manifest.json demo/data/validation/manifest.json
	$(COMPARE) plan $(ARMS)
	$(COMPARE) run $(ARMS)
	$(COMPARE) report $(ARMS)

demo/corpus/train.jsonl.zst: | install
	$(PY) -m data_prep sample --output demo/corpus

demo/corpus/validation.jsonl.zst: demo/corpus/train.jsonl.zst ;

demo/tokenizer.json: demo/corpus/train.jsonl.zst
	$(PY) -m data_prep train_tokenizer --input $< --output $@ --vocab-size 2048

demo/data/%/manifest.json: demo/corpus/%.jsonl.zst demo/tokenizer.json
	$(PY) -m data_prep tokenize --input $< --tokenizer demo/tokenizer.json --output $(@D) --workers 2

# Latent fine-tuning of a small model: chain of thought, no chain, Coconut, its pause control, LT-Tuning; two seeds.
finetune-demo: install
	OMP_NUM_THREADS=1 $(PY) launch/finetune.py --suite configs/finetune/demo.yaml
	@echo "page: demo/finetune/report.html"

clean-demo:
	rm -rf demo
