"""Who is asking, and may this request come in at all?

One ASGI layer stands in front of everything, Gradio's routes included: it checks Host and Origin, caps bodies, reads the rater from
a signed cookie and sets the security headers. Nobody's word in a payload says who they are. The surprise: on one's own machine
there is no login; opening the page signs the cookie for the person whose account runs the server, and other web pages are kept
out by the Host and Origin checks and by SameSite=Strict. A team's server signs it at the login only, and asks the accounts anew at
every request, so that a removed account or a new password ends a session at once.
"""

import hashlib
from collections.abc import MutableMapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from anyio import to_thread
from fastapi import HTTPException, Request
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from agentalign.deployment.serving.body import capped_body, replay
from agentalign.store.accounts import Accounts, Role

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
COOKIE_SECONDS = 30 * 24 * 3600
TEAM_SECONDS = 12 * 3600
"""A login to a team's server lasts for a working day."""
MAX_BODY_BYTES = 256 * 1024
READS = frozenset({"GET", "HEAD", "OPTIONS"})
PERSON = "agentalign.person"
PAGE_OF = "x-agentalign-rater"
"""Header of a save: whose page it comes from. Somebody else may have logged in since, in another tab."""
OPEN = frozenset({"/", "/login", "/api/login"})
OPEN_BELOW = ("/ui/", "/run/")
"""Plain scripts and styles, and the address of a run, which tells nothing: it leads to the page, where people log in."""
"""What nobody in particular may ask for; and our own scripts and styles, which are public."""

RANK: dict[Role, int] = {"rater": 1, "lead": 2, "admin": 3}
"""Each role may do what those below it may."""


class Person(NamedTuple):
    """Who asks, and what they may do."""

    name: str
    role: Role


# gr.HTML compiles its script, so 'unsafe-eval' has to stay: the defence against run text is textContent, this is the second wall.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; form-action 'self'; frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; "
    "object-src 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Signer(NamedTuple):
    """Signs and reads the cookie that names the rater."""

    project: str
    """What tells this project from others that one browser has seen on the same port."""
    serializer: URLSafeTimedSerializer

    @property
    def cookie(self) -> str:
        """Cookie name; one per project, because cookies are shared by all ports of a machine."""
        return "agentalign_" + self.project

    def sign(self, name: str, stamp: str = "") -> str:
        """The cookie's value for a person; `stamp` is the account's, where there are accounts."""
        value = self.serializer.dumps([name, stamp] if stamp else name)
        return value if isinstance(value, str) else value.decode()

    def header(self, name: str, stamp: str = "", *, seconds: int = COOKIE_SECONDS, secure: bool = False) -> str:
        """The Set-Cookie header of a session; 0 seconds end it."""
        value = self.sign(name, stamp) if seconds else ""
        return f"{self.cookie}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"

    def read(self, headers: Headers, seconds: int = COOKIE_SECONDS) -> tuple[str, str] | None:
        """Name and stamp in a request's cookie; None without a cookie, or with a forged or expired one."""
        for signed in _cookies(headers, self.cookie):
            try:
                value = self.serializer.loads(signed, max_age=seconds)
            except BadSignature:
                continue
            if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
                return value[0], value[1]
            if isinstance(value, str):
                return value, ""
        return None


def _cookies(headers: Headers, name: str) -> list[str]:
    """All values under a name. Cookies are shared by all ports, and the standard library reads none beside one that it cannot read."""
    pairs = (pair.strip().partition("=") for line in headers.getlist("cookie") for pair in line.split(";"))
    return [value.strip('"') for key, _, value in pairs if key == name]


def project_signer(secret: bytes) -> Signer:
    """The signer that a project's secret makes."""
    return Signer(hashlib.sha256(secret).hexdigest()[:8], URLSafeTimedSerializer(secret, salt="agentalign.rater"))


def person_of(request: Request) -> Person | None:
    """The person of this request, as the guard read it; None for nobody."""
    person = request.scope.get(PERSON)
    return person if isinstance(person, Person) else None


def rater_of(request: Request) -> str | None:
    """The name of this request's person; None for nobody. Also what Gradio asks (`auth_dependency`)."""
    person = person_of(request)
    return None if person is None else person.name


def require(request: Request, role: Role) -> Person:
    """The person of this request; 401 for nobody, 403 for one whose role is lower."""
    person = person_of(request)
    if person is None:
        raise HTTPException(401, ENDED)
    if RANK[person.role] < RANK[role]:
        why = f"This needs the role {role}; {person.name} is {person.role}. Ask an admin of this server."
        raise HTTPException(403, why, headers={NEEDS_ROLE: role})
    return person


def require_rater(request: Request) -> str:
    """The name of this request's person, who may rate."""
    return require(request, "rater").name


def require_person(request: Request) -> Person:
    """This request's person, whatever their role."""
    return require(request, "rater")


def require_lead(request: Request) -> str:
    """The name of this request's person, who is a lead or an admin."""
    return require(request, "lead").name


def require_admin(request: Request) -> str:
    """The name of this request's person, who is an admin."""
    return require(request, "admin").name


class Guard:
    """The ASGI layer in front of every route."""

    def __init__(self, app: ASGIApp, *, signer: Signer, owner: str, accounts: Accounts | None = None, home: str | None = None) -> None:
        self.app = app
        self.signer = signer
        self.owner = owner
        """Whom the page's cookie is signed for on a machine without login."""
        self.accounts = accounts
        """Who may log in; None on one's own machine."""
        self.home = home
        """Address under which a team reaches this server, such as https://rate.example.org; None for this machine only."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through with its person in the scope, or answer for the app."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookie: str | None = None
        refusal: Response | None = refused(scope, headers, self.home)
        if refusal is None:
            # Plain scripts and styles are anybody's: nobody is looked up for them.
            person = scope[PERSON] = None if scope["path"].startswith("/ui/") else await self._person(headers)
            is_page = scope["method"] == "GET" and scope["path"] == "/"
            if person is None and is_page and self.accounts is None:
                scope[PERSON], cookie = Person(self.owner, "admin"), self.signer.header(self.owner)
            elif person is None and is_page:
                refusal = RedirectResponse("/login", 303)
            elif person is None and scope["path"] not in OPEN and not scope["path"].startswith(OPEN_BELOW):
                refusal = sentence(401, ENDED)
            if refusal is None and person is not None and unquote(headers.get(PAGE_OF, person.name)) != person.name:
                refusal = sentence(401, OTHER.format(person.name))
            if refusal is None and scope["method"] not in READS:
                body = await capped_body(receive, headers, most=MAX_BODY_BYTES)
                receive, refusal = (receive, sentence(413, TOO_LARGE)) if body is None else (replay(body, receive), None)
        answer = refusal or self.app
        await answer(scope, receive, hardened(send, scope["path"], cookie))

    async def _person(self, headers: Headers) -> Person | None:
        said = self.signer.read(headers, COOKIE_SECONDS if self.accounts is None else TEAM_SECONDS)
        if said is None:
            return None
        name, stamp = said
        if self.accounts is None:
            # Whoever has an account on this machine and reaches its loopback address owns the project's files anyway.
            return Person(name, "admin") if not stamp else None
        account = await to_thread.run_sync(self.accounts.find, name)
        return Person(account.name, account.role) if account is not None and account.stamp == stamp else None


NEEDS_ROLE = "X-Agentalign-Needs-Role"
"""Header of a refusal that asking again does not change; any other 403 may be a door in front of this server."""
ENDED = "Your session has ended. Reload the page; unsaved marks are kept in this browser and sent again."
OTHER = "This browser is logged in as {} now. Reload the page; what you had not saved is kept until you log in again."
TOO_LARGE = f"The request is larger than {MAX_BODY_BYTES // 1024} KiB, which no rating needs. Shorten the note."


def sentence(status: int, text: str) -> JSONResponse:
    """An error answer in the form all routes use."""
    return JSONResponse({"detail": text}, status_code=status)


def refused(scope: Scope, headers: Headers, home: str | None = None) -> Response | None:
    """The answer to a request that may not come in, or None."""
    hosts = headers.getlist("host")
    is_home = home is not None and hosts == [urlsplit(home).netloc]
    if not is_home and (len(hosts) != 1 or host_name(hosts[0]) not in LOOPBACK):
        return sentence(400, f"This server answers to {home or 'localhost and 127.0.0.1'} only. Open it under this name.")
    origin = headers.get("origin")
    own = home if is_home else f"{scope.get('scheme', 'http')}://{hosts[0]}"
    if origin is not None and origin != own:
        return sentence(403, "This request comes from another web page. Use the pages of this server.")
    if scope["method"] not in READS and headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return sentence(403, "This request comes from another web page. Use the pages of this server.")
    return None


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    name, port = host, ""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        port = port.removeprefix(":")
    elif host.count(":") == 1:
        name, _, port = host.partition(":")
    return name.lower() if port.isdigit() or not port else ""


def hardened(send: Send, path: str, cookie: str | None) -> Send:
    """A `send` that adds the security headers and takes away any leave for other origins."""

    async def hard(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
            for name in [key for key in headers if key.startswith("access-control-")]:
                del headers[name]
            if path in OPEN or path.startswith("/api/"):
                headers["Cache-Control"] = "no-store"
            if cookie:
                headers.append("Set-Cookie", cookie)
        await send(message)

    return hard
