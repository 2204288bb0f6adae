"""Tries grammars in a process of their own, which may crash, hang or run out of memory in place of this one.

One process serves all models of this one. It starts with the first grammar, stays, and is replaced when it
dies. Measured on two cores: 0.5 s for the first grammar, 5 to 50 ms for each later one.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading

from vermilion.decoding.compile_worker import CPU_S, receive, send
from vermilion.decoding.vocabulary import Vocabulary
from vermilion.errors import Overloaded

COMMAND = [sys.executable, "-m", "vermilion.decoding.compile_worker"]
TIMEOUT_S = 20.0
"""For one grammar, should it sleep; one that works for `CPU_S` ends its process itself."""
_MAX_WAIT_S = 15.0


class Compiler:
    """Threads may share it: they take turns."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def attempt(self, vocabulary: Vocabulary, name: str, kind: str, text: str) -> tuple[str, str]:
        """(the grammar in the library's form, "") or ("", why it cannot be used); `name` is the vocabulary's.

        Raises `Overloaded` where others' grammars keep it busy.
        """
        if not self._lock.acquire(timeout=_MAX_WAIT_S):
            raise Overloaded("Too many new grammars are being compiled. Try again shortly.")
        try:
            answer = self._ask({"vocabulary": name, "kind": kind, "text": text}, TIMEOUT_S)
            if answer is not None and answer.get("unknown"):
                self._introduce(vocabulary, name)
                answer = self._ask({"vocabulary": name, "kind": kind, "text": text}, TIMEOUT_S)
        finally:
            self._lock.release()
        if answer is None:
            return "", (
                f"it is too deep, too large or too slow: compiling it takes more than {CPU_S:g} s, more "
                "memory than is allowed, or more than some 900 rules that are chained one behind the other"
            )
        return answer.get("source", ""), answer.get("error", "")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _introduce(self, vocabulary: Vocabulary, name: str) -> None:
        process = self._started()
        assert process.stdin is not None
        send(
            process.stdin,
            {
                "vocabulary": name,
                "tokens": [text.hex() for text in vocabulary.tokens],
                "special": vocabulary.special_token_ids,
                "eos": vocabulary.eos_token_id,
            },
        )

    def _ask(self, question: dict[str, str], timeout_s: float) -> dict[str, str] | None:
        """None where the process did not live to answer, or not in time."""
        began = self._process is not None
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        # Its imports are no fault of the grammar's.
        timer = threading.Timer(timeout_s if began else timeout_s + 30.0, process.kill)
        timer.daemon = True
        timer.start()
        try:
            send(process.stdin, question)
            answer = receive(process.stdout)
        except OSError:
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            self.close()
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self._process


SHARED = Compiler()
atexit.register(SHARED.close)
