"""train_state.json as a hand, or a bad disk, would change it: refused, or right in every field."""

import copy
import json
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from library.data.data_types import RunPosition
from library.errors import ConfigError, ResumeError
from library.saving.snapshot import compare
from library.saving.state_contents import first_position
from library.saving.state_folder import open_state
from library.saving.state_manifest import MANIFEST, MOST, SEAL, SNAPSHOT, seal_of
from library.settings.flags.resume import ResumeOptions
from library.train_util import StepPlan
from library.utils import sha256_of_file
from tests.helpers.states import SCHEMA, written

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([2**70, -1, "3", "../x", "\ud800", "rank_00000.safetensors"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return written(tmp_path_factory.mktemp("states"))


def places(value, path=()):
    """Every place in a document, as the keys on the way to it."""
    for key in value if isinstance(value, dict) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def changed(document, draw):
    """The document with one to three places removed or given another value."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(places(document)) or [("new",)]))
        inside = document
        for key in way:
            inside = inside[key]
        if draw(st.booleans()):
            inside[last] = draw(JSON)
        else:
            inside.pop(last, None)
            if draw(st.booleans()):
                inside[draw(st.text(max_size=5))] = draw(JSON)
    return document


def write(path, document):
    path.write_text(json.dumps(document), encoding="utf-8")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_state_with_any_change_in_its_documents_is_refused_or_right(state, data):
    folder = state.with_name("changed-state")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(state, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if data.draw(st.booleans(), "the snapshot too"):
        snapshot = json.loads((folder / SNAPSHOT).read_text(encoding="utf-8"))
        write(folder / SNAPSHOT, changed(snapshot, data.draw))
        size = (folder / SNAPSHOT).stat().st_size
        manifest["files"][SNAPSHOT] = {"bytes": size, "sha256": sha256_of_file(folder / SNAPSHOT)}
    manifest = changed(manifest, data.draw)
    if data.draw(st.booleans(), "with a right seal"):
        manifest[SEAL] = seal_of(manifest)
    write(folder / MANIFEST, manifest)
    try:
        opened = open_state(folder, SCHEMA)
    except ResumeError:
        return
    assert all(type(n) is int and 0 <= n <= MOST for n in asdict(opened.position).values())
    assert opened.factors() and opened.training() and opened.rank(0)
    assert opened.run["num_processes"] > 0 and type(opened.run["seed"]) is int
    own = {"critical": {"num_processes": 1, "名字": "值"}, "soft": {}, "changeable": {}}
    compare(opened.snapshot, own, ResumeOptions(resume_allow=("num_processes",)), strict=False)


@pytest.mark.parametrize(
    "where, value, words",
    [
        (("position", "step"), "3", "position.step +.3.: expected a whole number from 0"),
        (("position", "batch_in_epoch"), 2, "was changed after it was written"),
        (("files",), {}, "files.adapters.safetensors +is missing"),
        (("run", "num_processes"), 0, "run.num_processes +0: expected a whole number from 1"),
    ],
)
def test_what_a_hand_changed_is_named(state, tmp_path, where, value, words):
    folder = tmp_path / "run-state"
    shutil.copytree(state, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    inside = manifest if len(where) == 1 else manifest[where[0]]
    inside[where[-1]] = value
    write(folder / MANIFEST, manifest)
    with pytest.raises(ResumeError, match=words):
        open_state(folder, SCHEMA)


def test_a_state_from_before_there_was_a_seal_is_read(state, tmp_path):
    folder = tmp_path / "run-state"
    shutil.copytree(state, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del manifest[SEAL]
    write(folder / MANIFEST, manifest)
    assert open_state(folder, SCHEMA).position.step == 7


counts = st.integers(0, 20) | st.integers(0, MOST)


@given(
    position=st.builds(
        RunPosition, step=counts, epoch=counts, batch_in_epoch=counts, samples_seen=counts
    ),
    accumulation=st.integers(1, 3),
    before=st.integers(1, 4),
    by_epochs=st.booleans(),
)
def test_from_any_position_no_more_epochs_are_run_than_steps_are_left(
    position, accumulation, before, by_epochs
):
    loop = SimpleNamespace(
        max_train_epochs=9 if by_epochs else None,
        max_train_steps=40,
        gradient_accumulation_steps=accumulation,
    )
    cfg = SimpleNamespace(loop=loop)
    plan = StepPlan.make(7, accumulation, cfg)
    saved = SimpleNamespace(run={"num_processes": before}, position=position)
    begun = first_position(ResumeOptions(), saved, plan, accumulation=accumulation, processes=1)
    assert begun.batch_in_epoch <= plan.batches_per_epoch
    try:
        left = plan.starting_at(begun, cfg)
    except ConfigError:
        return
    assert left.epochs - begun.epoch <= max(1, left.total_steps - begun.step + 1)
