"""`train.py` and `rlhf-hw train`: the three steps in one command, or (`--demo`) the embedded example."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launchers.start import start
from rlhf_hw.cli.entry import command
from rlhf_hw.errors import UserError
from rlhf_hw.pipeline.settings import STEPS, PipelineSettings, model_name, parse_pipeline, short_name
from rlhf_hw.pipeline.state import Record, is_complete, way_on
from rlhf_hw.pipeline.steps import Step, folder_of, launch_request, step_of, with_fitting_critic
from rlhf_hw.pipeline.table import duration, results, tables
from rlhf_hw.run_files import as_json, write_atomically

RESULTS = "results"


@command("train")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps that are not complete, in order, then show the tables."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--demo" in words:
        from rlhf_hw.cli import demo

        words.remove("--demo")
        return demo.main(words)
    settings = parse_pipeline(words)
    numbers = sorted(set(settings.options.step))
    steps = [step_of(settings, number) for number in numbers]
    check(settings, steps)
    if settings.options.dry_run:
        for step in steps:
            print(f"# {step.title}", flush=True)
            start(launch_request(settings, step), dry_run=True)
        return 0
    record = Record.read(settings.options.output_dir)
    trained: set[int] = set()
    for step in steps:
        anew = step.number in settings.options.redo or (step.number == 3 and bool(trained & {1, 2}))
        if is_complete(step.folder) and not anew:
            say_skipped(step, record)
            continue
        status = run(settings, step, record, anew=anew)
        if status != 0:
            say(
                f"{step.title} failed with status {status}; mend it and run the same command again: it goes on from there"
            )
            return status
        trained.add(step.number)
    show(settings, record)
    return 0


def check(settings: PipelineSettings, steps: list[Step]) -> None:
    """Parse every step's flags before the first runs for hours, and see that what a step builds on will be there.

    Bad flags end the process with the step's own line, status 2.

    Raises:
        UserError: step 3 is asked for without the models of steps 1 and 2.
    """
    from rlhf_hw.arguments.ppo import parse_ppo
    from rlhf_hw.arguments.reward import parse_reward
    from rlhf_hw.arguments.sft import parse_sft
    from rlhf_hw.models.load import check_model_path

    numbers = {step.number for step in steps}
    for step in steps:
        {1: parse_sft, 2: parse_reward, 3: parse_ppo}[step.number](step.words)
    for number, flag in ((1, "actor_model"), (2, "reward_model")):
        if number in numbers:
            check_model_path(model_name(getattr(settings.options, flag)), f"--{flag.replace('_', '-')}")
        elif 3 in numbers and not settings.options.dry_run and not is_complete(folder_of(settings, number)):
            raise UserError(
                f"--step: step 3 needs the model of step {number}, and {folder_of(settings, number)} holds none that is "
                f"complete; add {number} to --step"
            )


def run(settings: PipelineSettings, step: Step, record: Record, *, anew: bool) -> int:
    """Run one step to its end; its exit status."""
    asked, step = step, with_fitting_critic(settings, step)
    if step is not asked:
        say("the reward model has another tokenizer than the policy, so the critic starts from the policy")
    more = way_on(step.folder, anew=anew)
    how = {"--resume_from_checkpoint": ", resumed", "--overwrite_output_dir": ", started afresh"}
    say(f"{step.title} into {step.folder}" + "".join(how[word] for word in more))
    with record.timing(asked, anew=more != ["--resume_from_checkpoint"]):
        status = start(launch_request(settings, step, more), dry_run=False)
    if status == 0 and not is_complete(step.folder):
        say(f"{step.folder} is not complete although the step ended well; see its status.json")
        return 1
    return status


def say_skipped(step: Step, record: Record) -> None:
    """Why a step does not run."""
    how = "" if record.same_words(step) else ", with other settings than now"
    say(f"{step.title} is complete in {step.folder}{how}: skipped (--redo {step.number} runs it again)")


def show(settings: PipelineSettings, record: Record) -> None:
    """Print both tables and keep them in the output directory, as results.md and results.json."""
    options = settings.options
    folders = {number: folder_of(settings, number) for number in STEPS}
    found = results(folders)
    seconds = {number: record.seconds(number) for number in STEPS}
    text = tables(short_name(options.actor_model), seconds, found, options.price_per_hour)
    print(f"\n{text}", flush=True)
    directory = Path(options.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / f"{RESULTS}.md", text + "\n")
    total = sum(time for time in seconds.values() if time is not None)
    content = {
        **found,
        "seconds": {f"step_{number}": time for number, time in seconds.items()},
        "cost": None if options.price_per_hour is None else total / 3600 * options.price_per_hour,
    }
    write_atomically(directory / f"{RESULTS}.json", as_json(content))
    say(
        f"{duration(total)} in all; the model is in {folders[3] if 3 in options.step else folders[max(options.step)]}"
    )


def say(line: str) -> None:
    """A line about the pipeline, apart from what its steps say."""
    print(f"train | {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
