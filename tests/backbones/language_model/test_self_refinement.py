"""The evaluator's prompt of self-refinement."""

import pytest

from harness.backbones.language_model.policy import load_tokenizer
from harness.backbones.language_model.self_refinement import PREFIX, augmented_prompt
from harness.core.config import ModelConfig, TaskConfig
from harness.core.render import Renderer
from harness.tasks import TASKS, Message

DIALOGUE = (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Why is it so?"))


@pytest.mark.parametrize("task", ["hh", "tldr"])
def test_the_last_turn_begins_with_the_evaluator_s_sentence(tiny_model, task):
    renderer = Renderer(load_tokenizer(tiny_model, ModelConfig()))
    plain = len(renderer.prompt(DIALOGUE, limit=500, keep="end", suffix=TASKS.get(task).prompt_suffix).ids)
    config = TaskConfig(max_prompt_tokens=plain)  # as much room as the prompt takes without it
    text = renderer.tokenizer.decode(augmented_prompt(DIALOGUE, TASKS.get(task), config, renderer))
    assert f"<|im_start|>user\n{PREFIX} Why is it so?{TASKS.get(task).prompt_suffix}<|im_end|>" in text
    assert "Hello." in text and text.endswith("<|im_start|>assistant\n")
