"""A small identity provider: gives tokens to clients that know their secret (OAuth 2 client credentials, RFC 6749
section 4.4), and tells what they are signed with."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs

from tests.e2e.secure_broker import token
from tests.unit.security import tokens


class IdentityProvider:
    """Serves in a thread while the context lasts. `users` are clients' ids and secrets; `issued` counts tokens."""

    def __init__(self, users: dict[str, str], seconds: int = 300) -> None:
        self.users = users
        self.seconds = seconds
        self.issued = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, tokens.key_set())

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                user = self._user()
                if user is None or form.get("grant_type") != ["client_credentials"]:
                    self._answer(401, b'{"error": "invalid_client"}')
                    return
                provider.issued += 1
                issued = token(user, provider.seconds)
                answer = {"access_token": issued, "token_type": "bearer", "expires_in": provider.seconds}
                self._answer(200, json.dumps(answer).encode())

            def _user(self) -> str | None:
                _, _, given = self.headers.get("Authorization", "").partition(" ")
                user, _, secret = base64.b64decode(given).decode().partition(":")
                return user if provider.users.get(user) == secret else None

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> IdentityProvider:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
