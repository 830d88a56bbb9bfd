"""What all tests share: no network, a time budget for the hard ones, and the servers and browsers that some of them need."""

import contextlib
import gc
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
# Toy tensors gain nothing from threads, and threads that wait for each other on a busy machine cost minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A team's own database must never see a test.
os.environ.pop("AGENTALIGN_DATABASE_URL", None)

# No test may fail because a machine was busy: no deadlines, and the same examples every time.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("hard", parent=settings.get_profile("default"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("AGENTALIGN_HYPOTHESIS", "default"))

HARD_SECONDS = float(os.environ.get("AGENTALIGN_HARD_SECONDS", "1700"))
_started = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser and PostgreSQL tests are hard tests; this runs before `-m` chooses."""
    for item in items:
        if item.get_closest_marker("browser") or item.get_closest_marker("postgres"):
            item.add_marker("hard")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Once the budget is spent, the hard tests that are left are skipped and listed with the reason."""
    if item.get_closest_marker("hard") and time.monotonic() - _started > HARD_SECONDS:
        pytest.skip(f"left out: the budget of {HARD_SECONDS:.0f} s for hard tests is spent; raise AGENTALIGN_HARD_SECONDS")


@pytest.fixture(scope="module", autouse=True)
def _left_open() -> Iterator[None]:
    """What a file's tests left open fails the last of them, and not whichever test of another file the collector happens to run in."""
    yield
    gc.collect()
    left = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "agentalign.environments.worker" in child.cmdline():
                left.append(child.pid)
                child.kill()  # or the next file would be blamed for it too
    assert left == [], "a pool of workers was not closed"


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium to drive; it needs --no-sandbox where tests run as root."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no Chromium on this machine; install the package `chromium`")


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SQLAlchemy URL of an empty PostgreSQL database on this machine, gone after the tests."""
    given = os.environ.get("AGENTALIGN_TEST_POSTGRES")
    if given:
        yield given
        return
    programs = _postgres_programs()
    # The server refuses to run as root, and its own user cannot enter root's temporary folders.
    folder = Path(tmp_path_factory.mktemp("postgres")) if os.geteuid() else Path("/tmp") / f"agentalign-postgres-{os.getpid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if not os.geteuid():
        shutil.chown(folder, "postgres", "postgres")
    data, port = folder / "data", _free_port()
    try:
        _as_server([str(programs / "initdb"), "-D", str(data), "-U", "agentalign", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8"])
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        _as_server([str(programs / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-w", "-t", "60", "-o", options, "start"])
        yield f"postgresql+psycopg://agentalign@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            _as_server([str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop"])
        shutil.rmtree(folder, ignore_errors=True)


def _postgres_programs() -> Path:
    on_path = shutil.which("initdb")
    found = [Path(on_path).parent] if on_path else []
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    found += sorted(versions, key=lambda path: -int(path.parent.name))
    if not found:
        pytest.skip(
            "no PostgreSQL on this machine; install the package `postgresql`, or set AGENTALIGN_TEST_POSTGRES to an empty database's URL"
        )
    if not os.geteuid() and not shutil.which("runuser"):
        pytest.skip("PostgreSQL does not run as root, and `runuser` is not there to run it as another user")
    return found[0]


def _as_server(command: list[str]) -> None:
    prefix = [] if os.geteuid() else ["runuser", "-u", "postgres", "--"]
    # pg_ctl's server keeps inherited pipes open: output goes nowhere, errors are in the server's own log.
    done = subprocess.run([*prefix, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    if done.returncode:
        pytest.fail(f"{Path(command[0]).name} ended with {done.returncode}: {' '.join(command)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty store, once per database that a store can live in."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/.agentalign/store.db"
        return
    from sqlalchemy import create_engine, text

    url, schema = request.getfixturevalue("postgres_url"), f"store_{os.urandom(6).hex()}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
        yield f"{url}?options=-csearch_path%3D{schema}"
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()
