"""What a run of the speed benchmark leaves behind: rows as they are finished, merged where they are comparable."""

import json
import subprocess
from pathlib import Path
from typing import Any

import kept_runs
import options
import pytest
import report
import sides
import table
import workload

RUN = {
    "date": "2026-01-02",
    "started": "03:04:05 UTC",
    "machine": "M, 2 cores",
    "versions": {"torch": "2"},
    "commit": "abc",
    "size": {},
    "turns": 3,
}


def row(name: str, run: dict[str, Any] | None = None, **change: Any) -> dict[str, Any]:
    found = {
        "name": name,
        "against": "them",
        "ours": 2.0,
        "theirs": 6.0,
        "ratio": 3.0,
        "unit": "CPU s per update",
        "sides": {"theirs": "TRL", "ours": f"ours, {name}"},
        "turns": {"theirs": [6.0], "ours": [2.0]},
        "phases": {"ours": {"rollout": [0.5, 0.1], "score": [0.5, 0.2], "optimise": [1.0, 0.3]}},
        "losses_differ": 3e-6,
        "unequal": [],
        "work": {"answer_tokens": 7},
        "limits": {"fp32": 100, "bf16": 400},
        **change,
    }
    return found if run is None else {**found, "run": {**run, "load": 1.5}}


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ({"started": "09:00:00 UTC", "commit": "def", "turns": 5}, True),
        ({"date": "2026-01-03"}, False),
        ({"machine": "N, 2 cores"}, False),
        ({"versions": {"torch": "3"}}, False),
        ({"size": {"hidden": 64}}, False),
    ],
)
def test_rows_stay_beside_those_of_a_comparable_run(change: dict[str, Any], stays: bool) -> None:
    old = [row("a", {**RUN, **change}, ours=1.0), row("b", {**RUN, **change})]
    rows, replaced = kept_runs.merged(old, RUN, [row("a", RUN)], ["b", "a"])
    assert [found["name"] for found in rows] == (["b", "a"] if stays else ["a"])
    assert rows[-1]["ours"] == 2.0  # the new one
    assert [found["name"] for found in replaced] == ([] if stays else ["b"])


def test_rows_that_do_not_say_their_run_do_not_stay() -> None:
    assert kept_runs.merged([row("b")], RUN, [row("a", RUN)], ["b", "a"])[1] == [row("b")]


def test_each_finished_group_is_on_disk_before_the_next(tmp_path: Path) -> None:
    kept = row("c", {**RUN, "started": "01:00:00 UTC"})
    book = kept_runs.Record(tmp_path, RUN, [kept], ["a", "b", "c"], report.report)
    assert not (tmp_path / "speed.json").exists()  # nothing is finished: what was there stays as it was
    book.add([row("b")])
    first = json.loads((tmp_path / "speed.json").read_text())
    assert [found["name"] for found in first] == ["b", "c"]
    book.add([row("a", unequal=["a: turn 0: digest 1 here, 2 there"])])
    assert [found["name"] for found in json.loads((tmp_path / "speed.json").read_text())] == ["a", "b", "c"]
    text = (tmp_path / "speed.md").read_text()
    assert "- Run 1: 2026-01-02 03:04:05 UTC, M, 2 cores" in text
    assert "- Run 2: 2026-01-02 01:00:00 UTC" in text
    assert "| b | them | 6.00 | 2.00 | **3.00** | CPU s per update | 6.0 / 2.0 | 3e-06 | 1 |" in text
    assert "| c | them | 6.00 | 2.00 | **3.00** | CPU s per update | 6.0 / 2.0 | 3e-06 | 2 |" in text
    assert "- a: turn 0: digest 1 here, 2 there" in text
    assert "| 3e-06; NOT EQUAL | 1 |" in text
    assert "- c: 7 answer tokens (the last turn)" in text


def test_a_finished_row_proves_its_work_or_says_that_it_does_not() -> None:
    pair = table.ROWS[0]
    turn = {"cpu": 2.0, "digest": 1, "prompt_tokens": 5, "answer_tokens": 7, "optimizer_steps": 16}
    turn["phases"] = {"rollout": 0.5, "score": 0.5, "optimise": 1.0}
    measured = {pair.ours: [turn], pair.theirs: [{**turn, "cpu": 8.0}]}
    ready = {pair.ours: {"check": [[0.1, 1.0], [0.2, 1.0]]}}
    ready[pair.theirs] = {"check": [[0.1, 1.0], [0.2, 1.0]]}
    arguments = (sides.sides(), measured, ready, workload.Size(), {"fp32": 1e11, "bf16": 4e11})
    found = table.finished(pair, *arguments)
    assert (found["ratio"], found["unequal"], found["losses_differ"]) == (4.0, [], 0.0)
    assert found["work"] == {"prompt_tokens": 5, "answer_tokens": 7, "optimizer_steps": 16}
    for wrong in (1.1, float("nan")):
        ready[pair.theirs] = {"check": [[0.1, 1.0], [0.2, wrong]]}
        (line,) = table.finished(pair, *arguments)["unequal"]
        assert "losses of one batch differ by" in line


def test_results_that_were_written_are_no_change_of_the_version(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=n", "-c", "user.email=e@x.example")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    assert kept_runs.commit(tmp_path) == ""  # no repository
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for file in (results / "speed.md", tmp_path / "code.py"):
        file.write_text("old")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    clean = kept_runs.commit(tmp_path)
    assert clean
    (results / "speed.md").write_text("new")
    assert kept_runs.commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("new")
    assert kept_runs.commit(tmp_path) == f"{clean}-dirty"


@pytest.mark.parametrize(("text", "said"), [("[", "is not JSON"), ('{"a": 1}', "is no list of rows")])
def test_results_that_cannot_be_read_are_named(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "speed.json").write_text(text)
    with pytest.raises(SystemExit) as ended:
        options.parse(None, ["--only", "rm-fp32", "--results", str(tmp_path)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(tmp_path / "speed.json") in error
