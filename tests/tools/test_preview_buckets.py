"""tools/preview_buckets.py: the table, and that the sheet shows what the trainer sees."""


import numpy as np
import pytest
import torch
from PIL import Image

from library.errors import UserError
from library.reporting.page import blocks_of
from tests.helpers import warm
from tests.helpers.dataset_files import folder_of
from tests.helpers.paths import ROOT
from tests.helpers.processes import python
from tools import _contact_sheet as contact_sheet
from tools.preview_buckets import preview

SETTINGS = "resolution = 64\nbatch_size = 2\nenable_bucket = true\nbucket_reso_steps = 16\n"


@pytest.fixture
def dataset(tmp_path):
    """Seven pictures, one of a shape of its own."""
    folder = folder_of(tmp_path / "pictures", [(64, 64)] * 5 + [(128, 48), (40, 90)])
    path = tmp_path / "dataset.toml"
    path.write_text(
        f"[[datasets]]\n{SETTINGS}min_bucket_reso = 32\nmax_bucket_reso = 128\n"
        f"[[datasets.subsets]]\nimage_dir = '{folder}'\nflip_aug = true\nshuffle_caption = true\n"
    )
    return path


def run(dataset, *more):
    return preview(["--dataset_config", str(dataset), *more])


def test_the_table_and_its_warnings(dataset, tmp_path, capsys):
    run(dataset, "--output", str(tmp_path / "sheet.png"), "--seed", "3")
    shown = capsys.readouterr().out
    row = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["64x64"])
    assert row == ["64x64", "5", "5", "3", "1", "0.0%", "0.0%", "1.00-1.00"]
    assert "has one picture, 5.png" in shown and "has one picture, 6.png" in shown
    assert "to mend: tags that only one picture has (7): 0.txt" in shown and "tag0" not in shown
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    (data,) = (data for name, data in blocks_of(page) if name == "findings")
    assert data["looked_at"] == 7 and len(data["pictures"]) == 7
    (once,) = data["findings"]
    assert once["places"][0] == {"files": ["0.txt"], "words": "tag0", "pictures": [0]}
    assert "6.png (40 x 90) loses" in shown and "7 of 7 samples, 5 of 5 batches" in shown


def test_the_sheet_holds_what_the_trainer_sees(dataset, tmp_path):
    """The first cell is the first sample of the epoch, with its crop and its flip."""
    from library.config_util import load_dataset_config
    from library.data.bucket_sampler import BucketBatchSampler
    from library.data.datasets import TrainDataset
    from library.data.scan import scan

    file, _ = run(dataset, "--output", str(tmp_path / "sheet.png"), "--seed", "3", "--epoch", "2")
    catalogue = scan(load_dataset_config(dataset, {}))
    request = BucketBatchSampler(catalogue, seed=3).batches(1)[0][0]
    pixels, mask = TrainDataset(catalogue, seed=3).picture_of(request)
    expected = np.asarray(contact_sheet.thumbnail(pixels, mask))
    height, width = expected.shape[:2]
    left = contact_sheet.GAP // 2 + (contact_sheet.CELL - width) // 2
    top = contact_sheet.GAP // 2
    cell = np.asarray(Image.open(file))[top : top + height, left : left + width]
    assert np.array_equal(cell, expected)


def test_what_a_mask_leaves_out_is_red():
    pixels = torch.zeros(3, 32, 64)
    mask = torch.ones(32, 64)
    mask[:, 32:] = 0
    seen = np.asarray(contact_sheet.thumbnail(pixels, mask))
    assert tuple(seen[5, 5]) == (128, 128, 128)
    red, green, blue = seen[5, 60].tolist()
    assert red > 200 and green == blue < 60


def test_many_samples_take_several_pages(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "ROWS", 1)
    files = run(dataset, "--output", str(tmp_path / "sheet.png"))
    assert [file.name for file in files] == ["sheet.png", "sheet_2.png", "sheet.html"]
    only = run(dataset, "--output", str(tmp_path / "few.png"), "--max_samples", "2")
    assert Image.open(only[0]).width == 2 * (contact_sheet.CELL + contact_sheet.GAP)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--epoch", "0"], "start at 1"),
        (["--epoch", "99", "--max_train_epochs", "2"], "the run has 2"),
        (["--output", "sheet.gif"], "expected a name ending"),
        (["--output", "/dev/null/sheet.png"], "sheet.png: cannot be written"),
        (["--shufle_caption"], "shuffle_caption"),
    ],
)
def test_what_cannot_be_shown_is_told(dataset, more, message):
    with pytest.raises(UserError, match=message):
        run(dataset, *more)


def test_as_a_process_from_anywhere(dataset, tmp_path):
    done = python(ROOT / "tools/preview_buckets.py", "--dataset_config", dataset, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "preview.png").is_file(), done.stderr
    done = warm.run(["-m", "tools.preview_buckets"], cwd=tmp_path)
    assert done.returncode == 2 and "dataset_config" in done.stderr
    assert "Traceback" not in done.stderr
