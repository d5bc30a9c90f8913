"""Commands that change the shape of a cluster: what they show, what they do, what they refuse."""

import json
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from facegrid.errors import FencedError
from facegrid.testing.fake_admin import FakeCluster
from facegrid.testing.fake_router import FakeRouter
from tests.fakes.shell import Ended, Shell

S0, S1, S2, S3 = (f"staff.1f00aa23.{number:04d}" for number in range(4))


def a_cluster() -> FakeCluster:
    """Return three nodes in two zones and a gallery of four shards with two copies."""
    cluster = FakeCluster()
    for node_id, zone in (("n1", "a"), ("n2", "b"), ("n3", "a")):
        cluster.add_node(node_id, zone=zone)
    cluster.add_gallery("staff", "n1 n2", "n2 n1", "n1 n2", "n2 n3")
    return cluster


@pytest.fixture
async def fgctl(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    with capture_logs():
        async with FakeRouter(cluster=a_cluster()) as router:
            yield Shell(router, capsys)


def nodes_of(fgctl: Shell, shard_id: str) -> str:
    return " ".join(fgctl.router.cluster.find(shard_id).node_ids)


def the_error(ended: Ended) -> str:
    """Return the one line of a refusal."""
    assert (ended.code, ended.out) == (1, "")
    (line,) = ended.err.splitlines()
    return line


async def test_a_move_shows_its_plan_then_asks_then_goes_to_its_end(fgctl: Shell) -> None:
    move = ("shard", "move", S0, "--from", "n2", "--to", "n3", "--cause", "n2 is loud")

    asked = await fgctl(*move)
    dry = await fgctl(*move, "--dry-run")
    assert (asked.code, dry.code) == (2, 0)
    assert "nothing was changed: repeat it with --yes" in asked.err
    assert dry.out.endswith("nothing was changed: this was a dry run\n")
    for ended in (asked, dry):
        told = [
            "now:   staff.1f00aa23.0000 on n1 n2",
            "n2 is loud",
            "moves 100.0 MiB, about 1 min",
        ]
        assert [one for one in [*told, "4. cutover", "8.0 GiB"] if one not in ended.out] == []
    assert (nodes_of(fgctl, S0), fgctl.router.cluster.operations) == ("n1 n2", {})

    done = await fgctl(*move, "--yes")
    assert done.code == 0
    assert done.out.endswith(f"done: op-1 {S0} on n1 n3\n")
    assert f"op-1 {S0} on n1 n3: step cutover (3 of 5), 60% of the rows" in done.err
    assert nodes_of(fgctl, S0) == "n1 n3"


@pytest.mark.parametrize(
    ("options", "nodes"),
    [
        (("--primary", "n2"), "n2 n1"),
        (("--from", "n1", "--to", "n3"), "n3 n2"),
        (("--from", "n1", "--to", "n3", "--primary", "n2"), "n2 n3"),
        (("--to", "n3"), "n1 n2 n3"),
        (("--from", "n1"), "n2"),
    ],
)
async def test_a_move_puts_copies_and_roles_where_they_are_wanted(
    fgctl: Shell, options: tuple[str, ...], nodes: str
) -> None:
    ended = await fgctl("shard", "move", S0, *options, "--yes", "--json")

    assert ended.document["plans"][0]["spec"]["node_ids"] == nodes.split()
    assert ended.document["operations"][0]["state"] == "done"
    assert nodes_of(fgctl, S0) == nodes


async def test_a_split_names_its_children_and_a_merge_takes_it_back(fgctl: Shell) -> None:
    split = (await fgctl("shard", "split", S1, "--yes", "--json")).document
    children = split["operations"][0]["child_ids"]
    listed = (await fgctl("shard", "list", "--json")).document["shards"]
    merged = await fgctl("shard", "merge", *children, "--yes")

    assert [one["id"] for one in listed] == [S0, *children, S2, S3]
    assert merged.code == 0
    assert len(fgctl.router.cluster.shards) == 4
    assert fgctl.router.cluster.shards[1].last == fgctl.router.cluster.shards[2].first - 1


async def test_nobody_needs_to_wait(fgctl: Shell) -> None:
    fgctl.router.cluster.frozen = True
    ended = await fgctl("shard", "split", S1, "--yes", "--no-wait")

    assert ended.code == 0
    assert ended.out.endswith(
        "started, and goes on by itself; fgctl ops watch op-1 shows how far\n"
    )
    assert (await fgctl("ops", "list", "--json")).document["operations"][0]["id"] == "op-1"


async def test_what_is_so_already_is_not_done(fgctl: Shell) -> None:
    ended = await fgctl("shard", "move", S0, "--primary", "n1", "--yes")

    assert (ended.code, ended.out) == (0, "nothing was changed: there is nothing to do\n")
    assert fgctl.router.cluster.operations == {}


NO_NODE = "no such node; fgctl node list shows those there are"
NO_GALLERY = "no such gallery; fgctl gallery list shows those there are"
NO_OPERATION = "no such operation; fgctl ops list --all shows those there are"
NO_SHARD = (
    "no such shard; fgctl shard list shows those there are; a shard that was split or merged is"
    " replaced by others"
)
NO_NEIGHBOURS = (
    "the shards are no neighbours; fgctl shard list shows a gallery's shards in the order of their"
    " ranges"
)
NO_MERGE = "name two or more different shards of one gallery"
FEW_NODES = "fewer nodes than copies; add a node first"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("shard move staff.7 --to n3", f"{NO_SHARD} shard=staff.7 reason=SHARD_UNKNOWN"),
        (
            f"shard move {S0} --from n3 --to n3",
            f"n3 has no copy of it, these have: n1 n2 shard={S0} reason=MOVE_MALFORMED",
        ),
        (
            f"shard move {S0} --to n2",
            f"n2 has a copy of it already, as have: n1 n2 shard={S0} reason=MOVE_MALFORMED",
        ),
        (
            f"shard move {S0} --primary n3",
            f"n3 would have no copy of it, these would: n1 n2 shard={S0} reason=MOVE_MALFORMED",
        ),
        (f"shard merge {S0} {S2}", f"{NO_NEIGHBOURS} reason=NOT_NEIGHBOURS"),
        (
            f"shard merge {S0} {S0}",
            f"{NO_MERGE} shards={S0},{S0} galleries=staff reason=MERGE_MALFORMED",
        ),
        ("node drain n9", f"{NO_NODE} node=n9 reason=NODE_UNKNOWN"),
        ("node undrain n9", f"{NO_NODE} node=n9 reason=NODE_UNKNOWN"),
        ("rebalance apply --lost n9", f"{NO_NODE} node=n9 reason=NODE_UNKNOWN"),
        ("replicas set staff 4", f"{FEW_NODES} nodes=3 copies=4 reason=TOO_FEW_NODES"),
        ("replicas set nobody 2", f"{NO_GALLERY} gallery=nobody reason=GALLERY_UNKNOWN"),
        ("ops abort op-9", f"{NO_OPERATION} operation=op-9 reason=OPERATION_UNKNOWN"),
    ],
)
async def test_what_makes_no_sense_is_refused_in_a_line(
    fgctl: Shell, command: str, told: str
) -> None:
    assert the_error(await fgctl(*command.split(), "--yes")) == f"error: {told}"
    assert (await fgctl(*command.split(), "--yes", "--json")).err == f"error: {told}\n"
    assert fgctl.router.cluster.operations == {}


async def test_a_new_node_is_refused_as_a_target_by_name(fgctl: Shell) -> None:
    ended = await fgctl("shard", "move", S0, "--from", "n2", "--to", "n9", "--yes")

    assert the_error(ended) == (
        "error: no such node; fgctl node list shows those there are node=n9 reason=NODE_UNKNOWN"
    )


async def test_of_two_operators_the_second_hears_of_the_first(fgctl: Shell) -> None:
    fgctl.router.cluster.frozen = True
    await fgctl("shard", "split", S1, "--yes", "--no-wait")
    second = await fgctl("shard", "move", S1, "--from", "n1", "--to", "n3", "--yes", "--json")

    assert the_error(second) == (
        "error: another operation has the shard; wait for it (fgctl ops watch op-1), or give it up"
        " (fgctl ops abort op-1) operation=op-1 reason=OPERATION_CONFLICT"
    )


async def test_two_who_want_the_same_follow_the_same_operation(fgctl: Shell) -> None:
    move = ("shard", "move", S1, "--from", "n1", "--to", "n3", "--yes", "--json")
    fgctl.router.cluster.frozen = True
    first = await fgctl(*move, "--no-wait")
    fgctl.router.cluster.frozen = False
    second = await fgctl(*move)

    assert first.document["operations"][0]["id"] == "op-1"
    assert [(one["id"], one["state"]) for one in second.document["operations"]] == [
        ("op-1", "done")
    ]


async def test_a_plan_that_has_gone_stale_is_not_carried_out(fgctl: Shell) -> None:
    """The plan is of map version 1; by the time it is agreed to, the map is another one."""
    cluster = fgctl.router.cluster
    cluster.restless = True
    ended = await fgctl("shard", "move", S0, "--from", "n2", "--to", "n3", "--yes", "--json")

    assert the_error(ended) == (
        "error: the map is another one by now; run the same command again and look at the new plan"
        " version=2 reason=PLAN_STALE"
    )
    assert cluster.operations == {}


async def test_a_target_without_room_is_shown_and_refused(fgctl: Shell) -> None:
    fgctl.router.cluster.nodes["n3"].memory_available_bytes = 1024 * 1024
    ended = await fgctl("shard", "move", S0, "--from", "n2", "--to", "n3", "--yes")

    assert ended.code == 1
    assert "1.0 MiB  │ NO" in ended.out
    assert ended.err == (
        "error: no room; name another node, or move something away first node=n3 reason=NO_ROOM\n"
    )


async def test_an_operation_is_paused_resumed_and_aborted(fgctl: Shell) -> None:
    fgctl.router.cluster.frozen = True
    await fgctl("shard", "split", S1, "--yes", "--no-wait")
    paused = await fgctl("ops", "pause", "op-1", "--json")
    watched = await fgctl("ops", "watch", "op-1")
    resumed = await fgctl("ops", "resume", "op-1", "--json")
    unsure = await fgctl("ops", "abort", "op-1")
    dry = await fgctl("ops", "abort", "op-1", "--dry-run")
    aborted = await fgctl("ops", "abort", "op-1", "--yes", "--json")
    fgctl.router.cluster.frozen = False
    ended = await fgctl("ops", "watch", "op-1")

    assert [one.document["state"] for one in (paused, resumed, aborted)] == [
        "paused", "running", "aborting"
    ]  # fmt: skip
    assert (watched.code, unsure.code, dry.code) == (1, 2, 0)
    assert "go on with fgctl ops resume op-1 operation=op-1 reason=OPERATION_PAUSED" in watched.err
    assert "it can be aborted; nothing was changed" in dry.out
    assert ended.code == 1
    assert "the operation was aborted operation=op-1 reason=OPERATION_ABORTED" in ended.err
    assert fgctl.router.cluster.find(S1)


async def test_a_paused_operation_says_what_ends_it(fgctl: Shell) -> None:
    """Past its cutover it can only be resumed: until then it stays as it is."""
    cluster = fgctl.router.cluster
    await fgctl("shard", "split", S1, "--yes", "--no-wait")
    early = await fgctl("ops", "pause", "op-1")
    await fgctl("ops", "resume", "op-1")
    while cluster.operations["op-1"].abortable:
        cluster.look()
    late = await fgctl("ops", "pause", "op-1")
    shown = await fgctl("ops", "show", "op-1")

    assert early.err == (
        "fgctl ops resume op-1 goes on with it, fgctl ops abort op-1 takes it back\n"
    )
    told = (
        "it is past its cutover, so it cannot be aborted and stays like this until fgctl ops"
        " resume op-1"
    )
    assert late.err == told + "\n"
    assert "cannot be aborted" in " ".join(shown.out.split())


@pytest.mark.parametrize("option", ["--from", "--to", "--primary"])
async def test_a_move_of_several_copies_is_refused(fgctl: Shell, option: str) -> None:
    """Only the last of them would be moved, without a word about the others."""
    ended = await fgctl("shard", "move", S0, option, "n1", option, "n2", "--yes")

    assert ended.code == 2
    assert f"a move is of one copy: name one node with {option}, not n1 and n2" in ended.err
    assert fgctl.router.cluster.operations == {}


async def test_past_its_cutover_an_operation_says_how_to_go_back(fgctl: Shell) -> None:
    cluster = fgctl.router.cluster
    await fgctl("shard", "split", S1, "--yes", "--no-wait")
    while cluster.operations["op-1"].abortable:
        cluster.look()
    ended = await fgctl("ops", "abort", "op-1", "--yes")
    cluster.look()
    late = await fgctl("ops", "abort", "op-1", "--yes")

    assert the_error(ended) == (
        "error: it is past its cutover; let it end (fgctl ops watch op-1), then go back with"
        " another operation: fgctl shard move to the nodes of before, merge after a split, split"
        " after a merge operation=op-1 reason=PAST_CUTOVER"
    )
    assert the_error(late) == (
        "error: it is over; fgctl ops show op-1 says how it ended operation=op-1"
        " reason=OPERATION_OVER"
    )


async def test_a_drained_node_ends_empty(fgctl: Shell) -> None:
    dry = await fgctl("node", "drain", "n3", "--dry-run")
    assert not fgctl.router.cluster.nodes["n3"].draining
    drained = await fgctl("node", "drain", "n3", "--yes")
    listed = (await fgctl("node", "list", "--json")).document["nodes"]
    again = await fgctl("node", "undrain", "n3", "--yes")

    assert "n3 holds 1 shard; 1 can go elsewhere at once" in dry.out
    assert (drained.code, drained.out.splitlines()[-1]) == (0, "n3 is empty: it can be stopped")
    assert [(one["id"], one["draining"], one["shard_ids"]) for one in listed][2] == (
        "n3",
        True,
        [],
    )
    assert nodes_of(fgctl, S3) == "n2 n1"
    assert again.code == 0
    assert not fgctl.router.cluster.nodes["n3"].draining


async def test_a_drain_waits_for_operations_that_have_a_shard_of_the_node(fgctl: Shell) -> None:
    """1. the role of the shard's copy on n3 is being changed. 2. n3 is drained: no move can begin.
    3. the operation ends. 4. the copy goes elsewhere.
    """
    fgctl.router.cluster.frozen = True
    await fgctl("shard", "move", S3, "--primary", "n3", "--yes", "--no-wait")
    fgctl.router.cluster.frozen = False
    drained = await fgctl("node", "drain", "n3", "--yes")

    assert drained.code == 0
    assert "n3 holds 1 shard; 0 can go elsewhere at once" in drained.out
    assert drained.out.endswith("n3 is empty: it can be stopped\n")
    assert nodes_of(fgctl, S3) == "n1 n2"


async def test_a_drain_is_not_begun_again_once_somebody_aborts_it(fgctl: Shell) -> None:
    cluster = fgctl.router.cluster
    cluster.hesitant = True
    ended = await fgctl("node", "drain", "n3", "--yes")

    assert ended.code == 1
    assert ended.err.endswith("operation=op-1 reason=OPERATION_ABORTED\n")
    assert len(cluster.operations) == 1


async def test_a_node_that_cannot_be_emptied_is_told_with_the_reason(fgctl: Shell) -> None:
    """Two nodes, two copies of everything: there is nowhere to go."""
    cluster = fgctl.router.cluster
    await fgctl("shard", "move", S3, "--from", "n3", "--to", "n1", "--yes")
    del cluster.nodes["n3"]
    cluster.problems = ["nowhere to go: 4 shards of n2; fewer nodes than copies"]
    ended = await fgctl("node", "drain", "n2", "--yes")

    assert ended.code == 1
    assert "cannot be put right: nowhere to go: 4 shards of n2" in ended.out
    assert "the node still holds 4 shards that could not go elsewhere" in ended.err
    assert ended.err.endswith("reason=NODE_NOT_EMPTY\n")


async def test_the_number_of_copies_is_changed(fgctl: Shell) -> None:
    more = (await fgctl("replicas", "set", "staff", "3", "--yes", "--json")).document
    fewer = await fgctl("replicas", "set", "staff", "1", "--yes")

    assert [one["state"] for one in more["operations"]] == ["done"] * 4
    assert fewer.code == 0
    assert {len(shard.node_ids) for shard in fgctl.router.cluster.shards} == {1}
    assert fgctl.router.cluster.galleries["staff"].replicas_count == 1


async def test_a_proposal_is_shown_with_its_reasons_and_carried_out(fgctl: Shell) -> None:
    cluster = fgctl.router.cluster
    cluster.nodes["n1"].draining = True
    plan = await fgctl("rebalance", "plan")
    as_json = (await fgctl("rebalance", "plan", "--json")).document
    applied = await fgctl("rebalance", "apply", "--yes")
    settled = await fgctl("rebalance", "plan")

    assert "copies are not where they should be" in plan.out
    assert plan.out.endswith("fgctl rebalance apply does it\n")
    assert [one["spec"]["shard_ids"] for one in as_json["plans"]] == [[S0], [S1], [S2]]
    assert as_json["nodes"][0]["replicas_after"] == 0
    assert applied.code == 0
    assert settled.out.endswith("there is nothing to do\n")
    assert [nodes_of(fgctl, one) for one in (S0, S1, S2)] == ["n3 n2", "n2 n3", "n3 n2"]


async def test_of_several_moves_one_that_is_refused_leaves_the_others(fgctl: Shell) -> None:
    cluster = fgctl.router.cluster
    cluster.nodes["n1"].draining = True
    cluster.refusals = [FencedError("too late", reason="FENCED")]
    ended = await fgctl("rebalance", "apply", "--yes")

    assert ended.code == 1
    assert f"not started: {S0} on n3 n2: too late" in ended.err
    assert ended.err.splitlines()[-1] == "error: too late reason=FENCED"
    assert [nodes_of(fgctl, one) for one in (S0, S1, S2)] == ["n1 n2", "n2 n3", "n3 n2"]


async def test_how_operations_are_run_is_shown_and_set(fgctl: Shell) -> None:
    first = (await fgctl("rebalance", "limits", "--json")).document
    on = (await fgctl("rebalance", "auto", "on", "--json")).document
    limits = (
        await fgctl("rebalance", "limits", "--at-once", "3", "--p99-ms", "80", "--json")
    ).document

    assert (first["automatic"], first["at_once_max"]) == (False, 2)
    assert (on["automatic"], on["driver"]) == (True, "router1")
    assert (limits["automatic"], limits["at_once_max"], limits["p99_limit_ms"]) == (True, 3, 80)


async def test_without_a_driver_whoever_watches_is_told(fgctl: Shell) -> None:
    fgctl.router.cluster.driver = ""
    ended = await fgctl("shard", "split", S1, "--yes")

    assert "no router drives operations at present; one will soon" in ended.err
    assert (await fgctl("ops", "list")).out.endswith("no router drives operations at present\n")


async def test_operations_are_shown_one_by_one_and_together(fgctl: Shell) -> None:
    await fgctl("shard", "split", S1, "--yes", "--cause", "too large")
    shown = await fgctl("ops", "show", "op-1")
    listed = await fgctl("ops", "list", "--all")
    at_work = json.loads((await fgctl("ops", "list", "--json")).out)

    assert [
        word for word in ("too large", "done", "2025-11-24 16:00:00") if word not in shown.out
    ] == []
    assert f"split {S1}" in listed.out
    assert at_work == {"operations": [], "driver": "router1"}
