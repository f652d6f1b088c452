"""How close judging comes to the rate that the endpoint allows.

A stand-in endpoint in a separate process answers each request after a fixed time. With c concurrent requests, n
requests take at least n x time / c. This script asks for n judgements, one request each, and prints the share of that
ideal rate that was reached; the cache and everything else work as in a run.

    python benchmarks/judge_throughput.py --judgements 5000 --concurrency 64 --seconds 0.2
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path

from harness.core.prompt import Message
from harness.core.store import Store
from harness.evaluation.base import Comparison, JudgeContext
from harness.evaluation.judges.openai import OpenAIOptions, make

ANSWER = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "stand-in",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Preferred: 1"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 4},
    }
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)


def serve(seconds: float, port: Queue[int]) -> None:
    """Answer every request after this many seconds, until terminated; send the port to the parent process."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n") if b": " in line)
                await reader.readexactly(int(lines[b"content-length"]))
                await asyncio.sleep(seconds)
                writer.write(RESPONSE)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def measure(judgements: int, concurrency: int, seconds: float) -> dict[str, float]:
    """Return the seconds that the judgements took, the ideal seconds, and the share of the ideal rate."""
    os.environ.setdefault("BENCHMARK_KEY", "any-word")
    spawn = multiprocessing.get_context("spawn")
    port = spawn.Queue()
    server = spawn.Process(target=serve, args=(seconds, port), daemon=True)
    server.start()
    comparisons = [
        Comparison(str(i), (Message("user", f"question {i}"),), f"one answer {i} " * 20, f"another {i} " * 20)
        for i in range(judgements)
    ]
    try:
        with tempfile.TemporaryDirectory() as folder:
            options = OpenAIOptions(
                "stand-in",
                base_url=f"http://127.0.0.1:{port.get()}/v1",
                key_env="BENCHMARK_KEY",
                concurrency=concurrency,
                both_orders=False,
            )
            store = Store(Path(folder))
            judge = make(options, JudgeContext("hh", [], [], "", None, "", store, store.root, "benchmark"))
            judge.judge(comparisons[:concurrency], lambda done: None)  # imports, and the connections' first packets
            started = time.monotonic()
            judged = judge.judge(comparisons[concurrency:], lambda done: None)
            taken = time.monotonic() - started
    finally:
        server.terminate()
    assert all(judgement.status == "ok" for judgement in judged)
    ideal = len(judged) * seconds / concurrency
    return {"judgements": len(judged), "seconds": taken, "ideal_seconds": ideal, "share_of_ideal_rate": ideal / taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judgements", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.2)
    options = parser.parse_args()
    print(json.dumps(measure(options.judgements, options.concurrency, options.seconds), indent=2))


if __name__ == "__main__":
    main()
