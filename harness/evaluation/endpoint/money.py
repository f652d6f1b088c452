"""The cost of judging: token prices, an upper bound per request, and a budget that is never exceeded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from harness.core.errors import UserError
from harness.core.records import Usage

TABLE = Path(__file__).parent / "prices.yaml"
MILLION = 1_000_000
BYTES_PER_TOKEN = 4  # for estimates on English text; upper bounds count one token per byte


@dataclass(frozen=True)
class Price:
    """Price in USD per million input tokens (of a request) and output tokens (of an answer)."""

    input: float
    output: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of one answer in USD."""
        return (self.input * prompt_tokens + self.output * completion_tokens) / MILLION


def price_of(model: str, price: Mapping[str, float]) -> Price | None:
    """Return `price`, or if it is empty the packaged table's price for exactly this model, or None without one."""
    row = price or _table().get(model)
    return Price(float(row["input"]), float(row["output"])) if row else None


def check_money(model: str, price: Mapping[str, float], budget: float | None, answer_tokens: int | None) -> None:
    """Raise `UserError` for an incomplete price, or a budget that cannot be enforced."""
    if price and set(price) != {"input", "output"}:
        raise UserError(f"judge.price must hold input and output (USD per million tokens), got {dict(price)}")
    if budget is None:
        return
    if price_of(model, price) is None:
        raise UserError(
            f"judge.budget_usd: no price is known for {model!r}; "
            "set judge.price={input: ..., output: ...} (USD per million tokens)"
        )
    if answer_tokens is None:
        raise UserError("judge.budget_usd: an answer without a limit can cost anything; set judge.max_tokens")


def usage_in(completion: Mapping, price: Price | None) -> Usage | None:
    """Return the usage that a completion reports, with its cost; None if it reports none."""
    used = completion.get("usage")
    counts = [used.get(name) if isinstance(used, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    return Usage(*counts, price.of(*counts) if price else None)


def bound_on(messages: Sequence[Mapping], answer_tokens: int | None, price: Price | None) -> Usage:
    """Return an upper bound on the usage of one attempt: no tokenizer makes more tokens than there are bytes."""
    prompt = len(json.dumps(messages, ensure_ascii=False).encode("utf-8", "replace"))
    return Usage(prompt, answer_tokens or 0, price.of(prompt, answer_tokens or 0) if price else None)


class Purse:
    """A budget shared by concurrent requests; no request that could exceed it is started.

    `spent()` returns the USD booked so far, also by other processes. The maximum cost of a request is reserved while
    it runs. A request that does not fit waits, because running requests may cost less than reserved, and is refused
    when none is running.
    """

    def __init__(self, budget: float | None, spent: Callable[[], float]):
        self._budget = budget
        self._spent = spent
        self._set_aside = 0.0
        self._under_way = 0
        self._changed = asyncio.Condition()

    async def take(self, bound: float) -> bool:
        """Reserve `bound` USD and return True, or return False if the budget does not allow it."""
        if self._budget is None:
            return True
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(bound) or not self._under_way)
            if not self._fits(bound):
                return False
            self._set_aside += bound
            self._under_way += 1
            return True

    async def give_back(self, bound: float) -> None:
        """Release the reservation of `take`; the actual cost must have been booked before."""
        if self._budget is None:
            return
        async with self._changed:
            self._under_way -= 1
            self._set_aside = self._set_aside - bound if self._under_way else 0.0
            self._changed.notify_all()

    def _fits(self, bound: float) -> bool:
        return self._spent() + self._set_aside + bound <= self._budget


@lru_cache(maxsize=1)
def _table() -> dict:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))["usd_per_million_tokens"]
