"""The flags of merging an adapter into its base (`merge_peft_adapter.py`, `rlhf-hw merge`)."""

# ruff: noqa: RUF009 - HfArg returns a dataclasses.field
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArg

from rlhf_hw.arguments.model import Dtype, HubAccess
from rlhf_hw.arguments.parser import StageParser
from rlhf_hw.arguments.run import plain
from rlhf_hw.errors import UserError


@dataclass(kw_only=True)
class MergeArguments(HubAccess):
    """What is merged into what."""

    _argument_group_name = "Merge"

    adapter_model_name: str = HfArg(
        help="Directory of the adapter, of a language model or of a reward model. Required."
    )
    output_name: str = HfArg(
        help="Directory for the merged model with its tokenizer and chat template. Required."
    )
    base_model_name: str | None = HfArg(
        default=None, help="The base model. Not said: the one the adapter was trained on."
    )
    cache_dir: str | None = HfArg(default=None, help="Directory for downloaded models.")
    torch_dtype: Dtype = HfArg(
        default="bfloat16", aliases=["--dtype"], help="Precision of the merged weights. auto: the base's own."
    )


@dataclass(frozen=True, kw_only=True)
class MergeRun:
    """The settings of a merge."""

    merge: MergeArguments
    dry_run: bool

    def config_dict(self) -> dict[str, dict[str, Any]]:
        """The settings without credentials."""
        return {"merge": plain(self.merge)}

    def secret_values(self) -> tuple[str, ...]:
        """Every text given here that must not be written anywhere."""
        return self.merge.secret_values()


def merge_parser() -> StageParser:
    """The parser of this command."""
    return StageParser(
        "merge",
        [MergeArguments],
        description="Merge an adapter into its base model, so that it loads without peft.",
        example="rlhf-hw merge --adapter_model_name runs/sft --output_name merged",
    )


def parse_merge(argv: Sequence[str] | None = None) -> MergeRun:
    """The settings on the command line. Bad input ends the process: one line, exit status 2."""
    parser = merge_parser()
    parsed = parser.parse(argv)
    run = MergeRun(merge=parsed[MergeArguments], dry_run=parsed.dry_run)
    return parser.checked(run, check_merge)


def check_merge(run: MergeRun) -> None:
    """Contradictions in the settings of a merge.

    Raises:
        UserError: names the flag, what was found, what to do.
    """
    adapter, output = run.merge.adapter_model_name, run.merge.output_name
    if Path(adapter).expanduser().resolve() == Path(output).expanduser().resolve():
        raise UserError(f"--output_name: {output} is the adapter's own directory; name another")
