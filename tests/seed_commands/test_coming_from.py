"""docs/coming-from.md says what the dialects say."""

import re
import shlex

import record
from coming_from import PAGE, SYSTEMS, columns_of, filled
from test_seed_002 import CUDA, HABANA
from trials import CHAINS

from rlhf_hw.arguments.dialects.recognise import DIALECTS
from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.arguments.sft import parse_sft

DOORS = {"finetune_clm.py": parse_sft, "reward_modeling.py": parse_reward, "rl_training.py": parse_ppo}


def test_the_tables_are_those_of_the_dialects() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == filled(page), "stale: python tests/seed_commands/coming_from.py writes the tables anew"
    places = set(re.findall(r"<!-- flags: (\S+) (\S+) -->", page))
    assert places == {(name, command) for name, dialect in DIALECTS.items() for command in dialect.flags}


def test_the_record_has_every_command_that_is_held_and_no_other() -> None:
    held = {command.name: columns_of(command) for commands in SYSTEMS.values() for command in commands}
    assert {name: list(columns) for name, columns in record.read().items()} == held


def test_every_command_that_is_held_is_run() -> None:
    """test_ran.py runs the chains, test_seed_002.py the pipelines; each holds its runs against the record."""
    held = {command.name for commands in SYSTEMS.values() for command in commands}
    in_chains = {trial.command.name for chain in CHAINS.values() for trial in chain}
    assert in_chains | set(CUDA) | set(HABANA) == held


def test_every_command_of_the_page_is_read_as_it_says() -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^<!-- read as: (\S+) -->\n```bash\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    assert len(found) == page.count("<!-- read as: ") == page.count("```bash") == 4
    for dialect, commands in found:
        for command in commands.replace("\\\n", " ").strip().splitlines():
            words = shlex.split(command)
            door = next(i for i, word in enumerate(words) if word in DOORS)
            run = DOORS[words[door]](words[door + 1 :])
            assert run.opening[0].startswith(f"dialect: {dialect},"), command
