"""`rlhf-hw perplexity`: how well a language model expects the answers of a data set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

from rlhf_hw.arguments.held_out import parse_perplexity
from rlhf_hw.cli.entry import command
from rlhf_hw.evaluation.asked import Place
from rlhf_hw.evaluation.journal import check_output
from rlhf_hw.evaluation.parts import evaluation_parts
from rlhf_hw.evaluation.perplexity import Perplexity, perplexity
from rlhf_hw.models.load import check_model_path
from rlhf_hw.run_files import as_json, write_atomically
from rlhf_hw.secrets import SecretVault, install_log_filter


@command("perplexity")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, show and write."""
    tool = parse_perplexity(argv)
    settings = tool.settings
    install_log_filter(SecretVault(settings.secret_values()))
    check_model_path(settings.model_name_or_path, "--model_name_or_path")
    if settings.output_path is not None:
        check_output(settings.output_path, overwrite=settings.overwrite, flag="--output_path")
    parts = evaluation_parts(settings, "sft")
    if tool.dry_run:
        print(f"dry run: would measure {sum(map(len, parts.values()))} rows")
        return 0
    asked = Place.of(settings).language_model(settings.model_name_or_path, "--model_name_or_path")
    found: dict[str, Perplexity] = {}
    for part, rows in parts.items():
        found[part] = perplexity(
            asked,
            rows,
            max_length=settings.max_length,
            batch_size=settings.batch_size,
            train_on_inputs=settings.train_on_inputs,
        )
        if len(parts) > 1:
            print(f"{part}: {line(found[part])}")
    total = reduce(add, found.values())
    print(f"perplexity {line(total)}")
    if settings.output_path is not None:
        content = {
            "model": settings.model_name_or_path,
            "all": total.as_dict(),
            "subsets": {part: result.as_dict() for part, result in found.items()},
        }
        write_atomically(Path(settings.output_path), as_json(content))
        print(f"wrote {settings.output_path}")
    return 0


def line(result: Perplexity) -> str:
    """In one line for the user."""
    return f"{result.value:.5f} (loss {result.loss:.5f} nats a token) on {result.tokens} tokens of {result.rows} rows"


if __name__ == "__main__":
    sys.exit(main())
