"""The plain baseline: DPO as one writes it in plain PyTorch, with the obvious optimisations and nothing else.

The reference's log-probs are cached, only completion positions reach the LM head, and an effective batch is sorted by
length before it is cut into micro-batches. Only the tokens come from the harness.
"""

from __future__ import annotations

import torch
from setting import BETA, Run, Setting, Watch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PreTrainedModel

from harness.backbones.language_model.tokens import Tokens

Pair = tuple[Tokens, Tokens]  # (chosen, rejected)


def summed_logprobs(model: PreTrainedModel, rows: list[Tokens], pad_token: int) -> Tensor:
    """Return `(rows,)` log-probs of the completions, with one forward pass."""
    ids = [torch.tensor(row.prompt + row.completion) for row in rows]
    ids = pad_sequence(ids, batch_first=True, padding_value=pad_token).to(model.device)
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.compute == torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        starts, ends = [len(r.prompt) - 1 for r in rows], [len(r.prompt) + len(r.completion) - 1 for r in rows]
        hidden = torch.cat([hidden[i, a:b] for i, (a, b) in enumerate(zip(starts, ends, strict=True))])
        logits = model.lm_head(hidden).float()
    targets = torch.cat([ids[i, a + 1 : b + 1] for i, (a, b) in enumerate(zip(starts, ends, strict=True))])
    logps = logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(dim=1)
    return torch.stack([part.sum() for part in logps.split([len(r.completion) for r in rows])])


def forward(model: PreTrainedModel, pairs: list[Pair], pad_token: int) -> Tensor:
    """Return `(pairs, 2)` log-probs of chosen and rejected."""
    return summed_logprobs(model, [row for pair in pairs for row in pair], pad_token).view(-1, 2)


def micro_batches(pairs: list[Pair], size: int) -> list[list[int]]:
    """Return the indices of pairs in micro-batches of similar length."""
    order = sorted(range(len(pairs)), key=lambda i: max(len(row) for row in pairs[i]))
    return [order[k : k + size] for k in range(0, len(order), size)]


def train(setting: Setting) -> Run:
    """Train one epoch of DPO."""
    model = AutoModelForCausalLM.from_pretrained(setting.folder, dtype=torch.float32).to(setting.device)
    model.compute = getattr(torch, setting.model.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.train.lr, weight_decay=0.0)
    pairs, size = setting.pairs(), setting.train.batch_size
    batches = [pairs[k : k + size] for k in range(0, len(pairs), size)]

    watch = Watch(model.device)
    references = []
    with torch.no_grad():
        for batch in batches:
            reference = torch.zeros(len(batch), 2, device=model.device)
            for part in micro_batches(batch, setting.micro_pairs):
                reference[part] = forward(model, [batch[i] for i in part], setting.pad_token)
            references.append(reference)
    prepared, _ = watch.read()

    losses = []
    watch = Watch(model.device)
    for batch, reference in zip(batches, references, strict=True):
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in micro_batches(batch, setting.micro_pairs):
            ratio = forward(model, [batch[i] for i in part], setting.pad_token) - reference[part]
            loss = -logsigmoid(BETA * (ratio[:, 0] - ratio[:, 1])).sum() / len(batch)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setting.train.clip)
        optimizer.step()
        losses.append(float(total))
    return Run(*watch.read(), prepared, losses)
