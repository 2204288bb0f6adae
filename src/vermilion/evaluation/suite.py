"""All tasks by name."""

from __future__ import annotations

from vermilion.errors import BadParameter
from vermilion.evaluation import code_tasks, exact_tasks, gap_tasks, model_tasks, writing_tasks
from vermilion.evaluation.task import EvalTask

TASKS: dict[str, EvalTask] = {
    task.name: task
    for module in (model_tasks, writing_tasks, code_tasks, gap_tasks, exact_tasks)
    for task in module.TASKS
}


def chosen(names: str) -> list[EvalTask]:
    """The tasks that `names` lists, separated by commas; `all` for every one. Raises BadParameter."""
    if names == "all":
        return list(TASKS.values())
    listed = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in listed if name not in TASKS]
    if unknown or not listed:
        raise BadParameter("--tasks", ", ".join(unknown) or names, f"{', '.join(TASKS)}, all")
    return [TASKS[name] for name in dict.fromkeys(listed)]
