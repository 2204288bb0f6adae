"""Configurations of coding agents for the terminal; with a small context few tools and a short prompt."""

from __future__ import annotations

import json
from typing import Any

from vermilion.integrations.endpoint import Endpoint

STOCK_AGENT = 20_000
"""Tokens of context below which the prompts and tools that agents bring leave no room: Kilo Code's take
14,800, and the first requests of Codex, Claude Code, Copilot CLI and Qwen Code are bodies of 40 to 60 kB."""
_PROMPT = "You read and edit files with your tools.\n"
_SPARE = 512
"""Tokens between a prompt that is still sent and the context's end, for what clients count otherwise."""
_QWEN_TOOLS = ("read_file", "edit", "write_file")
_QWEN_DENIED = (
    "agent",
    "skill",
    "tool_search",
    "tool_call",
    "get_goal",
    "update_goal",
    "list_agents",
    "enter_worktree",
    "exit_worktree",
    "record_artifact",
    "report_findings",
    "send_message",
    "task_stop",
)


def is_small(c: Endpoint) -> bool:
    return c.context_length < STOCK_AGENT


def answer_length(c: Endpoint) -> int:
    """Tokens of the longest answer that an agent may ask for."""
    return min(c.max_output, c.context_length // 8, 4096) if is_small(c) else min(c.max_output, 32_000)


def as_json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def claude(c: Endpoint) -> str:
    env = {
        "ANTHROPIC_BASE_URL": c.root,
        "ANTHROPIC_AUTH_TOKEN": c.key,
        "ANTHROPIC_MODEL": c.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": c.model,
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(c.context_length),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(answer_length(c)),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    if is_small(c):
        # Its own mode with a short prompt and three tools.
        env["CLAUDE_CODE_SIMPLE"] = "1"
    return as_json({"env": env})


def codex(c: Endpoint) -> str:
    """A profile, so that the user's own configuration stays as it is."""
    # Room for the next message: a prompt that was refused it does not compact any more.
    limit = c.context_length // 2 if is_small(c) else c.context_length * 4 // 5
    lines = [
        f"model = {json.dumps(c.model)}",
        'model_provider = "vermilion"',
        f"model_context_window = {c.context_length}",
        f"model_auto_compact_token_limit = {limit}",
        'web_search = "disabled"',
    ]
    if is_small(c):
        lines += [
            'model_instructions_file = "vermilion.md"',
            "include_permissions_instructions = false",
            "include_apps_instructions = false",
            "include_collaboration_mode_instructions = false",
            "",
            "[agents]",
            "enabled = false",
            "",
            "[skills]",
            "include_instructions = false",
            "",
            "[features]",
            "goals = false",
            "apps = false",
        ]
    lines += [
        "",
        "[model_providers.vermilion]",
        'name = "Vermilion"',
        f"base_url = {json.dumps(c.v1)}",
        'wire_api = "responses"',
        f"http_headers = {{ Authorization = {json.dumps(f'Bearer {c.key}')} }}",
        "",
    ]
    return "\n".join(lines)


def short_prompt(c: Endpoint) -> str:
    """The system prompt of an agent that keeps it in a file; none where its own has room."""
    return _PROMPT if is_small(c) else ""


def qwen(c: Endpoint) -> str:
    generation = {"contextWindowSize": c.context_length, "samplingParams": {"max_tokens": answer_length(c)}}
    provider = {
        "id": c.model,
        "name": "Vermilion",
        "baseUrl": c.v1,
        "envKey": "VERMILION_API_KEY",
        "generationConfig": generation,
    }
    settings: dict[str, Any] = {
        "modelProviders": {"openai": [provider]},
        "env": {"VERMILION_API_KEY": c.key},
        "security": {"auth": {"selectedType": "openai"}},
        "model": {"name": c.model},
    }
    if is_small(c):
        settings["env"]["QWEN_SYSTEM_MD"] = "~/.qwen/vermilion.md"
        settings["tools"] = {"core": list(_QWEN_TOOLS)}
        settings["permissions"] = {"deny": list(_QWEN_DENIED)}
        settings["memory"] = {"enableManagedAutoMemory": False}
    return as_json(settings)


def pi(c: Endpoint) -> str:
    model = {
        "id": c.model,
        "name": "Vermilion",
        "contextWindow": c.context_length,
        "maxTokens": answer_length(c),
    }
    provider = {"baseUrl": c.v1, "api": "openai-completions", "apiKey": c.key, "models": [model]}
    return as_json({"providers": {"vermilion": provider}})


def pi_settings(c: Endpoint) -> str:
    settings: dict[str, Any] = {"defaultProvider": "vermilion", "defaultModel": c.model}
    if is_small(c):
        # It keeps 16,384 tokens free otherwise, and would compact before each request.
        settings["compaction"] = {
            "reserveTokens": answer_length(c) + _SPARE,
            "keepRecentTokens": c.context_length // 4,
        }
    return as_json(settings)


def copilot(c: Endpoint) -> str:
    few = " --available-tools=view,edit,create --no-custom-instructions" if is_small(c) else ""
    return f"""Copilot reads its model provider from the environment:

    export COPILOT_PROVIDER_BASE_URL={c.v1}
    export COPILOT_PROVIDER_API_KEY={c.key}
    export COPILOT_MODEL={c.model}
    export COPILOT_PROVIDER_MAX_PROMPT_TOKENS={c.context_length - answer_length(c)}
    export COPILOT_PROVIDER_MAX_OUTPUT_TOKENS={answer_length(c)}
    export COPILOT_OFFLINE=true
    copilot{few}
"""
