"""The report that real runs leave, however they end; the page of one that is followed while it trains."""

import logging
import re
import shutil
import threading
import urllib.request
from types import SimpleNamespace

import pytest

from library.reporting.index import read_summary, write_index
from library.reporting.page import blocks_of
from library.reporting.record import FORMAT, Outline
from tests.helpers.adapter_pages import page_of
from tests.helpers.running import config_files, make_trainer, train

HOSTILE = "</script><img src=x onerror=alert(1)>"


def document_of(folder) -> dict:
    text = (folder / "out" / "run_report.html").read_text(encoding="utf-8")
    return dict(blocks_of(text))["record"]


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory):
    """(folder, what the whole run's report says, what that of one which went on from its middle says)."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copytree(demo / "pictures", folder / "pictures")
    settings = {
        "save_state": True, "save_every_n_steps": 3, "validate_every_n_steps": 4,
        "validation_split": 0.2, "log_every_n_steps": 2, "max_train_steps": 6, "training_comment": HOSTILE,
    }  # fmt: skip
    train(demo, folder, settings)
    whole = document_of(folder)
    train(demo, folder, {**settings, "resume": str(folder / "out" / "run-step00000003-state")})
    return folder, whole, document_of(folder)


def test_a_run_leaves_a_report_unless_told_not_to(runs):
    folder, whole, _ = runs
    assert (whole["status"], whole["step"], whole["outline"]["total_steps"]) == ("done", 6, 6)
    assert whole["ended"].startswith("done: 6 steps")
    assert [step for step, _ in whole["saved"]] == [3, 6, 6]
    series = whole["series"]
    assert series["loss/current"]["steps"] == [1, 2, 3, 4, 5, 6]
    assert series["loss/validation/average"]["steps"] == [4]
    assert {"lr/unet", "norm/grad", "time/step"} <= set(series)
    assert not [path for path in (folder / "out").iterdir() if path.name.startswith(".")]


def test_a_report_tells_the_configuration_as_it_acted(runs):
    options = {name: row for name, *row in runs[1]["outline"]["options"]}
    assert options["max_train_steps"] == ["6", "1600", True]
    assert options["training_comment"][0] == HOSTILE
    assert options["train_norm"][2] is False  # of the family
    assert "wandb_api_key" not in options and "adaptive_noise_scale" not in options


def test_a_report_has_times_buckets_ledger_and_strengths(runs):
    _, whole, _ = runs
    stages = dict(whole["stages"])
    assert {"check", "cache_inputs", "run_epochs", "validate", "save"} <= set(stages)
    assert all(seconds >= 0 for seconds in stages.values())
    tables = {table["name"]: table["rows"] for table in whole["tables"]}
    assert sum(row[3] for row in tables["buckets"]) == len(tables["ledger"])
    assert [each["step"] for each in whole["strengths"]] == [2, 3, 4, 6]
    assert all(len(each["norms"]) == len(whole["places"]) for each in whole["strengths"])
    totals = [sum(each["norms"]) for each in whole["strengths"]]
    assert totals == sorted(totals) and totals[0] > 0


def test_a_run_that_goes_on_goes_on_in_the_same_report(runs):
    _, whole, resumed = runs
    timed = ("time/", "gpu/", "host/")
    shown = [
        {name: each for name, each in one["series"].items() if not name.startswith(timed)}
        for one in (whole, resumed)
    ]
    assert shown[0] == shown[1]
    assert resumed["saved"] == whole["saved"] and resumed["outline"]["began"] == whole["outline"]["began"]
    assert [each["norms"] for each in resumed["strengths"]] == [each["norms"] for each in whole["strengths"]]
    assert not resumed["outline"]["earlier"]


def test_a_state_without_a_record_says_where_the_report_begins(runs, demo):
    reporter = make_trainer(config_files(demo, runs[0], {})).reporter
    reporter.record.begin(Outline(first_step=3))
    reporter.follow(SimpleNamespace(), {})
    assert reporter.record.outline.earlier == "1 - 3"


@pytest.mark.parametrize("damage", [{"series": {"a": 1}}, {"notes": [{"x": 1}]}, {"began": None}])
def test_a_damaged_record_in_a_state_costs_the_report_alone(runs, demo, caplog, damage):
    reporter = make_trainer(config_files(demo, runs[0], {})).reporter
    reporter.record.add_values(1, {"loss/current": 1.0})
    reporter.restore({"format": FORMAT, **reporter.record.kept(), **damage})
    assert "cannot be read" in caplog.text
    assert list(reporter.record.series) == ["loss/current"]


def test_a_run_that_fails_says_so_in_its_report(demo, run_folder):
    trainer = make_trainer(config_files(demo, run_folder, {"max_train_steps": 9}))
    train_step = trainer.train_step

    def failing(window):
        if trainer.state.step == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        train_step(window)

    trainer.train_step = failing
    with pytest.raises(Exception, match="no more memory at step 3"):
        trainer.train()
    document = document_of(run_folder)
    assert (document["status"], document["step"]) == ("failed", 2)
    assert "no more memory at step 3" in document["ended"] and "--resume" in document["ended"]
    assert not any(type(each).__name__ == "Listener" for each in logging.getLogger().handlers)


class Reader(logging.Handler):
    """Follows a run from when its address is told: the page, the button save, all events."""

    def __init__(self):
        super().__init__()
        self.page, self.events, self.thread, self.has_asked = "", "", None, False

    def emit(self, record):
        if found := re.match(r"live page: (\S+)", record.getMessage()):
            self.thread = threading.Thread(target=self.follow, args=(found[1],))
            self.thread.start()

    def follow(self, address):
        with urllib.request.urlopen(address, timeout=30) as answer:
            self.page = answer.read().decode()
        (_, document), = blocks_of(self.page)
        with urllib.request.urlopen(f"{address}events?after={document['version']}", timeout=30) as answer:
            for line in answer:
                self.events += line.decode()
                if '"values"' in self.events and not self.has_asked:
                    self.has_asked = True
                    urllib.request.urlopen(urllib.request.Request(f"{address}save", method="POST"), timeout=30)


def test_a_live_page_follows_a_run_and_its_button_saves(demo, run_folder):
    reader = Reader()
    logging.getLogger().addHandler(reader)
    logging.getLogger().setLevel(logging.INFO)
    train(demo, run_folder, {"live": True, "report": "none", "max_train_steps": 40})
    reader.thread.join(30)
    out = run_folder / "out"
    assert "preparing" in reader.page and not list(out.glob("*.html"))
    assert '"values": [40, ' in reader.events and "event: over" in reader.events
    assert '"status": "done"' in reader.events
    (saved,) = out.glob("run-step*.safetensors")
    assert f'"saved": [{int(saved.stem[-8:])}, ' in reader.events and not (out / "save").exists()


def test_many_runs_in_a_folder_are_compared(runs, tmp_path, caplog):
    report = runs[0] / "out" / "run_report.html"
    write_index(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for name in ("a_report.html", "b & c_report.html"):
        shutil.copy(report, tmp_path / name)
    (tmp_path / "else_report.html").write_text("<html>of somebody else</html>")
    (tmp_path / "cut_report.html").write_text(report.read_text()[:900])
    write_index(tmp_path)
    text = (tmp_path / "index.html").read_text()
    (_, listed), = blocks_of(text)
    assert [run["file"] for run in listed] == ["a_report.html", "b & c_report.html"]
    assert listed[0]["settings"]["max_train_steps"] == "6" and listed[0]["curves"]["loss/average"]["steps"] == [1, 2, 3, 4, 5, 6]
    assert read_summary(tmp_path / "index.html") is None
    for other in ("mine", page_of().html()):
        (tmp_path / "index.html").write_text(other)
        caplog.clear()
        write_index(tmp_path)
        assert (tmp_path / "index.html").read_text() == other and "it stays" in caplog.text
