"""The batch is the batch: loss and gradient of an effective batch do not depend on how it is cut."""

import pytest
import torch

from harness.config import ModelConfig
from harness.training.batches import effective_batches
from harness.training.objective import StartError
from harness.training.policy import load_policy
from losses import PreferenceBatch, get_loss, list_losses

TRAINABLE = [name for name in list_losses() if "scores" not in get_loss(name).needs]


def batch_for(bench, loss: str):
    (batch,) = effective_batches(bench.examples, batch_size=8, data=get_loss(loss).data, seed=0, epoch=0)
    return batch


def gradient(objective, batch):
    objective.policy.zero_grad()
    metrics = objective.backward(batch)
    return metrics, torch.cat([p.grad.flatten() for p in objective.policy.trained().values()])


def naive(bench, loss: str, batch):
    """The same from the model's full logits, one sequence at a time, and autograd through the whole batch."""
    policy = bench.policy
    policy.zero_grad()
    policy.train()

    def logp(index):
        tokens = bench.sequences[index]
        logits = policy.model(input_ids=torch.tensor([tokens.prompt + tokens.completion])).logits[0, :-1].double()
        ids = torch.tensor(tokens.completion)
        return logits[len(tokens.prompt) - 1 :].log_softmax(-1).gather(1, ids[:, None]).sum()

    view = PreferenceBatch.from_logps(
        torch.stack([logp(i) for i in batch.chosen]),
        torch.stack([logp(i) for i in batch.rejected]),
        bench.reference.sums(batch.chosen).double(),
        bench.reference.sums(batch.rejected).double(),
        chosen_tokens=torch.tensor([len(bench.sequences[i].completion) for i in batch.chosen]),
        rejected_tokens=torch.tensor([len(bench.sequences[i].completion) for i in batch.rejected]),
        chosen_prompt_embeddings=torch.from_numpy(bench.embeddings[batch.chosen_examples]).double(),
        rejected_prompt_embeddings=torch.from_numpy(bench.embeddings[batch.rejected_examples]).double(),
    )
    value = get_loss(loss)(view).mean()
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in policy.trained().values()])


def relative_difference(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("loss", TRAINABLE)
def test_loss_and_gradient_equal_those_of_the_naive_path(bench, loss):
    batch = batch_for(bench, loss)
    metrics, ours = gradient(bench.objective(loss), batch)
    value, expected = naive(bench, loss, batch)
    assert metrics["loss"] == pytest.approx(value, rel=1e-5)
    assert relative_difference(ours, expected) < 1e-4


@pytest.mark.parametrize("loss", TRAINABLE)
@pytest.mark.parametrize("budget", [1, 60, 150])
def test_loss_and_gradient_do_not_depend_on_the_micro_batches(bench, loss, budget):
    batch = batch_for(bench, loss)
    whole, expected = gradient(bench.objective(loss), batch)
    cut, ours = gradient(bench.objective(loss, budget=budget), batch)
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert relative_difference(ours, expected) < 1e-5
    for name, value in whole.items():
        assert cut[name] == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-5)), name


def test_only_a_coupled_loss_that_is_cut_pays_for_a_second_forward_pass(bench):
    for loss, budget, passes in (("dpo", 60, 16), ("rpo_paired", 10**6, 16), ("rpo_paired", 60, 32)):
        objective = bench.objective(loss, budget=budget)
        objective.backward(batch_for(bench, loss))
        assert objective.sequences_forwarded == passes, (loss, budget)


def test_dropout_falls_alike_in_both_passes_of_a_coupled_loss(bench, tiny_model):
    """With LoRA dropout the loss at the log-probs of pass one has, in pass two, the gradient of that same loss."""
    torch.manual_seed(0)
    config = ModelConfig(tune="lora")
    config.lora.dropout = 0.5
    bench.policy = load_policy(tiny_model, config)
    for parameter in bench.policy.trained().values():
        torch.nn.init.normal_(parameter, std=0.1)
    objective, batch = bench.objective("rpo_uniform", budget=60), batch_for(bench, "rpo_uniform")
    rows = batch.chosen + batch.rejected
    passes = objective._my_passes(batch, rows)
    seen = []
    forward = objective._forward
    objective._forward = lambda *a: seen.append(forward(*a)) or seen[-1]
    torch.manual_seed(3)
    objective.backward(batch)
    first, second = seen[: len(passes)], seen[len(passes) :]
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_metrics_are_in_nats_and_over_true_pairs(bench):
    batch = batch_for(bench, "dpo")
    metrics, _ = gradient(bench.objective("dpo"), batch)
    assert metrics["margin"] == pytest.approx(metrics["chosen_logratio"] - metrics["rejected_logratio"], abs=1e-5)
    assert 0 <= metrics["accuracy"] <= 1
    unpaired, _ = gradient(bench.objective("rpo_unpaired"), batch_for(bench, "rpo_unpaired"))
    assert unpaired["margin"] is None and unpaired["accuracy"] is None


@pytest.mark.parametrize("loss", TRAINABLE)
def test_a_policy_that_is_its_reference_passes_the_check_of_step_0(bench, tiny_model, loss):
    bench.policy = load_policy(tiny_model, ModelConfig(tune="full"))
    bench.objective(loss, budget=60).check_start(batch_for(bench, loss))


def test_another_policy_than_the_reference_fails_the_check_of_step_0(bench):
    with pytest.raises(StartError, match="the policy is not its reference: a log-ratio is"):
        bench.objective("dpo").check_start(batch_for(bench, "dpo"))


def test_a_wrong_start_value_fails_the_check_of_step_0(bench, tiny_model):
    from dataclasses import replace

    bench.policy = load_policy(tiny_model, ModelConfig(tune="full"))
    objective = bench.objective("dpo")
    objective.loss = replace(objective.loss, start_value=lambda beta: 1.0)
    with pytest.raises(StartError, match=r"at step 0 the loss is 0\.693147; dpo declares a start value of 1"):
        objective.check_start(batch_for(bench, "dpo"))


def test_kl_on_dev_is_zero_for_the_reference_and_positive_for_another(bench, tiny_model):
    batch = batch_for(bench, "dpo")
    assert bench.objective("dpo").evaluate([batch], batch, paired=True)["kl"] > 0
    bench.policy = load_policy(tiny_model, ModelConfig(tune="full"))
    metrics = bench.objective("dpo").evaluate([batch], batch, paired=True)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["loss"] == pytest.approx(0.693147, abs=1e-5)
