"""Checks of nodes: the findings of a node, the verdict from all reports, and that nothing waits for ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacov.errors import DataError, PreflightError
from megacov.launch.gpus import judge_gpus
from megacov.launch.node_report import NodeReport, check_shared_folder, find_missing, judge, read_reports
from megacov.launch.peers import Peers, meet_peers
from megacov.launch.preflight import judge_folder
from tests.support.policies import TINY_POLICY

ROOT = Path(__file__).parents[3]
NODES = tuple(f"n{i}" for i in range(5))


def healthy(nodes: tuple[str, ...] = NODES) -> dict[str, NodeReport]:
    """Reports of healthy nodes."""
    return {node: NodeReport(node, offsets={other: 0.0 for other in nodes if other != node}) for node in nodes}


def without_link(reports: dict[str, NodeReport], *pairs: tuple[str, str]) -> dict[str, NodeReport]:
    """Reports of nodes, some of which do not reach each other."""
    for first, second in pairs:
        for node, other in ((first, second), (second, first)):
            report = reports[node]
            offsets = {name: offset for name, offset in report.offsets.items() if name != other}
            reports[node] = replace(report, offsets=offsets, unreachable=(*report.unreachable, other))
    return reports


def test_healthy_nodes_are_good() -> None:
    verdict = judge(NODES, healthy())
    assert not verdict.bad and verdict.notes


def test_a_node_is_bad_by_its_own_word_or_by_its_silence() -> None:
    reports = healthy() | {"n1": replace(healthy()["n1"], problems=("it is on fire",))}
    del reports["n3"]
    for node in reports:
        reports[node] = replace(reports[node], unreachable=("n3",))
    assert judge(NODES, reports).bad == {"n1": ("it is on fire",), "n3": ("it has not reported",)}


@given(st.permutations(NODES))
def test_one_node_that_is_cut_off_is_the_bad_one(nodes: list[str]) -> None:
    cut = nodes[0]
    reports = without_link(healthy(), *((cut, other) for other in nodes[1:]))
    assert set(judge(NODES, reports).bad) == {cut}


def test_of_two_nodes_that_do_not_reach_each_other_the_first_stays() -> None:
    nodes = ("n0", "n1")
    assert set(judge(nodes, without_link(healthy(nodes), nodes)).bad) == {"n1"}


@pytest.mark.parametrize(("skew", "is_bad"), [(0.4, False), (-7.0, True), (90.0, True)])
@pytest.mark.parametrize("node", NODES)
def test_a_clock_that_is_off_is_found_and_no_other(node: str, skew: float, is_bad: bool) -> None:
    clocks = {each: skew if each == node else 0.01 * i for i, each in enumerate(NODES)}
    reports = {
        each: NodeReport(each, offsets={other: clocks[other] - clocks[each] for other in NODES if other != each})
        for each in NODES
    }
    assert set(judge(NODES, reports).bad) == ({node} if is_bad else set())


def test_reports_come_through_in_pieces_and_in_between_others() -> None:
    reports = {
        node: NodeReport(node, offsets={f"other{i}": i / 7 for i in range(200)}, gpus=("H100",) * 8) for node in NODES
    }
    lines = [line for group in zip(*(report.to_lines() for report in reports.values()), strict=True) for line in group]
    assert max(map(len, lines)) < 1000
    assert read_reports(["srun: something", *lines, "megacov-report-of-another-kind"]) == reports
    assert set(read_reports(lines[1:])) == set(NODES[1:])


def test_what_the_shared_folder_does_wrong_is_said(tmp_path: Path) -> None:
    _, problems = check_shared_folder(tmp_path, "n0")
    assert problems == [f"{tmp_path / 'canary'}: No such file or directory"]
    (tmp_path / "canary").write_text("1")
    seconds, problems = check_shared_folder(tmp_path, "n0")
    assert not problems and seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == ["canary"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_nodes_that_begin_at_different_times_meet() -> None:
    addresses = {f"n{i}": f"127.0.0.{i + 1}" for i in range(3)}
    port, found = _free_port(), dict[str, Peers]()

    def be(node: str, delay_s: float) -> None:
        time.sleep(delay_s)
        found[node] = meet_peers(node, addresses, port=port, deadline_s=20)

    threads = [threading.Thread(target=be, args=(node, 0.4 * i)) for i, node in enumerate(addresses)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert time.monotonic() - started < 10
    assert all(not peers.unreachable and len(peers.offsets) == 2 for peers in found.values())
    assert all(abs(offset) < 0.5 for peers in found.values() for offset in peers.offsets.values())


def test_a_node_that_does_not_come_or_does_not_answer_is_unreachable() -> None:
    port = _free_port()
    with socket.create_server(("127.0.0.3", port)):  # accepts connections and stays silent
        addresses = {"n0": "127.0.0.1", "n1": "127.0.0.2", "n2": "127.0.0.3"}
        started = time.monotonic()
        peers = meet_peers("n0", addresses, port=port, deadline_s=2)
    assert set(peers.unreachable) == {"n1", "n2"}
    assert time.monotonic() - started < 20


def test_one_node_reports_and_is_judged(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("1")
    command = [sys.executable, "-m", "megacov.launch.preflight"]
    environment = os.environ | {"SLURMD_NODENAME": "n0"}
    report = subprocess.run(
        [*command, "node", str(tmp_path), str(_free_port()), "0", "20", str(TINY_POLICY), "n0=127.0.0.1"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    (tmp_path / "reports").write_text(report.stdout)
    for nodes, code, said in (
        (["n0"], 0, "n0 is good"),
        (["n0", "n1"], PreflightError.exit_code, "n1 is bad: it has not reported."),
    ):
        judged = subprocess.run(
            [*command, "judge", str(tmp_path), *nodes],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
            check=False,
        )
        assert judged.returncode == code and said in judged.stdout
    assert (tmp_path / "bad_nodes").read_text() == "n1\n"


def test_a_report_of_a_node_that_is_none_counts_for_nothing() -> None:
    garbled = NodeReport("n0b", missing="model.path /m does not exist", unreachable=("n1",))
    assert judge(NODES, healthy() | {"n0b": garbled}) == judge(NODES, healthy())


def test_a_model_that_no_node_has_is_no_fault_of_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reports of nodes without the model, and the exit code of the job for it."""
    gone = find_missing(tmp_path / "gone")
    assert gone == f"model.path {tmp_path / 'gone'} does not exist"
    assert find_missing(tmp_path) == f"model.path {tmp_path} has no config.json" and not find_missing(TINY_POLICY)
    reports = {node: replace(report, missing=gone) for node, report in healthy().items()}
    (tmp_path / "reports").write_text("\n".join(line for each in reports.values() for line in each.to_lines()))
    assert judge_folder(tmp_path, NODES) == DataError.exit_code
    assert f"megacov: preflight: {gone} on any of the nodes: correct model.path" in capsys.readouterr().out
    assert not (tmp_path / "bad_nodes").exists()
    # One node that has it shows that the others are at fault.
    verdict = judge(NODES, reports | {"n2": healthy()["n2"]})
    assert set(verdict.bad) == set(NODES) - {"n2"} and not verdict.missing
    assert verdict.bad["n0"] == (gone,)


GPU = """<gpu id="{i}"><product_name>NVIDIA H100 80GB HBM3</product_name>
<fb_memory_usage><total>81559 MiB</total><used>{used} MiB</used></fb_memory_usage>
<ecc_errors><volatile><sram_correctable>3</sram_correctable>
<sram_uncorrectable_parity>0</sram_uncorrectable_parity><dram_uncorrectable>{errors}</dram_uncorrectable></volatile>
<aggregate><dram_uncorrectable>9</dram_uncorrectable></aggregate></ecc_errors>
<remapped_rows><remapped_row_pending>{pending}</remapped_row_pending>
<remapped_row_failure>{failure}</remapped_row_failure></remapped_rows></gpu>"""
WELL = {"used": "602", "errors": "0", "pending": "No", "failure": "No"}


def told(*gpus: dict[str, str]) -> str:
    """The part of the output of `nvidia-smi -q -x` that is read."""
    each = "".join(GPU.format(i=i, **(WELL | gpu)) for i, gpu in enumerate(gpus))
    return f"<nvidia_smi_log><driver_version>570.86.15</driver_version>{each}</nvidia_smi_log>"


def links(*counts: int, dead: str = "") -> str:
    """Output of `nvidia-smi nvlink --status` for GPUs with so many links."""
    lines = []
    for i, count in enumerate(counts):
        lines += [f"GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{i})"]
        lines += [f"\t Link {link}: 26.562 GB/s" for link in range(count)]
    return "\n".join([*lines, dead])


@pytest.mark.parametrize(
    ("second", "of_links", "problem"),
    [
        ({}, links(18, 18), None),
        ({}, "", None),
        ({"errors": "2"}, "", "GPU 1 has 2 uncorrectable memory errors (dram_uncorrectable) since"),
        ({"errors": "N/A"}, "", None),
        ({"pending": "Yes"}, "", "GPU 1 must be reset"),
        ({"failure": "Yes"}, "", "GPU 1 must be replaced"),
        ({"used": "40213"}, "", "GPU 1 has 40213 MiB in use"),
        ({}, links(18, 17), "GPU 1 has 17 NVLinks, and others have 18"),
        ({}, links(18, 0, dead="Unable to retrieve NVLink information as all links are inActive"), "GPU 1 has 0 NV"),
        ({}, links(18, 17, dead="\t Link 17: <inactive>"), "GPU 1 has 17 NVLinks, and others have 18"),
        ({}, links(0, 0, dead="\t Link 0: <inactive>"), None),
    ],
)
def test_what_is_wrong_with_a_gpu_is_said(second: dict[str, str], of_links: str, problem: str | None) -> None:
    found = judge_gpus(told({}, second), of_links, wanted=2)
    assert found.driver == "570.86.15" and len(found.names) == 2
    assert bool(found.problems) == (problem is not None)
    assert problem is None or found.problems[0].startswith(problem)


def test_too_few_gpus_and_no_driver_are_said() -> None:
    assert judge_gpus(told({}), "", wanted=8).problems == ("1 GPUs, and the run is laid out for 8",)
    assert "prints no XML" in judge_gpus("Failed to initialize NVML", "", wanted=8).problems[0]
