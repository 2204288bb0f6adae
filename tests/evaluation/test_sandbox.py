"""A program in the sandbox: what it computes counts, and every way out that was thought of is shut."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vermilion.evaluation import sandbox
from vermilion.evaluation.sandbox import ISOLATIONS, SandboxLimits, best_isolation, run

SHORT = SandboxLimits(wall_s=20)
AVAILABLE = ISOLATIONS[ISOLATIONS.index(best_isolation()) :]
isolated = pytest.mark.parametrize("isolation", AVAILABLE)


@isolated
def test_a_program_passes_when_it_runs_to_its_end(isolation: str) -> None:
    good = "import math, re, typing, collections, json\nprint('hello')\nassert math.gcd(12, 18) == 6\n"
    assert run(good, SHORT, isolation).status == "passed"
    assert run(good + "assert 1 == 2, 'no'", SHORT, isolation).detail == "AssertionError: no"
    assert run("def f(:", SHORT, isolation).status == "failed"
    with_file = (
        "open('a.txt', 'w').write('x')\nassert open('a.txt').read() == 'x'\nimport os; os.remove('a.txt')"
    )
    outcome = run(with_file, SHORT, isolation)
    assert (outcome.status, outcome.isolation) == ("passed", isolation)


@isolated
@pytest.mark.parametrize(
    "leave",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os.write(1, b'passed')",
    ],
)
def test_leaving_early_is_not_passing(isolation: str, leave: str) -> None:
    assert run(leave, SHORT, isolation).status == "failed"


def escapes(outside: Path, port: int) -> dict[str, str]:
    """Programs that run to their end only if they got out."""
    return {
        "connect": f"import socket; socket.create_connection(('127.0.0.1', {port}))",
        "raw socket": "import _socket; _socket.socket()",
        "fetch": f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}')",
        "name look-up": "import socket; socket.getaddrinfo('localhost', 80)",
        "read": f"open({str(outside)!r}).read()",
        "read by descriptor": f"import os; os.read(os.open({str(outside)!r}, os.O_RDONLY), 9)",
        "read by pathlib": f"from pathlib import Path; Path({str(outside)!r}).read_text()",
        "read upwards": f"open('../../../../../../..{outside}').read()",
        "read the system's": "open('/etc/passwd').read()",
        "read a process": "open('/proc/self/environ').read()",
        "link": f"import os; os.symlink({str(outside)!r}, 'l'); open('l').read()",
        "hard link": f"import os; os.link({str(outside)!r}, 'l'); open('l').read()",
        "write": f"open({str(outside)!r}, 'w').write('changed')",
        "write beside": f"open({str(outside.parent / 'new')!r}, 'w').write('changed')",
        "remove": f"import os; os.remove({str(outside)!r})",
        "rename": f"import os; os.rename({str(outside)!r}, {str(outside) + '2'!r})",
        "list": f"import os; assert os.listdir({str(outside.parent)!r})",
        "write the interpreter's": "import os; open(os.__file__, 'a').write('')",
        "fork": "import os; os.fork()",
        "spawn": "import subprocess; subprocess.run(['/bin/true'], check=True)",
        "shell": "import os; assert os.system('true') == 0",
        "replace itself": "import os; os.execv('/bin/true', ['true'])",
        "kill the parent": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "native code": "import ctypes; ctypes.CDLL(None).getpid()",
        "the confinement's own library": "import sys; sys._getframe(1).f_globals['_libc'].getpid()",
        "lift the limits": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
        "memory": "x = bytearray(1 << 34)",
        "memory by and by": "x = []\nwhile True: x.append(bytearray(1 << 24))",
        "file size": "f = open('big', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20)); f.flush()",
        "open files": "x = [open(f'f{i}', 'w') for i in range(1000)]",
        "recursion": "f = lambda: f()\nf()",
    }


@isolated
@pytest.mark.parametrize("kind", escapes(Path("/x/y"), 0))
def test_there_is_no_way_out(isolation: str, kind: str, tmp_path: Path) -> None:
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = escapes(outside, server.getsockname()[1])[kind]
        assert run(program, SHORT, isolation).status == "failed"
    assert outside.read_text() == "secret"
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]


@isolated
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(100)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(100)",
        "import threading, time\nt = threading.Thread(target=time.sleep, args=(100,))\nt.start()\nt.join()",
    ],
)
def test_a_program_without_end_is_ended(isolation: str, program: str) -> None:
    began = time.monotonic()
    outcome = run(program, SandboxLimits(wall_s=0.7), isolation)
    assert outcome.status == "timeout"
    assert time.monotonic() - began < 10


@isolated
def test_a_fork_bomb_leaves_nothing_running(isolation: str) -> None:
    before = len(psutil.Process().children(recursive=True))
    bomb = "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert run(bomb, SandboxLimits(wall_s=0.7), isolation).status == "timeout"
    assert len(psutil.Process().children(recursive=True)) == before


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sandbox without its audit hook: what is left is the kernel's."""
    source = sandbox._STAGES.read_text(encoding="utf-8")
    hook = "sys.addaudithook(_guard(os.path.realpath(scratch)))"
    assert hook in source
    copy = tmp_path / "confine.py"
    copy.write_text(source.replace(hook, "pass"), encoding="utf-8")
    monkeypatch.setattr(sandbox, "_STAGES", copy)


@pytest.mark.skipif("namespaces" not in AVAILABLE, reason="this system allows no namespaces")
@pytest.mark.parametrize("kind", escapes(Path("/x/y"), 0))
def test_the_namespaces_hold_without_the_audit_hook(kind: str, tmp_path: Path, unguarded: None) -> None:
    if kind in ("native code", "lift the limits", "name look-up"):
        pytest.skip("harmless: it reaches nothing, and the wall time stands")
    secret = tmp_path / "inner"
    secret.mkdir()
    test_there_is_no_way_out("namespaces", kind, secret)


@pytest.mark.skipif("namespaces" not in AVAILABLE, reason="this system allows no namespaces")
def test_inside_there_is_nobody_and_nothing(unguarded: None) -> None:
    program = (
        "import os, sys\n"
        "assert set(os.listdir('/')) <= {'usr', 'lib', 'lib64', 'bin', 'scratch',"
        " sys.base_prefix.split('/')[1]}, os.listdir('/')\n"
        "assert not os.path.exists('/etc') and not os.path.exists('/proc/1') and not os.path.exists('/tmp')\n"
        "assert os.getpid() == 1 and os.getuid() != 0\n"
        "assert os.listdir('.') == []\n"
        "assert not os.environ or set(os.environ) <= {'LC_CTYPE'}, os.environ\n"
    )
    outcome = run(program, SHORT, "namespaces")
    assert outcome.status == "passed", outcome.detail


@pytest.mark.skipif("filter" not in AVAILABLE, reason="this system allows no seccomp filter")
def test_the_filter_holds_without_the_audit_hook(unguarded: None) -> None:
    refused = (
        "import os, socket, subprocess, threading\n"
        "def refused(act):\n"
        "    try: act()\n"
        "    except PermissionError: return True\n"
        "assert refused(socket.socket) and refused(os.fork) and refused(socket.socketpair)\n"
        "assert refused(lambda: subprocess.run(['/bin/true']))\n"
        "assert refused(lambda: os.kill(os.getppid(), 0))\n"
        "assert refused(lambda: os.execv('/bin/true', ['true']))\n"
        "one = threading.Thread(target=len, args=('',)); one.start(); one.join()\n"
    )
    outcome = run(refused, SHORT, "filter")
    assert outcome.status == "passed", outcome.detail


def test_the_stages_need_no_package() -> None:
    code = f"import sys; sys.path.insert(0, {str(sandbox._STAGES.parent)!r}); import confine"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)
