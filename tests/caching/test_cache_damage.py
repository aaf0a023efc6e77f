"""A cache file is whole and right, or it is made anew: damage, kill -9, several processes at once."""

import io
import os
import random
import subprocess

import pytest
import torch

from library.caching.cache_files import read_whole
from library.caching.latents_cache import Storing, cache_latents
from library.system.leftovers import OLD_AFTER
from tests.helpers import warm
from tests.helpers.caching_process import captions_of, check, fill
from tests.helpers.dataset_files import (
    LetterEncoder,
    ShrinkingEncoder,
    cache_text,
    catalogue_of,
    folder_of,
    stored_files,
)

ITEMS = 5 * 2 + 5  # latents with their mirrored ones, and texts


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "set", [(64, 64)] * 4 + [(128, 32)])


def flips_of(content):
    """Copies of a file with one bit changed, all over it."""
    rng = random.Random(0)
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def test_no_changed_bit_reaches_the_training_and_the_file_is_mended(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)])
    catalogue = catalogue_of(folder)
    expected = cache_latents(catalogue, ShrinkingEncoder(), Storing(to_disk=False, batch_size=1)).get(
        "0.0/0.png"
    )[0]
    cache_latents(catalogue, ShrinkingEncoder(), Storing(to_disk=True, batch_size=1))
    ((name, whole),) = stored_files(folder).items()
    for changed in flips_of(whole):
        (folder / "_cache" / name).write_bytes(changed)
        cache = cache_latents(catalogue, ShrinkingEncoder(), Storing(to_disk=True, batch_size=1))
        assert torch.equal(cache.get("0.0/0.png")[0], expected)
        again = cache_latents(catalogue, ShrinkingEncoder(), Storing(to_disk=True, batch_size=1))
        assert torch.equal(again.get("0.0/0.png")[0], expected)
        assert stored_files(folder) == {name: whole}


def test_no_changed_bit_of_a_text_reaches_the_training(tmp_path):
    expected = LetterEncoder().encode("abc, d")
    captions = {"abc, d": tmp_path}
    cache_text(captions, LetterEncoder(), to_disk=True)
    ((name, whole),) = stored_files(tmp_path).items()
    for changed in flips_of(whole):
        (tmp_path / "_cache" / name).write_bytes(changed)
        outputs = cache_text(captions, LetterEncoder(), to_disk=True).get("abc, d")
        assert outputs.keys() == expected.keys()
        assert all(torch.equal(outputs[key], value) for key, value in expected.items())
        assert stored_files(tmp_path) == {name: whole}


class Trickling(io.BytesIO):
    """Gives a few bytes at a time, as a network drive may."""

    def readinto(self, buffer):
        return super().readinto(buffer[:3])


def test_a_file_that_is_read_in_pieces_is_read_whole():
    content = bytes(range(100))
    assert read_whole(Trickling(content), 100) == content
    assert read_whole(Trickling(content[:70]), 100) == content[:70]  # cut while it was read


def test_damage_is_told_with_the_files_name(folder, caplog):
    latents, _, _ = fill(folder, 1)
    path = folder / "_cache" / "1.png_0064x0064.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    latents.get("0.0/1.png")
    assert f"{path}: the content is damaged. It is made anew." in caplog.messages


def test_a_text_lost_during_the_run_is_made_anew(folder):
    _, texts, _ = fill(folder, 1)
    before = stored_files(folder)
    for path in (folder / "_cache").iterdir():
        path.unlink()
    (folder / "_cache").rmdir()
    for caption in captions_of(catalogue_of(folder)):
        texts.get(caption)
    texts_before = {name: content for name, content in before.items() if name.startswith("text_")}
    assert stored_files(folder) == texts_before


def test_a_file_that_another_run_has_taken_over_is_left_to_it(folder):
    latents, texts, _ = fill(folder, 1)
    others_latents, others_texts, encoded = fill(folder, 2)
    assert encoded == ITEMS
    files = stored_files(folder)
    check(folder, latents, texts, 1)
    check(folder, others_latents, others_texts, 2)
    assert stored_files(folder) == files


def start(folder, factor=1, stop=0):
    command = ["-m", "tests.helpers.caching_process", str(folder), str(factor), str(stop)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return warm.start(command, **pipes)


def let_go(*processes):
    """When all are ready, all go."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def copy_of(folder, target):
    """The same pictures, size and time too."""
    target.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
            stat = path.stat()
            os.utime(target / path.name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return target


def test_caching_that_is_killed_goes_on_to_the_same_content(folder, tmp_path):
    stops = (1, 7, ITEMS)
    places = [copy_of(folder, tmp_path / f"killed at {stop}") for stop in stops]
    processes = [start(place, stop=stop) for place, stop in zip(places, stops)]
    let_go(*processes)
    for process in processes:
        assert process.stdout.readline() == "stopped\n"
        process.kill()
        process.wait()
    fill(folder, 1)
    expected = stored_files(folder)
    for place, stop in zip(places, stops):
        (unfinished,) = [path for path in (place / "_cache").iterdir() if path.suffix == ".tmp"]
        assert 0 <= len(stored_files(place)) < ITEMS
        alone = place / "_cache" / ".tmpa1B2c3"  # as safetensors has named them
        alone.write_bytes(b"half")
        long_ago = unfinished.stat().st_mtime - 2 * OLD_AFTER
        for path in (alone, unfinished, *unfinished.iterdir()):
            os.utime(path, (long_ago, long_ago))
        latents, texts, _ = fill(place, 1)
        assert stored_files(place) == expected, stop
        check(place, latents, texts, 1)


@pytest.mark.parametrize("factors", [(1, 1), (1, 2)], ids=["the same", "other settings"])
def test_processes_that_cache_at_once_do_not_harm_each_other(folder, factors):
    processes = [start(folder, factor) for factor in factors]
    let_go(*processes)
    assert [process.wait() for process in processes] == [0, 0]
    if factors == (1, 1):
        latents, texts, encoded = fill(folder, 1)
        assert encoded == 0
        check(folder, latents, texts, 1)
