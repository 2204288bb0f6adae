"""Mercury's next edit and apply: what their tagged texts say, and what is asked of the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from vermilion.errors import BadRequest
from vermilion.serving.http.openapi import operation
from vermilion.serving.wire.openai_bodies import ChatBody, Generation, Message

CURSOR = "<|cursor|>"
FENCE = "```"
_MOST_TOKENS = 8192
_CONTINUES_MARK = re.compile(r"<\|!@#IS_(?:NEXT_EDIT|APPLY)!@#\|>\s*$")


class EditBody(Generation):
    """Body of POST /v1/edit/completions and /v1/apply/completions."""

    messages: Annotated[
        list[Message],
        Field(
            min_length=1, description="One message of the user, in Mercury's tags; a system's may precede it."
        ),
    ]

    @property
    def text(self) -> str:
        """The user's message. Raises `BadRequest` unless there is exactly one."""
        users = [message.content for message in self.messages if message.role == "user"]
        others = {message.role for message in self.messages} - {"user", "system", "developer"}
        if len(users) != 1 or others:
            raise BadRequest("messages: give exactly one message, of the user.", "messages", "invalid_value")
        return _CONTINUES_MARK.sub("", users[0])


@dataclass(frozen=True, slots=True)
class Edit:
    """What an editor shows of itself when it asks what the user will change next."""

    file: str
    """The current file, the region and all; its path in the first line where the editor gave one."""
    region: str
    """The lines that may change, without the mark of the cursor."""
    snippets: str
    history: str


def parse_edit(text: str) -> Edit:
    """From Mercury's tags; the region may stand in the file, behind it, or alone, and is then all that is
    known of the file. Raises `BadRequest`."""
    region = _tagged(text, "code_to_edit")
    file = _tagged(text, "current_file_content", needed="<|current_file_content|>" in text) or region
    bare = region.replace(CURSOR, "")
    marked = f"<|code_to_edit|>\n{region}\n<|/code_to_edit|>"
    return Edit(
        file=file.replace(marked, bare).replace(CURSOR, "").strip("\n"),
        region=bare,
        snippets=_tagged(text, "recently_viewed_code_snippets", needed=False),
        history=_tagged(text, "edit_diff_history", needed=False),
    )


def parse_apply(text: str) -> tuple[str, str] | None:
    """Original and snippet out of their tags; None for free text, which is for the model alone."""
    if "<|original_code|>" not in text and "<|update_snippet|>" not in text:
        return None
    return _tagged(text, "original_code"), _tagged(text, "update_snippet")


def edit_chat(edit: Edit, body: EditBody) -> ChatBody:
    """The question to the model; its answer goes on from an opened fence and ends at the closing one."""
    parts = ["Rewrite the region of the file. Change only what the recent edits call for."]
    if edit.history.strip():
        parts.append(f"Recent edits:\n{FENCE}\n{edit.history.strip()}\n{FENCE}")
    parts.append(f"File:\n{FENCE}\n{edit.file}\n{FENCE}")
    parts.append(f"Region:\n{FENCE}\n{edit.region}\n{FENCE}")
    return _chat(body, "\n\n".join(parts), 1024)


def apply_chat(body: EditBody) -> ChatBody:
    tagged = parse_apply(body.text)
    if tagged is None:
        return _chat(body, body.text, _MOST_TOKENS)
    original, snippet = tagged
    question = (
        f"Apply the update to the file and write the whole new file.\n\n"
        f"File:\n{FENCE}\n{original}\n{FENCE}\n\nUpdate:\n{FENCE}\n{snippet}\n{FENCE}"
    )
    return _chat(body, question, _MOST_TOKENS)


def fenced(region: str, edit: Edit) -> str:
    """The reply's content: the region in a bare fence, or `None` where it stays or the model says so."""
    if region.strip("\n") in ("", "None", edit.region.strip("\n")):
        return "None"
    return f"{FENCE}\n{region}\n{FENCE}"


def _chat(body: EditBody, question: str, most: int) -> ChatBody:
    given = {name: getattr(body, name) for name in Generation.model_fields}
    given["max_tokens"] = min(body.max_tokens or most, _MOST_TOKENS)
    given["stop"] = [*(body.stop or ()), f"\n{FENCE}"]
    given["n"] = 1
    return ChatBody.model_construct(messages=[Message(role="user", content=question)], **given)


def _tagged(text: str, tag: str, needed: bool = True) -> str:
    """What stands between `<|tag|>` and `<|/tag|>`, without the line breaks next to them."""
    start, end = f"<|{tag}|>", f"<|/{tag}|>"
    begin = text.find(start)
    stop = text.rfind(end)
    if begin < 0 or stop < begin:
        if not needed:
            return ""
        raise BadRequest(
            f"messages: the tags {start} and {end} are missing; see /docs for the layout.",
            "messages",
            "missing_required_parameter",
        )
    inner = text[begin + len(start) : stop]
    return inner.removeprefix("\n").removesuffix("\n")


_LAYOUT = (
    "<|recently_viewed_code_snippets|>\n\n<|/recently_viewed_code_snippets|>\n\n<|current_file_content|>\n"
    "current_file_path: a.py\n<|code_to_edit|>\ncount = 1<|cursor|>\n<|/code_to_edit|>\n"
    "<|/current_file_content|>\n\n<|edit_diff_history|>\n\n<|/edit_diff_history|>"
)
_UPDATE = (
    "<|original_code|>\na = 1\nb = 2\nc = 3\n<|/original_code|>\n\n"
    "<|update_snippet|>\nb = 2\nx = 4\nc = 3\n<|/update_snippet|>"
)
_REPLY = {"id": "cmpl-5e1d", "created": 1767225600, "model": "smollm2-135m-diffusion"}
_USAGE = {"prompt_tokens": 60, "completion_tokens": 5, "total_tokens": 65}


def _reply(kind: str, content: str) -> dict[str, object]:
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {**_REPLY, "object": kind, "choices": choices, "usage": _USAGE}


EDIT = operation(
    "generation",
    "Predict the next edit",
    "The region rewritten, in a bare fence, or `None` where nothing would change. The text of the region "
    "drafts for the answer, so lines that stay cost few passes.",
    {"A region": {"messages": [{"role": "user", "content": _LAYOUT}]}},
    _reply("edit.completion", "```\ncount = 2\n```"),
)
APPLY = operation(
    "generation",
    "Put a snippet into a file",
    "Where each hunk's first and last line occur once in the file, the merge is computed and no model is "
    "asked (0 passes); else the model rewrites the file, drafting from what is there. Other lines are kept "
    "byte for byte in the first case.",
    {"A hunk": {"messages": [{"role": "user", "content": _UPDATE}]}},
    _reply("apply.completion", "a = 1\nb = 2\nx = 4\nc = 3"),
)
