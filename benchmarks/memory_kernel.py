"""Peak memory of the loss: log-probs of completion tokens and their gradients, with our kernel and with full logits.

Each path runs in a process of its own, so that neither finds memory that the other left. The hidden states and the LM
head are not counted. The last line is `name=value` pairs: MiB, seconds, and the ratio of the peaks.

    python benchmarks/memory_kernel.py
    python benchmarks/memory_kernel.py --tokens 512 --vocabulary 49152
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
from peak import Peak

from harness.backbones.language_model.logprobs import token_logprobs


def full_logits(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The naive path: all logits in fp32, log-softmax, gather."""
    logits = (hidden @ weight.T).float()
    return logits.log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)


PATHS = {"kernel": token_logprobs, "naive": full_logits}


def measure(path: str, tokens: int, vocabulary: int, hidden_size: int, dtype: str) -> dict[str, float]:
    """Run one path forward and backward in this process.

    Returns its peak in MiB, the seconds, and the summed log-prob.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        values = torch.empty(shape).normal_(std=hidden_size**-0.5, generator=generator)
        return values.to(device, getattr(torch, dtype)).requires_grad_()

    few = torch.zeros(1, dtype=torch.long, device=device)
    PATHS[path](
        leaf(1, hidden_size), leaf(2, hidden_size), few
    ).sum().backward()  # loads libraries, which is not counted
    hidden, weight = leaf(tokens, hidden_size), leaf(vocabulary, hidden_size)
    targets = torch.randint(vocabulary, (tokens,), generator=generator).to(device)
    peak, started = Peak(device), time.perf_counter()
    total = PATHS[path](hidden, weight, targets).sum()
    total.backward()
    value = total.item()  # waits for a GPU
    return {"mib": peak.read(), "seconds": time.perf_counter() - started, "logp": value}


def main(arguments: list[str] | None = None) -> int:
    """Measure both paths and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="completion tokens (default: 4096)")
    parser.add_argument("--vocabulary", type=int, default=131072, help="default: 131072")
    parser.add_argument("--hidden", type=int, default=576, help="hidden size (default: 576)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--path", choices=PATHS, help="measure one path in this process, and print JSON")
    options = parser.parse_args(arguments)
    sizes = (options.tokens, options.vocabulary, options.hidden, options.dtype)
    if options.path:
        print(json.dumps(measure(options.path, *sizes)))
        return 0
    measured = {}
    for path in PATHS:
        command = [sys.executable, __file__, "--path", path]
        for name, value in zip(("tokens", "vocabulary", "hidden", "dtype"), sizes, strict=True):
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{path}: {done.stderr.strip() or f'ended with status {done.returncode}'}", file=sys.stderr)
            return 1
        measured[path] = json.loads(done.stdout)
        print(
            f"{path:<8} {measured[path]['mib']:8.0f} MiB {measured[path]['seconds']:8.1f} s   "
            f"sum {measured[path]['logp']:.6g}"
        )
    figures = {f"{path}_{unit}": value[unit] for path, value in measured.items() for unit in ("mib", "seconds")}
    figures["ratio_memory"] = measured["kernel"]["mib"] / measured["naive"]["mib"]
    print(" ".join(f"{name}={value:.4g}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
