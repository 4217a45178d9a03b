"""What an experiment reads: fetched if it may be, and checked before anything runs."""
from pathlib import Path

import finetune
from load_hf_weights import fetch_model, load_model, load_tokenizer, read_config
from model import chosen_layers
from support import download, task_setup
from support.corpus import text_files
from support.errors import InputError


def fetch(args, preset, commands):
    """Fetch what the command line does not name and what does not exist yet, of the teacher, the
    tasks and WikiText-103. Raises InputError."""
    data_sets = args.tasks if "data_dir" in args.to_fetch else []
    if "corpus" in args.to_fetch:
        data_sets = [*data_sets, "wikitext-103"]
    data_sets = download.pending(data_sets, preset["data_dir"])
    teacher = "teacher" in args.to_fetch and not Path(args.teacher).exists()
    said = []
    if teacher:
        said.append(f"{preset['hub_name']} (440 MB) into {args.teacher}")
    if data_sets:
        said.append(f"{download.what_and_how_much(data_sets)}, into {preset['data_dir']}")
    if said:
        for module, arguments in commands:
            module.read_arguments(arguments)  # refuse wrong ones before fetching
        print(f"To be fetched first: {'; '.join(said)}", flush=True)
    if teacher:
        fetch_model(preset["hub_name"], args.teacher)
    download.download_tasks(data_sets, preset["data_dir"])


def validate(args, commands):
    """Raise InputError now for what would otherwise stop the experiment hours later."""
    depth = read_config(args.teacher).num_hidden_layers
    for module, arguments in commands:
        run_args = module.read_arguments(arguments)
        try:
            chosen_layers(getattr(run_args, "layers", None), depth)
        except ValueError as error:
            raise InputError(f"{run_args.out_dir}: {error}; leave this variant out of "
                             "--variants") from None
        # A student's embeddings are its teacher's.
        if module is finetune and run_args.model in (args.teacher, *args.also.values()):
            finetune.check_length(run_args)
            task_setup.check_segments(run_args.model, run_args.task)
    for folder in args.also.values():
        task_setup.new_model(folder, args.tasks[0])
        load_tokenizer(folder)
    load_model(args.teacher)
    text_files(args.corpus + (args.heldout or []))
    for task in args.tasks:
        reader = task_setup.reader(task)
        reader.read_train(task, args.data_dir)
        reader.read_dev(task, args.data_dir)
