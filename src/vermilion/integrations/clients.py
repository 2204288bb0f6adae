"""The configuration of each client and agent, as data.

Every configuration was accepted by the client itself or is taken from its documentation; docs/EDITORS.md
says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vermilion.integrations import agents
from vermilion.integrations.agents import as_json
from vermilion.integrations.endpoint import Endpoint

_HELLO = [{"role": "user", "content": "Say hello."}]
_CHAT = {"messages": _HELLO, "max_tokens": 8}
_COMPLETION = {"prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 8}
_FIM = {**_COMPLETION, "stream": False}
_EDIT = {
    "messages": [
        {
            "role": "user",
            "content": "<|recently_viewed_code_snippets|>\n\n<|/recently_viewed_code_snippets|>\n\n"
            "<|current_file_content|>\ncurrent_file_path: a.py\n<|code_to_edit|>\nx = 1<|cursor|>\n"
            "<|/code_to_edit|>\n<|/current_file_content|>\n\n<|edit_diff_history|>\n\n<|/edit_diff_history|>",
        }
    ],
    "max_tokens": 32,
}
_FUNCTION = {
    "name": "read",
    "description": "Read a file",
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}
_AGENT = {**_CHAT, "stream": True, "tools": [{"type": "function", "function": _FUNCTION}]}
_MESSAGE = {
    **_CHAT,
    "stream": True,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        *_HELLO,
        {"role": "system", "content": [{"type": "text", "text": "Today is Sunday."}]},
    ],
    "tools": [{"name": "read", "input_schema": _FUNCTION["parameters"]}],
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "medium"},
}
_RESPONSE = {
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say hello."}]},
    ],
    "tools": [
        {"type": "function", "strict": False, **_FUNCTION},
        {
            "type": "namespace",
            "name": "files",
            "description": "Files",
            "tools": [{"type": "function", **_FUNCTION}],
        },
        {"type": "web_search"},
    ],
    "stream": True,
    "store": False,
    "max_output_tokens": 8,
}
_APPLY = {
    "messages": [
        {
            "role": "user",
            "content": "<|original_code|>\nx = 1\n<|/original_code|>\n\n"
            "<|update_snippet|>\nx = 2\n<|/update_snippet|>",
        }
    ],
    "max_tokens": 32,
}
_SMALL_AGENT = {
    "mode": "primary",
    "description": "Reads and edits files, for models with little context",
    "prompt": "You read and edit files with your tools.",
    "tools": {"*": False, "read": True, "edit": True, "write": True},
}


@dataclass(frozen=True, slots=True)
class Client:
    """One client and how it is configured."""

    title: str
    render: Callable[[Endpoint], str]
    """The configuration, or the words that say what to do."""
    file: str = ""
    """Where it lies, below the user's home; empty where the client keeps it in its own settings."""
    also: Mapping[str, Callable[[Endpoint], str]] = field(default_factory=dict)
    """Further files below the user's home; none where it gives no text."""
    after: str = ""
    """What is left to do by hand."""
    checks: tuple[tuple[str, Mapping[str, Any]], ...] = (("/v1/chat/completions", _CHAT),)
    """The requests that the client will make: route and body."""

    def files(self, endpoint: Endpoint) -> dict[Path, str]:
        """What goes where; empty where the client keeps its settings to itself."""
        renders = {self.file: self.render, **self.also} if self.file else {}
        texts = {Path.home() / name: render(endpoint) for name, render in renders.items()}
        return {path: text for path, text in texts.items() if text}


def _continue(c: Endpoint) -> str:
    return f"""name: Vermilion
version: 1.0.0
schema: v1
models:
  - name: Vermilion
    provider: inception
    model: {c.coder}
    apiKey: {json.dumps(c.key)}
    apiBase: {c.v1}/
    roles: [chat, edit, apply, autocomplete]
    capabilities: [tool_use, next_edit]
    defaultCompletionOptions:
      contextLength: {c.context_length}
      maxTokens: {min(c.max_output, 1024)}
"""


def _cline(c: Endpoint) -> str:
    return f"""Terminal:

    cline auth -p openai-compatible -k {c.key} -m {c.model} -b {c.v1}

VS Code and JetBrains, in Cline's settings:

    API Provider    OpenAI Compatible
    Base URL        {c.v1}
    API Key         {c.key}
    Model ID        {c.model}
    Context Window  {c.context_length}
"""


def _opencode(c: Endpoint) -> str:
    limit = {"context": c.context_length, "output": min(c.max_output, c.context_length // 4, 4096)}
    name = f"vermilion/{c.model}"
    config: dict[str, Any] = {
        "$schema": "https://opencode.ai/config.json",
        "provider": {
            "vermilion": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Vermilion",
                "options": {"baseURL": c.v1, "apiKey": c.key},
                "models": {c.model: {"name": c.model, "limit": limit}},
            }
        },
        "model": name,
        "small_model": name,
    }
    if agents.is_small(c):
        config["agent"] = {"vermilion": _SMALL_AGENT}
        config["default_agent"] = "vermilion"
    return as_json(config)


def _proxyai(c: Endpoint) -> str:
    return f"""1. Help > Edit Custom VM Options, add this line and restart the IDE:

    -Dinception.baseUrl={c.root}

2. Settings > Tools > ProxyAI > Providers > Inception: API key {c.key}
3. Choose Inception for chat, code completion, next edit and auto apply.
"""


def _jetbrains(c: Endpoint) -> str:
    return f"""Settings > Tools > AI Assistant > Providers & API keys > Third-party: OpenAI-compatible

    URL      {c.v1}
    API key  {c.key}

Test Connection, then Model Assignment: {c.model} for core features and instant helpers, and a context
window of {c.context_length}. As a local provider, Ollama or LM Studio with the URL {c.root} work as well.
"""


def _zed(c: Endpoint) -> str:
    model = {
        "name": c.model,
        "display_name": "Vermilion",
        "max_tokens": c.context_length,
        "max_output_tokens": min(c.max_output, 4096),
        # Zed drops a model whose capabilities are not all here.
        "capabilities": {
            "tools": True,
            "images": False,
            "parallel_tool_calls": False,
            "prompt_cache_key": False,
        },
    }
    provider = {"api_url": c.v1, "available_models": [model]}
    edits = {
        "api_url": f"{c.v1}/completions",
        "model": c.coder,
        "prompt_format": "qwen",
        "max_output_tokens": 64,
    }
    return as_json(
        {
            "language_models": {"openai_compatible": {"Vermilion": provider}},
            "edit_predictions": {"provider": "open_ai_compatible_api", "open_ai_compatible_api": edits},
        }
    )


def _aider(c: Endpoint) -> str:
    return f"""openai-api-base: {c.v1}
openai-api-key: {json.dumps(c.key)}
model: openai/{c.model}
show-model-warnings: false
"""


def _aider_model(c: Endpoint) -> str:
    """Holds a small model to the one edit format that it can fill: the whole file, in a fence.

    Without a name before the fence aider takes the only file in the chat. Its reminder of the format behind
    every request is left out: the grammar keeps to it, and the model would answer the reminder.
    """
    if not agents.is_small(c):
        return ""
    return f"""- name: openai/{c.model}
  edit_format: whole
  use_repo_map: false
  reminder: null
  extra_params:
    max_tokens: {min(c.max_output, 1024)}
    extra_body:
      response_format:
        type: lark
        value: |
          start: "```\\n" LINE+ "```"
          LINE: /[^`\\n][^\\n]*\\n/ | /\\n/
"""


_COMPLETES = ("/v1/completions", _COMPLETION)
_EDITS = (("/v1/edit/completions", _EDIT), ("/v1/apply/completions", _APPLY))
_CHATS = ("/v1/chat/completions", _CHAT)

CLIENTS: dict[str, Client] = {
    "continue": Client("Continue", _continue, ".continue/config.yaml", checks=(_CHATS, _COMPLETES, *_EDITS)),
    "cline": Client("Cline", _cline),
    "kilo": Client(
        "Kilo Code",
        _opencode,
        ".config/kilo/kilo.json",
        after="VS Code's next edit: set kilo-code.new.autocomplete.nextEdit.baseUrl to the service's /v1.",
        checks=(_CHATS, ("/v1/fim/completions", _FIM), _EDITS[0]),
    ),
    "proxyai": Client(
        "Proxy AI (JetBrains)", _proxyai, checks=(_CHATS, ("/v1/fim/completions", _FIM), *_EDITS)
    ),
    "jetbrains": Client("JetBrains AI Assistant", _jetbrains),
    "zed": Client(
        "Zed",
        _zed,
        ".config/zed/settings.json",
        after="Enter the key in Zed's agent settings, or export VERMILION_API_KEY before starting Zed; for "
        "edit predictions ZED_OPEN_AI_COMPATIBLE_EDIT_PREDICTION_API_KEY.",
        checks=(_CHATS, _COMPLETES),
    ),
    "claude": Client(
        "Claude Code",
        agents.claude,
        ".claude/settings.json",
        checks=(("/v1/messages", _MESSAGE), ("/v1/messages/count_tokens", _MESSAGE)),
    ),
    "codex": Client(
        "Codex",
        agents.codex,
        ".codex/vermilion.config.toml",
        also={".codex/vermilion.md": agents.short_prompt},
        after="Start it with: codex --profile vermilion",
        checks=(("/v1/responses", _RESPONSE),),
    ),
    "copilot": Client("Copilot CLI", agents.copilot, checks=(("/v1/chat/completions", _AGENT),)),
    "qwen": Client(
        "Qwen Code",
        agents.qwen,
        ".qwen/settings.json",
        also={".qwen/vermilion.md": agents.short_prompt},
        checks=(("/v1/chat/completions", _AGENT),),
    ),
    "pi": Client(
        "pi",
        agents.pi,
        ".pi/agent/models.json",
        also={".pi/agent/settings.json": agents.pi_settings},
        checks=(("/v1/chat/completions", _AGENT),),
    ),
    "opencode": Client("OpenCode", _opencode, ".config/opencode/opencode.json"),
    "aider": Client(
        "aider",
        _aider,
        ".aider.conf.yml",
        also={".aider.model.settings.yml": _aider_model},
        after="Edits come one file at a time: aider FILE. To ask instead: aider --model openai/mercury "
        "--chat-mode ask",
    ),
}
