"""The figures of docs/VOICE.md out of bench/results/voice.jsonl, of each benchmark the last row.

python bench/voice_table.py --write
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS, PAGE = ROOT / "bench" / "results" / "voice.jsonl", ROOT / "docs" / "VOICE.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put them into docs/VOICE.md")
    given = parser.parse_args()
    last: dict[str, Any] = {}
    for line in ROWS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        last[row["benchmark"]] = row
    parts = [part(last[name]) for name, part in PARTS.items() if name in last]
    text = "\n\n".join(parts)
    if given.write:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    else:
        print(text)


def origin(row: dict[str, Any]) -> str:
    return f"`{row['command']}`, {row['machine']}, commit {row['commit']}, {row['date']}"


def latency(row: dict[str, Any]) -> str:
    lines = [
        f"Milliseconds from the caller's last sound to the first of the answer, {row['turns']} turns, "
        f"{row['recognizer']} and {row['synthesizer']} ({origin(row)}):",
        "",
        "| | median | p95 |",
        "|---|---|---|",
    ]
    names = {"caller": "**by the caller's clock**", "total": "in the voice process"}
    for name, figure in row["ms"].items():
        shown = names.get(name, name.replace("_", " "))
        lines.append(f"| {shown} | {figure['median']:.0f} | {figure['p95']:.0f} |")
    return "\n".join(lines)


def calls(row: dict[str, Any]) -> str:
    lines = [
        f"Calls at once, {row['pause_s']:.0f} s of thought between turns ({origin(row)}). The most at a 95th "
        f"percentile of {row['goal_p95_s']} s: **{row['most']}**.",
        "",
        "| calls | turns | median ms | p95 ms | busy cores: service | busy cores: voice |",
        "|---|---|---|---|---|---|",
    ]
    for each in row["found"]:
        caller, busy = each["caller"], each["busy_cores"]
        lines.append(
            f"| {each['calls']} | {each['turns']} | {caller['median']:.0f} | {caller['p95']:.0f} | "
            f"{busy['service']} | {busy['voice']} |"
        )
    return "\n".join(lines)


def words(row: dict[str, Any]) -> str:
    corpora = list(row["clips"])
    heads = " | ".join(f"{name}, {row['words'][name]} words" for name in corpora)
    lines = [
        f"Words heard wrong, in percent ({origin(row)}):",
        "",
        f"| | {heads} | median ms |",
        "|---|" + "---|" * (len(corpora) + 1),
    ]
    for name, figures in row["recognizers"].items():
        rates = " | ".join(f"{figures['word_error_percent'][corpus]:.1f}" for corpus in corpora)
        lines.append(f"| {name} | {rates} | {figures['median_ms']:.0f} |")
    return "\n".join(lines)


def soak(row: dict[str, Any]) -> str:
    growth, left = row["rss_mb_second_to_last_quarter"], row["left"]
    samples = row["samples"]
    files = [samples[moment]["voice"]["files"] for moment in (0, -1)]
    load = row["load_averages"]
    table = [
        "| minute | calls so far | service, MB | voice process, MB |",
        "|---|---|---|---|",
        *(
            f"| {each['minute']:.0f} | {each['calls']} | {each['service']['rss_mb']:.0f} | "
            f"{each['voice']['rss_mb']:.0f} |"
            for each in samples
            if round(each["minute"]) % 5 == 0 or each is samples[-1]
        ),
    ]
    return (
        f"{row['minutes']:g} minutes of two callers ({origin(row)}): {row['calls']} calls, {row['answers']} "
        f"answers, {row['barge_ins']} interruptions, {row['hung_up']} hung up while the model answered, "
        f"{row['unanswered']} unanswered, {row['errors']} errors. Memory, second quarter to last: "
        f"service {growth['service']:+} MB, voice {growth['voice']:+} MB; open files of the voice process "
        f"{files[0]} and {files[1]}. Left in the end: {left['calls']} calls, "
        f"{left['running_requests']:.0f} running and {left['waiting_requests']:.0f} waiting requests. "
        f"Load of the machine: {load['least']:g} to {load['most']:g}, median wait "
        f"{row['ms']['total']['median'] / 1000:.1f} s.\n\n" + "\n".join(table)
    )


PARTS = {"voice latency": latency, "voice calls": calls, "voice words": words, "voice soak": soak}

if __name__ == "__main__":
    main()
