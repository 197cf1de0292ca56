"""RLHF from Python: an engine of two models, and a trainer for a loop of one's own.

    from rlhf_hw import PPOTrainer, RLHFEngine

    engine = RLHFEngine("runs/sft", "runs/reward", num_total_iters=100, batch_size=16, mini_batch_size=4)
    trainer = PPOTrainer(engine)
    for prompts in batches_of_prompts:
        experience = trainer.generate_experience(prompts)
        policy_loss, value_loss = trainer.train_rlhf(experience)
    trainer.save("runs/ppo")

Everything below is what `rlhf-hw ppo` itself runs on; its flags are the settings here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rlhf_hw.arguments.config_file import words
from rlhf_hw.arguments.ppo import ppo_parser, read_ppo
from rlhf_hw.cli.ppo import Preparation, make_trainer, unsupervised_text
from rlhf_hw.data.prompts import Prompt, prompt_rows
from rlhf_hw.errors import UserError
from rlhf_hw.trainers.by_hand import UpdatesByHand
from rlhf_hw.trainers.experience import Experience


class RLHFEngine:
    """Policy, value function, reference and reward model, loaded and on their device.

    Args:
        model_name: the policy: directory or hub name, of a whole model or an adapter.
        reward_model_name: what scores answers; None with `reward_function="module:function"`.
        num_total_iters: how many experiences will be learnt from; the learning-rate schedule runs over them.
        settings: any flag of `rlhf-hw ppo` by its name, without dashes (`device`, `peft`, `learning_rate`, ...).

    Raises:
        UserError: a setting is unknown or contradicts another, a model cannot be loaded.
    """

    def __init__(
        self,
        model_name: str | Path,
        reward_model_name: str | Path | None = None,
        *,
        num_total_iters: int,
        **settings: Any,
    ) -> None:
        given = {"model_name": str(model_name), **settings}
        if reward_model_name is not None:
            given["reward_model_name"] = str(reward_model_name)
        argv = [word for name, value in given.items() if value is not None for word in words(name, value)]
        parser = ppo_parser()
        parser.error = _raise  # type: ignore[method-assign]
        run = read_ppo(parser, argv)
        ready = Preparation.of(run, argv)
        run.stage.steps = num_total_iters * run.stage.answers_per_update * ready.session.args.world_size
        ready.count_updates()
        ready.session.backend.seed_everything(ready.session.args.seed)
        self.max_prompt_length = run.data.max_prompt_length
        self.tokenizer = ready.tokenizer
        #: the `PPOMixin` trainer, with its arguments, accelerator and models
        text = unsupervised_text(ready.session, run, ready.tokenizer)
        self.trainer = make_trainer(ready, lengths=[self.max_prompt_length], unsupervised=text)

    @property
    def actor(self) -> Any:
        """The policy."""
        return self.trainer.model.policy

    @property
    def critic(self) -> Any:
        """The value model, or the value head on the policy's trunk."""
        model = self.trainer.model
        return model.value_head if model.critic is None else model.critic


class PPOTrainer:
    """Turns prompts into experience, and learns from it."""

    def __init__(self, engine: RLHFEngine) -> None:
        self.engine = engine
        self._updates = UpdatesByHand(engine.trainer)
        #: prompt, response, score and KL of each answer of the last experience
        self.samples: list[dict[str, Any]] = []

    @property
    def metrics(self) -> dict[str, float]:
        """What `rlhf-hw ppo` logs (docs/ppo.md), of the last update."""
        return self._updates.metrics

    def generate_experience(self, prompts: Sequence[Prompt]) -> Experience:
        """Answers to `prompts` (`batch_size` texts or conversations a process) with scores, values and advantages.

        Raises:
            UserError: a prompt is empty or too long.
            ValueError: there are more or fewer prompts than an update answers.
        """
        rows = prompt_rows(prompts, self.engine.tokenizer, self.engine.max_prompt_length)
        experience, self.samples = self._updates.experience(rows)
        return experience

    def train_rlhf(self, experience: Experience) -> tuple[float, float]:
        """`ppo_epochs` passes over `experience`; (policy loss, value loss) a token, means of this update."""
        return self._updates.learn(experience)

    def save(self, directory: str | Path) -> None:
        """Write the policy, its tokenizer and the value function as `rlhf-hw ppo` does."""
        self.engine.trainer.save_model(str(directory))


def _raise(message: str) -> NoReturn:
    raise UserError(message)
