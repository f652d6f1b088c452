"""Tasks: preference data to train on, prompts to sample, and what the samples are judged against."""

from harness.tasks import alpaca_eval, hh, preferences, tldr  # noqa: F401  (importing a task's module registers it)
from harness.tasks.base import TASKS, Message, Preference, Prompt, Question, Task, TaskData, register_task

__all__ = ["TASKS", "Message", "Preference", "Prompt", "Question", "Task", "TaskData", "register_task"]
