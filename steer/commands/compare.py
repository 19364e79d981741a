"""Compare methods at equal budgets, side by side.

    steer compare prompt="a fox"                             into outputs/compare: compare.html shows all of it
    steer compare prompt="[a fox,a red heart]" methods=[smc,tds,beam] budgets=[32,128] out=figures
    steer compare prompt="a house" reward=my_file.py:score methods=[best_of_n,smc,beam] budget=256
    steer compare model=runs/tuned reward=redness n=8 seed=1

Methods that need a gradient, where the reward has none, and those whose steps the budget does not pay for are left out;
the lines below the table say so, and what its columns mean; compare.html and compare.csv have more of them.
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
    from steer.compare_page import legend, printed

    found = compare(reward=reward, model=model_of(config, free, given.pop("pipeline")), **given)
    dataclasses.replace(found, command=command_again("compare", overrides, config.seed)).save(folder)
    budgets = " or ".join(dict.fromkeys(str(row["budget"]) for row in found.rows))
    if rows := printed(found):
        print_table(f"{', '.join(found.prompts)}: at most {budgets} calls a prompt", rows)
    print("\n".join(legend(found)))
    print(f"wrote {folder}: compare.html, compare.json, compare.csv")
