"""Tasks: preference data for training, prompts for sampling, and the baselines that samples are judged against."""

from harness.core.prompt import Message, Prompt
from harness.tasks import (  # noqa: F401  (importing a task's module registers it)
    alpaca_eval,
    hh,
    pandalm,
    preferences,
    sentiment,
    tldr,
)
from harness.tasks.base import TASKS, Preference, Question, Scored, Task, TaskData, register_task

__all__ = ["TASKS", "Message", "Preference", "Prompt", "Question", "Scored", "Task", "TaskData", "register_task"]
