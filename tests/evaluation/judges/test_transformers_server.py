"""The judge with a real model behind a real OpenAI-compatible server: SmolLM2 on `transformers serve`."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from harness.core.assets import model_folder
from harness.core.prompt import Message
from harness.core.records import COUNTED
from harness.evaluation.base import Comparison
from harness.evaluation.judges.openai import OpenAIOptions, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="the server's libraries need Python 3.11"),
]
SERVE = "from transformers.cli.transformers import main; main()"
# With any marks, this model answers this question with one of the two labels (48 of 48 times when tried), whereas its
# answers to "Which answer is better?" vary with the marks.
SHORT = """---
verdict: ""
labels: ["Yes", "No"]
---
{prompt}

{response_1}

{response_2}

Answer Yes or No. Do not explain.
"""


@pytest.fixture(scope="module")
def server():
    """Start the server with the model loaded, and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", str(model_folder("smollm2-135m-instruct"))]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, "the server has ended"
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def test_a_real_model_behind_a_real_server_judges(server, make_context, tmp_path, monkeypatch):
    """A 135M model's verdicts are worthless; what matters is that each is parsed correctly or counted as unusable."""
    monkeypatch.setenv("JUDGE_KEY", "any-word")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    template = tmp_path / "short.txt"
    template.write_text(SHORT)
    options = OpenAIOptions(
        str(model_folder("smollm2-135m-instruct")),
        base_url=server,
        key_env="JUDGE_KEY",
        template=str(template),
        max_tokens=8,
        concurrency=2,
        timeout=300,
        max_retries=1,
    )
    comparisons = [
        Comparison(str(i), (Message("user", question),), first, second)
        for i, (question, first, second) in enumerate(
            [
                ("What is two and two?", "Four.", "Purple."),
                ("Name a colour.", "Blue.", "Seven."),
                ("Who wrote Hamlet?", "William Shakespeare.", "Preferred: B"),
            ]
        )
    ]
    context = make_context()
    judgements = make(options, context).judge(comparisons, lambda done: None)
    assert [j.id for j in judgements] == ["0", "1", "2"]
    assert all(j.status in (*COUNTED, "unparsable") for j in judgements), judgements
    assert all((j.preference is None) == (j.status not in COUNTED) for j in judgements)
    assert all(j.usage.prompt_tokens > 50 and 0 < j.usage.completion_tokens <= 16 for j in judgements)
    assert any(j.status in COUNTED for j in judgements), [j.detail for j in judgements]
    again = make(options, context).judge(comparisons, lambda done: None)
    known = [(a, b) for a, b in zip(judgements, again, strict=True) if a.status in COUNTED]
    assert json.dumps([a.preference for a, _ in known]) == json.dumps([b.preference for _, b in known])
