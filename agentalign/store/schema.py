"""Which schema a database has, and how it is brought to ours.

Alembic is imported only when there is something to migrate: opening a store that is up to date must stay quick.
"""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from agentalign.errors import StoreError
from agentalign.store.tables import REVISIONS

MIGRATIONS = Path(__file__).parent / "migrations"


def revision(connection: Connection) -> str | None:
    """The schema's revision; None for a database that holds no store yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def check_known(found: str | None, where: str) -> None:
    """Refuse a schema that a newer agentalign wrote."""
    if found is not None and found not in REVISIONS:
        raise StoreError(
            f"{where} has schema {found}; this agentalign knows schemas up to {REVISIONS[-1]}, so it would misread it. "
            "Install the newer agentalign that wrote it."
        )


def migrate(connection: Connection, *, folder: Path = MIGRATIONS) -> None:
    """Bring the schema to the newest revision, inside the transaction that `connection` is in."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
