"""docs/data.md is true: its table against the sets' rows, and its example done as written."""

import json
import re
import shlex
from pathlib import Path

import pytest
from test_data_sets import FLAT, SETS

from rlhf_hw.cli.data import main
from rlhf_hw.data.convert import _unfit_for
from rlhf_hw.data.example import PURPOSES
from rlhf_hw.data.formats import FORMATS, detect

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
OTHERS = {
    "Open-Assistant (oasst1, oasst2)": FLAT[0],
    "Intel/orca_dpo_pairs": {"system": "", "question": "Why?", "chosen": "So.", "rejected": "No."},
}


def table():
    rows = [line.strip("|").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return {row[0].strip(): row for row in rows[1:]}


def test_every_set_stands_in_the_table():
    assert set(table()) == set(SETS) | set(OTHERS)


@pytest.mark.parametrize("name", [*SETS, *OTHERS])
def test_the_table_says_how_a_set_is_read_and_what_for(name):
    raw = SETS[name][0] if name in SETS else OTHERS[name]
    if "miracl-ja" in name:  # the row in the test is one without a negative passage
        raw = SETS["Cohere/miracl-zh-queries-22-12"][0]
    known = detect(list(raw), raw, set_name=name)
    example = known.convert(
        next(iter(known.gather(iter(FLAT if name in OTHERS and raw is FLAT[0] else [raw]))))
    )
    _, told_by, _, stages, read_as, *_ = (cell.strip() for cell in table()[name])
    assert read_as == known.name
    assert stages.split() == [purpose for purpose in PURPOSES if not _unfit_for(example, purpose)]
    assert (told_by == "its name") == bool(known.set_names)


@pytest.mark.parametrize("name", SETS)
def test_the_preview_shows_a_copy_of_the_set(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    row, example, _ = SETS[name]
    (Path(name) / "train.jsonl").write_text(json.dumps(row))
    assert main(["preview", name, "--cache_dir", str(tmp_path / "cache")]) == 0
    shown = capsys.readouterr().out
    assert f"1 rows read as {example.source}, 1 converted, 1 usable" in shown
    if isinstance(example.prompt, str):
        assert f"[prompt] {example.prompt}\n" in shown
    for side in ("chosen", "rejected"):
        answer = getattr(example, side)
        assert (f"[{side}] {answer}\n" in shown) == (answer is not None)


def test_the_example_of_a_users_own_set_works_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = PAGE[PAGE.index("## A set of your own") :]
    rows, description, command = re.findall(r"```\w*\n(.*?)```", own, re.DOTALL)
    (tmp_path / "faq.jsonl").write_text(rows)
    (tmp_path / "faq.yaml").write_text(description)
    words = shlex.split(command)
    assert words[:2] == ["rlhf-hw", "data"]
    assert main([*words[2:], "--cache_dir", str(tmp_path / "cache")]) == 0
    shown = capsys.readouterr().out
    assert "[prompt]  Human: How do I reset it? Assistant:\n" in shown
    assert "[chosen]  Hold the button.\n" in shown
    assert "[rejected]  Yes, dive with it.\n" in shown
    assert "2 rows read as faq, 2 converted, 2 usable" in shown


def test_formats_lists_every_format_with_its_columns(capsys):
    assert main(["formats"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"{known.name}: {known.example_columns}" for known in FORMATS]
