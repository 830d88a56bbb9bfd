"""The registry of adapters: whole or not there, never changed, and promoted only on a gate report about that very version."""

import json
import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from agentalign.errors import RegistryError
from agentalign.records.adapter import AdapterCard, GateCheck, GateReport
from agentalign.store.registry import Registry


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What a training leaves: the files of one adapter."""
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(random.Random(0).randbytes(20_000))
    (folder / "heads.safetensors").write_bytes(b"heads")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "adapters")


def card(version: int = 1, name: str = "desk", **fields: Any) -> AdapterCard:
    given = {"kind": "policy", "taskset": "desk", "recipe": "sft", "training": "t", "base": "b", "base_digest": "d", "quantization": "nf4"}
    return AdapterCard(name=name, version=version, template_digest="x", **{**given, **fields})


def gate(adapter: str, passed: bool = True, forced: str = "") -> GateReport:
    return GateReport(adapter=adapter, checks=(GateCheck(name="dev success", passed=passed, detail="71 % of 80 % needed"),), forced=forced)


def test_a_saved_version_is_found_by_name_number_and_stage(registry: Registry, files: Path) -> None:
    assert registry.list() == [] and registry.next_version("desk") == 1
    first = registry.save(card(1), files)
    second = registry.save(card(2, recipe="dpo", parents=("desk@1",)), files)
    assert sorted(first.files) == ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "heads.safetensors"]
    assert registry.resolve("desk@1") == (first, registry.folder / "desk" / "1")
    assert registry.resolve("desk")[0] == second  # the newest
    registry.promote("desk@1", "production", gate("desk@1"))
    assert registry.resolve("desk@production")[0] == first
    assert registry.list() == [first, second] and registry.next_version("desk") == 3
    registry.verify("desk@1")
    registry.verify("desk")


def test_files_are_readable_by_everyone_and_the_source_is_left_alone(registry: Registry, files: Path) -> None:
    (files / "adapter_model.safetensors").chmod(0o600)
    before = sorted(os.listdir(files))
    previous = os.umask(0o077)
    try:
        registry.save(card(), files)
    finally:
        os.umask(previous)
    _, folder = registry.resolve("desk@1")
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644} and folder.stat().st_mode & 0o777 == 0o755
    assert sorted(os.listdir(files)) == before


def test_a_version_is_never_written_twice(registry: Registry, files: Path) -> None:
    registry.save(card(), files)
    (files / "heads.safetensors").write_bytes(b"other")
    with pytest.raises(RegistryError, match=r"desk@1 exists, and versions never change\. Save it as desk@2"):
        registry.save(card(), files)
    registry.verify("desk@1")


def test_a_version_saved_from_another_version_takes_a_card_of_its_own(registry: Registry, files: Path) -> None:
    registry.save(card(), files)
    copy = registry.save(card(2), registry.resolve("desk@1")[1])
    assert registry.resolve("desk@2")[0] == copy and "card.json" not in copy.files


@pytest.mark.parametrize(
    "ref", ["", "../desk", "/etc", "desk@0", "desk@01", "desk@-1", "desk@latest", "desk@1@2", "Desk", "desk@1\n", "a/b", "desk\0"]
)
def test_a_reference_of_the_wrong_form_is_refused(registry: Registry, files: Path, ref: str) -> None:
    registry.save(card(), files)
    with pytest.raises(RegistryError, match="is not an adapter reference"):
        registry.resolve(ref)


def test_an_unknown_adapter_is_answered_with_the_nearest_names(registry: Registry, files: Path) -> None:
    with pytest.raises(RegistryError, match=r"there is no adapter 'desk' .* Train one"):
        registry.resolve("desk")
    registry.save(card(name="order_desk"), files)
    registry.save(card(name="order_desk-reward"), files)
    with pytest.raises(RegistryError, match=r"Did you mean order_desk"):
        registry.resolve("oder_desk@3")
    with pytest.raises(RegistryError, match=r"It has order_desk and order_desk-reward\."):
        registry.resolve("zzzz")
    with pytest.raises(RegistryError, match=r"there is no order_desk@7; order_desk has version 1\."):
        registry.resolve("order_desk@7")
    with pytest.raises(RegistryError, match=r"order_desk has no production version"):
        registry.resolve("order_desk@production")


def test_one_flipped_bit_in_any_file_is_found_and_named(registry: Registry, files: Path) -> None:
    registry.save(card(), files)
    folder = registry.folder / "desk" / "1"
    chance = random.Random(7)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for _ in range(20):
            changed = bytearray(whole)
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            file.write_bytes(changed)
            with pytest.raises(RegistryError, match="damaged") as caught:
                registry.verify("desk@1")
            assert file.name in str(caught.value)
        file.write_bytes(whole)
        registry.verify("desk@1")


def test_files_removed_added_or_linked_are_found(registry: Registry, files: Path, tmp_path: Path) -> None:
    registry.save(card(), files)
    folder = registry.folder / "desk" / "1"
    (folder / "extra.py").write_text("print()")
    with pytest.raises(RegistryError, match=r"extra\.py was added"):
        registry.verify("desk@1")
    (folder / "extra.py").unlink()
    (folder / "heads.safetensors").rename(tmp_path / "heads")
    with pytest.raises(RegistryError, match=r"heads\.safetensors is missing"):
        registry.verify("desk@1")
    (folder / "heads.safetensors").symlink_to(tmp_path / "heads")
    with pytest.raises(RegistryError, match=r"heads\.safetensors was added"):
        registry.verify("desk@1")


def test_a_version_moved_to_another_name_or_number_is_refused(registry: Registry, files: Path) -> None:
    registry.save(card(), files)
    (registry.folder / "desk" / "1").rename(registry.folder / "desk" / "4")
    with pytest.raises(RegistryError, match="holds desk@1: it was moved"):
        registry.resolve("desk@4")


def test_links_lead_nowhere(registry: Registry, files: Path, tmp_path: Path) -> None:
    registry.save(card(), files)
    (registry.folder / "desk" / "2").symlink_to(registry.folder / "desk" / "1")
    (registry.folder / "other").symlink_to(registry.folder / "desk")
    with pytest.raises(RegistryError, match="there is no desk@2"):
        registry.resolve("desk@2")
    with pytest.raises(RegistryError, match="is a link"):
        registry.resolve("other@1")
    with pytest.raises(RegistryError, match="is a link"):
        registry.save(card(2, name="other"), files)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("adapter_model.bin", "can carry code"),
        ("modeling.py", "can carry code"),
        ("sub", "a link, a folder"),
        ("a b", "oddly named"),
        ("link", "a link"),
    ],
)
def test_files_that_an_adapter_must_not_have_are_refused(registry: Registry, files: Path, name: str, sentence: str) -> None:
    if name == "sub":
        (files / name).mkdir()
    elif name == "link":
        (files / name).symlink_to("/etc/passwd")
    else:
        (files / name).write_text("x")
    with pytest.raises(RegistryError, match=sentence):
        registry.save(card(), files)
    assert registry.list() == []


def test_a_folder_without_weights_is_no_adapter(registry: Registry, files: Path, tmp_path: Path) -> None:
    (files / "adapter_model.safetensors").unlink()
    with pytest.raises(RegistryError, match=r"lacks adapter_model\.safetensors"):
        registry.save(card(), files)
    with pytest.raises(RegistryError, match="is not a folder"):
        registry.save(card(), tmp_path / "nowhere")


def test_promotion_needs_a_passed_gate_about_the_same_version(registry: Registry, files: Path) -> None:
    registry.save(card(1), files)
    registry.save(card(2), files)
    with pytest.raises(RegistryError, match=r"desk@2 did not pass its gate \(dev success: 71 % of 80 % needed\)"):
        registry.promote("desk@2", "production", gate("desk@2", passed=False))
    with pytest.raises(RegistryError, match="a gate report about 'desk@1'"):
        registry.promote("desk@2", "production", gate("desk@1"))
    with pytest.raises(RegistryError, match="not to 'previous'"):
        registry.promote("desk@2", "previous", gate("desk@2"))
    assert registry.stages("desk") == {}
    forced = gate("desk@2", passed=False, forced="the dev set is broken")
    registry.promote("desk", "production", forced)
    assert registry.stages("desk") == {"production": 2}
    assert [change.gate for change in registry.history("desk")] == [forced]


def test_a_damaged_version_is_not_promoted(registry: Registry, files: Path) -> None:
    registry.save(card(), files)
    (registry.folder / "desk" / "1" / "heads.safetensors").write_bytes(b"headz")
    with pytest.raises(RegistryError, match=r"heads\.safetensors is not what was saved"):
        registry.promote("desk@1", "production", gate("desk@1"))
    assert registry.stages("desk") == {}


def test_the_version_before_can_be_put_back_and_every_change_is_remembered(registry: Registry, files: Path) -> None:
    for version in (1, 2, 3):
        registry.save(card(version), files)
    with pytest.raises(RegistryError, match="no previous version"):
        registry.roll_back("desk")
    registry.promote("desk@1", "production", gate("desk@1"))
    registry.promote("desk@2", "candidate", gate("desk@2"))
    assert registry.stages("desk") == {"production": 1, "candidate": 2}
    registry.promote("desk@candidate", "production", gate("desk@2"))
    assert registry.stages("desk") == {"production": 2, "previous": 1}
    registry.promote("desk@2", "production", gate("desk@2"))  # again: what came before stays what came before
    assert registry.resolve("desk@previous")[0].version == 1
    with pytest.raises(RegistryError, match="Name the adapter alone"):
        registry.roll_back("desk@2")
    assert registry.roll_back("desk").version == 1
    assert registry.stages("desk") == {"production": 1}
    history = [(change.action, change.stage, change.version, change.replaced) for change in registry.history("desk")]
    assert history == [
        ("promote", "production", 1, None),
        ("promote", "candidate", 2, None),
        ("promote", "production", 2, 1),
        ("promote", "production", 2, 2),
        ("roll_back", "production", 1, 2),
    ]


def test_a_version_that_is_not_whole_stands_in_no_other_ones_way(registry: Registry, files: Path) -> None:
    """Such as one that is being copied in: stages are read, and production is put back, meanwhile."""
    for version in (1, 2):
        registry.save(card(version=version), files)
        registry.promote(f"desk@{version}", "production", gate(f"desk@{version}"))
    (registry.folder / "desk" / "3").mkdir()
    assert registry.stages("desk") == {"production": 2, "previous": 1}
    assert registry.roll_back("desk").version == 1
    assert len(registry.history("desk")) == 3
    assert registry.canary("desk") == 0
    cards, (problem,) = registry.readable()
    assert [one.version for one in cards] == [1, 2]
    assert "desk@3 is damaged" in problem
    assert registry.list() == cards
    with pytest.raises(RegistryError, match="desk@3 is damaged"):
        registry.cards("desk")


def test_a_link_and_torn_stages_are_told_and_hide_no_other_adapter(registry: Registry, files: Path, tmp_path: Path) -> None:
    good, torn = registry.save(card(), files), registry.save(card(name="torn"), files)
    (registry.folder / "torn" / "stages.json").write_text("{")
    (tmp_path / "elsewhere" / "1").mkdir(parents=True)
    (registry.folder / "linked").symlink_to(tmp_path / "elsewhere")
    cards, (link, stages) = registry.readable()
    assert cards == registry.list() == [good, torn] and registry.cards("desk") == [good]
    assert "linked is a link" in link and "stages.json cannot be read" in stages
    with pytest.raises(RegistryError, match="Did you mean desk"):
        registry.resolve("desc")


def test_a_number_that_was_in_production_is_not_given_again(registry: Registry, files: Path) -> None:
    registry.save(card(1), files)
    registry.save(card(2), files)
    registry.promote("desk@2", "production", gate("desk@2"))
    shutil.rmtree(registry.folder / "desk" / "2")
    assert registry.next_version("desk") == 3
    with pytest.raises(RegistryError, match="there is no desk@2"):
        registry.resolve("desk@production")


def test_unreadable_stages_are_said_and_not_guessed(registry: Registry, files: Path) -> None:
    registry.save(card(), files)
    (registry.folder / "desk" / "stages.json").write_text(json.dumps({"stages": {"production": 1}})[:-3])
    with pytest.raises(RegistryError, match=r"stages\.json cannot be read"):
        registry.promote("desk@1", "production", gate("desk@1"))


def test_what_a_crash_left_is_neither_listed_nor_in_the_way(registry: Registry, files: Path) -> None:
    left = registry.folder / "desk" / ".saving-1"
    left.mkdir(parents=True)
    (left / "adapter_model.safetensors").write_bytes(b"half")
    assert registry.list() == []
    registry.save(card(), files)
    assert not left.exists()
    registry.verify("desk@1")


def test_a_save_that_fails_leaves_nothing(registry: Registry, files: Path) -> None:
    (registry.folder / "desk").mkdir(parents=True)
    (registry.folder / "desk" / "1").write_text("a file where the version would go")
    with pytest.raises(RegistryError, match="exists, and versions never change"):
        registry.save(card(), files)
    registry.folder.joinpath("other").write_text("a file where the adapter would go")
    with pytest.raises(RegistryError, match="other@1 could not be saved"):
        registry.save(card(name="other"), files)
    assert sorted(path.name for path in (registry.folder / "desk").iterdir()) == [".lock", "1"]


def test_two_who_save_one_version_at_once_leave_one_whole_version(registry: Registry, files: Path) -> None:
    refused: list[RegistryError] = []

    def save(training: str) -> None:
        try:
            registry.save(card(training=training), files)
        except RegistryError as error:
            refused.append(error)

    threads = [threading.Thread(target=save, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3 and len(registry.list()) == 1
    registry.verify("desk@1")


def test_a_version_is_a_number_and_a_content_hash(registry: Registry, files: Path) -> None:
    registry.save(card(1), files)
    identity = registry.identity("desk@1")
    assert identity == f"desk@1-{registry.content('desk')[:12]}" and registry.resolve(identity)[0].ref == "desk@1"
    registry.save(card(2, seed=1), files)
    assert registry.content("desk@2") != registry.content("desk@1"), "equal weights of another training are another version"
    with pytest.raises(RegistryError, match="another adapter has this number here"):
        registry.resolve("desk@1-" + registry.content("desk@2")[:12])
    about_another = gate("desk@1").model_copy(update={"content": registry.content("desk@2")})
    with pytest.raises(RegistryError, match="the gate report is about desk@1 with the content"):
        registry.promote("desk@1", "production", about_another)


def test_a_number_is_never_given_again_even_where_its_version_was_deleted(registry: Registry, files: Path) -> None:
    registry.save(card(1), files)
    registry.save(card(2), files)
    shutil.rmtree(registry.folder / "desk" / "2")
    assert registry.next_version("desk") == 3
    for name in ("desk@3", "desk@production", "Desk"):
        with pytest.raises(RegistryError, match="is not an adapter's name"):
            registry.next_version(name)


def test_a_card_and_stages_from_before_are_read_and_promoted_on(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parent / "fixtures" / "old_adapters", tmp_path / "adapters")
    registry = Registry(tmp_path / "adapters")
    old, _ = registry.resolve("desk@production")
    assert (old.ref, old.seed, old.base_files) == ("desk@1", None, {})
    registry.verify("desk@1")
    assert registry.identity("desk@1") == "desk@1-6c00dfff199c"
    registry.promote("desk@1", "candidate", gate("desk@1"))
    assert [change.stage for change in registry.history("desk")] == ["production", "candidate"]


def test_a_canary_takes_its_share_of_sessions_and_never_changes_one(registry: Registry, files: Path) -> None:
    for version in (1, 2, 3):
        registry.save(card(version), files)
    with pytest.raises(RegistryError, match="needs a version in production and a candidate"):
        registry.set_canary("desk", 0.1)
    registry.promote("desk@1", "production", gate("desk@1"))
    registry.promote("desk@2", "candidate", gate("desk@2"), canary=0.25)
    sessions = [f"session {i}" for i in range(400)]
    chosen = {session: registry.for_session("desk", session).version for session in sessions}
    assert 60 <= sum(version == 2 for version in chosen.values()) <= 140
    assert {session: registry.for_session("desk", session).version for session in sessions} == chosen
    registry.set_canary("desk", 0.5)
    assert all(registry.for_session("desk", session).version == 2 for session in sessions if chosen[session] == 2)
    with pytest.raises(RegistryError, match="from 0 to 1"):
        registry.set_canary("desk", 1.5)
    registry.promote("desk@3", "candidate", gate("desk@3"))
    assert registry.canary("desk") == 0, "a new candidate answers nobody yet"
    assert [change.weight for change in registry.history("desk") if change.action == "canary"] == [0.25, 0.5]


def test_a_canary_of_a_version_that_is_not_the_candidate_is_refused(registry: Registry, files: Path) -> None:
    for version in (1, 2, 3):
        registry.save(card(version), files)
    registry.promote("desk@1", "production", gate("desk@1"))
    registry.promote("desk@2", "candidate", gate("desk@2"), canary=0.25)
    for other in ("desk@3", "desk@1", "desk@production"):
        with pytest.raises(RegistryError, match=r"is not it. Make it so: `agentalign promote desk@[13] candidate`"):
            registry.set_canary(other, 0.5)
    assert registry.canary("desk") == 0.25
    registry.set_canary("desk@2", 0.5)
    registry.set_canary("desk@candidate", 0.75)
    assert registry.canary("desk") == 0.75


def test_promoting_the_candidate_again_with_no_share_takes_its_canary_back(registry: Registry, files: Path) -> None:
    registry.save(card(1), files)
    registry.save(card(2), files)
    registry.promote("desk@2", "candidate", gate("desk@2"), canary=0)
    registry.promote("desk@1", "production", gate("desk@1"))
    registry.promote("desk@2", "candidate", gate("desk@2"), canary=0.25)
    registry.promote("desk@2", "candidate", gate("desk@2"))
    assert registry.canary("desk") == 0.25, "nothing was said about it"
    registry.promote("desk@2", "candidate", gate("desk@2"), canary=0)
    assert registry.canary("desk") == 0
