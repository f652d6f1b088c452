"""A policy's responses to the questions of a task, with their log-probs under policy and reference.

The processes of a run divide the questions. Since the noise depends on the prompt, the responses do not depend on the
number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from harness.backbones.language_model.policy import LanguageModel
from harness.backbones.language_model.sampler import Sampler
from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.tokens import TokenQuestions, Tokens
from harness.core.records import Sample
from harness.training.base import Progress


def draw_responses(
    policies: Sequence[LanguageModel],
    asked: TokenQuestions,
    baselines: Mapping[str, str],
    sampler: Sampler,
    source: Callable[[list[Tokens]], BatchSource],
    accelerator: Accelerator,
    progress: Progress,
) -> list[Sample]:
    """Return a sample for each question, in their order, in every process.

    The first of `policies` is sampled; the last is the reference. `baselines` maps questions to the responses to judge
    against; without one, the baseline is the response itself. `source` makes batches of token sequences.
    """
    mine = range(accelerator.process_index, len(asked), accelerator.num_processes)
    questions = [asked.questions[i] for i in mine]
    prompts = [asked.ids[i] for i in mine]
    samples = sampler(policies[0], prompts, [q.id for q in questions], progress)
    scored = source([Tokens(ids, s.ids) for ids, s in zip(prompts, samples, strict=True)]).score(policies)
    logps, reference_logps = (logps.sums(range(len(samples))).tolist() for logps in (scored[0], scored[-1]))
    responses = [sampler.renderer.decode(s.ids) for s in samples]
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
