"""Fixtures shared by the suite: the demo, made once, with what its pictures and captions are encoded to.

torch and what needs it are imported where they are used: pytest's own process, which starts the workers,
needs none of them.
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers import surroundings

surroundings.as_usual()  # before a library reads its environment
gc.set_threshold(20_000)  # garbage is looked for 28 times as seldom: a twentieth of the suite's time

import pytest
from filelock import FileLock

from library.errors import as_utf8
from tests.helpers import warm, workers
from tests.helpers.pictures import SIX, cached, give_pictures

if TYPE_CHECKING:
    import torch

LONG = ("runs", "saving", "tools")
LONGEST = ("test_verify_resume.py", "test_stopping.py", "test_compiled.py", "test_doctor.py")


def pytest_collection_modifyitems(items):
    """Long tests begin, in every worker, so that at the end none waits for another's long one.

    xdist gives each worker a part of the list, in its order. A test marked gpu is skipped where there
    is no CUDA device, and where it was not asked for by -m gpu.
    """
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path.parent.name not in LONG))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    files = dict.fromkeys(item.path for item in items)
    hands = {path: number % workers for number, path in enumerate(files)}
    items.sort(key=lambda item: hands[item.path])
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and -m gpu"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config, specs):
    """Workers that need not import and collect, where a process can be forked."""
    if warm.can_fork():
        place = Path(tempfile.gettempdir()) / f"workers-{os.getpid()}.socket"
        workers.fork_for(specs, place, config.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What a test printed or logged travels between processes, which takes UTF-8 alone."""
    report = yield
    report.sections = [(title, as_utf8(text)) for title, text in report.sections]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """What comes after a test finds logging and the precision of products as they were.

    A program's main() sets the root logger up; --cuda_allow_tf32 sets what a CPU's products obey too.
    """
    import torch

    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    precision = torch.get_float32_matmul_precision()
    result = yield
    torch.set_float32_matmul_precision(precision)
    if root.level != level:  # setting it, every logger forgets what it knows
        root.setLevel(level)
    root.handlers[:] = handlers
    return result


@pytest.fixture
def compiler_left_alone():
    """torch's compiler: its settings afterwards as before, and nothing that was compiled."""
    import torch

    names = {
        torch._dynamo.config: ("recompile_limit", "suppress_errors", "optimize_ddp"),
        torch._functorch.config: ("activation_memory_budget",),
        torch._inductor.config: ("fallback_random",),
        torch.fx.experimental._config: ("use_duck_shape",),
    }
    with ExitStack() as stack:
        for config, settings in names.items():
            known = config.get_config_copy()
            stack.enter_context(config.patch({name: known[name] for name in settings}))
        yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True, scope="module")
def what_is_imported_is_not_searched_for_garbage():
    """A run collects garbage twice: among a million objects of imported modules, a quarter of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The demo's models and pictures, as tools/make_demo.py makes them."""
    folder = shared_folder(tmp_path_factory) / "demo"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            made = folder.with_name("demo being made")
            done = warm.run(["-m", "tools.make_demo", "--output", str(made)])
            assert done.returncode == 0, done.stderr
            made.rename(folder)
            fill_caches(folder)
    return folder


def fill_caches(demo: Path) -> None:
    """Encode the demo's pictures and captions once, as most tests' runs need them."""
    from tests.helpers.running import CACHED, config_files

    folder = cached(demo)
    folder.mkdir()
    give_pictures(demo, folder, range(1, 13))
    argv = config_files(demo, folder, CACHED)
    for tool in ("cache_latents", "cache_text_encoder_outputs"):
        done = warm.run(["-m", f"tools.{tool}", *argv])
        assert done.returncode == 0, done.stderr


def shared_folder(tmp_path_factory) -> Path:
    """A folder that all workers of this session have, and no other session."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture
def run_folder(demo, tmp_path, request) -> Path:
    """A folder with six of the demo's pictures, or all twelve for a test marked all_pictures.

    Encoding twelve takes as long as training on them.
    """
    numbers = range(1, 13) if request.node.get_closest_marker("all_pictures") else SIX
    give_pictures(demo, tmp_path, numbers)
    return tmp_path


@pytest.fixture(scope="session")
def base(demo) -> dict[str, torch.Tensor]:
    """The demo DiT's own weights by name; not to be changed in place."""
    import torch

    from library.anima_models import load_anima_transformer

    path = demo / "models" / "anima_dit.safetensors"
    return load_anima_transformer(path, dtype=torch.float32).state_dict()
