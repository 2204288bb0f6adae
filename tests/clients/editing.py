"""What tests of agents that edit a file share."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from clients.installed import Ran, environment, run
from clients.running import Running

BEFORE, AFTER = "Helo, world\n", "Hello, world"
_COMMAND = [sys.executable, "-c", "from vermilion.cli import main; raise SystemExit(main())"]


def connect(client: str, service: Running, home: Path, *options: str) -> Ran:
    """What `vermilion connect` says, for a user whose home is `home`."""
    env = environment(home, {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)})
    ran = run([*_COMMAND, "connect", client, "--url", service.url, *options], env, home)
    assert ran.status == 0, ran.errors
    assert "FAILED" not in ran.errors
    return ran


def changed(
    notes: Path, service: Running, num_before: int, ran: Ran, route: str = "/v1/chat/completions"
) -> None:
    """Asserts that the file is what was asked for, and that the service was asked for it at `route`."""
    said = f"{ran.output}\n{ran.errors}\n{service.requests()[num_before:]}"
    assert notes.read_text().rstrip("\n") == AFTER, said
    asked = service.requests()[num_before:]
    # The call, and then the words about its result.
    assert asked.count(f"POST {route} 200") >= 2, said
    # When an agent is done it hangs up on what it no longer needs, such as a title for the session.
    assert all(request.endswith((" 200", " 499")) for request in asked), said


def asking(tool: str, **arguments: object) -> str:
    return f"Call {tool} with {json.dumps(arguments)}"
