"""The process that `sandbox.py` starts. It uses the standard library only, since it runs without packages.

First stage: leave this machine's namespaces and start the second inside. Second stage: limits, a seccomp
filter, an audit hook, then the program from stdin. Only a program that runs to its end has the token printed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from typing import Any

_NOBODY = 65534
_NEW_NAMESPACES = 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000
"""CLONE_NEWNS, NEWNET, NEWPID, NEWIPC, NEWUTS"""
_NEW_USER = 0x10000000
_BIND, _RECURSIVE, _PRIVATE, _REMOUNT, _READ_ONLY, _NO_SETUID, _NO_DEVICES, _DETACH = (
    0x1000, 0x4000, 0x40000, 0x20, 0x1, 0x2, 0x4, 0x2,
)  # fmt: skip
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin")
_TMPFS = "size=64m,mode=755"

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED = {
    "x86_64": (
        41, 42, 49, 50, 53, 57, 58, 59, 62, 101, 165, 166, 200, 248, 249, 250, 272, 298, 308, 310, 311, 321,
        322, 323, 425, 434, 438,
    ),
    "aarch64": (198, 199, 200, 201, 203, 221, 129, 117, 40, 39, 130, 217, 218, 219, 97, 241, 268, 270, 271,
        280, 281, 282, 425, 434, 438),
}  # fmt: skip
"""socket, connect, bind, listen, socketpair, fork, vfork, execve, kill, ptrace, mount, umount, tkill, keys,
unshare, perf_event_open, setns, process_vm_*, bpf, execveat, userfaultfd, io_uring_setup, pidfd_*"""
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_CLONE_THREAD = 0x10000

_FORBIDDEN = (
    "socket.", "subprocess.", "ctypes.", "pty.", "os.fork", "os.posix_spawn", "os.exec", "os.system",
    "os.spawn", "os.startfile", "os.kill", "signal.pthread_kill", "resource.setrlimit", "os.unshare",
    "os.setns", "ensurepip.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "gc.", "os.putenv",
    "os.setxattr", "os.removexattr", "sys.settrace", "sys.setprofile", "cpython.run_",
)  # fmt: skip
_CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.utime", "os.chflags", "os.lockf", "os.chroot", "shutil.",
)  # fmt: skip
_READS = ("os.listdir", "os.scandir", "os.chdir", "os.walk", "glob.")

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    isolation, scratch, *rest = sys.argv[1:]
    if isolation == "namespaces":
        _leave(scratch, rest)
    os.chdir(scratch)
    _second_stage(isolation, scratch, rest)


def _leave(scratch: str, rest: list[str]) -> None:
    """Run the second stage in new namespaces, as nobody, and end as it ends."""
    with open(__file__, encoding="utf-8") as file:
        source = file.read()
    python = os.path.realpath(sys.executable)
    user, group, root = os.geteuid(), os.getegid(), os.geteuid() == 0
    _call("unshare", _NEW_NAMESPACES if root else _NEW_NAMESPACES | _NEW_USER)
    if not root:
        maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        for name, value in maps.items():
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(value)
    _build_root(scratch)
    child = os.fork()
    if child == 0:
        if root:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        _call("prctl", 1, int(signal.SIGKILL), 0, 0, 0)  # falls with its parent, and all others with it
        # Not root in there: the new program has none of the rights that built the file system.
        os.execve(python, [python, "-I", "-S", "-c", source, "inside", "/scratch", *rest], {})
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _needed() -> list[str]:
    """Folders without which the interpreter does not start."""
    found: list[str] = []
    for path in sorted((sys.base_prefix, *_SYSTEM), key=len):
        inside = any(path == other or path.startswith(f"{other}/") for other in found)
        if os.path.isdir(path) and not os.path.islink(path) and not inside:
            found.append(path)
    return found


def _build_root(new: str) -> None:
    """A file system of the interpreter's folders, read-only, and /scratch; nothing else is in it."""
    links = {path: os.readlink(path) for path in _SYSTEM if os.path.islink(path)}
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", new, "tmpfs", _NO_SETUID | _NO_DEVICES, _TMPFS)
    for path in _needed():
        target = new + path
        os.makedirs(target, exist_ok=True)
        _mount(path, target, None, _BIND | _RECURSIVE)
        flags = os.statvfs(target).f_flag & (_NO_SETUID | _NO_DEVICES | 0x8 | 0x400 | 0x800)
        _mount(None, target, None, _BIND | _REMOUNT | _READ_ONLY | flags)
    for path, target in links.items():
        os.symlink(target, new + path)
    os.mkdir(f"{new}/scratch")
    os.chmod(f"{new}/scratch", 0o777)
    os.chdir(new)
    if _libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"."):
        raise OSError(ctypes.get_errno(), "pivot_root")
    _call("umount2", b".", _DETACH)
    os.chdir("/scratch")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    _call("mount", *texts, flags, None if data is None else data.encode())


def _call(name: str, *arguments: Any) -> None:
    plain = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments]
    if getattr(_libc, name)(*plain):
        raise OSError(ctypes.get_errno(), name)


def _second_stage(isolation: str, scratch: str, rest: list[str]) -> None:
    token, wall_s, memory, file_bytes, open_files = rest
    program = sys.stdin.buffer.read().decode()
    seconds = int(float(wall_s)) + 1
    for kind, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, int(memory)),
        (resource.RLIMIT_FSIZE, int(file_bytes)),
        (resource.RLIMIT_NOFILE, int(open_files)),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    code = compile(program, "<program>", "exec")
    names: dict[str, Any] = {"__name__": "__main__"}
    sys.stdout, sys.argv = _Nothing(), [""]
    if isolation != "hook":
        _filter_calls()
    # Nothing of this file may serve the program: the library above calls into the system unwatched.
    globals().pop("_libc")
    sys.addaudithook(_guard(os.path.realpath(scratch)))
    try:
        exec(code, names)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode()[:400])
        os._exit(1)
    os.write(1, token.encode())
    os._exit(0)


class _Nothing:
    """Where a program's output goes."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def _guard(scratch: str) -> Any:
    """An audit hook: no network, no processes, no files but the scratch folder's and the interpreter's."""
    readable = (
        scratch,
        *{os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *sys.path) if path},
    )

    def inside(path: object, roots: tuple[str, ...]) -> bool:
        if isinstance(path, int):
            return path > 2
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else "."
        real = os.path.realpath(text)
        return any(real == root or real.startswith(f"{root}/") for root in roots)

    def check(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open":
            path, mode, flags = arguments
            written = any(letter in str(mode or "") for letter in "wax+")
            changing = written or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if not inside(path, (scratch,) if changing else readable):
                raise PermissionError(f"{path!r} may not be opened here")
        elif event.startswith(_CHANGES):
            if not all(inside(one, (scratch,)) for one in arguments if isinstance(one, (str, bytes))):
                raise PermissionError(f"{event} is not allowed outside the scratch folder")
        elif event.startswith(_READS) and not inside(arguments[0] if arguments else ".", readable):
            raise PermissionError(f"{event} is not allowed outside the scratch folder")

    return check


def _filter_calls() -> None:
    """A seccomp filter: network, processes, signals, mounts and namespaces answer EPERM; threads remain."""
    machine = platform.machine()

    def step(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, at_least, has_bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, refuse, unknown, allow = 0x80000000, 0x00050000 | 1, 0x00050000 | 38, 0x7FFF0000
    program = [step(load, 0, 0, 4), step(equal, 1, 0, _ARCHITECTURE[machine]), step(answer, 0, 0, kill)]
    program += [step(load, 0, 0, 0)]
    # The x32 calls of x86-64 have numbers of their own.
    program += [step(at_least, 0, 1, 0x40000000), step(answer, 0, 0, kill)]
    for number in _REFUSED[machine]:
        program += [step(equal, 0, 1, number), step(answer, 0, 0, refuse)]
    # Its flags are out of a filter's sight; without it libraries fall back to clone.
    program += [step(equal, 0, 1, _CLONE3), step(answer, 0, 0, unknown)]
    program += [step(equal, 0, 3, _CLONE[machine]), step(load, 0, 0, 16), step(has_bits, 1, 0, _CLONE_THREAD)]
    program += [step(answer, 0, 0, refuse), step(answer, 0, 0, allow)]
    buffer = ctypes.create_string_buffer(b"".join(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    _call("prctl", 38, 1, 0, 0, 0)
    _call("prctl", 22, 2, ctypes.byref(Program(len(program), ctypes.addressof(buffer))), 0, 0)


if __name__ == "__main__":
    main()
