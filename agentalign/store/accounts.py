"""Accounts of the people who rate together: a name, a role, and a password that is kept as a scrypt hash only.

The surprise is `stamp`: a short digest of the hash, which sessions carry. A new password or a removed account ends every session at
once, without a table of sessions.
"""

import getpass
import hashlib
import hmac
import re
import secrets
from typing import Literal, NamedTuple, cast, get_args

from sqlalchemy import select

from agentalign.errors import DataError
from agentalign.records.base import now
from agentalign.store.appending import insert_new
from agentalign.store.database import Database
from agentalign.store.filters import bindable
from agentalign.store.tables import accounts

Role = Literal["rater", "lead", "admin"]
"""A rater rates what is in the queue, a lead also looks at everything, fills queues, trains and promotes, an admin also forgets."""

ROLES: tuple[Role, ...] = get_args(Role)
LEAST_CHARACTERS = 10
MOST_CHARACTERS = 1000

# 32 MiB and about a tenth of a second per try: https://datatracker.ietf.org/doc/html/rfc7914#section-2, N = 2^15, r = 8, p = 1
_N, _R, _P = 2**15, 8, 1
_NAME = re.compile(r"[a-z0-9][a-z0-9_.@-]{0,63}")


def own_name() -> str:
    """The name under which this machine's person rates: the machine's account."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "someone"


class Account(NamedTuple):
    """A person who may log in."""

    name: str
    role: Role
    stamp: str
    """Changes with the password."""
    created: str


class Accounts:
    """The accounts of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, name: str, role: str, password: str) -> bool:
        """Make an account, or give one another role and password; True where it is new."""
        if not _NAME.fullmatch(name):
            raise DataError(f"{name!r} is not a name for an account: small letters, digits, '_', '.', '@' and '-', at most 64.")
        if role not in ROLES:
            raise DataError(f"{role!r} is no role. Choose rater, lead or admin.")
        if not LEAST_CHARACTERS <= len(password) <= MOST_CHARACTERS:
            raise DataError(f"a password has {LEAST_CHARACTERS} to {MOST_CHARACTERS} characters; this one has {len(password)}.")
        row = {"name": name, "role": role, "password": hashed(password), "created": now()}
        with self._database.write() as connection:
            is_new = bool(insert_new(connection, accounts, [row], key="name"))
            if not is_new:
                values = {"role": role, "password": row["password"]}
                connection.execute(accounts.update().where(accounts.c.name == name).values(**values))
        return is_new

    def remove(self, name: str) -> bool:
        """Remove an account; what the person rated stays. False where there is none."""
        with self._database.write() as connection:
            return connection.execute(accounts.delete().where(accounts.c.name == bindable(name, "name"))).rowcount > 0

    def all(self) -> list[Account]:
        """All accounts by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(accounts).order_by(accounts.c.name)).all()
        return [Account(row.name, cast(Role, row.role), _stamp(row.password), row.created) for row in rows]

    def find(self, name: str) -> Account | None:
        """The account of this name."""
        with self._database.read() as connection:
            row = connection.execute(select(accounts).where(accounts.c.name == bindable(name, "name"))).one_or_none()
        return None if row is None else Account(row.name, cast(Role, row.role), _stamp(row.password), row.created)

    def log_in(self, name: str, password: str) -> Account | None:
        """The account, if the password is its own. A name that nobody has takes as long as a wrong password."""
        with self._database.read() as connection:
            row = connection.execute(select(accounts).where(accounts.c.name == bindable(name, "name"))).one_or_none()
        right = matches(password, _NOBODY if row is None else row.password)
        return Account(row.name, cast(Role, row.role), _stamp(row.password), row.created) if row is not None and right else None


def hashed(password: str) -> str:
    """A password as it is kept: the parameters of scrypt, a salt of its own, and the hash."""
    salt = secrets.token_bytes(16)
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${_scrypt(password, salt, _N, _R, _P).hex()}"


def matches(password: str, kept: str) -> bool:
    """Whether the password is the one that was kept."""
    _, n, r, p, salt, wanted = kept.split("$")
    found = _scrypt(password, bytes.fromhex(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, bytes.fromhex(wanted))


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    said = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(said, salt=salt, n=n, r=r, p=p, maxmem=2**26, dklen=32)


def _stamp(kept: str) -> str:
    return hashlib.sha256(kept.encode()).hexdigest()[:16]


_NOBODY = f"scrypt${_N}${_R}${_P}${'00' * 16}${'00' * 32}"
