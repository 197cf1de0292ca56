"""The report: complete, self-contained, safe against what a model may have written, and the same every time."""

import html.parser
import json
import re
import time

import pytest

from rlhf_hw.cli.report import main
from rlhf_hw.errors import UserError
from rlhf_hw.report.document import Code, Document, Mono, Paragraph, Table, to_html, to_markdown
from rlhf_hw.report.report import write_report
from rlhf_hw.report.results import duration, number, results
from rlhf_hw.run_directory import RunDirectory

NASTY = '</div></main><script>alert(1)</script> | ``` <img src=http://evil/x.png> & "quoted" \u2028 日本語'


def make_run(path, rows, samples=(), **config):
    run = RunDirectory.create(
        path,
        command=["rl_training.py", "--seed=0"],
        config={"training": {"seed": 0, **config}},
        backend={"name": "cpu", "precision": "fp32"},
    )
    for row in rows:
        run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])
    for step, sample in samples:
        run.log_samples(step, sample)
    run.finish()
    return path


class Page(html.parser.HTMLParser):
    """The tags of a page, with their attributes, and whether each one that opens also closes."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_page_is_well_formed_and_needs_nothing_outside_itself(tmp_path, synthetic, stage):
    samples = [
        (0, [{"prompt": NASTY, "response": NASTY, "score": 1.0}]),
        (9, [{"prompt": NASTY, "response": "fine"}]),
    ]
    page = write_report(make_run(tmp_path, synthetic[stage](), samples))
    assert page == tmp_path / "report.html"
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.open == []
    sources = [
        value
        for _, attributes in parsed.tags
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    assert not re.search(r"@import|url\(", text)
    assert parsed.text.count(NASTY) == 2  # the prompt and the first answer, to the letter


def test_markdown_shows_the_same_pictures_by_relative_path(tmp_path, synthetic):
    write_report(make_run(tmp_path, synthetic["ppo"]()))
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (tmp_path / "report.md").read_text())
    assert links == ["plots/ppo.png"]
    assert (tmp_path / links[0]).exists()


def test_results_table_has_first_last_and_best_with_its_step():
    rows = [{"step": step, "eval_perplexity": value} for step, value in [(10, 20.0), (20, 5.0), (30, 6.0)]]
    (result,) = results(rows)
    assert (result.first, result.last, result.best, result.best_step) == (20.0, 6.0, 5.0, 20.0)
    rows = [{"step": step, "eval_accuracy": value} for step, value in [(1, 0.5), (2, 0.9), (3, 0.8)]]
    assert (results(rows)[0].best, results(rows)[0].best_step) == (0.9, 2.0)
    assert results([{"step": 1, "objective/kl": 3.0}])[0].best is None


def test_report_tells_what_was_run_on_what_and_how_it_ended(tmp_path, synthetic):
    write_report(make_run(tmp_path / "my-run", synthetic["sft"](), learning_rate=1e-5))
    text = (tmp_path / "my-run" / "report.md").read_text()
    for words in (
        "my-run",
        "finished",
        "python rl_training.py --seed=0",
        "learning_rate: 1.0e-05",
        "fp32",
        "started",
    ):
        assert words in text


def test_faults_and_reason_of_failure_come_before_the_results(tmp_path, synthetic):
    run = RunDirectory.create(tmp_path, command=["x"], config={})
    for row in synthetic["ppo"](20):
        run.log({**row, "response/eos_rate": 0.2}, step=row["step"])
    run.fail(RuntimeError("out of memory"))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "obj')
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    look_at = text[text.index("## What to look at") : text.index("## Results")]
    for words in ("RuntimeError: out of memory", "Only 20% of the responses", "torn"):
        assert words in look_at


def test_samples_set_the_first_answer_beside_the_last_and_show_a_reference_once(tmp_path):
    samples = [
        (0, [{"prompt": "p1", "response": "before", "score": -1.0, "chosen": "human"}]),
        (5, [{"prompt": "p1", "response": "between", "score": 0.0, "chosen": "human"}]),
        (
            9,
            [
                {"prompt": "only at the end", "response": "x"},
                {"prompt": "p1", "response": "after", "chosen": "human"},
            ],
        ),
    ]
    write_report(make_run(tmp_path, [{"step": 1, "loss": 1.0}], samples))
    text = (tmp_path / "report.md").read_text()
    assert "between" not in text
    assert text.count("human") == 1
    order = [
        text.index(word)
        for word in ("p1", "response at step 0", "before", "response at step 9", "after", "only at")
    ]
    assert order == sorted(order)
    assert "score −1" in text


def test_report_of_a_run_that_has_logged_nothing_says_so(tmp_path):
    RunDirectory.create(tmp_path, command=["x"], config={})
    write_report(tmp_path)
    assert "Nothing logged yet" in (tmp_path / "report.md").read_text()


def test_writing_the_report_again_changes_nothing(tmp_path, synthetic):
    make_run(tmp_path, synthetic["reward"]())
    before = write_report(tmp_path).read_bytes()
    time.sleep(0.01)
    assert write_report(tmp_path).read_bytes() == before


def test_report_and_plots_are_removed_with_the_run_they_belong_to(tmp_path, synthetic):
    write_report(make_run(tmp_path, synthetic["sft"]()))
    assert (tmp_path / "plots" / "sft.png").exists()
    RunDirectory.create(tmp_path, command=["x"], config={}, overwrite=True)
    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "plots").exists()


# ---- the command ----------------------------------------------------------------------------------------------------


def test_command_writes_the_report_and_prints_where(tmp_path, synthetic, capsys):
    make_run(tmp_path, synthetic["sft"]())
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")


@pytest.mark.parametrize("with_positional", [True, False])
def test_compare_overlays_runs_and_tells_where_they_differ(tmp_path, synthetic, with_positional):
    first = make_run(tmp_path / "a", synthetic["ppo"](), init_kl_coef=0.2)
    second = make_run(tmp_path / "b", synthetic["ppo"](seed=9), init_kl_coef=0.05)
    argv = (
        [str(first), "--compare", str(second)] if with_positional else ["--compare", str(first), str(second)]
    )
    assert main(argv) == 0
    text = (first / "comparison.md").read_text()
    assert "| `training.init_kl_coef` | 0.2 | 0.05 |" in text
    assert "training.seed" not in text
    assert "comparison_ppo.png" in text
    assert Page((first / "comparison.html").read_text()).open == []
    assert not (second / "comparison.md").exists()


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path, synthetic):
    paths = [make_run(tmp_path / parent / "sft", synthetic["sft"]()) for parent in ("monday", "tuesday")]
    main(["--compare", *map(str, paths)])
    assert "| monday/sft | tuesday/sft |" in (paths[0] / "comparison.md").read_text()


def test_what_is_no_run_directory_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "status.json").write_text("{")
    for argv in (
        *([str(tmp_path / "nowhere")], [str(tmp_path / "empty")], [str(tmp_path / "broken")]),
        *([], ["--compare", str(tmp_path)], [str(tmp_path), "--compare", str(tmp_path)]),
    ):
        with pytest.raises(UserError) as refusal:
            main(argv)
        assert "\n" not in str(refusal.value)
    assert list((tmp_path / "empty").iterdir()) == []


# ---- the document ---------------------------------------------------------------------------------------------------


def test_code_in_markdown_cannot_end_its_own_fence(tmp_path):
    text = "a\n```\nb\n````\nc"
    markdown = to_markdown(Document("t", "s", [Code(text)]), tmp_path)
    fence = re.search(r"^`+", markdown, re.MULTILINE).group()
    assert markdown.split(fence)[1] == f"text\n{text}\n"


def test_table_cells_keep_their_column_whatever_they_hold(tmp_path):
    table = Table(["a", "b"], [["x | y", Mono("p|q")], ["line\nbreak", "<b>"]])
    lines = to_markdown(Document("t", "s", [table]), tmp_path).strip().splitlines()[-4:]
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert "<b>" not in to_html(Document("t", "s", [table])).split("<main>")[1]


def test_paragraphs_cannot_smuggle_markup(tmp_path):
    markdown = to_markdown(Document("t", "s", [Paragraph("# *a* [b](c) <i> snake_case _d_")]), tmp_path)
    assert r"\# \*a\* \[b\](c) \<i\> snake_case \_d\_" in markdown


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [
        (None, False, "–"),
        (0.85432, True, "85.4%"),
        (-1.23456, False, "−1.235"),
        (123456.7, False, "123,457"),
        (0, False, "0"),
    ],
)
def test_numbers_are_short(value, percent, text):
    assert number(value, percent) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3725, "1 h 2 min")]
)
def test_durations_are_read_aloud(seconds, text):
    assert duration(seconds) == text


def test_rows_survive_the_round_trip_through_the_file(tmp_path, synthetic):
    rows = synthetic["ppo"](10)
    make_run(tmp_path, rows)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{name: line[name] for name in row} for row, line in zip(rows, lines, strict=True)] == rows
