"""The figures that are claimed, each made by a command: `steer bench NAME`, or `all`.

A benchmark is a module with `run(fast)`, its tables by title, or, where that takes hours, with `parts(fast, folder)`,
what makes each table: a part that is done is kept, and the same command goes on with the next. `plot(tables)`, where
there is one, draws them.
"""

TABLES = ("exact", "embedded", "values", "compositional", "overhead", "training", "finetune", "models", "scale")
