# Every target sets up .venv on first use, and again when the requirements change.
#   make ablation [SEEDS=3] [TASKS=cola,mrpc] [ARGS="..."]: the experiment in a miniature language
#   make ablation PRESET=mini|base TEACHER=folder CORPUS=folder DATA=folder [HELDOUT=folder]: with a real teacher, on real text;
#                 what of the three PRESET=base is not given, it fetches into runs/models and runs/data, after saying how much that is
#   make report   (the same variables): only the report, from what is done
#   make demo TEXT="the dogs that [MASK] the cat are asleep" [RUN=runs/toy]
#   make demo TEXT="..." TASK=cola [TEXT_B="..."]
#   make bench [TEACHER=folder CORPUS=folder DATA=folder]: speed and memory beside a plain loop; of TEACHER only the sizes matter
#   make test
#   make toy-teacher: the miniature language's teacher once more, in runs/toy-teacher/12

PYTHON ?= python3
PRESET ?= toy
SEEDS ?= 1
TASKS ?= cola,mnli,mrpc,imdb
RUN ?= runs/$(PRESET)
# glibc gives tensors of a few MB back to the system and asks for them again at every step, unless it is told to keep them.
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184

ablation = .venv/bin/python ablation.py --preset $(PRESET) --seeds $(SEEDS) --tasks $(TASKS) $(if $(TEACHER),--teacher "$(TEACHER)") \
	$(if $(CORPUS),--corpus $(CORPUS)) $(if $(HELDOUT),--heldout $(HELDOUT)) $(if $(DATA),--data_dir "$(DATA)") $(ARGS)

.PHONY: ablation report demo bench toy-teacher test clean

ablation: .venv/ready
	$(ablation)

report: .venv/ready
	$(ablation) --report_only

demo: .venv/ready
	@.venv/bin/python demo.py "$(TEXT)" --run "$(RUN)" $(if $(TASK),--task $(TASK)) $(if $(TEXT_B),--text_b "$(TEXT_B)") $(ARGS)

bench: .venv/ready
	.venv/bin/python bench.py $(if $(TEACHER),--config "$(TEACHER)") $(if $(CORPUS),--corpus $(CORPUS)) $(if $(DATA),--data_dir "$(DATA)") $(ARGS)

# Grown by stacking (Gong et al. 2019): 3 layers learn most of it, at a quarter of the cost; each is then doubled, twice.
grow = .venv/bin/python pretrain.py --corpus runs/toy/world/corpus.txt --heldout runs/toy/world/heldout.txt --use_ce 0 --use_cos 0 \
	--mlm_prob 0.2 --batch_size 32 --max_length 64 --precision fp32 --log_every 100 --overwrite

toy-teacher: .venv/ready
	.venv/bin/python toy.py --out_dir runs/toy/world --seed 1 --overwrite
	$(grow) --teacher none --config runs/toy/world/bert --out_dir runs/toy-teacher/3 --steps 12000 --lr 1.5e-3
	$(grow) --teacher runs/toy-teacher/3 --layers 0,1,2 --out_dir runs/toy-teacher/3-longer --steps 9000 --lr 1.5e-3
	$(grow) --teacher runs/toy-teacher/3-longer --layers 0,0,1,1,2,2 --out_dir runs/toy-teacher/6 --steps 2000 --lr 7e-4
	$(grow) --teacher runs/toy-teacher/6 --layers 0,0,1,1,2,2,3,3,4,4,5,5 --out_dir runs/toy-teacher/12 --steps 1200 --lr 5e-4

test: .venv/ready-test
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests -n auto --maxprocesses 4 $(ARGS)

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/ready-test: .venv/ready requirements-test.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:
	rm -rf .venv
