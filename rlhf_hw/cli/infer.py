"""`rlhf-hw infer` and `run_inference.py`: a file of instructions, answered by a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_hw.arguments.evaluation import InferArguments, Tool, parse_infer
from rlhf_hw.cli.entry import command
from rlhf_hw.data.encode import special_prefix
from rlhf_hw.errors import UserError
from rlhf_hw.evaluation.answering import answer_room, answers
from rlhf_hw.evaluation.asked import Asked, Place
from rlhf_hw.evaluation.instructions import end_of, example_of, prompt_ids, read_instructions
from rlhf_hw.evaluation.journal import Journal, check_output, fingerprint
from rlhf_hw.evaluation.lora_state import merge_lora_state
from rlhf_hw.models.fingerprint import model_fingerprint
from rlhf_hw.models.load import adapter_base, check_model_path, is_adapter, load_policy, with_adapter_merged
from rlhf_hw.rollout.engine import Sampling
from rlhf_hw.secrets import SecretVault, install_log_filter


@command("infer")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, answer what is not answered yet, write the file."""
    tool = parse_infer(argv)
    settings = tool.settings
    install_log_filter(SecretVault(settings.secret_values()))
    rows = read_instructions(settings.input_path, "--input_path")[: settings.max_samples]
    check_output(settings.output_path, overwrite=settings.overwrite, flag="--output_path")
    check_paths(settings)
    if tool.dry_run:
        print(f"dry run: would answer {len(rows)} instructions into {settings.output_path}")
        return 0
    with Journal(
        settings.output_path, depends_on(settings, rows), overwrite=settings.overwrite, flag="--output_path"
    ) as journal:
        answer(tool, rows, journal)
    return 0


def check_paths(settings: InferArguments) -> None:
    """Refuse what holds no model, before anything loads."""
    name, base = settings.model_name_or_path, settings.base_model_path
    if base is not None:
        check_model_path(base, "--base_model_path")
    if name.endswith(".bin"):
        if not Path(name).is_file():
            raise UserError(f"--model_name_or_path: there is no file {name}; check the path")
    elif settings.lora and not is_adapter(name):
        raise UserError(
            f"--lora: {name} is neither a .bin file nor a directory with adapter_config.json; leave --lora out for a whole "
            "model"
        )
    elif base is None or not is_adapter(name):
        check_model_path(name, "--model_name_or_path")


def depends_on(settings: InferArguments, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What an answer depends on: a killed run is continued with the same only. Not the batch size."""
    names = (
        *(
            "model_name_or_path",
            "base_model_path",
            "input_path",
            "lora_r",
            "lora_alpha",
            "load_in_8bit",
            "torch_dtype",
        ),
        *(
            "model_max_length",
            "max_new_tokens",
            "temperature",
            "top_p",
            "top_k",
            "no_repeat_ngram_size",
            "chat",
            "seed",
        ),
    )
    models = [name for name in (settings.model_name_or_path, settings.base_model_path) if name is not None]
    return {
        "instructions": fingerprint(rows),
        **{name: getattr(settings, name) for name in names},
        "the model's files": " + ".join(map(model_fingerprint, models)),
    }


def answer(tool: Tool[InferArguments], rows: list[dict[str, Any]], journal: Journal) -> None:
    """Answer the rows that the journal has not, then write the output."""
    settings = tool.settings
    if journal.results:
        print(f"{len(journal.results)} of {len(rows)} are answered already; going on")
    asked = load(settings)
    examples = [example_of(row, chat=settings.chat) for row in rows]
    prompts = [prompt_ids(example, asked.tokenizer) for example in examples]
    cut = sum(len(ids) > settings.model_max_length for ids in prompts)
    beginning = special_prefix(asked.tokenizer)
    prompts = [end_of(ids, settings.model_max_length, beginning) for ids in prompts]
    if cut:
        print(
            f"{cut} prompts are longer than --model_max_length {settings.model_max_length}: their ends are answered"
        )
    longest = max(map(len, prompts))
    wanted = settings.max_new_tokens or settings.model_max_length
    room = answer_room(asked, longest, wanted, is_default=settings.max_new_tokens is None)
    sampling = Sampling(
        room,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        repetition_ngram=settings.no_repeat_ngram_size,
    )
    print(f"{asked.name} on {asked.backend.name}, answers of at most {room} tokens")
    left = {row: ids for row, ids in enumerate(prompts) if row not in journal.results}
    batches = answers(
        asked, left, sampling, batch_size=settings.bsz, seed=settings.seed, longest_prompt=longest
    )
    for batch in batches:
        for row, text in batch.items():
            journal.add(row, {"answer": text})
        print(f"{len(journal.results)} of {len(rows)}", flush=True)
    name = settings.generator or generator_name(settings.model_name_or_path)
    journal.finish([answered_row(row, journal.results[i]["answer"], name) for i, row in enumerate(rows)])
    print(f"wrote {settings.output_path}")


def load(settings: InferArguments) -> Asked:
    """The model that the flags name, with LoRA weights merged into it."""
    place = Place.of(settings)
    name, base, flag = settings.model_name_or_path, settings.base_model_path, "--model_name_or_path"
    options = place.options(flag)
    if settings.load_in_8bit:
        options = replace(options, **place.eight_bit())
    if name.endswith(".bin"):
        assert base is not None
        model = load_policy(base, replace(options, flag="--base_model_path"))
        layers = merge_lora_state(model, name, rank=settings.lora_r, alpha=settings.lora_alpha, flag=flag)
        print(f"LoRA weights of {layers} layers merged into {base}")
        return place.ready(name, model, place.tokenizer(base, "--base_model_path"))
    if not is_adapter(name):
        return place.ready(name, load_policy(name, options), place.tokenizer(base or name, flag))
    base = base or adapter_base(name)
    model = with_adapter_merged(load_policy(base, options), name, flag)
    return place.ready(name, model, place.tokenizer(name if has_tokenizer(name) else base, flag))


def has_tokenizer(directory: str) -> bool:
    """Whether an adapter brings a tokenizer of its own."""
    return (Path(directory) / "tokenizer_config.json").is_file()


def generator_name(path: str) -> str:
    """runs/ppo/checkpoint-100/pytorch_model.bin → checkpoint-100; runs/aligned → aligned."""
    parts = Path(path)
    return parts.parent.name if path.endswith(".bin") and parts.parent.name else parts.name


def answered_row(row: dict[str, Any], text: str, generator: str) -> dict[str, Any]:
    """The row as AlpacaFarm's judges read it (`output_1`: the reference, where there is one; `output_2`: the answer) and as
    AlpacaEval does (`output`, `generator`)."""
    reference = {} if row.get("output") is None else {"output_1": row["output"]}
    return {**row, **reference, "output_2": text, "output": text, "generator": generator}


if __name__ == "__main__":
    sys.exit(main())
