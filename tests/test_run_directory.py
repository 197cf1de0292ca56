"""What a run leaves behind: complete, monotone after a resume, harmless to other files, and free of secrets."""

import json
import logging
import os
import signal
import subprocess
import sys
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from rlhf_hw.errors import UserError
from rlhf_hw.run_directory import RunDirectory
from rlhf_hw.run_files import RUN_FILES, last_checkpoint, read_json_lines, read_metrics
from rlhf_hw.secrets import install_log_filter

SECRETS = {
    "--hf_access_token": "hf_q\"uo\\te's",
    "--hub_token": "plain-secret-0001",
    "--wandb_api_key": "Schlüssel mit Leerzeichen",
    "--db_password": "p%s{0}$HOME&<x>",
}


def create(path, **changes):
    arguments = {"command": ["finetune_clm.py", "--seed", "0"], "config": {"training": {"seed": 0}}} | changes
    return RunDirectory.create(path, **arguments)


def add_checkpoint(path, step, complete=True):
    folder = path / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    if complete:
        (folder / "trainer_state.json").write_text("{}")
    return folder


def contents(path):
    return {
        file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


# ---- what is written ------------------------------------------------------------------------------------------------


def test_configuration_keeps_its_groups_and_order_and_reads_back(tmp_path):
    class Kind(str, Enum):
        COSINE = "cosine"

    config = {
        "model": {"path": Path("a/b"), "dtype": torch.bfloat16, "targets": ("q", "v"), "token": None},
        "training": {"scheduler": Kind.COSINE, "rate": 1.41e-5, "flag": True},
    }
    create(tmp_path / "run", config=config)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written == {
        "model": {"path": "a/b", "dtype": "torch.bfloat16", "targets": ["q", "v"], "token": None},
        "training": {"scheduler": "cosine", "rate": 1.41e-5, "flag": True},
    }
    assert list(written) == ["model", "training"]


def test_environment_names_versions_and_backend_but_neither_host_nor_user(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_VARIABLE", "its-value-is-nobodys-business")
    create(tmp_path, backend={"name": "cpu", "precision": "fp32: no bf16 here"})
    text = (tmp_path / "environment.json").read_text()
    environment = json.loads(text)
    assert (
        environment["packages"]["torch"] == torch.__version__.split("+")[0]
        or "+" in environment["packages"]["torch"]
    )
    assert environment["backend"] == {"name": "cpu", "precision": "fp32: no bf16 here"}
    assert os.uname().nodename not in text
    assert "its-value-is-nobodys-business" not in text
    assert set(environment) == {"python", "platform", "cpu_cores", "processes", "backend", "packages"}


def test_metrics_of_any_number_type_come_back_as_numbers(tmp_path):
    run = create(tmp_path)
    run.log(
        {"a": torch.tensor(1.5), "b": np.float32(2.5), "c": np.int64(3), "d": 4, "e": True}, step=7, epoch=0.5
    )
    (row,) = read_metrics(tmp_path).rows
    assert {name: row[name] for name in ("step", "epoch", "a", "b", "c", "d", "e")} == {
        "step": 7,
        "epoch": 0.5,
        "a": 1.5,
        "b": 2.5,
        "c": 3,
        "d": 4,
        "e": True,
    }


def test_nonfinite_metrics_become_null_and_are_named(tmp_path):
    run = create(tmp_path)
    run.log({"loss": float("nan"), "kl": torch.tensor(float("inf")), "ok": 1.0}, step=1)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row["loss"] is None
    assert row["kl"] is None
    assert row["nonfinite"] == {"loss": "nan", "kl": "inf"}
    run.log({"loss": 1.0}, step=2)
    assert "nonfinite" not in read_metrics(tmp_path).rows[1]


def test_every_row_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from rlhf_hw.run_directory import RunDirectory\n"
        "run = RunDirectory.create(sys.argv[1], command=['x'], config={})\n"
        "for step in range(1, 4):\n"
        "    run.log({'loss': 1.0}, step=step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=120)
    assert result.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(tmp_path).rows] == [1, 2, 3]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"


def test_torn_last_line_is_left_out_and_told(tmp_path):
    run = create(tmp_path)
    run.log({"loss": 1.0}, step=1)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    line = whole + '{"step": 2, "note": "ä"}\n'.encode()
    for cut in range(len(whole) + 1, len(line) - 1):  # at every byte, also within a character
        (tmp_path / "metrics.jsonl").write_bytes(line[:cut])
        metrics = read_metrics(tmp_path)
        assert [row["step"] for row in metrics.rows] == [1]
        assert "torn" in metrics.warnings[0]


def test_damaged_line_in_the_middle_is_left_out_and_told_by_its_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    metrics = read_metrics(tmp_path)
    assert [row["step"] for row in metrics.rows] == [1, 3]
    assert "line 2" in metrics.warnings[0]


def test_samples_keep_any_text(tmp_path):
    run = create(tmp_path)
    rows = [{"prompt": 'a "b"\n\u2028c', "response": "日本語 \udc80", "score": 1.5}]
    run.log_samples(3, rows)
    assert read_json_lines(tmp_path / "samples.jsonl").rows == [{"step": 3, **rows[0]}]


def test_end_of_a_run_is_told_with_its_reason(tmp_path):
    with create(tmp_path / "good"):
        pass
    with pytest.raises(ValueError), create(tmp_path / "bad"):
        raise ValueError("out of luck")
    with pytest.raises(KeyboardInterrupt), create(tmp_path / "stopped"):
        raise KeyboardInterrupt
    told = {}
    for name in ("good", "bad", "stopped"):
        status = json.loads((tmp_path / name / "status.json").read_text())
        events = [row["event"] for row in read_json_lines(tmp_path / name / "events.jsonl").rows]
        assert events == ["started", status["state"]]
        told[name] = (status["state"], status.get("reason"))
    assert told == {
        "good": ("finished", None),
        "bad": ("failed", "ValueError: out of luck"),
        "stopped": ("interrupted", "KeyboardInterrupt"),
    }


def test_only_the_main_process_writes(tmp_path):
    with create(tmp_path / "run", is_main_process=False) as run:
        run.log({"loss": 1.0}, step=1)
        run.log_samples(1, [{"prompt": "p"}])
        run.truncate_after(0)
        run.own_checkpoint(1)
    assert not (tmp_path / "run").exists()


# ---- an output directory that is there already ----------------------------------------------------------------------


def test_empty_directory_is_used(tmp_path):
    create(tmp_path, resume=True)
    assert (tmp_path / "config.yaml").exists()


def test_occupied_directory_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"^--output_dir: .*--overwrite_output_dir"):
        create(tmp_path)
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        create(tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_directory_with_checkpoints_is_refused_with_both_ways_on(tmp_path):
    add_checkpoint(tmp_path, 20)
    add_checkpoint(tmp_path, 100)
    with pytest.raises(UserError, match=r"checkpoint-100.*--resume_from_checkpoint.*--overwrite_output_dir"):
        create(tmp_path)


def test_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        create(tmp_path / "file", overwrite=True)
    with pytest.raises(UserError, match="cannot use"):
        create(tmp_path / "file" / "below", overwrite=True)


def test_overwriting_removes_what_runs_wrote_and_nothing_else(tmp_path):
    run = create(tmp_path)
    run.log({"loss": 1.0}, step=5)
    run.log_samples(5, [{"prompt": "old"}])
    add_checkpoint(tmp_path, 5)
    run.own_checkpoint(5)
    (tmp_path / "checkpoint-5" / "rng_state_1.pth").write_bytes(b"another rank's, written late")
    add_checkpoint(tmp_path, 10)
    run.own_checkpoint(10)
    foreign = {
        "notes.txt": b"mine",
        "checkpoint-10/notes.txt": b"mine too",
        "plots/own.png": b"drawn by hand",
        "model.safetensors": b"weights",
    }
    for name, content in foreign.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    create(tmp_path, overwrite=True)
    after = contents(tmp_path)
    assert {name: after.pop(name) for name in foreign} == foreign
    assert set(after) <= set(RUN_FILES)
    assert not (tmp_path / "checkpoint-5").exists()
    assert read_metrics(tmp_path).rows == []
    assert not (tmp_path / "samples.jsonl").exists()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "samples.jsonl", "report.html"])
def test_file_of_someone_else_under_one_of_our_names_is_never_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine: 1\n")
    add_checkpoint(tmp_path, 5)
    for flags in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match="not written by rlhf_hw"):
            create(tmp_path, **flags)
    assert (tmp_path / name).read_text() == "mine: 1\n"


def test_edited_list_of_files_leads_neither_out_of_the_directory_nor_through_a_link(tmp_path):
    run_path, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    create(run_path)
    (run_path / "link").symlink_to(outside)
    names = ["../outside/file", str(outside / "file"), "link/file"]
    (run_path / "rlhf_hw_files.json").write_text(json.dumps({"files": [*names, *RUN_FILES]}))
    create(run_path, overwrite=True)
    assert (outside / "file").read_text() == "mine"


def test_foreign_checkpoint_survives_overwriting_with_a_warning(tmp_path, caplog):
    add_checkpoint(tmp_path, 500)
    with caplog.at_level(logging.WARNING):
        create(tmp_path, overwrite=True)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-500"
    assert "checkpoint-500" in caplog.text


# ---- resuming -------------------------------------------------------------------------------------------------------


def test_resumed_log_is_monotone_and_has_no_row_twice(tmp_path):
    run = create(tmp_path)
    for step in range(1, 8):
        run.log({"loss": 1.0 / step}, step=step)
        run.log_samples(step, [{"prompt": "p", "response": "first life"}])
    add_checkpoint(tmp_path, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # killed here
    resumed = create(tmp_path, resume=True)
    resumed.truncate_after(4)
    for step in range(5, 10):
        resumed.log({"loss": 2.0 / step}, step=step)
    resumed.truncate_after(4)  # said again, by the callback: harmless
    metrics = read_metrics(tmp_path)
    assert metrics.warnings == []
    assert [row["step"] for row in metrics.rows] == list(range(1, 10))
    assert metrics.rows[4]["loss"] == 2.0 / 5
    seconds = [row["wall_seconds"] for row in metrics.rows]
    assert seconds == sorted(seconds)
    assert [row["step"] for row in read_json_lines(tmp_path / "samples.jsonl").rows] == [1, 2, 3, 4]
    events = read_json_lines(tmp_path / "events.jsonl").rows
    assert [row["event"] for row in events] == ["started", "resumed"]
    assert events[1]["step"] == 4


def test_resuming_before_truncation_appends_after_the_last_whole_line(tmp_path):
    run = create(tmp_path)
    run.log({"loss": 1.0}, step=1)
    add_checkpoint(tmp_path, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    create(tmp_path, resume=True).log({"loss": 1.0}, step=2)
    metrics = read_metrics(tmp_path)
    assert [row["step"] for row in metrics.rows] == [1, 2]
    assert metrics.warnings == []


def test_half_written_checkpoint_is_not_the_one_to_resume_from(tmp_path):
    add_checkpoint(tmp_path, 9)
    add_checkpoint(tmp_path, 10)
    add_checkpoint(tmp_path, 11, complete=False)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


# ---- secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("equals", [True, False])
def test_no_secret_of_the_command_line_is_in_any_byte_below_the_directory(tmp_path, monkeypatch, equals):
    from rlhf_hw.report.report import write_report

    monkeypatch.setenv("HF_TOKEN", "from-the-environment")
    everything = {**SECRETS, "in the environment": "from-the-environment"}
    argv = ["finetune_clm.py"]
    for flag, value in SECRETS.items():
        argv += [f"{flag}={value}"] if equals else [flag, value]
    config = {"model": {flag.strip("-"): value for flag, value in SECRETS.items()}, "argv": argv}
    config["notes"] = {
        "text": " and ".join(everything.values()),
        "same as a key": dict.fromkeys(everything.values(), 1),
    }
    logger = logging.getLogger("test_run_directory")

    def work(run):
        for value in everything.values():
            logger.warning("using %r", value)
            run.log({"note": value, value: 1.0}, step=1)
            run.log_samples(1, [{"prompt": value, "response": f"{value}{value}", "nested": [{"a": value}]}])
            run.event("seen", what=value)
        raise RuntimeError(f"401 for {argv}")

    run = create(tmp_path, command=argv, config=config, backend={"note": SECRETS["--hub_token"]})
    uninstall = install_log_filter(run.vault)
    handler = logging.FileHandler(tmp_path / "run.log", encoding="utf-8")
    logger.addHandler(handler)
    try:
        with pytest.raises(RuntimeError), run:
            work(run)
    finally:
        logger.removeHandler(handler)
        handler.close()
        uninstall()
    write_report(tmp_path)
    files = contents(tmp_path)
    assert {"report.html", "report.md", "run.log", "command.txt", "config.yaml", "samples.jsonl"} <= set(
        files
    )
    for value in everything.values():
        spellings = {value, json.dumps(value)[1:-1], repr(value)[1:-1]}
        for name, content in files.items():
            for spelling in spellings:
                assert spelling.encode() not in content, f"{spelling} in {name}"


def test_use_auth_token_true_hides_no_other_true(tmp_path):
    create(
        tmp_path, command=["x.py", "--use_auth_token", "True"], config={"use_auth_token": True, "bf16": True}
    )
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"use_auth_token": True, "bf16": True}
    assert (tmp_path / "command.txt").read_text() == "python x.py --use_auth_token True\n"
