"""What each stage before the first step sets: as docs/architecture.md has it, once, and nothing else."""

from functools import partialmethod

from anima_train_network import AnimaNetworkTrainer
from library.trainer_stages import TrainerStages
from tests.helpers import pages
from tests.helpers.pages import quoted
from tests.helpers.running import config_files, make_trainer

GIVEN = "cfg datasets contents reporter times anima model_files"
FAMILYS = {
    "prepare_data": {"hashes"},
    "check_attention": {"fused", "padding"},
    "prepare_strategies": {"tokenizer_folders"},
}
"""Beside the table."""
SETS = {
    stage: {*quoted(sets), *FAMILYS.get(stage, ())}
    for stage, (_, sets, _) in pages.stages().items()
    if stage not in ("run_epochs", "finish")  # these are not of prepare(), and establish nothing
}


class Recording(AnimaNetworkTrainer):
    """Notes after each stage which attributes are new, and which were put to another object."""

    def record(self, name):
        before = dict(vars(self))
        getattr(super(), name)()
        after = dict(vars(self))
        self.found[name] = after.keys() - before.keys()
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
    assert trainer.found == SETS
    assert list(trainer.found) == list(SETS)
    assert not trainer.replaced
    trainer.progress.close()


def test_every_attribute_of_a_stage_is_declared():
    wanted = set().union(*SETS.values())
    assert wanted <= declared(AnimaNetworkTrainer)
    assert declared(TrainerStages) - wanted <= {*GIVEN.split(), "pixels_per_token", "family_files"}
