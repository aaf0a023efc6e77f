"""Several machines: two launchers on this one, each with a folder of its own for its machine's disk.

What the launchers start is forked, where that is possible, and is a process of its own all the same.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import torch
from torch.distributed.run import parse_args

from library.saving.state_folder import open_state
from library.training.processes import ProcessLost, Pulse
from tests.helpers import documented, warm
from tests.helpers.documented import LAUNCH
from tests.helpers.paths import ROOT
from tests.helpers.pictures import SIX, give_pictures
from tests.helpers.processes import free_port, plain_environment, processes_in, read_until
from tests.helpers.running import config_files
from tests.helpers.workers import forking_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and gloo as on Linux")
TORCHRUN = (
    "torchrun --nnodes 2 --nproc_per_node 1 --node_rank 0 --master_addr 192.168.1.10 "
    f"--master_port 29500 {LAUNCH}"
)
ACCELERATE = (
    "accelerate launch --multi_gpu --num_machines 2 --num_processes 2 --machine_rank 0 "
    f"--main_process_ip 192.168.1.10 --main_process_port 29500 {LAUNCH}"
)
SETTINGS = {
    "output_dir": "out", "max_train_steps": 3000, "save_state": True, "save_every_n_steps": 2,
    "cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True, "no_metadata": True,
    "log_with": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def machines(demo, tmp_path_factory):
    """The folders of two machines, with the same files at the same places."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for folder in folders:
        give_pictures(demo, folder, SIX)
        config_files(demo, folder, SETTINGS, image_dir="pictures")
    return folders


def start(command, folders, *more):
    """A documented command on each machine: at this one's address, with the machine's own number."""
    environment, python = plain_environment(CUDA_VISIBLE_DEVICES=""), forking_program(folders[0])
    here = command.replace("192.168.1.10", "127.0.0.1").replace("29500", free_port())
    commands = [f"{here.replace('_rank 0', f'_rank {n}')} {' '.join(more)}" for n in range(2)]
    return [
        documented.start(each, folder, env=environment, python=python)
        for each, folder in zip(commands, folders, strict=True)
    ]


def steps_of(folder):
    return sorted(int(re.findall(r"\d+", path.name)[0]) for path in (folder / "out").glob("run-step*-state"))


def cached(folder):
    return {path.name: path.read_bytes() for path in (folder / "pictures/_cache").glob("*.safetensors")}


@documented.runs(TORCHRUN)
def test_two_machines_fill_their_caches_write_once_and_stop_together(machines, command):
    first, second = start(command, machines)
    read_until(first, "run-step00000002-state")
    for process in processes_in(machines[1]) - {second.pid}:
        os.kill(process, signal.SIGTERM)  # the trainer's: a launcher that is told waits for no other
    said = first.stderr.read()
    assert [first.wait(60), second.wait(60)] == [0, 0], said + second.stderr.read()
    (step,) = steps_of(machines[0])[-1:]
    assert f"stopped at step {step} of 3000" in said
    assert not (machines[1] / "out").exists()
    assert cached(machines[0]) == cached(machines[1]) and len(cached(machines[0])) > 6
    assert open_state(machines[0] / f"out/run-step{step:08}-state", "anima_resume_snapshot/v2").rank(1)


@documented.runs(ACCELERATE)
def test_two_machines_go_on_and_one_that_is_lost_ends_the_other_with_a_message(machines, command):
    before = steps_of(machines[0])[-1]
    state = f"out/run-step{before:08}-state"
    shutil.copytree(machines[0] / state, machines[1] / state)
    first, _ = start(command, machines, "--resume", state)
    try:
        # from the third step on: in the second DDP agrees on its buckets, and Gloo may wait there for ever for
        # one that is lost at that moment
        said = read_until(first, f"run-step{before // 2 * 2 + 4:08}-state")
        assert f"at step {before}" in said
        for process in processes_in(machines[1]):
            os.kill(process, signal.SIGKILL)
        told = first.stderr.read()
        assert first.wait(60) != 0
    finally:
        for process in processes_in(machines[0]):
            os.kill(process, signal.SIGKILL)
    last = steps_of(machines[0])[-1]
    assert "ProcessLost: another process of the run is gone" in told
    assert f"--resume out/run-step{last:08}-state" in told and last > before


SHARES = """
import sys
from pathlib import Path
from types import SimpleNamespace
from accelerate import Accelerator
from library import train_util
from library.training import processes
accelerator = Accelerator(cpu=True)
processes.begin(accelerator, None)
folder = Path(sys.argv[1 + accelerator.process_index])
pictures = SimpleNamespace(images=[SimpleNamespace(path=folder / "a.png")])
share = train_util.share_of_caching(accelerator, True, pictures)
share.wait()
print(share.rank, share.world_size, file=sys.stderr)
"""


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_folder_that_all_machines_see_is_filled_by_all_of_them_together(tmp_path, is_shared):
    program = tmp_path / "program.py"
    program.write_text(SHARES, encoding="utf-8")
    folders = [tmp_path / "first", tmp_path / ("first" if is_shared else "second")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    port = free_port()
    alike = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": port}
    alike |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    started = [
        warm.start([str(program), *map(str, folders)], stderr=subprocess.PIPE,
                   env=plain_environment(**alike, RANK=str(rank)))
        for rank in range(2)
    ]  # fmt: skip
    said = [each.stderr.read().split() for each in started]
    assert [each.wait() for each in started] == [0, 0], said
    assert said == ([["0", "2"], ["1", "2"]] if is_shared else [["0", "1"], ["0", "1"]])
    assert not any(path.is_file() for folder in folders for path in folder.rglob("*"))


@pytest.fixture
def store():
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def first_of_two(store, silence):
    return Pulse(store, 0, 2, timedelta(seconds=silence), beat=0.1)


def test_one_that_gives_signs_is_waited_for_longer_than_one_may_be_silent(store):
    first = first_of_two(store, silence=2)

    def busy():
        for _ in range(30):
            store.add("alive 1", 1)
            time.sleep(0.1)
        store.add("here 1", 1)

    other = threading.Thread(target=busy)
    other.start()
    first.wait_for_all()
    assert not other.is_alive() or store.add("alive 1", 0) == 30
    other.join()
    first.end()


def test_one_that_is_silent_or_has_ended_is_not_waited_for(store):
    first, second = first_of_two(store, silence=1), Pulse(store, 1, 2, timedelta(hours=1), beat=0.1)
    second.end()
    with pytest.raises(ProcessLost, match=r"process 1 \(of 2, counted from 0\) has ended"):
        first.wait_for_all()
    first.end()
    first = first_of_two(torch.distributed.PrefixStore("other", store), silence=1)
    with pytest.raises(ProcessLost, match="has given no sign of life for 1 s"):
        first.wait_for_all()
    first.end()


def test_a_first_process_that_is_gone_is_not_waited_for():
    code = "import torch, time; s = torch.distributed.TCPStore('127.0.0.1', 0, is_master=True, " \
        "wait_for_workers=False); print(s.port, flush=True); time.sleep(60)"  # fmt: skip
    keeper = warm.start(["-c", code], stdout=subprocess.PIPE)
    store = torch.distributed.TCPStore("127.0.0.1", int(keeper.stdout.readline()))
    second = Pulse(store, 1, 2, timedelta(seconds=5), beat=0.1)
    keeper.kill()
    with pytest.raises(ProcessLost, match="the first process of the run"):
        second.wait_for_all()
    second.end()


def test_the_script_for_slurm_starts_what_torchrun_knows(tmp_path):
    text = (ROOT / "docs/several_machines.md").read_text("utf-8")
    chinese, english = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert chinese == english
    (tmp_path / "job.sh").write_text(
        f"srun() {{ printf '%s\\n' \"$@\"; }}\nscontrol() {{ echo a; echo b; }}\n{english}"
    )
    environment = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b"}
    done = subprocess.run(
        ["bash", "job.sh"], cwd=tmp_path, env={**os.environ, **environment}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    program, *words = done.stdout.split()
    found = parse_args(words)
    assert program == "torchrun" and found.training_script_args == documented.PAIR.split()
    assert (found.nnodes, found.rdzv_id, found.rdzv_endpoint) == ("2", "7", "a:29500")
