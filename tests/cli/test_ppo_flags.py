"""`rlhf-hw ppo`: where rewards come from, which models play which role, and what a run leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from run_results import losses, metrics
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

Train = Callable[..., Path]
Run = Callable[..., Any]
PROBE = torch.tensor([[5, 17, 80, 200, 41]])

REWARD_FUNCTION = '''
"""A reward that a test knows: it asks for the data set's `chosen` column as well."""


def score(prompts, responses, chosen):
    return [len(response) - 0.5 * len(answer) for response, answer in zip(responses, chosen)]


def too_few(prompts, responses):
    return [0.0]


def not_a_number(prompts, responses):
    return [float("nan")] * len(responses)
'''


@pytest.fixture
def reward_function(workplace: Path) -> str:
    """The name of a function in a module of the working directory."""
    module = f"reward_of_{workplace.name}"  # each test's own: a module is imported once a process
    (workplace / f"{module}.py").write_text(REWARD_FUNCTION)
    return f"{module}:score"


@pytest.fixture(scope="session")
def reward_dir(text_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model as plain transformers saves one, with the policy's tokenizer."""
    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("reward")
    model = AutoModelForSequenceClassification.from_pretrained(text_llama_dir, num_labels=1)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(text_llama_dir).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def foreign_reward_dir(reward_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same reward model with another tokenizer: every ordinary token has another number."""
    directory = tmp_path_factory.mktemp("foreign_reward")
    shutil.copytree(reward_dir, directory, dirs_exist_ok=True)
    content = json.loads((directory / "tokenizer.json").read_text())
    content["model"]["merges"] = []
    kept = {token: number for token, number in content["model"]["vocab"].items() if number < 257}
    content["model"]["vocab"] = {
        token: (number and 257 - number) for token, number in kept.items()
    }  # 0 is the end of text
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def samples(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]


def test_a_function_of_the_working_directory_gives_the_scores(
    trained: Train, ppo_flags: list[object], reward_function: str, pairs_file: Path
) -> None:
    out = trained("ppo", *ppo_flags, "--reward_function", reward_function)
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    chosen = {row["question"]: row["chosen"] for row in rows}
    found = samples(out)
    assert len(found) == 8
    for sample in found:
        assert sample["score"] == len(sample["response"]) - 0.5 * len(chosen[sample["prompt"]])
    updates = [row["objective/scores"] for row in metrics(out) if "objective/scores" in row]
    assert updates == pytest.approx([sum(s["score"] for s in found[i : i + 4]) / 4 for i in (0, 4)])


@pytest.mark.parametrize(
    ("function", "fault"), [("too_few", "one number for each answer"), ("not_a_number", "must be finite")]
)
def test_a_function_that_returns_nonsense_is_named(
    function: str, fault: str, run: Run, ppo_flags: list[object], reward_function: str
) -> None:
    spec = reward_function.replace(":score", f":{function}")
    outcome = run("ppo", *ppo_flags, "--reward_function", spec, "--output_dir", "out")
    assert outcome.status == 2
    assert f"rlhf-hw ppo: error: --reward_function {spec}" in outcome.err
    assert fault in outcome.err
    assert "Traceback" not in outcome.err
    assert json.loads(Path("out/status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("foreign", [False, True], ids=["same_tokenizer", "another_tokenizer"])
def test_scores_are_those_of_the_reward_model_on_prompt_and_answer(
    foreign: bool, trained: Train, ppo_flags: list[object], reward_dir: Path, foreign_reward_dir: Path
) -> None:
    """Plain transformers, with the reward model's own tokenizer, on the texts that were logged."""
    directory = foreign_reward_dir if foreign else reward_dir
    out = trained("ppo", *ppo_flags, "--reward_model_name", directory, "--output_max_length", 1)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for sample in samples(out):
        ids = tokenizer(sample["prompt"]).input_ids + tokenizer(sample["response"]).input_ids
        ids += [tokenizer.eos_token_id] if sample["ended"] else []
        # read at the last token: transformers looks for it by the pad id, which is the end's here
        hidden = model.model(torch.tensor([ids])).last_hidden_state[:, -1]
        if "�" not in sample["response"]:  # half a character has no text
            assert sample["score"] == pytest.approx(model.score(hidden).item(), abs=1e-4)


def test_a_reward_model_with_another_tokenizer_is_said_to_have_one(
    run: Run, ppo_flags: list[object], foreign_reward_dir: Path
) -> None:
    outcome = run("ppo", *ppo_flags, "--reward_model_name", foreign_reward_dir, "--output_dir", "out")
    assert "with a tokenizer of its own" in outcome.err


def test_a_shared_trunk_moves_policy_and_value_and_starts_from_the_reference(
    trained: Train, ppo_flags: list[object], reward_function: str, text_llama_dir: Path
) -> None:
    out = trained("ppo", *ppo_flags, "--reward_function", reward_function)
    base = AutoModelForCausalLM.from_pretrained(text_llama_dir).eval()
    before = base(PROBE).logits
    assert not torch.allclose(PeftModel.from_pretrained(base, str(out)).eval()(PROBE).logits, before)
    head = load_file(out / "value_head.safetensors")
    assert all(tensor.abs().sum() > 0 for tensor in head.values())
    kl = [row["objective/kl"] for row in metrics(out) if "objective/kl" in row]
    assert kl[0] == pytest.approx(0.0, abs=1e-4)
    assert kl[1] != pytest.approx(0.0, abs=1e-4)


def test_a_whole_policy_learns_against_a_reference_of_its_own(
    run: Run, ppo_flags: list[object], reward_function: str, text_llama_dir: Path
) -> None:
    flags = ["--reward_function", reward_function, "--full_finetune", "--output_dir", "out"]
    outcome = run("ppo", *ppo_flags, *flags)
    assert outcome.status == 0, outcome.err
    assert "reference: a model of its own" in outcome.err
    kl = [row["objective/kl"] for row in metrics(Path("out")) if "objective/kl" in row]
    assert kl[0] == pytest.approx(0.0, abs=1e-4)
    assert kl[1] != pytest.approx(0.0, abs=1e-4)
    before, after = (
        AutoModelForCausalLM.from_pretrained(directory)(PROBE).logits for directory in (text_llama_dir, "out")
    )
    assert not torch.allclose(before, after)


def test_policy_and_reference_share_the_configuration_of_config_name(
    trained: Train, ppo_flags: list[object], reward_function: str, text_llama_dir: Path, workplace: Path
) -> None:
    config = json.loads((text_llama_dir / "config.json").read_text())
    (workplace / "other").mkdir()
    (workplace / "other" / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    flags = ["--reward_function", reward_function, "--full_finetune", "--config_name", "other"]
    out = trained("ppo", *ppo_flags, *flags)
    assert json.loads((out / "config.json").read_text())["hidden_act"] == "relu"
    first = next(row for row in metrics(out) if "objective/kl" in row)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("from_reward_model", [False, True])
def test_a_separate_critic_is_saved_as_a_model_that_peft_loads(
    from_reward_model: bool,
    trained: Train,
    ppo_flags: list[object],
    reward_function: str,
    text_llama_dir: Path,
    reward_dir: Path,
) -> None:
    start = ["--critic_model_name", reward_dir] if from_reward_model else []
    flags = ["--reward_function", reward_function, "--value_model", "separate"]
    out = trained("ppo", *ppo_flags, *flags, *start)
    assert not (out / "value_head.safetensors").exists()
    base = AutoModelForSequenceClassification.from_pretrained(
        reward_dir if from_reward_model else text_llama_dir, num_labels=1
    )
    untrained = base.eval()(PROBE).logits.item()
    critic = PeftModel.from_pretrained(base, str(out / "critic")).eval()
    assert critic(PROBE).logits.item() != pytest.approx(untrained)
    # a critic from the policy starts at zero, one from a reward model at its scores
    first = next(row for row in metrics(out) if "value/mean" in row)
    assert (first["value/mean"] == 0.0) is not from_reward_model


def test_normalised_scores_use_the_statistics_saved_with_the_reward_model(
    trained: Train, run: Run, ppo_flags: list[object], reward_dir: Path, workplace: Path
) -> None:
    own = shutil.copytree(reward_dir, workplace / "reward")
    flags = ["--reward_model_name", own, "--normalize_scores"]
    refused = run("ppo", *ppo_flags, *flags, "--output_dir", "refused")
    assert refused.status == 2
    assert "reward_statistics.json" in refused.err
    assert not Path("refused").exists()
    (own / "reward_statistics.json").write_text('{"mean": -3.0, "std": 2.0, "count": 9}')
    out = trained("ppo", *ppo_flags, *flags)
    for row in metrics(out):
        if "objective/scores" in row:
            assert row["objective/scores_shaped"] == pytest.approx(
                (row["objective/scores"] + 3) / 2, abs=1e-5
            )


def test_samples_are_rounded_up_to_whole_updates_and_checkpoints_count_updates(
    trained: Train, ppo_flags: list[object], reward_function: str
) -> None:
    flags = ["--reward_function", reward_function, "--steps", 9, "--save_freq", 2]
    out = trained("ppo", *ppo_flags, *flags)
    episodes = [row["ppo/episodes"] for row in metrics(out) if "ppo/episodes" in row]
    assert episodes == [4, 8, 12]
    # an update is two optimizer steps here; the end is saved besides, as every stage's is
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(
    trained: Train, ppo_flags: list[object], reward_function: str, workplace: Path
) -> None:
    flags = [*ppo_flags, "--reward_function", reward_function, "--steps", 16, "--save_freq", 2]
    whole = trained("ppo", *flags, "--use_score_scaling", output="whole")
    killed = shutil.copytree(whole, workplace / "killed")
    shutil.rmtree(killed / "checkpoint-8")
    trained("ppo", *flags, "--use_score_scaling", "--resume_from_checkpoint", output="killed")
    for name in ("adapter_model.safetensors", "value_head.safetensors"):
        expected, found = load_file(whole / name), load_file(killed / name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert losses(killed) == losses(whole)
    assert samples(killed) == samples(whole)


def test_early_stopping_leaves_the_rest_of_an_update_out(
    trained: Train, ppo_flags: list[object], reward_function: str
) -> None:
    flags = [
        "--reward_function",
        reward_function,
        "--ppo_epochs",
        4,
        "--early_stopping=True",
        "--target_kl",
        1e-6,
    ]
    stopped = trained("ppo", *ppo_flags, *flags, "--learning_rate", 0.1, output="stopped")
    free = trained("ppo", *ppo_flags, *flags[:4], "--learning_rate", 0.1, output="free")
    rates = [
        max(row.get("ppo/early_stopped", 0.0) for row in metrics(directory)) for directory in (stopped, free)
    ]
    assert rates == [1.0, 0.0]


def test_ppo_goes_on_from_an_adapter_that_was_not_merged(
    trained: Train, run: Run, sft_flags: list[object], ppo_flags: list[object], reward_function: str
) -> None:
    sft = trained("sft", *sft_flags, output="sft")
    out = trained("ppo", *ppo_flags, "--model_name", sft, "--reward_function", reward_function, output="ppo")
    kl = [row["objective/kl"] for row in metrics(out) if "objective/kl" in row]
    assert kl[0] == pytest.approx(0.0, abs=1e-4), "the reference is the adapted model"
    merged = run("merge", "--adapter_model_name", out, "--output_name", "merged")
    assert merged.status == 0, merged.err
    assert torch.isfinite(AutoModelForCausalLM.from_pretrained("merged")(PROBE).logits).all()


def test_held_out_prompts_are_answered_and_scored(
    trained: Train, ppo_flags: list[object], reward_function: str
) -> None:
    flags = ["--reward_function", reward_function, "--do_eval", "--eval_dataset_size", 3, "--eval_prompts", 2]
    out = trained("ppo", *ppo_flags, *flags)
    found = [row for row in metrics(out) if "eval_scores" in row]
    assert [row["step"] for row in found] == [0, 4]
    assert found[0]["eval_kl"] == pytest.approx(0.0, abs=1e-4)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unsupervised text, of many more tokens than a block has."""
    rows = [
        {"text": f"Of {number} apples {number // 2} are red, and the others are not. " * 8}
        for number in range(30)
    ]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_critic_from_the_reward_model_text_and_an_average_of_the_weights_in_one_run(
    run: Run, ppo_flags: list[object], reward_dir: Path, text_file: Path
) -> None:
    flags = [
        *("--init_value_with_reward", "--critic_lora_rank", 3, "--critic_lora_target_modules", "q_proj"),
        *("--unsupervised_dataset_name", text_file, "--unsup_coef", 0.5, "--enable_ema", "--ema_decay", 0.5),
        *("--kl_estimator", "bregman", "--k_beta", 0.1, "--align_overflow"),
        *("--dialect", "intel", "--num_padding_at_beginning", 1),
    ]
    outcome = run("ppo", *ppo_flags, "--reward_model_name", reward_dir, *flags, "--output_dir", "out")
    assert outcome.status == 0, outcome.err
    for line in (
        "--init_value_with_reward: the value function is a model of its own",
        "--align_overflow: always so here",
        "--num_padding_at_beginning 1: without effect",
        "tokens, weight 0.5; 2 beside each micro-batch",
        "value: a model of its own",
    ):
        assert line in outcome.err
    out = Path("out")
    adapter = load_file(out / "critic" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter if "lora_A" in name} == {"q_proj"}
    assert {tensor.shape[0] for name, tensor in adapter.items() if "lora_A" in name} == {3}
    policy, average = (load_file(place / "adapter_model.safetensors") for place in (out, out / "actor_ema"))
    assert policy.keys() == average.keys()
    assert any(not torch.equal(policy[name], average[name]) for name in policy)
    lines = [row for row in metrics(out) if "unsupervised/loss" in row]
    assert [row["ppo/skipped_steps"] for row in lines] == [0, 0]
    assert all(row["unsupervised/loss"] > 0 for row in lines)
    shown = yaml.safe_load((out / "config.yaml").read_text())["stage"]
    assert (shown["kl_estimator"], shown["k_beta"], shown["enable_ema"]) == ("k3", 0.1, True)


def test_a_value_model_that_reads_other_tokens_is_refused(
    run: Run, ppo_flags: list[object], foreign_reward_dir: Path
) -> None:
    flags = ["--reward_model_name", foreign_reward_dir, "--init_value_with_reward", "--output_dir", "out"]
    outcome = run("ppo", *ppo_flags, *flags)
    assert outcome.status == 2
    assert f"--reward_model_name: {foreign_reward_dir} has another tokenizer than the policy" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (
            ["--init_value_with_reward", "--reward_function", "m:f"],
            "--init_value_with_reward: there is no reward model",
        ),
        (["--critic_lora_rank", 4], "--critic_lora_rank: the value head has no layers"),
        (["--reward_mean", 1.0], "--reward_mean: was given alone"),
        (["--reward_mean", 1.0, "--reward_std", 2.0], "--reward_mean: acts with --normalize_scores only"),
        (["--truncate_after", 3], "--truncate_after: acts with --truncate_tokens only"),
        (["--ema_decay", 1.0], "--ema_decay: got 1.0, expected a number from 0 to below 1"),
        (["--k_beta", 5.0], "--k_beta: got 5.0"),
        (["--unsupervised_dataset_config_name", "c"], "--unsupervised_dataset_config_name: of which data?"),
        (
            ["--batch_size", 3, "--generation_batches", 3],
            "--batch_size: 3 x --generation_batches 3 is not a multiple",
        ),
    ],
)
def test_contradictions_are_one_line(
    flags: list[object], fault: str, run: Run, ppo_flags: list[object], reward_dir: Path
) -> None:
    reward = [] if "--reward_function" in flags else ["--reward_model_name", reward_dir]
    outcome = run("ppo", *ppo_flags, *reward, *flags, "--output_dir", "out")
    assert outcome.status == 2
    assert fault in outcome.err
    assert "Traceback" not in outcome.err
