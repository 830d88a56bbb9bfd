"""Routes of a version's deploy-checks: what they said, how far one is that was started here, and promotion by the gate."""

from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from agentalign.errors import RegistryError
from agentalign.records.adapter import GateReport
from agentalign.store.registry import Registry
from agentalign.ui.agreement_api import Lead
from agentalign.ui.api import House, ascii_json
from agentalign.ui.checking import Checks

Name = Annotated[str, InPath(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}$")]
Version = Annotated[int, InPath(ge=1, le=999_999_999)]
SHOWN = 10
"""Reports of one version on its page, the newest first."""


class PromoteIn(BaseModel):
    """Which stage its adapter is to have."""

    model_config = ConfigDict(extra="forbid")

    stage: Literal["candidate", "production"]
    reason: Annotated[str, Field(max_length=1000)] = ""
    """Why it is promoted although a check fails; kept."""


class CheckLine(BaseModel):
    """One question."""

    name: str
    verdict: str
    detail: str


class ReportView(BaseModel):
    """One deploy-check."""

    target: str
    time: str
    state: str
    checks: list[CheckLine]


class ChecksView(BaseModel):
    """What is known of one version."""

    adapter: str
    stages: list[str]
    working: bool
    """One that was started from a page is under way."""
    step: str
    """What it asks now."""
    seconds: float
    """How long it takes or took; 0 where none was started here."""
    reason: str
    """Why the last one that was started here left no report."""
    state: str
    """green, red, not measured: what the newest report came to, which promotion asks for; empty where there is none."""
    reports: list[ReportView]


def add(app: FastAPI, house: House) -> None:
    """Add the routes."""
    checks, registry = Checks(house.project), Registry(house.project.adapters)

    def known(name: str, version: int) -> str:
        try:
            return registry.resolve(f"{name}@{version}")[0].ref
        except RegistryError as error:
            raise HTTPException(404, str(error)) from None

    def view(ref: str) -> ChecksView:
        reports = [report_view(report) for report in reversed(registry.checks(ref))][:SHOWN]
        held = registry.stages(ref.partition("@")[0])
        stages = sorted(stage for stage, version in held.items() if ref.endswith(f"@{version}"))
        mine = checks.of(ref)
        return ChecksView(
            adapter=ref, stages=stages, working=mine is not None and not mine.ended, step=checks.step(mine) if mine else "",
            seconds=mine.seconds if mine else 0.0, reason=mine.reason if mine else "", state=reports[0].state if reports else "",
            reports=reports,
        )  # fmt: skip

    @app.get("/api/adapters/{name}/{version}/checks", response_model=ChecksView)
    def of_version(_lead: Lead, name: Name, version: Version) -> Response:
        """Its reports, and how far a check is."""
        return ascii_json(view(known(name, version)))

    @app.post("/api/adapters/{name}/{version}/checks", response_model=ChecksView)
    def begin(_lead: Lead, name: Name, version: Version) -> Response:
        """Start a deploy-check in this machine."""
        ref = known(name, version)
        checks.begin(ref)
        return ascii_json(view(ref))

    @app.post("/api/adapters/{name}/{version}/promote")
    def promote(lead: Lead, name: Name, version: Version, wanted: PromoteIn) -> Response:
        """Promote it, if it passes the gate or there is a reason; the history says whose reason it was."""
        from agentalign.deployment.check import promote as promote_adapter  # torch takes seconds to import

        reason = wanted.reason.strip()
        report = promote_adapter(house.project, known(name, version), wanted.stage, forced=f"{reason} ({lead})" if reason else "")
        return ascii_json(report.model_dump(mode="json"))


def report_view(report: GateReport) -> ReportView:
    """A report as the page shows it."""
    lines = [CheckLine(name=check.name, verdict=check.verdict, detail=check.detail) for check in report.checks]
    return ReportView(target=report.target, time=report.time, state=report.state, checks=lines)
