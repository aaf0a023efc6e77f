"""What each stage before the first step sets: as declared, once, and nothing else."""

from functools import partialmethod

from anima_train_network import AnimaNetworkTrainer
from library.trainer_stages import TrainerStages
from tests.helpers.running import config_files, make_trainer

GIVEN = "cfg datasets contents anima model_files"
SETS = {  # in the order of a run; the table of stages in words is made of this
    "prepare_process": "accelerator noising weight_dtype",
    "open_state": "resumption seed",
    "check": "network_module model_facts outline",
    "prepare_data": "catalogue sampler state plan checkpoints validation hashes",
    "check_optimization": "",
    "check_resume": "",
    "prepare_strategies": "tokenizer_folders tokenize_strategy latents_strategy text_strategy",
    "cache_inputs": "texts dataset",  # prepare_strategies is its first part
    "load_models": "base",
    "prepare_model": "",
    "attach_network": "network",
    "prepare_optimization": "optimization model",
    "start_logs": "monitor metadata trackers progress",
    "take_over": "files stops",
}


class Recording(AnimaNetworkTrainer):
    """Notes after each stage which attributes are new, and which were put to another object."""

    def record(self, name):
        before, within = dict(vars(self)), {n for names in self.found.values() for n in names}
        getattr(super(), name)()
        after = dict(vars(self))
        claimed = {n for names in self.found.values() for n in names} - within
        self.found[name] = after.keys() - before.keys() - claimed
        self.replaced |= {n for n in before if after[n] is not before[n]}


for stage in SETS:
    setattr(Recording, stage, partialmethod(Recording.record, stage))


def declared(kind):
    own = [vars(each).get("__annotations__", {}) for each in kind.__mro__ if each is not object]
    return {name for annotations in own for name in annotations if not name.startswith("_")}


def test_each_stage_sets_what_is_declared_for_it_once(demo, run_folder):
    made = make_trainer(config_files(demo, run_folder, {}))
    trainer = Recording(made.cfg, made.datasets, made.anima)
    trainer.found, trainer.replaced = {}, set()
    assert vars(trainer).keys() == {*GIVEN.split(), "found", "replaced"}
    trainer.prepare()
    assert trainer.found == {name: set(sets.split()) for name, sets in SETS.items()}
    assert list(trainer.found) == list(SETS)
    assert not trainer.replaced
    trainer.progress.close()


def test_every_attribute_of_a_stage_is_declared():
    wanted = {name for sets in SETS.values() for name in sets.split()}
    assert wanted <= declared(AnimaNetworkTrainer)
    assert declared(TrainerStages) - wanted <= set(GIVEN.split())
