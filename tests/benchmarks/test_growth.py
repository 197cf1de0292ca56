"""How cost grows: exponents, the axes, what several processes did together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import growth
import growth_report
import options
import ours
import pytest
import sides
import team
import workload

from rlhf_hw.trainers import metrics

ROOT = Path(__file__).resolve().parents[2]


def test_the_exponent_of_a_power_is_found() -> None:
    assert growth_report.slope([(x, 3 * x**1.7) for x in (1, 2, 8)]) == pytest.approx(1.7)
    # a fixed cost beside: between 0 and 1; worked by hand for two points: log(3/2) / log(2)
    assert growth_report.slope([(1, 2), (2, 3)]) == pytest.approx(0.585, abs=1e-3)
    assert growth_report.slope([(2, 5), (2, 6)]) is None
    with pytest.raises(ValueError, match="not positive"):
        growth_report.slope([(1, 0), (2, 1)])


def test_along_an_axis_only_its_number_changes() -> None:
    for axis in ("hidden", "batch", "length"):
        sizes = [growth.at(growth.BASE, axis, value) for value in growth.AXES[axis]]
        changing = [growth.facts_of(size) for size in sizes]
        moved = {name for name in changing[0] if len({facts[name] for facts in changing}) > 1}
        assert (
            moved
            == {
                "hidden": {"hidden", "weights"},
                "batch": {"batch"},
                "length": {"answer", "longest_example"},
            }[axis]
        )
        assert growth.BASE in sizes  # so that all axes meet in one point
        assert all(size.prompts == size.batch for size in sizes)  # every turn answers the same prompts


def test_twice_the_batch_and_twice_the_limit_are_twice_the_tokens() -> None:
    def tokens(**change: int) -> tuple[int, int, int]:
        size = workload.Size(batch=16, even=1, **{"prompts": 16, **change})
        rows = workload.prompts_with_answers(size)
        examples = sum(len(row["input_ids"]) for row in workload.examples(size))
        return sum(len(row["prompt"]) for row in rows), sum(len(row["answer"]) for row in rows), examples

    prompts, answers, examples = tokens()
    assert tokens(prompts=64)[:2] == (
        pytest.approx(4 * prompts, rel=0.02),
        pytest.approx(4 * answers, rel=0.02),
    )
    longer = tokens(answer=256, longest_example=2048)
    assert longer == (
        prompts,
        pytest.approx(4 * answers, rel=0.03),
        pytest.approx(4 * examples, rel=0.1),  # the shortest are 16 tokens in any case
    )


def test_processes_of_a_side_are_told_together() -> None:
    def facts(digest: int, wall: float, **more: Any) -> dict[str, Any]:
        times = {"cpu": 1.0, "wall": wall, "waiting": 0.5, "delayed": 0.0}
        return {
            **times,
            "digest": digest,
            "answer_tokens": 10,
            "optimizer_steps": 4,
            "phases": {"score": 0.25},
            **more,
        }

    whole = team.together([facts(2**64 - 1, 2.0, check=[1]), facts(3, 3.0, check=[2])])
    assert whole["digest"] == 2
    assert (whole["cpu"], whole["wall"], whole["waiting"]) == (2.0, 3.0, 1.0)
    assert (whole["answer_tokens"], whole["optimizer_steps"]) == (20, 4)
    assert whole["phases"] == {"score": 0.5}
    assert whole["check"] == [1]
    assert [each["wall"] for each in whole["processes"]] == [2.0, 3.0]
    with pytest.raises(ValueError, match="optimizer steps"):
        team.together([facts(1, 1.0), facts(1, 1.0, optimizer_steps=5)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--growth", "depth"], "depth: the axes are hidden, batch, length, processes"),
        (["--growth", "hidden=128,x"], "hidden=128,x: must be hidden=NUMBER"),
        (["--growth", "hidden=200"], "hidden=200: must be a multiple"),
        (["--growth", "batch=12"], "minibatch=8: must divide batch=12"),
        (["--growth", "processes=3"], "processes=3: must divide minibatch=8"),
        (["--growth", "--only", "rm-fp32"], "leave one out"),
        (["--growth", "--turns", "0"], "--turns 0: must be at least 1"),
        (["--growth", "--size", "width=3"], "width=3: must be NAME=NUMBER"),
        (["--growth", "--size", "hidden=0"], "hidden=0: must be at least 1"),
        (["--growth", "--size", "answer=1"], "answer=1: must be at least 2"),
        (["--growth", "length=2"], "longest_example=8: must be at least 16"),
        (["--growth", "batch=16", "batch=32"], "batch is named twice"),
        (["--growth", "--results", __file__], f"--results {__file__}: cannot be written to: File exists"),
        (["--growth", "--work", f"{__file__}/work"], "/work: cannot be written to: Not a directory"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(None, words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_side_that_ended_while_it_waited_is_told_of(tmp_path: Path) -> None:
    program = tmp_path / "ends.py"
    program.write_text("import sys\nprint('{}', flush=True)\nsys.exit('out of memory')\n")
    side = sides.Running(sides.Side("brief", str(program)), [], 1, tmp_path / "log")
    side.wait_until_ready()
    side.process.wait()
    with pytest.raises(SystemExit, match=r"brief: ended by itself; [^\n]*\nout of memory"):
        side.turn()


def found_point(side: str, weights: int, cpu: float, along: list[str]) -> dict[str, Any]:
    return {
        "stage": "ppo",
        "side": side,
        "size": {"hidden": 64, "weights": weights, "batch": 4, "answer": 8, "longest_example": 64},
        "along": along,
        "cpu": cpu,
        "unit": "CPU s per update",
        "turns": [cpu],
        "phases": {name: [cpu / 4, 0.5] for name in ("rollout", "score", "optimise")},
        "flops": weights * 10**6,
        "share": 0.25,
        "losses_differ": 1e-6,
        "work": {"prompt_tokens": 9, "answer_tokens": 8},
    }


def test_exponents_are_of_the_points_of_an_axis_alone(tmp_path: Path) -> None:
    points = [
        found_point("ours", 10**6, 1.0, ["hidden", "batch"]),
        found_point("ours", 4 * 10**6, 2.0, ["hidden"]),
        found_point("ours", 10**6, 99.0, ["length"]),
        found_point("TRL 1.12 PPO", 10**6, 4.0, ["hidden"]),
    ]
    (only,) = growth_report.exponents(points)
    assert (only["axis"], only["side"], only["points"]) == ("hidden", "ours", 2)
    assert (only["cost"], only["needful"]) == (0.5, 1.0)
    assert only["phases"] == {"rollout": 0.5, "score": 0.5, "optimise": 0.5}
    run = {
        "date": "2026-01-02",
        "started": "03:04:05 UTC",
        "machine": "M, 2 cores",
        "versions": {"torch": "2"},
    }
    run |= {"commit": "abc", "size": {}, "turns": 3, "load": [1.0]}
    found = {"run": run, "base": points[0]["size"], "points": points, "exponents": [only]}
    found |= {"processes": [], "unequal": ["x: differs"]}
    text = growth_report.report(found)
    assert "| weights (2 points) | ours | **0.50** | 1.00 | 0.50 | 0.50 | 0.50 |" in text
    assert (
        "| 9 + 8 | TRL 1.12 PPO | 4.00 | 25% | 1.00 (50%) | 1.00 (50%) | 1.00 (50%) | **4.00** | 1e-06 |"
        in text
    )
    assert "- x: differs" in text
    assert "2026-01-02 03:04:05 UTC, M, 2 cores, load 1.0" in text
    growth_report.draw(points, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


SMALL = ["hidden=32", "layers=1", "vocabulary=64", "batch=4", "minibatch=2", "epochs=1", "answer=8"]
SMALL += ["longest_prompt=12", "examples=8", "example_batch=4", "longest_example=64"]


class Noted:
    """Turns that are taken at once: what each would report."""

    def __init__(self, said: list[dict[str, Any]]) -> None:
        self.said = said
        self.facts: dict[str, Any] = {}

    def next(self) -> None:
        self.said.append({**self.facts, "cpu": 1.0})
        self.facts = {}

    def add(self, name: str, amount: float) -> None:
        self.facts[name] = self.facts.get(name, 0) + amount


@pytest.mark.usefixtures("drawing_as_it_was")
def test_a_side_works_through_all_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "time", metrics.time)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # which transformers 4 sets: to be put back
    base = workload.changed(growth.BASE, SMALL)
    sizes = [growth.at(base, "hidden", value) for value in (32, 64)]
    folders = [str(tmp_path / str(size.hidden)) for size in sizes]
    for folder, size in zip(folders, sizes, strict=True):
        workload.make_materials(Path(folder), size)
    side = sides.sides()["separate bf16"]
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(ours, "Turns", lambda _team: Noted(said))
    monkeypatch.setattr(
        sys, "argv", ["", json.dumps({**side.job, "materials": folders, "turns": 2, "check_batch": 2})]
    )
    ours.main()
    assert ["check" in facts for facts in said] == [True, False, False] * 2
    assert (
        len({facts["digest"] for facts in said if "digest" in facts}) == 1
    )  # the same tokens in each turn and size
    assert {facts.get("optimizer_steps") for facts in said if "digest" in facts} == {2}
    first, other = (
        growth.point("ppo", side.name, size, said[place : place + 2], {"fp32": 1e11, "bf16": 4e11})
        for size, place in zip(sizes, (1, 4), strict=True)
    )
    assert first["work"] == other["work"]
    assert other["flops"] > 2 * first["flops"]
    assert set(first["phases"]) == {"rollout", "score", "optimise"}


@pytest.mark.slow
def test_two_processes_do_the_work_of_one(tmp_path: Path) -> None:
    """The program itself: a batch of four answers in one process and in two."""
    axes = ["--growth", "processes=1,2", "--stages", "ppo", "--turns", "1"]
    command = [sys.executable, str(ROOT / "benchmarks" / "speed"), *axes, "--size", *SMALL]
    command += ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((tmp_path / "results" / "growth.json").read_text())
    assert found["unequal"] == []  # tokens, optimizer steps and losses
    one, two = found["processes"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["work"] == two["work"]
    assert two["losses_differ"] < 1e-4
    assert one["each"]["cpu"][0] > 0
    assert all(cpu > 0 for cpu in two["each"]["cpu"])
    assert sum(two["each"]["cpu"]) == pytest.approx(two["cpu"], abs=0.01)
    text = (tmp_path / "results" / "growth.md").read_text()
    assert "| an update of PPO | 2 |" in text
