"""A handler that answers in JSON and logs nothing, for tests that stand in for somebody else's server."""

import json
from http.server import BaseHTTPRequestHandler


class JsonHandler(BaseHTTPRequestHandler):
    """`answer` sends; what is asked is the test's."""

    def answer(self, found: dict[str, object], status: int = 200) -> None:
        """Send this, whole."""
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
