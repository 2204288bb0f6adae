"""One Python framework against the service: `ask_frameworks.py NAME URL MODEL`. Prints JSON.

Each is asked for a text, a shape held to by a schema and a demanded call, as far as it has them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

QUESTION = "What is the capital of France? Answer in one short sentence."
KEY = "unused"


class City(BaseModel):
    """Where something is."""

    city: str


class Volume(BaseModel):
    """Set the volume of the radio."""

    level: Literal[1, 2, 3]


def pydantic_ai(url: str, model: str) -> dict[str, Any]:
    from pydantic_ai import Agent, NativeOutput, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    openai = OpenAIProvider(base_url=f"{url}/v1", api_key=KEY)
    chat = OpenAIChatModel(model, provider=openai)
    responses = OpenAIResponsesModel(model, provider=openai)
    limit: Any = {"max_tokens": 64}
    answers = [Agent(one, model_settings=limit).run_sync(QUESTION).output for one in (chat, responses)]
    shaped = Agent(chat, output_type=NativeOutput(City), model_settings=limit).run_sync(QUESTION).output
    called = [
        Agent(one, output_type=ToolOutput(Volume), model_settings=limit).run_sync("Louder!").output.level
        for one in (chat, responses)
    ]
    return {"answers": answers, "shaped": shaped.model_dump(), "called": called}


def instructor(url: str, model: str) -> dict[str, Any]:
    import instructor as package
    import openai

    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": 64,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
    shaped = package.from_openai(client, mode=package.Mode.JSON_SCHEMA).chat.completions.create(
        **asked, response_model=City
    )
    called = package.from_openai(client, mode=package.Mode.TOOLS).chat.completions.create(
        **asked, response_model=Volume
    )
    return {"answers": [], "shaped": shaped.model_dump(), "called": [called.level]}


def openai_agents(url: str, model: str) -> dict[str, Any]:
    from agents import (
        Agent,
        ModelSettings,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    levels: list[int] = []

    @function_tool
    def set_volume(level: Literal[1, 2, 3]) -> str:
        """Set the volume of the radio."""
        levels.append(level)
        return f"The volume is {level}."

    async def ask() -> tuple[list[Any], Any]:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY)
        limit = ModelSettings(max_tokens=64)
        demanding = ModelSettings(max_tokens=64, tool_choice="required")
        answers = []
        for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
            served = kind(model, client)
            agent = Agent("plain", model=served, model_settings=limit)
            answers.append((await Runner.run(agent, QUESTION)).final_output)
            once: Any = "stop_on_first_tool"
            caller = Agent(
                "caller", model=served, tools=[set_volume], model_settings=demanding, tool_use_behavior=once
            )
            await Runner.run(caller, "Louder!")
        shaping = Agent("shaper", model=served, output_type=City, model_settings=limit)
        return answers, (await Runner.run(shaping, QUESTION)).final_output

    answers, shaped = asyncio.run(ask())
    return {"answers": answers, "shaped": shaped.model_dump(), "called": levels}


def langchain(url: str, model: str) -> dict[str, Any]:
    from langchain_anthropic import ChatAnthropic
    from langchain_openai import ChatOpenAI

    where: Any = {"model": model, "base_url": f"{url}/v1", "api_key": KEY, "max_tokens": 64}
    chat, responses = ChatOpenAI(**where), ChatOpenAI(**where, use_responses_api=True)
    claude: Any = ChatAnthropic(model=model, base_url=url, api_key=KEY, max_tokens=64)
    answers = [one.invoke(QUESTION).text for one in (chat, responses, claude)]
    answers.append("".join(chunk.text for chunk in chat.stream(QUESTION)))
    shaped: Any = chat.with_structured_output(City, method="json_schema").invoke(QUESTION)
    called = [
        one.bind_tools([Volume], tool_choice="any").invoke("Louder!").tool_calls[0]["args"]["level"]
        for one in (chat, responses, claude)
    ]
    return {"answers": answers, "shaped": shaped.model_dump(), "called": called}


def langchain_aws(url: str, model: str) -> dict[str, Any]:
    from langchain_aws import ChatBedrockConverse

    where: Any = {
        "model": f"arn:aws:bedrock:us-east-1:123456789012:custom-model/{model}",
        "provider": "anthropic",
        "endpoint_url": url,
        "region_name": "us-east-1",
        "aws_access_key_id": KEY,
        "aws_secret_access_key": KEY,
        "max_tokens": 64,
    }
    chat = ChatBedrockConverse(
        **where, disable_streaming=False, supports_tool_choice_values=("auto", "any", "tool")
    )
    whole = chat.invoke(QUESTION)
    assert whole.usage_metadata["output_tokens"] > 0
    answers = [whole.text, "".join(chunk.text for chunk in chat.stream(QUESTION))]
    shaped: Any = chat.with_structured_output(City).invoke('Call City with {"city": "Paris"}')
    called = chat.bind_tools([Volume], tool_choice="any").invoke("Louder!").tool_calls
    return {"answers": answers, "shaped": shaped.model_dump(), "called": [called[0]["args"]["level"]]}


def smolagents(url: str, model: str) -> dict[str, Any]:
    from smolagents import ChatMessage, OpenAIServerModel, tool

    @tool
    def set_volume(level: int) -> str:
        """Set the volume of the radio.

        Args:
            level: From 1 to 3.
        """
        return f"The volume is {level}."

    served = OpenAIServerModel(model, api_base=f"{url}/v1", api_key=KEY, max_tokens=64)
    asked = [ChatMessage(role="user", content=[{"type": "text", "text": QUESTION}])]
    answer = served.generate(asked)
    call = served.generate(asked, tools_to_call_from=[set_volume]).tool_calls[0]
    assert call.function.name == "set_volume"
    arguments = call.function.arguments
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"answers": [answer.content], "shaped": None, "called": [arguments["level"]]}


def mini_swe_agent(url: str, model: str) -> dict[str, Any]:
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.environments.local import LocalEnvironment
    from minisweagent.models.litellm_model import LitellmModel

    notes = Path("notes.txt")
    notes.write_text("Helo, world\n")
    kwargs = {"api_base": f"{url}/v1", "api_key": KEY, "tool_choice": "required", "max_tokens": 128}
    served = LitellmModel(model_name=f"openai/{model}", model_kwargs=kwargs, cost_tracking="ignore_errors")
    agent = DefaultAgent(
        served,
        LocalEnvironment(cwd=str(Path.cwd())),
        system_template="You edit files by shell commands.",
        instance_template='Call bash with {"command": "sed -i s/Helo/Hello/ notes.txt"}',
        step_limit=1,
    )
    agent.run()
    return {"answers": [], "shaped": None, "called": [2] if notes.read_text() == "Hello, world\n" else []}


def litellm(url: str, model: str) -> dict[str, Any]:
    import litellm as package

    v1: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": KEY}
    root: dict[str, Any] = {"api_base": url, "api_key": KEY}
    limit: dict[str, Any] = {"max_tokens": 24, "messages": [{"role": "user", "content": QUESTION}]}
    chats = {
        f"openai/{model}": v1,
        f"hosted_vllm/{model}": v1,
        f"lm_studio/{model}": v1,
        f"azure/{model}": {**root, "api_version": "2024-10-21"},
        f"anthropic/{model}": root,
        f"ollama/{model}": root,
        f"ollama_chat/{model}": root,
    }
    answers = []
    for name, where in chats.items():
        answers.append(package.completion(model=name, **where, **limit).choices[0].message.content)
        stream = package.completion(model=name, **where, **limit, stream=True)
        answers.append("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
    said = package.responses(model=f"openai/{model}", input=QUESTION, max_output_tokens=24, **v1)
    answers.append(said.output[0].content[0].text)
    message = asyncio.run(package.anthropic_messages(model=f"anthropic/{model}", **root, **limit))
    answers.append(message["content"][0]["text"])
    gap = {"prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 8}
    filled = package.text_completion(model=f"text-completion-openai/{model}", **v1, **gap)
    assert filled.choices[0].text
    return {"answers": answers, "shaped": None, "called": []}


def litellm_clouds(url: str, model: str) -> dict[str, Any]:
    import litellm as package

    os.environ.update(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=KEY, AWS_REGION_NAME="us-east-1")
    asked: dict[str, Any] = {"max_tokens": 64, "messages": [{"role": "user", "content": QUESTION}]}
    amazon = {"aws_bedrock_runtime_endpoint": url}
    chats: dict[str, Any] = {
        f"bedrock/converse/{model}": amazon,
        "bedrock/invoke/anthropic.claude-3-5-sonnet-20240620-v1:0": amazon,
        f"sagemaker_chat/{model}": {"sagemaker_base_url": f"{url}/endpoints/{model}/invocations"},
        f"azure_ai/{model}": {"api_base": f"{url}/models", "api_key": KEY},
    }
    answers = []
    for name, where in chats.items():
        answers.append(package.completion(model=name, **where, **asked).choices[0].message.content)
        if name.startswith("sagemaker"):
            continue
        stream = package.completion(model=name, **where, **asked, stream=True)
        answers.append("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
    parameters = Volume.model_json_schema()
    tool = {"type": "function", "function": {"name": "Volume", "parameters": parameters}}
    # It offers tools only to models whose names it knows.
    claude = "bedrock/converse/anthropic.claude-3-5-sonnet-20240620-v1:0"
    called = package.completion(model=claude, **amazon, **asked, tools=[tool], tool_choice="required")
    (call,) = called.choices[0].message.tool_calls
    level = json.loads(call.function.arguments)["level"]
    return {"answers": answers, "shaped": None, "called": [level]}


PROGRAMS: dict[str, tuple[str, Callable[[str, str], dict[str, Any]]]] = {
    "pydantic-ai": ("pydantic-ai-slim", pydantic_ai),
    "instructor": ("instructor", instructor),
    "openai-agents": ("openai-agents", openai_agents),
    "langchain": ("langchain-openai", langchain),
    "smolagents": ("smolagents", smolagents),
    "mini-swe-agent": ("mini-swe-agent", mini_swe_agent),
    "litellm": ("litellm", litellm),
    "langchain-aws": ("langchain-aws", langchain_aws),
    "litellm-clouds": ("litellm", litellm_clouds),
}

if __name__ == "__main__":
    # Nothing of these needs to know who else is there.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    name, url, model = sys.argv[1:]
    package, program = PROGRAMS[name]
    print(json.dumps({"version": version(package), **program(url, model)}))
