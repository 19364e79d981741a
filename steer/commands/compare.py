"""Compare methods at equal budgets, side by side.

    steer compare prompt="a fox"                             into outputs/compare: compare.html shows all of it
    steer compare prompt="[a fox,a red heart]" methods=[smc,tds,beam] budgets=[32,128] out=figures
    steer compare prompt="a house" reward=my_file.py:score methods=[best_of_n,smc,beam] budget=256
    steer compare model=runs/tuned reward=redness n=8 seed=1

Methods that need a gradient, where the reward has none, and those whose steps the budget does not pay for are left out;
the table says so. Best by reward and by judge: of the pictures of highest reward.
"""

import dataclasses

from steer.commands.sample import command_again, model_of
from steer.composing import compose, plain, quote_prompt, reward_of, take_free
from steer.printing import print_table

CONFIG = "compare"


def run(overrides: list[str]) -> None:
    """Everything that can be wrong with the input is found before any sampling."""
    from steer.samples import check_folder

    left, free = take_free(quote_prompt(overrides))
    config = compose(CONFIG, left)
    given = plain(config, "reward", "model", "out")
    folder, reward = check_folder(config.out), reward_of(config, free)

    from steer import compare
    from steer.compare_page import shown

    found = compare(reward=reward, model=model_of(config, free, given.pop("pipeline")), **given)
    dataclasses.replace(found, command=command_again("compare", overrides, config.seed)).save(folder)
    print_table(", ".join(found.prompts), [shown(row) for row in found.rows], long="fold")
    print(f"wrote {folder}: compare.html, compare.json, compare.csv")
