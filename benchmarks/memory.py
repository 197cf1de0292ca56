"""Peak memory of PPO with LoRA over that of supervised fine-tuning with LoRA: the same model, the same micro-batches.

    python benchmarks/memory.py

Both run as the commands do, on a CPU, on a Llama of 110M weights made from a seed: SFT on rows of 256 tokens of which 64 are learnt
from, PPO on prompts of 192 tokens with answers of 64, two rows a micro-batch in both. PPO's four roles are policy, reference, value
head and a reward model's adapter, on one base. Each stage is a process of its own; its peak is of the resident memory, less what it was
once everything was imported.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NAME, PROMPT, ANSWER, ROWS = "lora-ppo-memory-over-sft", 192, 64, 2
EVERY = (
    "--device cpu --bf16 False --lora_rank 8 --logging_steps 1 --overwrite_output_dir --report_to none "
    "--learning_rate 1e-4 --train_file {work}/train.jsonl"
)
STAGES = {
    "sft": f"--model_name_or_path {{work}}/base --max_steps 2 --per_device_train_batch_size {ROWS} "
    "--gradient_accumulation_steps 2 --max_seq_length 256",
    "ppo": f"--model_name {{work}}/base --reward_model_name {{work}}/reward --share_backbone true --steps 4 --batch_size 4 "
    f"--mini_batch_size {ROWS} --gradient_accumulation_steps 2 --ppo_epochs 1 --output_max_length {ANSWER} "
    f"--output_min_length {ANSWER} --max_prompt_length {PROMPT}",
}


def make_materials(work: Path) -> None:
    """A model of 110M weights that reads words, and rows of 192 words with an answer of 63 and an end."""
    import peft
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    size = 32000
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(3, size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=1024,
    )
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(work / "base")
    wrapped.save_pretrained(work / "base")
    classifier = AutoModelForSequenceClassification.from_pretrained(work / "base", num_labels=1)
    peft.get_peft_model(classifier, peft.LoraConfig(task_type="SEQ_CLS")).save_pretrained(work / "reward")
    wrapped.save_pretrained(work / "reward")
    draw = torch.Generator().manual_seed(1)

    def text(length: int) -> str:
        return " ".join(f"w{n}" for n in torch.randint(3, size, (length,), generator=draw).tolist())

    rows = [
        {"question": text(PROMPT), "chosen": text(ANSWER - 1), "rejected": text(ANSWER - 1)}
        for _ in range(16)
    ]
    (work / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def peak_of(stage: str, work: Path) -> float:
    """MiB that the stage's command held at most, over what its imports hold; in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    words = [sys.executable, __file__, stage, str(work)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{stage} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["peak"])


def run_stage(stage: str, work: Path) -> None:
    """Run the command in this process and print its peak over the imports."""
    from rlhf_hw.cli import ppo, sft

    _import_what_comes_late()
    before = _resident()
    flags = f"{EVERY} {STAGES[stage]}".format(work=work).split()
    status = {"sft": sft, "ppo": ppo}[stage].main([*flags, "--output_dir", str(work / stage)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak": peak - before}))
    sys.exit(status)


def _import_what_comes_late() -> None:
    """Libraries that the stages load on the way: else they would count as memory of training."""
    import matplotlib.pyplot
    import peft
    import transformers.models.llama.modeling_llama
    import transformers.trainer

    assert all((matplotlib.pyplot, peft, transformers.models.llama.modeling_llama, transformers.trainer))


def _resident() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure() -> dict[str, Any]:
    """One row of the table of benchmarks: `ours` is PPO's peak and `theirs` that of SFT, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        subprocess.run([sys.executable, __file__, "materials", folder], check=True, capture_output=True)
        theirs, ours = peak_of("sft", work), peak_of("ppo", work)
    return {
        "name": NAME,
        "against": "SFT with LoRA of the same model and micro-batches",
        "ours": round(ours),
        "theirs": round(theirs),
        "ratio": round(ours / theirs, 3),
        "unit": "MiB",
    }


def main() -> None:
    """Measure, or do one part of it in this process."""
    if len(sys.argv) == 1:
        print(json.dumps(measure()))
    elif sys.argv[1] == "materials":
        make_materials(Path(sys.argv[2]))
    else:
        run_stage(sys.argv[1], Path(sys.argv[2]))


if __name__ == "__main__":
    main()
