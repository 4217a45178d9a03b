# Every target sets up .venv on first use, and again when the requirements change.
#   make ablation                       the experiment in a miniature language, minutes; SEEDS=3 repeats it with seeds 0, 1, 2
#   make ablation PRESET=mini|base TEACHER=folder CORPUS=folder DATA=folder [HELDOUT=folder] [TASKS=cola,mrpc] [ARGS="..."]
#   make report                         (the same variables): only the report, from what is done
#   make demo TEXT="the dogs that [MASK] the cat are asleep" [RUN=runs/toy]
#   make demo TEXT="..." TASK=cola [TEXT_B="..."]
#   make toy-teacher                    trains the teacher of assets/toy-teacher again, into runs/toy-teacher; most of an hour
#   make test

PYTHON ?= python3
PRESET ?= toy
SEEDS ?= 1
TASKS ?= cola,mnli,mrpc,imdb
RUN ?= runs/$(PRESET)

# glibc gives the memory of every large tensor back to the system and fetches it anew, page by page; kept, steps are faster.
export MALLOC_MMAP_THRESHOLD_ = 33554432
export MALLOC_TRIM_THRESHOLD_ = 17179869184

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
