# Every target sets up .venv on first use, and again when the requirements change.
#
#   make lesson      the guided tour: distillation step by step, under a minute
#   make ablation    the experiment, in a miniature language  [SEEDS=5] [FIRST_SEED=0]
#                    [TASKS=cola,mrpc] [ARGS=...]; SEEDS=1 is a smoke test, without intervals
#   make ablation PRESET=mini|base TEACHER=folder CORPUS=folder DATA=folder [HELDOUT=folder]
#                    with a real teacher, on real text; PRESET=base fetches what is not given
#   make report      (the same variables) only the report, of what is done
#   make coverage    do the intervals hold the truth? simulated, from the report's variances
#   make aa          do they find effects where none are? sixty seeds of one student: 25 minutes
#   make controls    is an effect found that must be there? students of fewer steps, and of a
#                    teacher that knows nothing
#   make stability   how much does the fine-tuning seed alone change? after make ablation
#   make check       after a rewrite of a formula or the model that should change nothing: a minute
#   make test        everything, after make lint
#   make demo TEXT="the surgeon [MASK] the wound ." [RUN=runs/toy]
#   make demo TEXT="..." TASK=cola [TEXT_B="..."]
#   make bench       speed and memory beside a plain loop [TEACHER=folder CORPUS=folder DATA=folder]
#   make download NAMES=cola,mrpc,wikitext-2 DATA=folder
#   make toy-teacher the miniature language's teacher, trained again, in runs/toy-teacher: 8 minutes
#   make figures     the pictures of README.md and RESULTS.md, from a finished make ablation

PYTHON ?= python3
PRESET ?= toy
SEEDS ?= 5
FIRST_SEED ?= 0
TASKS ?= cola,sst2,mnli
# glibc returns tensors of a few MB to the system and asks for them again at every step, unless it
# is told to keep them.
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184

# A notebook's shell names a backend that only the notebook's own environment has.
unexport MPLBACKEND

# Paths and texts go through the environment as they were typed: a space, a quote or a dollar in
# them means nothing to make or to the shell. Not every shell expands the ~ of TEACHER=~/x.
path = $(if $(filter ~/%,$(value $(1))),$(patsubst ~/%,$(HOME)/%,$(value $(1))),$(value $(1)))
export TYPED_TEACHER := $(call path,TEACHER)
export TYPED_CORPUS := $(call path,CORPUS)
export TYPED_HELDOUT := $(call path,HELDOUT)
export TYPED_DATA := $(call path,DATA)
export TYPED_RUN := $(or $(call path,RUN),runs/$(PRESET))
export TYPED_TEXT := $(value TEXT)
export TYPED_TEXT_B := $(value TEXT_B)
teacher = $(if $(TYPED_TEACHER),--teacher "$$TYPED_TEACHER")
corpus = $(if $(TYPED_CORPUS),--corpus "$$TYPED_CORPUS")
data = $(if $(TYPED_DATA),--data_dir "$$TYPED_DATA")

python = .venv/bin/python
ablation = $(python) ablation.py --preset $(PRESET) --seeds $(SEEDS) --first_seed $(FIRST_SEED) \
	--tasks $(TASKS) $(teacher) $(corpus) \
	$(if $(TYPED_HELDOUT),--heldout "$$TYPED_HELDOUT") $(data) $(ARGS)
pytest = OMP_NUM_THREADS=1 $(python) -m pytest -n auto --maxprocesses 4

.PHONY: lesson ablation report coverage aa controls stability check lint test demo bench download \
	toy-teacher figures clean

lesson: .venv/ready
	$(python) -m support.lesson_page

ablation: .venv/ready
	@$(ablation)

report: .venv/ready
	@$(ablation) --report_only

# One thread: its matrices are small.
coverage: .venv/ready
	OMP_NUM_THREADS=1 $(python) -m support.coverage --results "$$TYPED_RUN/results.json" $(ARGS)

aa: .venv/ready
	$(python) -m support.aa_test --seeds $(SEEDS) $(ARGS)

controls: .venv/ready
	@$(ablation) --variants full,steps_80,steps_40,steps_0 --out_dir runs/toy-controls
	$(python) pretrain.py --teacher none --config runs/toy/world/bert --steps 0 --max_length 64 \
		--corpus runs/toy/world/corpus.txt --use_ce 0 --use_cos 0 --out_dir runs/toy-ignorant \
		--overwrite
	@$(ablation) --teacher runs/toy-ignorant --variants full --out_dir runs/toy-of-ignorant

stability: .venv/ready
	$(python) -m support.stability $(ARGS)

check: .venv/ready-test
	$(pytest) tests -m check $(ARGS)

lint: .venv/ready-test
	.venv/bin/ruff check .

test: lint
	$(pytest) tests $(ARGS)

demo: .venv/ready
	@$(python) -m support.demo "$$TYPED_TEXT" --run "$$TYPED_RUN" $(if $(TASK),--task $(TASK)) \
		$(if $(TYPED_TEXT_B),--text_b "$$TYPED_TEXT_B") $(ARGS)

bench: .venv/ready
	$(python) -m support.bench $(if $(TYPED_TEACHER),--config "$$TYPED_TEACHER") \
		$(corpus) $(data) $(ARGS)

download: .venv/ready
	$(python) -m support.download $(NAMES) $(data) $(ARGS)

toy-teacher: .venv/ready
	$(python) -m support.toy --out_dir runs/toy/world --seed 1 --overwrite
	OMP_NUM_THREADS=1 $(python) pretrain.py --teacher none --config runs/toy/world/bert \
		--corpus runs/toy/world/corpus.txt --heldout runs/toy/world/heldout.txt \
		--use_ce 0 --use_cos 0 --mlm_prob 0.2 --batch_size 32 --max_length 64 --precision fp32 \
		--steps 6000 --lr 2e-3 --log_every 100 --out_dir runs/toy-teacher --overwrite

figures: report
	cp runs/toy/ablation.png assets/toy-ablation.png
	cp runs/toy/losses.png assets/toy-losses.png

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(python) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/ready-test: .venv/ready requirements-test.txt
	$(python) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:
	rm -rf .venv
