"""docs/coming-from.md says what the dialects say."""

import re
import shlex

from coming_from import PAGE, filled

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
