# Every target sets up .venv on first use, and again when the requirements change.
#   make ablation TEACHER=folder CORPUS=folder DATA=folder [PRESET=mini|base] [SEEDS=3] [TASKS=cola,mrpc] [HELDOUT=folder] [ARGS="..."]
#   make report   (the same variables): only the report, from what is done
#   make toy-teacher, then make ablation PRESET=toy: the experiment in a miniature language
#   make demo TEXT="the dogs that [MASK] the cat are asleep" [RUN=runs/toy]
#   make demo TEXT="..." TASK=cola [TEXT_B="..."]
#   make test

PYTHON ?= python3
PRESET ?= mini
SEEDS ?= 1
TASKS ?= cola,mnli,mrpc,imdb
RUN ?= runs/$(PRESET)

ablation = .venv/bin/python ablation.py --preset $(PRESET) --seeds $(SEEDS) --tasks $(TASKS) $(if $(TEACHER),--teacher "$(TEACHER)") \
	$(if $(CORPUS),--corpus $(CORPUS)) $(if $(HELDOUT),--heldout $(HELDOUT)) $(if $(DATA),--data_dir "$(DATA)") $(ARGS)

.PHONY: ablation report demo toy-teacher test clean

ablation: .venv/ready
	$(ablation)

report: .venv/ready
	$(ablation) --report_only

demo: .venv/ready
	@.venv/bin/python demo.py "$(TEXT)" --run "$(RUN)" $(if $(TASK),--task $(TASK)) $(if $(TEXT_B),--text_b "$(TEXT_B)") $(ARGS)

toy-teacher: .venv/ready
	.venv/bin/python toy.py --out_dir runs/toy/world --seed 1 --overwrite
	.venv/bin/python pretrain.py --teacher none --config runs/toy/world/bert --corpus runs/toy/world/corpus.txt \
		--heldout runs/toy/world/heldout.txt --out_dir runs/toy-teacher --overwrite --steps 9000 --batch_size 32 --max_length 64 \
		--lr 1e-3 --precision fp32 --log_every 100

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
