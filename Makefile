# Every target is one command a person could type; all logic is in Python.
PYTHON ?= python3
CONFIG ?= configs/config_SBI.json
BIN := .venv/bin
CHECKPOINT ?= output/demo/runs/stage2_*/weights/BEST.pth
CALIBRATION ?= output/demo/data
BUNDLE ?= output/bundle
BASE ?= HEAD
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-gpu check format train-teacher train-stage1 train-stage2 stage1 stage2 export parity serve bench bench-gpu bench-pytest bench-compare bench-selfblend bench-train-step bench-serve

help: ## show the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

setup: .venv/.ready ## install everything into .venv, every version pinned

.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet -c constraints.txt uv; }
	$(BIN)/uv pip install --python $(BIN)/python --constraints constraints.txt --group dev --group bench --editable ".[train,export,serve,openvino,tensorrt-rtx]"
	touch $@

demo: .venv/.ready ## minutes on two CPU cores: real clips -> teacher -> stage 1 -> stage 2 -> table
	$(BIN)/stillface demo $(ARGS)

train-teacher: .venv/.ready ## train a teacher, for those who have none (CONFIG=..., ARGS="--set ...")
	$(BIN)/stillface train teacher $(CONFIG) -n teacher $(ARGS)

train-stage1 stage1: .venv/.ready ## stage 1: the student alone
	$(BIN)/python train_student_only.py $(CONFIG) -n pretrain_mobilevit $(ARGS)

train-stage2 stage2: .venv/.ready ## stage 2: the student under the teacher
	$(BIN)/python main_distillation.py $(CONFIG) -n distill_mobilevit $(ARGS)

export: .venv/.ready ## checkpoint -> proven bundle; by default the demo's newest student (CHECKPOINT=, CALIBRATION=, BUNDLE=)
	$(BIN)/stillface export "$(CHECKPOINT)" --calibration "$(CALIBRATION)" --out "$(BUNDLE)" $(ARGS)

parity: .venv/.ready ## measure a bundle's files again on this machine (BUNDLE=)
	$(BIN)/stillface parity "$(BUNDLE)" $(ARGS)

serve: .venv/.ready ## serve a bundle on http://127.0.0.1:8000 (BUNDLE=, ARGS="--set key=value")
	$(BIN)/stillface serve "$(BUNDLE)" $(ARGS)

test: .venv/.ready ## every test, the slow ones too
	$(BIN)/pytest -n 2 $(ARGS)

test-fast: .venv/.ready ## what a change is checked with while it is written
	$(BIN)/pytest -n 2 -m "not slow and not gpu" $(ARGS)

test-gpu: .venv/.ready ## what only a CUDA device can show: engines, torch-tensorrt, bf16 and fp16 training
	$(BIN)/pytest tests/gpu -rs $(ARGS)

check: .venv/.ready ## lint, format, types, import rules, spelling, generated files
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/lint-imports && $(BIN)/codespell
	$(BIN)/hadolint Dockerfile Dockerfile.gpu
	$(BIN)/python -m training config-schema | diff - configs/schema.json
	$(BIN)/python -m benchmarks readme --check

format: .venv/.ready ## put the code into its one format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: .venv/.ready ## the teacher-versus-student table in every runtime, under 20 minutes (ARGS="--stage2 PATH ...")
	$(BIN)/python -m benchmarks table $(ARGS)

bench-gpu: .venv/.ready ## the same in the ways of a GPU; what is missing is marked (ARGS=)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-pytest: .venv/.ready ## single crops as a pytest-benchmark suite: JSON, comparison with the last run, histogram
	mkdir -p output/bench-pytest
	$(BIN)/pytest benchmarks -p no:xdist --benchmark-storage=file://output/bench-pytest --benchmark-autosave \
	  --benchmark-compare --benchmark-histogram=output/bench-pytest/histogram \
	  --benchmark-json=output/bench-pytest/latest.json $(ARGS)

bench-compare: .venv/.ready ## is this checkout slower than another revision? exit code 1 if so (BASE=, ARGS=)
	$(BIN)/python -m benchmarks compare $(BASE) $(ARGS)

bench-selfblend: .venv/.ready ## milliseconds per self-blended pair, by stage
	$(BIN)/python -m benchmarks selfblend $(ARGS)

bench-train-step: .venv/.ready ## the loop against a bare forward/backward/step
	$(BIN)/python -m benchmarks train-step $(ARGS)

bench-serve: .venv/.ready ## the API against the bare network, alone, 16 at once, and at three times its capacity (BUNDLE=)
	$(BIN)/python -m benchmarks serve "$(BUNDLE)" $(ARGS)
