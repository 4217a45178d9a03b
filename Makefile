# Every target sets up .venv on first use, and again when the requirements change.
#   make ablation TEACHER=folder CORPUS=folder DATA=folder [PRESET=mini|base] [SEEDS=3] [TASKS=cola,mrpc] [HELDOUT=folder] [ARGS="..."]
#   make report   (the same variables): only the report, from what is done
#   make test

PYTHON ?= python3
PRESET ?= mini
SEEDS ?= 1
TASKS ?= cola,mnli,mrpc,imdb

ablation = .venv/bin/python ablation.py --preset $(PRESET) --seeds $(SEEDS) --tasks $(TASKS) $(if $(TEACHER),--teacher "$(TEACHER)") \
	$(if $(CORPUS),--corpus $(CORPUS)) $(if $(HELDOUT),--heldout $(HELDOUT)) $(if $(DATA),--data_dir "$(DATA)") $(ARGS)

.PHONY: ablation report test clean

ablation: .venv/ready
	$(ablation)

report: .venv/ready
	$(ablation) --report_only

test: .venv/ready-test
	.venv/bin/python -m pytest tests $(ARGS)

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/ready-test: .venv/ready requirements-test.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:
	rm -rf .venv
