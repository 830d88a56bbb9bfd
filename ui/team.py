"""A team's server: the login page, and how often a wrong password may be tried.

The count of tries lives in this process and is by name and address, so that guessing is slow and a stranger elsewhere cannot lock a
colleague out: whoever has not tried of late is always heard. Surprise: behind a proxy that does not pass addresses on everybody has one,
and a flood of guesses shuts the login for a minute.
"""

import threading
import time
from collections import deque
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import FileResponse, JSONResponse, Response

from agentalign.errors import DataError
from agentalign.store.accounts import Account, Accounts
from agentalign.ui.auth import TEAM_SECONDS, Signer, person_of, sentence

TRIES = 10
"""Wrong passwords a minute for one name from one address."""
ADDRESS_TRIES = 30
"""And for all names from one address."""
ALL_TRIES = 100
"""And for all addresses that have tried before: each try costs a tenth of a second and 32 MiB."""
MINUTE = 60.0


class LoginIn(BaseModel):
    """Who wants to come in."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=64)]
    password: Annotated[str, Field(max_length=1000)]


class Tries:
    """Wrong passwords of the last minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: deque[tuple[float, tuple[str, str]]] = deque()

    def begin(self, key: tuple[str, str]) -> bool:
        """Count a try before it is made; False where there were too many."""
        with self._lock:
            now = time.monotonic()
            while self._times and self._times[0][0] < now - MINUTE:
                self._times.popleft()
            here = [known for _, known in self._times if known[1] == key[1]]
            if here.count(key) >= TRIES or len(here) >= ADDRESS_TRIES or (here and len(self._times) >= ALL_TRIES):
                return False
            self._times.append((now, key))
            return True

    def forgive(self, key: tuple[str, str]) -> None:
        """The password was right: the name's tries count no more."""
        with self._lock:
            self._times = deque((moment, known) for moment, known in self._times if known != key)


def add_team(app: FastAPI, accounts: Accounts | None, signer: Signer, *, secure: bool) -> None:
    """The routes of logging in and out; without accounts they say that there is no login."""
    tries = Tries()
    hashing = threading.BoundedSemaphore(2)

    @app.get("/login")
    def login_page() -> Response:
        """The page that asks for name and password."""
        return FileResponse(Path(__file__).parent / "static" / "login.html", media_type="text/html")

    @app.post("/api/login")
    def log_in(request: Request, wanted: LoginIn) -> Response:
        """Sign the cookie for whoever knows the password."""
        if accounts is None:
            return sentence(404, "There is no login here: this server is its owner's alone. `agentalign ui --team` serves a team.")
        key = (wanted.name, request.client.host if request.client else "")
        if not tries.begin(key):
            return sentence(429, "Too many wrong passwords. Wait a minute.")
        with hashing:
            account = _account(accounts, wanted)
        if account is None:
            return sentence(401, "Name or password is wrong.")
        tries.forgive(key)
        cookie = signer.header(account.name, account.stamp, seconds=TEAM_SECONDS, secure=secure)
        return JSONResponse({"rater": account.name, "role": account.role}, headers={"Set-Cookie": cookie})

    @app.post("/api/logout")
    def log_out(request: Request) -> Response:
        """Take the cookie away."""
        person = person_of(request)
        headers = {"Set-Cookie": signer.header(person.name if person else "", seconds=0, secure=secure)}
        return JSONResponse({"left": True}, headers=headers)


def _account(accounts: Accounts, wanted: LoginIn) -> Account | None:
    try:
        return accounts.log_in(wanted.name, wanted.password)
    except DataError:  # no account can have such a name
        return None
