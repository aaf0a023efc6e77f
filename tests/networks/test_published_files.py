"""Configurations in the shapes that people publish: each starts, or says in one go what to change.

A file that is refused lists what its message must say to write; after that it starts.
"""

import json

import pytest

from anima_train_network import load_run
from library.errors import UserError
from tests.helpers.running import make_trainer, model_paths, write_dataset

STARTS: dict[str, str] = {
    "official example": """
        [model_arguments]
        network_module = "networks.lora_anima"
        network_dim = 8
        learning_rate = 1e-4
        optimizer_type = "AdamW"
        timestep_sampling = "sigmoid"
        discrete_flow_shift = 1.0
        network_train_unet_only = true
        vae_chunk_size = 64
        vae_disable_cache = true""",
    "official with blocks to swap": "blocks_to_swap = 18\nsplit_attn = true\nattn_mode = 'torch'",
    "flash attention": "attn_mode = 'flash'\nnetwork_dim = 16",
    "flash beside sdpa": "attn_mode = 'flash'\nsdpa = true\nsplit_attn = true",
    "compiled blocks": "compile = true\ncompile_dynamic = true\ntorch_compile = true",
    "no dynamo": "dynamo_backend = 'no'\ntorch_compile = 0",
    "a gui's empty texts": """
        network_weights = ""
        resume = ""
        log_with = ""
        max_grad_norm = 1.0
        lr_warmup_steps = ""
        text_encoder_lr = ""
        huggingface_repo_id = ""
        noise_offset = ""
        save_last_n_epochs = ""
        sample_prompts = ""
        optimizer_args = []
        network_args = \"\"""",
    "a gui's zeros": """
        max_train_steps = 0
        max_train_epochs = 2
        scale_weight_norms = 0.0
        save_every_n_steps = 0
        save_last_n_epochs = 0
        save_n_epoch_ratio = 0
        validate_every_n_steps = 0
        network_dropout = 0
        clip_skip = 0
        min_snr_gamma = 0
        max_token_length = 225""",
    "switches as numbers": "cache_latents = 1\nshuffle_caption = 0\npersistent_data_loader_workers = 1",
    "epochs and no steps": "max_train_epochs = 3\nmax_train_steps = 0",
    "sampler of a newer program": "sample_sampler = 'er_sde'\nsample_every_n_epochs = 1",
    "stable diffusion leftovers": "v2 = false\nclip_skip = 2\nmin_snr_gamma = 5\nno_half_vae = 1",
    "lora-scripts, plain": """
        model_train_type = "anima-lora"
        lora_type = "lora"
        enable_preview = false
        positive_prompts = "1girl"
        sample_cfg = 7
        sample_width = 512
        network_dim = 32
        network_alpha = 16
        optimizer_type = "AdamW"
        lr_scheduler = "cosine_with_restarts"
        lr_scheduler_num_cycles = 1
        prefer_json_caption = false
        prodigy_d_coef = "2.0"
        noise_offset_type = "Original\"""",
    "lora-scripts-next sections": """
        [metadata]
        model_train_type = "anima-lora"
        [data]
        shuffle_caption = false
        [network]
        network_dim = 16""",
    "nested sections": "[network.settings]\nnetwork_dim = 6\n[a.b.c]\nlearning_rate = 1e-4",
    "patterns as python": """
        network_args = ["exclude_patterns=['.*mlp.*']", "train_llm_adapter=False"]""",
    "one pattern as python": """network_args = ["exclude_patterns='.*mlp.*'"]""",
    "exclusions of another model": """network_args = ["exclude_patterns=['.*_te_layers_.*']"]""",
    "arguments in quotes": """network_args = ["train_norm='false'", 'rank_dropout="0.1"']""",
    "lokr of ours": """
        network_module = "networks.lokr_anima"
        network_args = ["factor=8", "full_matrix=True"]""",
    "a rate per part": "network_train_unet_only = true\ntext_encoder_lr = 1e-5\nunet_lr = 1e-4",
    "paths of the home folder": "logging_dir = '~/none/logs'\nlog_with = 'none'",
}

REFUSED: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "compiled blocks in another's words": (
        "compile = true\ncompile_mode = 'blocks'\ncompile_dynamic = 'yes'",
        [("blocks", "default"), ("'yes'", "true")],
    ),
    "lokr at the top": (
        "use_lokr = true\nlokr_factor = 8\nrank_dropout = 0.1",
        [
            ("use_lokr = true", 'network_module = "networks.lokr_anima"'),
            ("lokr_factor = 8", 'network_args = ["lokr_factor=8", "rank_dropout=0.1"]'),
            ("rank_dropout = 0.1", ""),
        ],
    ),
    "flat lycoris": (
        'algo = "lokr"\nfactor = 4\npreset = "full"\nfull_matrix = true\nconv_dim = 8',
        [
            ('algo = "lokr"', 'network_module = "networks.lokr_anima"'),
            (
                "factor = 4",
                ('network_args = ["lokr_factor=4", "train_norm=false", "train_llm_adapter=false", '
                '"lokr_full_matrix=true"]'),
            ),
            ('preset = "full"', ""),
            ("full_matrix = true", ""),
            ("conv_dim = 8", ""),
        ],
    ),
    "lycoris module": (
        'network_module = "lycoris.kohya"\nnetwork_args = ["algo=lokr", "factor=8", "dora_wd=True"]',
        [
            ('network_module = "lycoris.kohya"', 'network_module = "networks.lokr_anima"'),
            (
                'network_args = ["algo=lokr", "factor=8", "dora_wd=True"]',
                (
                    'network_args = ["lokr_factor=8", "train_norm=false", "train_llm_adapter=false", '
                    '"dora_wd=True"]'
                ),
            ),
        ],
    ),
    "optimizer at the top": (
        'optimizer_type = "AdamW"\nweight_decay = 0.1\nbetas = [0.9, 0.99]',
        [
            ("weight_decay = 0.1", 'optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]'),
            ("betas = [0.9, 0.99]", ""),
        ],
    ),
    "adapter and optimizer at the top": (
        "loraplus_lr_ratio = 16\nweight_decay = 0",
        [
            ("loraplus_lr_ratio = 16", 'network_args = ["loraplus_lr_ratio=16"]'),
            ("weight_decay = 0", 'optimizer_args = ["weight_decay=0"]'),
        ],
    ),
    "one text of arguments": (
        'optimizer_args = "weight_decay=0.1 eps=1e-8"',
        [
            (
                'optimizer_args = "weight_decay=0.1 eps=1e-8"',
                'optimizer_args = ["weight_decay=0.1", "eps=1e-8"]',
            )
        ],
    ),
    "arguments as a table": (
        "[network_args]\nrank_dropout = 0.1\ntrain_norm = false",
        [
            ("[network_args]", 'network_args = ["rank_dropout=0.1", "train_norm=False"]'),
            ("\nrank_dropout = 0.1", ""),
            ("\ntrain_norm = false", ""),
        ],
    ),
    "names of a standalone trainer": (
        'log_dir = "logs"\nepochs = 2\ncaching_batch_size = 1',
        [("log_dir", "logging_dir"), ("epochs", "max_train_epochs"),
         ("caching_batch_size", "vae_batch_size")],
    ),
    "precisions in other words": (
        'save_precision = "float16"\nmixed_precision = "fp32"',
        [('"float16"', "fp16"), ('"fp32"', "no")],
    ),
    "a bare class": ('optimizer_type = "SGDNestrov"', [("SGDNestrov", "SGDNesterov")]),
    "official module": (
        'network_module = "networks.lokr"\nnetwork_args = ["factor=8"]',
        [("networks.lokr", "networks.lokr_anima")],
    ),
    "a path with eaten backslashes": (
        'logging_dir = "D:\\new\\train"',
        [('"D:\\new\\train"', "'single quotes'")],
    ),
    "mistakes of every stage": (
        'leanring_rate = 1e-4\nnetwork_args = ["lokr_facto=8"]\nnetwork_module = "networks.lokr_anima"',
        [("leanring_rate", "learning_rate"), ("lokr_facto", "lokr_factor")],
    ),
}  # fmt: skip

FOREIGN: dict[str, tuple[str, str, str]] = {
    "LoRA_Easy_Training_Scripts": (
        "a.toml",
        "[[subsets]]\nimage_dir = 'x'\n[general_args.args]\nseed = 4\n[network_args.args]\nnetwork_dim = 8",
        "seed = 4\nnetwork_dim = 8",
    ),
    "diffusion-pipe": (
        "a.toml",
        "epochs = 2\n[model]\ntype = 'anima'\nllm_path = 'q'\n[adapter]\nrank = 4\n[optimizer]\nlr = 2e-5",
        "max_train_epochs = 2\nnetwork_dim = 4\nnetwork_alpha = 4\nlearning_rate = 2e-5",
    ),
    "kohya_ss GUI": (
        "a.json",
        json.dumps({"LoRA_type": "Anima", "epoch": 2, "optimizer": "AdamW", "anima_qwen3": "q"}),
        "max_train_epochs = 2\noptimizer_type = 'AdamW'\nnetwork_module = 'networks.lora_anima'",
    ),
    "OneTrainer": (
        "a.json",
        json.dumps({"training_method": "LORA", "lora_rank": 16, "lora_alpha": 1.0, "epochs": 2}),
        "network_dim = 16\nnetwork_alpha = 1.0\nmax_train_epochs = 2",
    ),
    "ai-toolkit": (
        "a.yaml",
        "job: extension\nconfig:\n  name: x\n  process:\n    - type: sd_trainer\n      train:\n        steps: 9",
        "max_train_steps = 9",
    ),
    "anima_lora": (
        "a.toml",
        "source_image_dir = 'x'\ntarget_res = [512]\nuse_lokr = true\nlokr_factor = 8\nnetwork_dim = 4",
        "network_dim = 4\nnetwork_module = 'networks.lokr_anima'\nnetwork_args = ['lokr_factor=8']",
    ),
}


@pytest.fixture(scope="module")
def start(demo, tmp_path_factory):
    """A function that takes a file's name and text through load_run, or through the check."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "pictures").symlink_to(demo / "pictures")
    dataset = write_dataset(folder)
    words = ["--output_dir", str(folder / "out"), "--dataset_config", str(dataset)]
    words += [word for name, path in model_paths(demo).items() for word in (f"--{name}", path)]

    def run(text: str, name: str = "train.toml", checked: bool = True):
        text = "\n".join(
            line.strip() if name == "train.toml" else line for line in text.splitlines()
        )
        (folder / name).write_text(text, encoding="utf-8")
        argv = ["--config_file", str(folder / name), *words]
        if not checked:
            return load_run(argv)
        trainer = make_trainer(argv)
        trainer.prepare_process()
        trainer.check()
        return trainer

    return run


@pytest.mark.parametrize("name", STARTS)
def test_it_starts_as_it_was_published(start, name):
    start(STARTS[name])


@pytest.mark.parametrize("name", REFUSED)
def test_it_says_in_one_go_what_to_write_and_then_starts(start, name):
    text, changes = REFUSED[name]
    with pytest.raises(UserError) as caught:
        start(text, checked=False)
    if "decides the" in str(caught.value):
        assert "Or import the file: python " in str(caught.value)
    for old, new in changes:
        assert new in str(caught.value), f"{old} -> {new}"
        text = text.replace(old, new, 1) if "single quotes" not in new else text.replace('"', "'")
    quoted = text.replace("= fp16", '= "fp16"').replace("= no", '= "no"')
    start(quoted)


@pytest.mark.parametrize("program", FOREIGN)
def test_a_file_of_another_trainer_is_told_in_one_sentence(start, program):
    name, text, by_hand = FOREIGN[program]
    with pytest.raises(UserError) as caught:
        start(text, name, checked=False)
    (problem,) = caught.value.problems
    assert f"is a file of {program}, which is not read here. Import it: python " in problem.message
    assert problem.message.endswith(f"tools/import_config.py {problem.source}")
    start(by_hand)


DATASETS = {
    "diffusion-pipe": ("d.toml", "resolutions = [512]\n[[directory]]\npath = 'x'\nnum_repeats = 1"),
    "OneTrainer": ("d.json", json.dumps([{"path": "x", "image": {}, "text": {}}])),
    "ai-toolkit": ("d.yml", "job: extension\nconfig:\n  process:\n    - type: x"),
    "LoRA_Easy_Training_Scripts": ("d.toml", "[[subsets]]\nimage_dir='x'\n[a_args.args]\nb = 1"),
    "anima_lora": ("d.toml", "[general]\nsource_image_dir = 'x'"),
}


@pytest.mark.parametrize("program", DATASETS)
def test_a_dataset_file_of_another_trainer_is_told_in_one_sentence(tmp_path, program):
    from library.anima_runtime.foreign_files import foreign_message
    from library.config_util import load_dataset_config

    name, text = DATASETS[program]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_dataset_config(tmp_path / name, {}, foreign_message=foreign_message)
    (problem,) = caught.value.problems
    assert f"is a file of {program}" in problem.message
