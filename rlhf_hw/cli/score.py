"""`rlhf-hw score` and `rw_eval.py`: what a reward model gives to good and bad answers, and how often it is right."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_hw.arguments.held_out import ScoreArguments, parse_score
from rlhf_hw.cli.entry import command
from rlhf_hw.data.example import Example, Message
from rlhf_hw.errors import UserError
from rlhf_hw.evaluation.accuracy import Accuracy, overall, pair_scores
from rlhf_hw.evaluation.asked import Place
from rlhf_hw.evaluation.journal import check_output
from rlhf_hw.evaluation.parts import evaluation_parts
from rlhf_hw.evaluation.prompts import ANSWERS
from rlhf_hw.evaluation.scoring import AnswerScorer
from rlhf_hw.models.load import check_model_path, check_reward_model
from rlhf_hw.run_files import as_json, write_atomically
from rlhf_hw.secrets import SecretVault, install_log_filter

OWN = "four pairs of our own"


@command("score")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, score both answers of each pair, show and write scores and accuracy."""
    tool = parse_score(argv)
    settings = tool.settings
    install_log_filter(SecretVault(settings.secret_values()))
    flag = "--model_name_or_path"
    check_model_path(settings.model_name_or_path, flag)
    check_reward_model(settings.model_name_or_path, flag)
    if settings.output_path is not None:
        check_output(settings.output_path, overwrite=settings.overwrite, flag="--output_path")
    if settings.num_padding_at_beginning is not None:
        print(
            "--num_padding_at_beginning: no effect here; the attention mask tells where a text begins and ends"
        )
    parts = evaluation_parts(settings, "reward") if settings.dataset_name else {}
    if tool.dry_run:
        count = sum(map(len, parts.values())) or len(ANSWERS)
        print(f"dry run: would score {count} pairs of answers")
        return 0
    place = Place.of(settings)
    model, tokenizer = place.reward_model(settings.model_name_or_path, flag)
    scorer = AnswerScorer(model, tokenizer, place.backend, settings.batch_size, settings.max_length)
    texts: list[tuple[str, str, str]] = []
    scores: dict[str, list[tuple[float, float]]] = {}
    for part, rows in parts.items():
        scores[part], left_out = pair_scores(scorer, rows, settings.max_length)
        if left_out:
            print(f"{part}: {left_out} pairs left out (longer than --max_length, or alike in tokens)")
    if not parts:
        texts = list(ANSWERS)
        scores = {OWN: own_scores(scorer)}
    show(settings, texts, scores)
    write(settings, scores)
    return 0


def own_scores(scorer: AnswerScorer) -> list[tuple[float, float]]:
    """Scores of the good and the bad answer of each pair of our own, which are put as chats."""
    examples = [Example((Message("user", prompt),), None) for prompt, _, _ in ANSWERS]
    good = scorer.scores(examples, [answer for _, answer, _ in ANSWERS])
    bad = scorer.scores(examples, [answer for _, _, answer in ANSWERS])
    scores = [(one, two) for one, two in zip(good, bad, strict=True) if one is not None and two is not None]
    if len(scores) < len(ANSWERS):
        raise UserError(
            f"--max_length: {scorer.longest} tokens are too few for the pairs that come with this command"
        )
    return scores


def show(
    settings: ScoreArguments, texts: list[tuple[str, str, str]], scores: dict[str, list[tuple[float, float]]]
) -> None:
    """Some pairs with their scores, then accuracy in all and by part."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    pairs = Table(title="Scores of good and bad answers")
    for heading in ("good", "bad", "margin", ""):
        pairs.add_column(heading, justify="left" if heading == "" else "right")
    first = [(part, *pair) for part, found in scores.items() for pair in found][: settings.show]
    for number, (part, good, bad) in enumerate(first):
        what = texts[number][0] if texts else part
        pairs.add_row(f"{good:.4f}", f"{bad:.4f}", f"{good - bad:+.4f}", Text(what))
    if first:
        console.print(pairs)
    total = overall(scores)
    if len(scores) > 1:
        table = Table(title="Accuracy by subset")
        for heading in ("subset", "pairs", "accuracy", "95% interval", "mean score, good", "bad"):
            table.add_column(heading, justify="left" if heading == "subset" else "right")
        for part, found in scores.items():
            table.add_row(Text(part), *row_of(Accuracy.of(found)))
        console.print(table)
    print(
        f"accuracy {total.accuracy:.4f} on {total.pairs} pairs (95% interval {total.low:.4f}–{total.high:.4f}); mean score "
        f"{total.good_mean:.4f} of good answers, {total.bad_mean:.4f} of bad ones"
    )


def row_of(accuracy: Accuracy) -> list[str]:
    """The cells of one subset."""
    return [
        str(accuracy.pairs),
        f"{accuracy.accuracy:.4f}",
        f"{accuracy.low:.4f}–{accuracy.high:.4f}",
        f"{accuracy.good_mean:.4f}",
        f"{accuracy.bad_mean:.4f}",
    ]


def write(settings: ScoreArguments, scores: dict[str, list[tuple[float, float]]]) -> None:
    """Everything as JSON, where a file was named."""
    if settings.output_path is None:
        return
    content = {
        "model": settings.model_name_or_path,
        "all": overall(scores).as_dict(),
        "subsets": {part: Accuracy.of(found).as_dict() for part, found in scores.items()},
        "scores": {
            part: [{"good": good, "bad": bad} for good, bad in found] for part, found in scores.items()
        },
    }
    write_atomically(Path(settings.output_path), as_json(content))
    print(f"wrote {settings.output_path}")


if __name__ == "__main__":
    sys.exit(main())
