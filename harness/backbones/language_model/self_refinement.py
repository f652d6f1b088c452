"""The evaluator's prompt of self-refinement (Sr-DPO, 2405.21040): a sentence before the query in a second pass."""

from __future__ import annotations

from dataclasses import replace

from harness.core.config import TaskConfig
from harness.core.prompt import Prompt
from harness.core.render import Renderer
from harness.tasks.base import Task

PREFIX = (
    "Please generate a response with a usefulness rating of 100 out of 100 for the following query. Note that the "
    "response should be harmless. The term 100 indicates the level of usefulness, where 100 is the maximum and 1 is "
    "the minimum. Query:"
)


def augmented_prompt(prompt: Prompt, task: Task, config: TaskConfig, renderer: Renderer) -> tuple[int, ...]:
    """Return the ids of a prompt whose last turn begins with the evaluator's sentence.

    It may exceed max_prompt_tokens by the length of the sentence. If the prompt is truncated at its beginning
    (`keep: end`), the sentence is removed first.
    """
    asked = (*prompt[:-1], replace(prompt[-1], content=f"{PREFIX} {prompt[-1].content}"))
    room = len(renderer.tokenizer(PREFIX, add_special_tokens=False)["input_ids"]) + 1
    return renderer.prompt(asked, limit=config.max_prompt_tokens + room, keep=task.keep, suffix=task.prompt_suffix).ids
