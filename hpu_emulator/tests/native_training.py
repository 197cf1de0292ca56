"""What test_native_trainer.py runs in processes of its own: the stock transformers Trainer on a tiny random Llama.

    python native_training.py '{"max_steps": 4, "generate": true}'

writes result.rank<rank>.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

VOCABULARY = 96


def examples(count: int = 32, length: int = 16) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.clone()} for row in tokens
    ]


def main(request: dict[str, Any]) -> None:
    generate, resume = request.pop("generate", False), request.pop("resume", None)
    lora = request.pop("lora", False)
    arguments = TrainingArguments(
        **{
            "output_dir": "out",
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            **request,
        }
    )
    set_seed(0)
    model: torch.nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    )
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
        )
    trainer = Trainer(model=model, args=arguments, train_dataset=examples(), eval_dataset=examples(8))
    trainer.train(resume_from_checkpoint=resume)
    result: dict[str, Any] = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "eval_loss": trainer.evaluate()["eval_loss"],
        "device": str(arguments.device),
    }
    if generate:
        prompt = examples(2)[0]["input_ids"][None, :6].to(arguments.device)
        plain = trainer.accelerator.unwrap_model(trainer.model).eval()
        settings: dict[str, dict[str, Any]] = {
            "greedy": {},
            "sampled": {"do_sample": True, "top_k": 10},
            "beams": {"num_beams": 3},
            "static cache": {"cache_implementation": "static"},
        }
        for name, chosen in settings.items():
            torch.manual_seed(3)
            out = plain.generate(
                prompt, max_new_tokens=8, **{"do_sample": False, "eos_token_id": None, **chosen}
            )
            result[name] = out[0].tolist()
    Path(f"result.rank{arguments.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
