"""Answers to many instructions, batch by batch, each drawn from a seed of its own row.

An answer depends on its prompt, the weights and its row's seed, not on the rows around it: a run that was killed and
continued writes what an uninterrupted one would have written, up to rounding. Logits depend a little on the shape of the
batch, so that seldom a drawn token tips over (sampling in fp32 on a CPU, at batch sizes 16 and 8: in 1 answer of 400).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rlhf_hw.errors import UserError
from rlhf_hw.evaluation.asked import Asked
from rlhf_hw.rollout.choice import choose_engine
from rlhf_hw.rollout.engine import Sampling
from rlhf_hw.rollout.sampling import mix_seed


def answers(
    asked: Asked,
    prompts: Mapping[int, list[int]],
    sampling: Sampling,
    *,
    batch_size: int,
    seed: int,
    longest_prompt: int,
) -> Iterator[dict[int, str]]:
    """The answers to `prompts` (row → ids), `batch_size` at a time, as row → text; prompts of like length together.

    `longest_prompt`: of all rows, those answered earlier included: where shapes are fixed they are the same ones then.
    """
    shapes = asked.backend.rollout_shapes([longest_prompt], sampling.max_new_tokens)
    engine = choose_engine("auto", asked.backend, asked.model, asked.tokenizer, shapes)
    by_length = sorted(
        prompts, key=lambda row: (-len(prompts[row]), row)
    )  # what needs most memory comes first
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        # where shapes are fixed a last batch that is smaller would be one more: its last row fills it up
        filled = rows if shapes.may_vary else rows + rows[-1:] * (batch_size - len(rows))
        seeds = [mix_seed(seed, row) for row in filled]
        rollout = engine.generate(asked.model, [prompts[row] for row in filled], sampling, seeds)
        yield dict(zip(rows, rollout.texts(asked.tokenizer), strict=False))


def answer_room(asked: Asked, longest_prompt: int, wanted: int, *, is_default: bool) -> int:
    """Tokens for an answer: as many as wanted, or what the context leaves where nobody asked for so many.

    Raises:
        UserError: prompt and answer do not fit into the model's context.
    """
    room = wanted if asked.context is None else min(wanted, asked.context - longest_prompt)
    if room < 1 or (room < wanted and not is_default):
        raise UserError(
            f"--max_new_tokens: {wanted} after a prompt of {longest_prompt} tokens exceed the model's context of "
            f"{asked.context}; lower it or --model_max_length"
        )
    return room
