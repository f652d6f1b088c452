"""Loss and gradient of an effective batch do not depend on how it is cut."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from harness.backbones.language_model.policy import load_policy
from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.tokens import Tokens
from harness.core.config import ModelConfig
from harness.training.objective import StartError, preference_metrics
from losses import History, Lists, PreferenceBatch, Side, get_loss, list_losses
from tests.training.conftest import augmented

LOSSES = [*list_losses(), "dpo+wpo"]  # at collection, nothing else is registered yet


def gradient(objective, batch):
    objective.training.policy.zero_grad()
    metrics = objective.backward(batch)
    return metrics, torch.cat([p.grad.flatten() for p in objective.training.policy.trained().values()])


def naive(bench, loss: str, batch):
    """Return loss and gradient from full logits, one sequence at a time, with autograd through the whole batch."""
    policy, reference = bench.policy, bench.reference
    (second,) = BatchSource(bench.sequences, pad_token=2, budget=10**6).score([bench.second])
    policy.zero_grad()
    policy.train()

    def logp(index):
        return logp_of(bench.sequences[index])

    def with_tokens(side, rows):
        """Return the side with each token's log-probs and value, for losses that need them."""
        width = max(len(bench.sequences[i].completion) for i in batch.rows)
        policies, values, mask = (torch.zeros(len(rows), width, dtype=torch.float64) for _ in range(3))
        under_reference = policies.clone()
        for k, i in enumerate(rows):
            tokens = bench.sequences[i]
            start, count = len(tokens.prompt) - 1, len(tokens.completion)
            ids = torch.tensor([tokens.prompt + tokens.completion])
            output = policy.model(input_ids=ids, output_hidden_states=True)
            own = output.logits[0, start:-1].double().log_softmax(-1)
            policies[k, :count] = own[torch.arange(count), torch.tensor(tokens.completion)]
            values[k, :count] = policy.value_head(output.hidden_states[-1][0, start:-1].detach()).squeeze(1).double()
            under_reference[k, :count] = torch.from_numpy(reference.values[reference.offsets[i] :][:count])
            mask[k, :count] = 1
        return side.with_tokens(policies, values, mask.bool(), under_reference)

    @torch.no_grad()
    def confidences(rows):
        means = []
        for tokens in (bench.sequences[i] for i in rows):
            logits = policy.model(input_ids=torch.tensor([tokens.prompt + tokens.completion])).logits[0, :-1].double()
            p = logits[len(tokens.prompt) - 1 :].softmax(-1)
            own = p.gather(1, torch.tensor(tokens.completion)[:, None]).squeeze(1)
            means.append((own.log() - (p**2).sum(-1).log()).mean())
        return torch.stack(means)

    @torch.no_grad()
    def augmented_logps(rows, examples):
        prompts = [augmented(bench.examples[i].prompt) for i in examples]
        pairs = zip(prompts, rows, strict=True)
        return torch.stack([logp_of(Tokens(prompt, bench.sequences[row].completion)) for prompt, row in pairs])

    def logp_of(tokens):
        logits = policy.model(input_ids=torch.tensor([tokens.prompt + tokens.completion])).logits[0, :-1].double()
        ids = torch.tensor(tokens.completion)
        return logits[len(tokens.prompt) - 1 :].log_softmax(-1).gather(1, ids[:, None]).sum()

    view = PreferenceBatch.from_logps(
        torch.stack([logp(i) for i in batch.chosen]),
        torch.stack([logp(i) for i in batch.rejected]),
        reference.sums(batch.chosen).double(),
        reference.sums(batch.rejected).double(),
        chosen_tokens=torch.tensor([len(bench.sequences[i].completion) for i in batch.chosen]),
        rejected_tokens=torch.tensor([len(bench.sequences[i].completion) for i in batch.rejected]),
        chosen_prompt_embeddings=torch.from_numpy(bench.embeddings[batch.chosen_examples]).double(),
        rejected_prompt_embeddings=torch.from_numpy(bench.embeddings[batch.rejected_examples]).double(),
        chosen_scores=torch.tensor([bench.examples[i].scores[0] for i in batch.chosen_examples]).double(),
        rejected_scores=torch.tensor([bench.examples[i].scores[1] for i in batch.rejected_examples]).double(),
        chosen_density_ratios=torch.from_numpy(bench.density_ratios[batch.chosen_examples]).double(),
        rejected_density_ratios=torch.from_numpy(bench.density_ratios[batch.rejected_examples]).double(),
        chosen_second_reference=second.sums(batch.chosen).double(),
        rejected_second_reference=second.sums(batch.rejected).double(),
        chosen_confidence=confidences(batch.chosen),
        rejected_confidence=confidences(batch.rejected),
        chosen_augmented=augmented_logps(batch.chosen, batch.chosen_examples),
        rejected_augmented=augmented_logps(batch.rejected, batch.rejected_examples),
        others=others(bench, batch, logp, reference),
        kl_pairs=kl_pairs(bench, batch, logp_of),
        history=History(),
    )
    if "token_values" in get_loss(loss).needs:
        view = view.changed(lambda sides: map(with_tokens, sides, (batch.chosen, batch.rejected)))
    value = get_loss(loss)(view.with_stopped()).mean()
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in policy.trained().values()])


def kl_pairs(bench, batch, logp_of):
    """Return the log-probs of the mismatched pairs. The policy scores each one separately."""
    sequences = [Tokens(bench.sequences[i].prompt, bench.sequences[j].completion) for i, j in batch.mismatched()]
    with torch.no_grad():
        policy = torch.stack([logp_of(tokens) for tokens in sequences])
    return Side(
        policy,
        bench.under_start(BatchSource(sequences, pad_token=2, budget=10**6)).sums(range(len(sequences))).double(),
    )


def others(bench, batch, logp, under_reference):
    """Return the further responses of a listwise batch, filled in one by one."""
    if not any(batch.others):
        return None
    shape = len(batch.others), max(map(len, batch.others))
    policy, reference, scores = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    mask = torch.zeros(shape, dtype=torch.bool)
    for i, (example, indices) in enumerate(zip(batch.chosen_examples, batch.others, strict=True)):
        for k, index in enumerate(indices):
            policy[i, k] = logp(index)
            reference[i, k] = under_reference.sums([index])
            scores[i, k] = bench.examples[example].scores[2 + k]
            mask[i, k] = True
    return Lists(policy, reference, scores, mask)


def relative_difference(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_equal_those_of_the_naive_path(bench, loss):
    batch = bench.batch(loss)
    metrics, ours = gradient(bench.objective(loss), batch)
    value, expected = naive(bench, loss, batch)
    assert metrics["loss"] == pytest.approx(value, rel=1e-5)
    assert relative_difference(ours, expected) < 1e-4


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_do_not_depend_on_the_micro_batches(bench, loss, at_start):
    """At the start the policy is its reference, and log-ratios are what rounding makes of 0."""
    if at_start:
        bench.policy = deepcopy(bench.start)
    batch = bench.batch(loss)
    whole, expected = gradient(bench.objective(loss), batch)
    for budget in (1, 60, 150):
        cut, ours = gradient(bench.objective(loss, budget=budget), batch)
        assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-5), budget
        assert relative_difference(ours, expected) < 1e-5, budget
        for name, value in whole.items():
            assert cut[name] == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-5)), (budget, name)


def test_only_a_coupled_loss_beyond_the_token_budget_runs_passes_twice(bench):
    """At a budget of 60 some passes run twice, and the last ones, which fit into memory together, do not."""
    for loss, budget, passes in (("dpo", 60, {16}), ("rpo_paired", 10**6, {16}), ("rpo_paired", 60, range(18, 31))):
        objective = bench.objective(loss, budget=budget)
        objective.backward(bench.batch(loss))
        assert objective.sequences_forwarded in passes, (loss, budget)


@pytest.mark.parametrize("loss", ["dpo+wpo", "sr_dpo", "kto", "hpo", "lipo"])
def test_a_loss_that_is_trained_as_a_whole_has_the_gradient_of_its_parts(bench, loss):
    """Whatever it needs: values of each step, of tokens, of other prompts, of lists."""
    batch = bench.batch(loss)
    parts, expected = gradient(bench.objective(loss, budget=60), batch)
    objective = bench.objective(loss, budget=60)
    objective.loss = replace(objective.loss, couples_examples=True)
    whole, ours = gradient(objective, batch)
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-5)
    assert relative_difference(ours, expected) < 1e-5


def test_dropout_falls_alike_in_both_passes_of_a_coupled_loss(bench, tiny_model):
    """With LoRA dropout the loss at the log-probs of pass one has, in pass two, the gradient of that same loss."""
    torch.manual_seed(0)
    config = ModelConfig(tune="lora")
    config.lora.dropout = 0.5
    bench.policy = load_policy(tiny_model, config)
    for parameter in bench.policy.trained().values():
        torch.nn.init.normal_(parameter, std=0.1)
    objective, batch = bench.objective("rpo_uniform", budget=60), bench.batch("rpo_uniform")
    passes = objective._passes(batch)
    seen = []
    forward = objective._forward
    objective._forward = lambda *a: seen.append(forward(*a)) or seen[-1]
    torch.manual_seed(3)
    objective.backward(batch)
    first, second = seen[: len(passes)], seen[len(passes) :]
    assert second
    for a, b in zip(first, second, strict=False):
        torch.testing.assert_close(a, b)


def test_metrics_are_in_nats_and_over_true_pairs(bench):
    batch = bench.batch("dpo")
    metrics, _ = gradient(bench.objective("dpo"), batch)
    assert metrics["margin"] == pytest.approx(metrics["chosen_logratio"] - metrics["rejected_logratio"], abs=1e-5)
    assert 0 <= metrics["accuracy"] <= 1
    unpaired, _ = gradient(bench.objective("rpo_unpaired"), bench.batch("rpo_unpaired"))
    assert unpaired["margin"] is None and unpaired["accuracy"] is None


@pytest.mark.parametrize("loss", LOSSES)
def test_a_policy_that_is_its_reference_passes_the_check_of_step_0(bench, loss):
    bench.policy = deepcopy(bench.start)
    bench.objective(loss, budget=60).check_start(bench.batch(loss))


@pytest.mark.parametrize("budget", [1, 60, 150, 10**6])
def test_an_accuracy_of_ties_is_a_half_however_the_batch_is_cut(bench, budget):
    """Margins are about 1e-6 nats of rounding, of either sign."""
    bench.policy = deepcopy(bench.start)
    batch = bench.batch("dpo")
    metrics = bench.objective("dpo", budget=budget).backward(batch)
    assert metrics["accuracy"] == 0.5 and 0 < abs(metrics["margin"]) < 1e-4
    assert bench.objective("dpo", budget=budget).evaluate([batch], batch, paired=True)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("margins", "layers", "accuracy"),
    [
        ([1e-4, 0.5, -1e-4, -0.5], torch.float32, 0.5),
        ([1e-4, 0.5, 1e-4, -0.5], torch.float32, 0.75),
        ([1e-6, 0.5, -1e-6, 0.0], torch.float32, 0.625),
        ([0.05, 3.0, 0.05, 0.05], torch.bfloat16, 0.625),
    ],
)
def test_a_margin_within_rounding_counts_as_half_right(margins, layers, accuracy):
    """Log-probs of about -5: fp32 layers tell margins apart from 7e-5 nats on, bfloat16 ones from 0.2 nats on."""
    reference = torch.full((4,), -5.0)
    view = PreferenceBatch.from_logps(reference + torch.tensor(margins), *[reference] * 3, layers=layers)
    assert preference_metrics(view, paired=True)["accuracy"].item() == accuracy


def test_another_policy_than_the_reference_fails_the_check_of_step_0(bench):
    with pytest.raises(StartError, match="the policy is not its reference: a log-ratio is"):
        bench.objective("dpo").check_start(bench.batch("dpo"))


def test_a_wrong_start_value_fails_the_check_of_step_0(bench):
    bench.policy = deepcopy(bench.start)
    objective = bench.objective("dpo")
    objective.loss = replace(objective.loss, start_value=lambda beta: 1.0)
    with pytest.raises(StartError, match=r"at step 0 the loss is 0\.693147; dpo declares a start value of 1"):
        objective.check_start(bench.batch("dpo"))


@pytest.mark.parametrize("loss", ["ppo_offline", "hpo", "rpo_paired"])
@pytest.mark.parametrize("budget", [60, 10**6])
def test_a_loss_on_dev_is_what_it_is_in_training(bench, loss, budget):
    batch = bench.batch(loss)
    objective = bench.objective(loss, budget=budget)
    assert objective.evaluate([batch], batch, paired=True)["loss"] == pytest.approx(
        objective.backward(batch)["loss"], rel=1e-5
    )


def test_kl_on_dev_is_zero_for_the_reference_and_positive_for_another(bench, tiny_model):
    batch = bench.batch("dpo")
    assert bench.objective("dpo").evaluate([batch], batch, paired=True)["kl"] > 0
    bench.policy = load_policy(tiny_model, ModelConfig(tune="full"))
    metrics = bench.objective("dpo").evaluate([batch], batch, paired=True)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["loss"] == pytest.approx(0.693147, abs=1e-5)
