"""`rlhf-hw merge` and `merge_peft_adapter.py`: merge an adapter into its base model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from rlhf_hw.arguments.merge import parse_merge
from rlhf_hw.cli.entry import command
from rlhf_hw.models.load import LoadOptions, check_model_path
from rlhf_hw.models.merge import check_merge, merge_adapter
from rlhf_hw.secrets import SecretVault, install_log_filter


@command("merge")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, merge, say where the result is."""
    run = parse_merge(argv)
    install_log_filter(SecretVault(run.secret_values()))
    merge = run.merge
    if merge.base_model_name is None:
        check_model_path(merge.adapter_model_name, "--adapter_model_name")
    else:
        check_model_path(merge.base_model_name, "--base_model_name")
    options = LoadOptions(
        flag="--adapter_model_name",
        cache_dir=merge.cache_dir,
        token=merge.hub_token(),
        trust_remote_code=merge.trust_remote_code,
        dtype="auto" if merge.torch_dtype == "auto" else getattr(torch, merge.torch_dtype),
    )
    if run.dry_run:
        check_merge(merge.adapter_model_name, merge.output_name, options)
        print(f"dry run: would merge {merge.adapter_model_name} into {merge.output_name}")
        return 0
    task = merge_adapter(merge.adapter_model_name, merge.output_name, options, base=merge.base_model_name)
    kind = {"SEQ_CLS": "reward model"}.get(task, "language model")
    print(f"merged {kind} in {merge.output_name}: loads with plain transformers, no peft needed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
