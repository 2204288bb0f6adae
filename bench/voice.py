"""Voice calls measured from the caller's end: latency by stage, how many at once, and a long run.

    python bench/voice.py latency --turns 20 --output bench/results/voice.jsonl
    python bench/voice.py calls --most 6 --output bench/results/voice.jsonl
    python bench/voice.py soak --minutes 30 --output bench/results/voice.jsonl

Each starts `vermilion serve` and `vermilion voice` in processes of their own, speaks questions said by Piper
into it in real time over a WebSocket, and waits for the first sound of the answer. Stages are what pipecat's
observer reports in the voice process; `caller` is the caller's own clock. `calls` raises the number of calls
until the 95th percentile of the caller's wait passes 1.5 s. `soak` keeps two callers busy, who interrupt and
hang up at random, and looks for memory that grows, files left open and rows that stay.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import soxr

from vermilion.errors import EngineFailure
from vermilion.evaluation.environment import commit
from vermilion.speech.recognizer import SAMPLE_RATE
from vermilion.speech.synthesizer import find_synthesizer
from vermilion.voice import simulated_caller
from vermilion.voice.turn_latency import TurnLatency, percentile, summary

QUESTIONS = (
    "What is the capital of France?",
    "How many days are in a week?",
    "What colour is the sky?",
    "Who wrote Romeo and Juliet?",
    "What do bees make?",
    "Why do leaves fall in autumn?",
    "How do I boil an egg?",
    "What is the largest planet?",
    "Where do penguins live?",
    "What should I see in London?",
)
PERSONA = 'greeting = ""\nmax_tokens = 40\ntemperature = 0.0\n'
GOAL_S = 1.5
PAUSE_S = 2.0
"""Between an answer and the next question."""
PATIENCE_S = 60.0
"""Of callers: what comes late on a busy machine is no question that went unanswered."""
_NUMBERED = re.compile(r"[0-9a-f-]{36}|\d+")
_VERMILION = (sys.executable, "-c", "import sys; from vermilion.cli import main; sys.exit(main())")
_START_S = 180.0


class Processes:
    """The service and the voice process, and how busy they are."""

    def __init__(self, service: int, voice: int, pids: dict[str, int]) -> None:
        self.service_url, self.voice_url = f"http://127.0.0.1:{service}", f"http://127.0.0.1:{voice}"
        self.of = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._cpu_s = self._spent()
        self._at = time.monotonic()

    @property
    def line(self) -> str:
        return f"{self.voice_url.replace('http', 'ws')}/ws"

    def cores(self) -> dict[str, float]:
        """Cores that each kept busy since the last time this was asked."""
        now, spent = time.monotonic(), self._spent()
        busy = {name: round((spent[name] - self._cpu_s[name]) / (now - self._at), 2) for name in spent}
        self._cpu_s, self._at = spent, now
        return busy

    def sizes(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "rss_mb": round(sum(each.memory_info().rss for each in family(process)) / 1e6, 1),
                "files": sum(each.num_fds() for each in family(process)),
            }
            for name, process in self.of.items()
        }

    def turns(self) -> list[TurnLatency]:
        calls = httpx.get(f"{self.voice_url}/api/calls").json()
        return [TurnLatency(turn["total_ms"], turn["stages_ms"]) for call in calls for turn in call["turns"]]

    def failures(self) -> dict[str, int]:
        """What failed in the calls, and how often."""
        calls = httpx.get(f"{self.voice_url}/api/calls").json()
        told = [error.split(" ", 1)[-1][:100] for call in calls for error in call["errors"]]
        return dict(Counter(_NUMBERED.sub("N", error) for error in told))

    def status(self) -> dict[str, Any]:
        return httpx.get(f"{self.voice_url}/api/status").json()

    def gauge(self, name: str) -> float:
        lines = httpx.get(f"{self.service_url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)

    def _spent(self) -> dict[str, float]:
        return {
            name: sum(sum(each.cpu_times()[:2]) for each in family(process))
            for name, process in self.of.items()
        }


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


@contextmanager
def processes(asr_model: str | None, number: int = 1) -> Iterator[Processes]:
    ports = [free_port(), free_port()]
    with tempfile.TemporaryDirectory() as folder:
        persona = Path(folder, "bench.toml")
        persona.write_text(PERSONA, encoding="utf-8")
        serve = [*_VERMILION, "serve", "--port", str(ports[0])]
        talk = [*_VERMILION, "voice", "--no-open", "--port", str(ports[1]), "--persona", str(persona)]
        talk += ["--processes", str(number)]
        talk += ["--service", f"http://127.0.0.1:{ports[0]}"] + (
            ["--asr-model", asr_model] if asr_model else []
        )
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running = [subprocess.Popen(serve, **quiet)]
        try:
            until_open(f"http://127.0.0.1:{ports[0]}/ready", running[0])
            running.append(subprocess.Popen(talk, **quiet))
            until_open(f"http://127.0.0.1:{ports[1]}/api/status", running[1])
            found = Processes(*ports, {"service": running[0].pid, "voice": running[1].pid})
            while found.status().get("processes", 1) < number:
                time.sleep(0.5)
            yield found
        finally:
            for process in reversed(running):
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until_open(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        if process.poll() is not None:
            raise SystemExit(f"{url}: the process ended with status {process.returncode}")
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"{url}: not open after {_START_S:.0f} s")
        time.sleep(0.5)


def spoken() -> list[np.ndarray]:
    voice = find_synthesizer("piper")
    said = [np.concatenate(list(voice.speak(question))) for question in QUESTIONS]
    return [soxr.resample(samples, voice.sample_rate, SAMPLE_RATE) for samples in said]


async def conversation(line: str, questions: list[np.ndarray], pause_s: float) -> list[float]:
    """Waits in seconds, a turn each."""
    waits = []
    async with simulated_caller.call(line) as caller:
        for question in questions:
            caller.forget()
            answer = await caller.answer(await caller.speak(question), PATIENCE_S)
            waits.append(answer.wait_s)
            await asyncio.sleep(pause_s)
    return waits


def latency(given: argparse.Namespace) -> dict[str, Any]:
    questions = spoken()
    with processes(given.asr_model) as running:
        # The first turn of a process is a warm-up.
        asyncio.run(conversation(running.line, questions[:1], 0.5))
        skipped = len(running.turns())
        asked = [questions[turn % len(questions)] for turn in range(given.turns)]
        waits = asyncio.run(conversation(running.line, asked, 0.5))
        status = running.status()
        stages = summary(running.turns()[skipped:])
    figures = {"caller": spread_ms(waits), **stages}
    for name, figure in figures.items():
        print(f"{name:<16} median {figure['median']:>7.0f} ms   p95 {figure['p95']:>7.0f} ms")
    heard = {name: status[name] for name in ("model", "recognizer", "synthesizer", "errors")}
    return {"benchmark": "voice latency", **heard, "turns": len(waits), "ms": figures}


def calls(given: argparse.Namespace) -> dict[str, Any]:
    questions, found, most = spoken(), [], 0
    with processes(given.asr_model, given.processes) as running:
        for _ in range(given.processes):
            asyncio.run(conversation(running.line, questions[:1], 0.5))
        for number in range(1, given.most + 1):
            skipped = len(running.turns())
            running.cores()
            waits, failed = asyncio.run(at_once(running.line, questions, number, given.turns))
            figures = {
                "calls": number,
                "turns": len(waits),
                "unanswered": failed,
                "caller": spread_ms(waits),
                "stages_ms": summary(running.turns()[skipped:]),
                "busy_cores": running.cores(),
            }
            found.append(figures)
            print(json.dumps(figures))
            if failed or figures["caller"]["p95"] > GOAL_S * 1000:
                break
            most = number
    print(f"most calls at p95 <= {GOAL_S} s: {most}")
    return {
        "benchmark": "voice calls",
        "goal_p95_s": GOAL_S,
        "pause_s": PAUSE_S,
        "processes": given.processes,
        "most": most,
        "found": found,
    }


async def at_once(line: str, questions: list[np.ndarray], number: int, turns: int) -> tuple[list[float], int]:
    """Waits of all calls together, and how many calls broke off."""
    chance = random.Random(number)

    async def one(caller: int) -> list[float]:
        await asyncio.sleep(chance.uniform(0, 4.0))
        asked = [questions[(3 * caller + turn) % len(questions)] for turn in range(turns)]
        return await conversation(line, asked, PAUSE_S)

    done = await asyncio.gather(*(one(caller) for caller in range(number)), return_exceptions=True)
    for failure in done:
        if isinstance(failure, BaseException) and not isinstance(failure, EngineFailure):
            raise failure
    answered = [waits for waits in done if isinstance(waits, list)]
    return [wait for waits in answered for wait in waits], number - len(answered)


def soak(given: argparse.Namespace) -> dict[str, Any]:
    questions, samples = spoken(), []
    with processes(given.asr_model) as running:
        asyncio.run(conversation(running.line, questions[:2], 0.5))
        counts = asyncio.run(busy(running, questions, given, samples))
        time.sleep(3)
        status = running.status()
        left = {
            "calls": status["calls"],
            "running_requests": running.gauge("vermilion_running_requests"),
            "waiting_requests": running.gauge("vermilion_waiting_requests"),
        }
        turns = summary(running.turns())
        failures = running.failures()
    quarter = max(1, len(samples) // 4)
    growth = {
        name: round(
            np.mean([each[name]["rss_mb"] for each in samples[-quarter:]])
            - np.mean([each[name]["rss_mb"] for each in samples[quarter : 2 * quarter]]),
            1,
        )
        for name in ("service", "voice")
    }
    loads = [each["load_average"] for each in samples]
    figures = {
        "minutes": given.minutes,
        **counts,
        "errors": status["errors"],
        "failures": failures,
        "interruptions": status["interruptions"],
        "ms": {"total": turns.get("total")},
        "rss_mb_second_to_last_quarter": growth,
        "samples": samples,
        "load_averages": {"least": min(loads), "most": max(loads)},
        "left": left,
    }
    print(json.dumps(figures, indent=1))
    return {"benchmark": "voice soak", **figures}


async def busy(
    running: Processes, questions: list[np.ndarray], given: argparse.Namespace, samples: list[dict[str, Any]]
) -> dict[str, int]:
    """Two callers for so many minutes; a sample of sizes every minute, or of eight in a short run."""
    deadline = time.monotonic() + 60 * given.minutes
    counts = {"calls": 0, "answers": 0, "barge_ins": 0, "unanswered": 0, "hung_up": 0}

    async def caller(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < deadline:
            counts["calls"] += 1
            async with simulated_caller.call(running.line) as line:
                for _ in range(chance.randint(1, 4)):
                    line.forget()
                    at = await line.speak(chance.choice(questions))
                    if chance.random() < 0.15:
                        counts["hung_up"] += 1
                        break
                    try:
                        quiet_s = 0.0 if chance.random() < 0.3 else 1.5
                        await line.answer(at, PATIENCE_S, quiet_s)
                        counts["answers"] += 1
                        counts["barge_ins"] += not quiet_s
                    except EngineFailure:
                        counts["unanswered"] += 1

    def sample() -> None:
        minute = round(given.minutes - (deadline - time.monotonic()) / 60, 1)
        load_average = round(os.getloadavg()[0], 1)
        samples.append({"minute": minute, **counts, **running.sizes(), "load_average": load_average})
        print(json.dumps(samples[-1]), flush=True)

    async def watch() -> None:
        while time.monotonic() < deadline:
            sample()
            await asyncio.sleep(min(60.0, 60 * given.minutes / 8))

    await asyncio.gather(caller(1), caller(2), watch())
    sample()
    return counts


def spread_ms(seconds: list[float]) -> dict[str, float]:
    values = [1000 * each for each in seconds]
    return {
        "median": round(percentile(values, 50), 1),
        "p95": round(percentile(values, 95), 1),
        "max": round(max(values), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("latency", "calls", "soak"))
    parser.add_argument("--turns", type=int, default=0, help="of a call; 20 of latency, 4 of calls")
    parser.add_argument("--most", type=int, default=6, help="calls at once")
    parser.add_argument("--processes", type=int, default=1, help="that answer, for calls")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--asr-model", help="as of vermilion voice")
    parser.add_argument("--output", type=Path, help="append the row to this file")
    given = parser.parse_args()
    given.turns = given.turns or {"latency": 20}.get(given.what, 4)
    load_average = round(os.getloadavg()[0], 1)
    row = {"latency": latency, "calls": calls, "soak": soak}[given.what](given)
    row |= {
        "command": f"bench/voice.py {given.what}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": load_average,
    }
    print(json.dumps(row))
    if given.output:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
