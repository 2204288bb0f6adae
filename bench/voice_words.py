"""Word errors of every recogniser on real and on synthetic speech, in one table and one row.

    python bench/voice_words.py --output bench/results/voice.jsonl

Needs the extra `voice`, its weights (`vermilion voice pull`, also `--asr-model tiny.en`), and Debian's
pocketsphinx-testdata (real speech: five sentences of a LibriVox reader, five phrases about cards, two
commands), flite and espeak-ng. Numbers, titles and punctuation are made the same before words are compared; a
word is wrong when it is missing, too much or another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile

from vermilion.evaluation.environment import commit
from vermilion.speech.recognizer import RECOGNIZERS, SAMPLE_RATE, find_recognizer
from vermilion.speech.synthesizer import find_synthesizer
from vermilion.voice.headless import read_speech

REAL = Path("/usr/share/pocketsphinx/test/data")
SENTENCES = (
    "I would like to book a table for two people on Friday evening.",
    "What is the weather going to be like tomorrow morning?",
    "Please call me back after lunch, my name is Daniel Carter.",
    "Can you tell me how far it is to the railway station?",
    "The meeting has been moved to Thursday at half past three.",
    "My order has not arrived yet and I need it by the weekend.",
    "Turn off the lights in the kitchen and lock the front door.",
    "How much does a return ticket to the city cost?",
)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SAME = {
    **{str(number): word for number, word in enumerate(_NUMBERS)},
    "mr": "mister",
    "metres": "meters",
    "3:30": "half past three",
    "55": "five five",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="append the row to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clips = {"real": list(real_clips(Path(folder))), **synthetic_clips(Path(folder))}
        found = {name: measured(name, clips) for name in RECOGNIZERS}
    row = {
        "benchmark": "voice words",
        "command": "bench/voice_words.py",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 1),
        "clips": {corpus: len(pairs) for corpus, pairs in clips.items()},
        "words": {corpus: sum(len(words(text)) for text, _ in pairs) for corpus, pairs in clips.items()},
        "recognizers": found,
    }
    print(table(found, list(clips)))
    print(json.dumps(row))
    if given.output:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def real_clips(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(what was said, sound) of the recordings that Debian has."""
    if not REAL.is_dir():
        raise SystemExit("Real speech is missing. Run: apt-get install pocketsphinx-testdata")
    for part in ("librivox", "cards"):
        listing = next((REAL / part).glob("*transcription"))
        for line in listing.read_text(encoding="utf-8").splitlines():
            said, name = re.fullmatch(r"<s>(.*)</s> \((.*)\)", line.strip()).groups()
            yield said.strip(), read_speech(REAL / part / f"{name}.wav")
    for name, said in (
        ("goforward", "go forward ten meters"),
        ("something", "go somewhere and do something"),
    ):
        yield said, np.fromfile(REAL / f"{name}.raw", np.int16)


def synthetic_clips(folder: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    voices = {}
    for name in ("piper", "flite"):
        voice, pairs = find_synthesizer(name), []
        for number, sentence in enumerate(SENTENCES):
            file = folder / f"{name}{number}.wav"
            soundfile.write(file, np.concatenate(list(voice.speak(sentence))), voice.sample_rate)
            pairs.append((sentence, read_speech(file)))
        voices[name] = pairs
    if shutil.which("espeak-ng"):
        pairs = []
        for number, sentence in enumerate(SENTENCES):
            file = folder / f"espeak{number}.wav"
            subprocess.run(["espeak-ng", "-w", str(file), sentence], check=True)
            pairs.append((sentence, read_speech(file)))
        voices["espeak"] = pairs
    return voices


def measured(name: str, clips: dict[str, list[tuple[str, np.ndarray]]]) -> dict[str, Any]:
    """Word error rate in percent of each corpus, and how long an utterance took."""
    recognizer, rates, taken_ms, sound_s = find_recognizer(name), {}, [], 0.0
    recognizer.transcribe(clips["real"][0][1])
    for corpus, pairs in clips.items():
        wrong = total = 0
        for said, samples in pairs:
            started = time.perf_counter()
            heard = recognizer.transcribe(samples).text
            taken_ms.append((time.perf_counter() - started) * 1000)
            sound_s += len(samples) / SAMPLE_RATE
            wrong += word_errors(words(said), words(heard))
            total += len(words(said))
        rates[corpus] = round(100 * wrong / total, 1)
    return {
        "word_error_percent": rates,
        "median_ms": round(median(taken_ms), 1),
        "max_ms": round(max(taken_ms), 1),
        "real_time_factor": round(sum(taken_ms) / 1000 / sound_s, 3),
    }


def words(text: str) -> list[str]:
    """Lower case, numbers and titles spelt, hyphens apart, other marks gone."""
    parts = re.sub(r"[^a-z0-9': ]", " ", text.lower().replace("-", " ")).split()
    spelt = [_SAME.get(part.strip("':"), part.strip("':")) for part in parts]
    return " ".join(spelt).split()


def word_errors(said: list[str], heard: list[str]) -> int:
    """Fewest words to put in, leave out or exchange."""
    row = list(range(len(heard) + 1))
    for at, word in enumerate(said, 1):
        before, row[0] = row[0], at
        for place, other in enumerate(heard, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (word != other))
    return row[-1]


def table(found: dict[str, Any], corpora: list[str]) -> str:
    lines = [f"{'':<13}" + "".join(f"{corpus:>9}" for corpus in corpora) + "   median ms     RTF"]
    for name, figures in found.items():
        rates = "".join(f"{figures['word_error_percent'][corpus]:>8.1f}%" for corpus in corpora)
        lines.append(f"{name:<13}{rates}{figures['median_ms']:>12.0f}{figures['real_time_factor']:>8.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
