"""The speed benchmark gives both sides the same work, and says so where it does not."""

from pathlib import Path
from typing import Any

import ours
import pytest
import table
import workload

SMALL = workload.Size(
    hidden=64, layers=1, vocabulary=64, prompts=4, batch=4, minibatch=2, epochs=1, longest_prompt=12, answer=8
)


def test_answers_are_of_geometric_length_and_end_in_eos_unless_cut() -> None:
    size = workload.Size()
    rows = workload.prompts_with_answers(size)
    assert rows == workload.prompts_with_answers(size)
    for row in rows:
        assert workload.EOS not in row["answer"][:-1]
        assert workload.PAD not in row["prompt"] + row["answer"]
        assert len(row["answer"]) == size.answer or row["answer"][-1] == workload.EOS
    mean = sum(len(row["answer"]) for row in rows) / len(rows)
    expected = (1 - (1 - size.end) ** size.answer) / size.end
    assert mean == pytest.approx(expected, rel=0.1)


def test_every_prompt_is_answered_once_before_any_is_twice() -> None:
    size = workload.Size(prompts=8, batch=4, minibatch=4)
    updates = workload.order_of_updates(size, 4)
    assert sorted(updates[0] + updates[1]) == sorted(updates[2] + updates[3]) == list(range(8))


@pytest.mark.usefixtures("drawing_as_it_was")
def test_our_side_learns_from_the_planned_answers(tmp_path: Path) -> None:
    workload.make_materials(tmp_path, SMALL)
    size, data = workload.read_materials(tmp_path)
    trainer = ours.ppo_trainer(
        {"materials": str(tmp_path)}, size, data["prompts"], ["--bf16", "False", "--overwrite_output_dir"]
    )
    trainer.train()
    rollout = trainer.experience.rollout
    assert rollout.response_ids() == [row["answer"] for row in data["prompts"]]


def turn(**facts: Any) -> dict[str, Any]:
    return {"cpu": 1.0, "digest": "a", "optimizer_steps": 16, **facts}


def test_an_entry_is_the_ratio_of_medians() -> None:
    row = table.Row("name", "theirs", "ours", "CPU s per update", "all")
    measured = {"ours": [turn(cpu=c) for c in (1.0, 2.0, 9.0)], "theirs": [turn(cpu=c) for c in (5, 6, 7)]}
    table.AGAINST["theirs"] = "them"
    assert table.entry(row, measured) == {
        "name": "name",
        "against": "them",
        "ours": 2.0,
        "theirs": 6.0,
        "ratio": 3.0,
        "unit": "CPU s per update",
    }


def test_other_tokens_and_other_losses_are_found() -> None:
    row = table.ROWS[0]
    same = {row.ours: [turn()], row.theirs: [turn()]}
    assert table.unequal_work(row, same) == []
    assert table.unequal_work(row, {**same, row.theirs: [turn(digest="b")]}) == [
        f"{row.name}: turn 0: digest a here, b there"
    ]
    here = {"check": [[-0.1, 1.73], [-0.2, 0.9]]}
    # of answers that end early the value loss is not compared: TRL learns one place more
    assert table.loss_difference(row, here, {"check": [[-0.1, 1.75], [-0.2, 0.9]]}) == 0
    assert table.loss_difference(row, here, {"check": [[-0.1, 1.73], [-0.2, 0.99]]}) == pytest.approx(
        0.0909, rel=1e-2
    )
