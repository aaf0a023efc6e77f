"""The moving average of the weights: its formula, its file, and that it goes on to the bit."""

import pytest
import torch
from safetensors import safe_open

from library.training.weight_average import WeightAverage
from tests.helpers.reads import CountReads
from tests.helpers.running import config_files, exported, make_trainer


def moved(parameters, step):
    """Another value for every parameter at every step, by itself."""
    for number, parameter in enumerate(parameters):
        generator = torch.Generator().manual_seed(100 * step + number)
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))


def parameters_of(dtype):
    return [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((3, 4), (5,))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_average_with_the_decay_that_grows(dtype):
    parameters = parameters_of(dtype)
    average = WeightAverage(parameters, 0.7, start_step=3)
    expected, updates = None, 0
    for step in range(1, 31):
        moved(parameters, step)
        average.update(step)
        if step < 3:
            assert not average.tensors
            continue
        now = [parameter.detach().double() for parameter in parameters]
        stays = min(0.7, (1 + updates) / (10 + updates)) if expected else 0.0
        expected = [stays * e + (1 - stays) * n for e, n in zip(expected or now, now)]
        updates += 1
    for tensor, right in zip(average.tensors, expected, strict=True):
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), right, rtol=1e-5, atol=1e-6)


def test_an_update_reads_nothing_and_what_is_put_in_place_goes_again():
    parameters = parameters_of(torch.bfloat16)
    average = WeightAverage(parameters, 0.9, start_step=0)
    with CountReads() as counter:
        for step in range(1, 4):
            moved(parameters, step)
            average.update(step)
    assert counter.reads == 0
    addresses = [parameter.data_ptr() for parameter in parameters]
    before = [parameter.detach().clone() for parameter in parameters]
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert all(map(torch.equal, parameters, average.tensors))
        1 / 0  # noqa: B018
    assert [parameter.data_ptr() for parameter in parameters] == addresses
    assert all(map(torch.equal, parameters, before))


STEPS, START = 5, 2
RUN = {
    "ema_decay": 0.6, "ema_start_step": START, "max_train_steps": STEPS, "save_every_n_steps": 1,
    "save_state": True, "no_metadata": True, "network_dropout": 0.2,
}  # fmt: skip


def step_name(step):
    return f"run-step{step:08d}"


@pytest.fixture(scope="module")
def done(demo, tmp_path_factory):
    """The folder of a run with an average, and its command line."""
    folder = tmp_path_factory.mktemp("average")
    (folder / "pictures").symlink_to(demo / "pictures")
    argv = config_files(demo, folder, RUN)
    make_trainer(argv).train()
    return folder, argv


def test_a_run_saves_the_average_of_its_weights(done):
    folder, _ = done
    assert not (folder / "out" / f"{step_name(1)}-ema.safetensors").exists()
    expected = exported(folder, step_name(START))
    for step in range(START, STEPS + 1):
        now = exported(folder, step_name(step))
        if step > START:
            update = step - START
            weight = 1 - min(0.6, (1 + update) / (10 + update))
            expected = {
                name: torch.lerp(value, now[name], weight) for name, value in expected.items()
            }
        found = exported(folder, f"{step_name(step)}-ema")
        assert found.keys() == now.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(found[name], now[name]) for name in now)
    last = exported(folder, "run-ema")
    assert all(torch.equal(last[name], value) for name, value in found.items())


def test_a_resumed_run_goes_on_with_it_and_training_does_not_see_it(done):
    folder, argv = done
    out = folder / "out"
    names = "run.safetensors", "run-ema.safetensors"
    expected = {name: (out / name).read_bytes() for name in names}
    state = out / f"{step_name(3)}-state"
    make_trainer([*argv, "--resume", str(state)]).train()
    assert {name: (out / name).read_bytes() for name in expected} == expected
    plain = folder / "plain"
    make_trainer([*argv, "--ema_decay", "0", "--output_dir", str(plain)]).train()
    assert (plain / "run.safetensors").read_bytes() == expected["run.safetensors"]
    assert not list(plain.glob("*-ema*"))


def test_a_file_says_that_it_is_averaged_and_goes_with_its_own(demo, run_folder):
    settings = {"save_every_n_steps": 1, "save_last_n_steps": 0, "max_train_steps": 3}
    make_trainer(config_files(demo, run_folder, {**settings, "ema_decay": 0.5})).train()
    names = {path.name for path in (run_folder / "out").glob("*.safetensors")}
    kept = ("run-ema", "run", f"{step_name(3)}-ema", step_name(3))
    assert names == {f"{name}.safetensors" for name in kept}
    with safe_open(run_folder / "out" / "run-ema.safetensors", "pt") as file:
        metadata = file.metadata()
    said = [metadata[f"ss_{name}"] for name in ("ema_decay", "ema_updates", "steps")]
    assert said == ["0.5", "2", "3"]
