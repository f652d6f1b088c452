"""A policy's responses to a task's test prompts, with their log-probs under policy and reference.

All processes of a run draw together, each its share. As noise belongs to the prompt, the responses are those that one
process would draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from harness.backbones.language_model.policy import Policy
from harness.backbones.language_model.sampling import sample
from harness.backbones.language_model.scoring import BatchSource, Progress, score
from harness.backbones.language_model.tokens import PreparedTask, Tokens
from harness.backbones.language_model.vllm import sample_with_vllm
from harness.core.config import SampleConfig
from harness.core.records import Sample
from harness.core.render import Renderer

ENGINES = {"hf": sample, "vllm": sample_with_vllm}


def draw_responses(
    policies: Sequence[Policy],
    prepared: PreparedTask,
    baselines: Mapping[str, str],
    decoding: SampleConfig,
    seed: int,
    renderer: Renderer,
    source: Callable[[list[Tokens]], BatchSource],
    accelerator: Accelerator,
    progress: Progress,
) -> list[Sample]:
    """Return a sample for each test prompt, in their order, in every process.

    Of `policies` the first one is sampled; the last one is the reference. `baselines` are what responses will be
    judged against, by question; where there is none it is the response itself. `source` makes batches of token sequences.
    """
    mine = range(accelerator.process_index, len(prepared.questions), accelerator.num_processes)
    questions = [prepared.questions[i] for i in mine]
    prompts = [prepared.question_ids[i] for i in mine]
    with policies[0].autocast():
        samples = ENGINES[decoding.engine](
            policies[0].model,
            prompts,
            [q.id for q in questions],
            decoding=decoding,
            seed=seed,
            stop_tokens=renderer.stop_tokens,
            pad_token=renderer.pad_token,
            progress=progress,
        )
    scored = score(policies, source([Tokens(ids, s.ids) for ids, s in zip(prompts, samples, strict=True)]))
    logps, reference_logps = (logps.sums(range(len(samples))).tolist() for logps in (scored[0], scored[-1]))
    responses = [renderer.decode(s.ids) for s in samples]
    rows = [
        Sample(
            id=q.id,
            prompt=q.prompt,
            response=response,
            ids=tuple(s.ids),
            baseline=baselines.get(q.id, response),
            tokens=len(s.ids),
            finished=s.finished,
            logp=logp,
            reference_logp=reference_logp,
        )
        for q, s, response, logp, reference_logp in zip(
            questions, samples, responses, logps, reference_logps, strict=True
        )
    ]
    if accelerator.num_processes == 1:
        return rows
    return [row for _, row in sorted(gather_object(list(zip(mine, rows, strict=True))), key=lambda pair: pair[0])]
