"""The cost of judging: token prices, an upper bound per request, and who waits for a budget."""

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
MOST_TOKENS = 1_000_000_000  # of one answer; beyond it a count is nonsense
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
    """Return the usage that a completion reports, with its cost; None if it reports none that could be true."""
    used = completion.get("usage")
    counts = [used.get(name) if isinstance(used, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    if not all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts):  # a bool is no count
        return None
    return Usage(*counts, price.of(*counts) if price else None)


def bound_on(messages: Sequence[Mapping], answer_tokens: int | None, price: Price | None) -> Usage:
    """Return an upper bound on the usage of one attempt: no tokenizer makes more tokens than there are bytes."""
    prompt = len(json.dumps(messages, ensure_ascii=False).encode("utf-8", "replace"))
    return Usage(prompt, answer_tokens or 0, price.of(prompt, answer_tokens or 0) if price else None)


class Purse:
    """A budget's queue among the concurrent requests of one process.

    A request for which nothing can be set aside waits for those under way, which may cost less than was set aside for
    them. It gets nothing if none is under way.
    """

    def __init__(self) -> None:
        self._under_way = 0
        self._changed = asyncio.Condition()

    async def take(self, set_aside: Callable[[], int | None]) -> int | None:
        """Return what `set_aside()` returns, once that is an entry or no request is under way."""
        async with self._changed:
            while (entry := set_aside()) is None and self._under_way:
                await self._changed.wait()
            self._under_way += entry is not None
            return entry

    async def done(self) -> None:
        """Say that the request of an entry is over, and its cost booked."""
        async with self._changed:
            self._under_way -= 1
            self._changed.notify_all()


@lru_cache(maxsize=1)
def _table() -> dict:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))["usd_per_million_tokens"]
