"""Pages of other sites begin no calls; this server's own page, and programs, do. Without pipecat."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from vermilion.voice.page_check import PageCheck


def client(host: str = "127.0.0.1", allowed: tuple[str, ...] = ()) -> TestClient:
    async def answer(request: Request) -> Response:
        return PlainTextResponse("answered")

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("answered")
        await socket.close()

    methods = ["GET", "POST", "PATCH"]
    app = Starlette(routes=[Route("/api/offer", answer, methods=methods), WebSocketRoute("/ws", talk)])
    app.add_middleware(PageCheck, host=host, allowed_hosts=allowed)
    return TestClient(app, base_url="http://127.0.0.1:7860")


def statuses(caller: TestClient, headers: dict[str, str]) -> set[int]:
    """Of every way to begin or change a call."""
    found = {
        caller.request(method, "/api/offer", headers=headers).status_code for method in ("POST", "PATCH")
    }
    try:
        with caller.websocket_connect("ws://127.0.0.1:7860/ws", headers=headers) as socket:
            assert socket.receive_text() == "answered"
        return found | {200}
    except WebSocketDenialResponse as denied:
        return found | {denied.status_code}


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST"])
def test_the_own_page_may_call_under_every_name_of_this_computer(host: str) -> None:
    assert statuses(client(), {"host": host, "origin": f"http://{host.lower()}"}) == {200}
    assert statuses(client(), {"host": host}) == {200}, "programs send no Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://127.0.0.1:8000",
        "http://localhost:7860",
        "http://127.0.0.1:7860.evil.example",
        "http://[",
        "null",
        "",
    ],
)
def test_a_page_of_another_origin_is_refused(origin: str) -> None:
    assert statuses(client(), {"origin": origin}) == {403}


def test_a_refusal_names_the_origin_and_the_option() -> None:
    reply = client().post("/api/offer", headers={"origin": "https://evil.example"})
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("permission_error", "origin_not_allowed")
    assert "'https://evil.example'" in error["message"] and "--allow-host" in error["message"]
    named = client().get("/api/offer", headers={"host": "rebound.example"}).json()["error"]
    assert named["code"] == "host_not_allowed" and "--allow-host rebound.example" in named["message"]


def test_reading_is_left_to_the_browsers_own_rule() -> None:
    assert client().get("/api/offer", headers={"origin": "https://evil.example"}).status_code == 200


def test_a_name_pointed_at_this_computer_is_refused_though_page_and_host_agree() -> None:
    rebound = {"host": "evil.example:7860", "origin": "http://evil.example:7860"}
    assert statuses(client(), rebound) == {403}
    assert client().get("/api/offer", headers=rebound).status_code == 403


def test_allowed_names_pass_whether_the_proxy_keeps_the_host_or_not() -> None:
    behind_proxy = client(allowed=("Talk.example",))
    assert statuses(behind_proxy, {"host": "talk.example", "origin": "https://talk.example"}) == {200}
    assert statuses(behind_proxy, {"origin": "https://talk.example:8443"}) == {200}
    assert statuses(behind_proxy, {"origin": "https://evil.example"}) == {403}


def test_a_server_for_others_takes_any_host_but_no_foreign_page() -> None:
    open_server = client(host="0.0.0.0", allowed=("*",))
    assert statuses(open_server, {"host": "box.lan:7860", "origin": "http://box.lan:7860"}) == {200}
    assert statuses(open_server, {"host": "box.lan:7860", "origin": "https://evil.example"}) == {403}
