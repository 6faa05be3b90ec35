"""Job scripts: that they are bash, hold everything the job needs and no secret, and assign nodes and GPUs correctly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from megacov.config.slurm import FIXED, SET_BY
from megacov.errors import ConfigError, DataError
from megacov.launch.job import Job, JobLayout, Servers, as_arguments, lay_out
from megacov.launch.sbatch import PLACEHOLDER, TEMPLATES, render
from megacov.launch.site import Site, read_site

SITES = sorted((TEMPLATES / "sites").glob("*.env"))
SHELLS = sorted([*TEMPLATES.glob("*.sbatch"), TEMPLATES / "job.sh"])


def split(**changes: int | bool | None) -> JobLayout:
    """Four nodes that train and four for servers of two GPUs, with changes."""
    settings: dict[str, int | bool | None] = {"ranks": 32, "gpus_per_node": 8, "nodes": 8, "gpus_per_server": 2}
    return lay_out(**(settings | {"colocated": False, "heterogeneous": False} | changes))  # type: ignore[arg-type]


def make_job(layout: JobLayout, site: Site | None = None, overrides: tuple[str, ...] = ()) -> Job:
    """A job on nodes of eight GPUs."""
    return Job(
        name="a_run",
        folder=Path("/shared/project"),
        config=Path("/shared/project/a run.yaml"),
        run=Path("/shared/runs/a_run"),
        model=Path("/models/a model"),
        overrides=overrides,
        seed=7,
        layout=layout,
        gpus_per_node=8,
        servers=Servers(("python", "-m", "sglang.launch_server"), ("--tp-size", "2")) if layout.servers else None,
        time_limit_min=240,
        signal_lead_s=300,
        max_requeues=20,
        preflight=True,
        all_reduce=("nccl", "512", "0"),
        hang_s=480.0,
        leave_s=130,
        reached_by_servers=True,
        python="python",
        site=site or Site(),
    )


SHAPES = {
    "split": split(),
    "heterogeneous": split(heterogeneous=True),
    "colocated": split(nodes=4, colocated=True),
    "alone": split(nodes=4, gpus_per_server=None),
    "spread": split(gpus_per_server=16),
}


def check_shell(text: str) -> None:
    """Valid for bash, and for shellcheck if it is installed."""
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=60)
    if shutil.which("shellcheck") is not None:
        checked = subprocess.run(
            ["shellcheck", "-"], input=text, capture_output=True, text=True, check=False, timeout=60
        )
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: path.name)
def test_a_template_is_bash_as_it_stands(path: Path) -> None:
    check_shell(path.read_text())


@pytest.mark.parametrize(
    ("shape", "site"), [*((shape, None) for shape in SHAPES), *(("split", site) for site in SITES)]
)
def test_a_script_is_whole(shape: str, site: Path | None) -> None:
    script = render(make_job(SHAPES[shape], read_site(site) if site else None, ("run.steps=5", "data.path=a b@RUN@")))
    check_shell(script)
    assert [found[0] for found in PLACEHOLDER.finditer(script)] == ["@RUN@"]  # the user's own text
    # SLURM reads options up to the first command.
    lines = script.splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
    assert "'data.path=a b@RUN@'" in script


def options_of(script: str) -> list[set[str]]:
    """#SBATCH options of each component."""
    components: list[set[str]] = [set()]
    for option in re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE):
        if option == "hetjob":
            components.append(set())
        else:
            components[-1].add(option)
    return components


def test_a_job_survives_its_time_limit() -> None:
    (options,) = options_of(render(make_job(SHAPES["split"])))
    expected = {"--signal=B:USR1@300", "--requeue", "--open-mode=append", "--time=240", "--gpus-per-node=8"}
    assert expected | {"--nodes=8"} <= options


def test_components_have_their_own_nodes_and_partitions() -> None:
    job = replace(make_job(SHAPES["heterogeneous"]), partition="h100", server_partition="l40")
    trainer, servers = options_of(render(job))
    assert {"--nodes=4", "--partition=h100"} <= trainer
    assert {"--nodes=4", "--partition=l40", "--gpus-per-node=8"} <= servers
    _, servers = options_of(render(replace(job, server_partition="")))
    assert "--partition=h100" in servers


def test_a_site_says_where_and_in_what() -> None:
    pyxis = render(make_job(SHAPES["split"], read_site(TEMPLATES / "sites" / "pyxis.env")))
    assert "--account=my_project" in options_of(pyxis)[0]
    assert "--container-image=/shared/images/megacov.sqsh" in pyxis
    assert "export NCCL_IB_HCA=mlx5" in pyxis
    assert "--container-mounts" not in pyxis
    site = replace(read_site(TEMPLATES / "sites" / "pyxis.env"), mounts="/shared:/shared,/models:/models")
    assert "--container-mounts=/shared:/shared,/models:/models" in render(make_job(SHAPES["split"], site))
    site = replace(read_site(TEMPLATES / "sites" / "apptainer.env"), mounts="/shared:/shared")
    apptainer = render(make_job(SHAPES["split"], site))
    assert "apptainer exec --nv --bind /shared:/shared /shared/images/megacov.sif" in apptainer
    assert "module load apptainer" in apptainer


@pytest.mark.parametrize(
    ("changes", "nodes", "servers", "per_node", "nodes_each", "gpus_each"),
    [
        ({}, (4, 4), 16, 4, 1, 2),
        ({"gpus_per_server": 8}, (4, 4), 4, 1, 1, 8),
        ({"gpus_per_server": 16}, (4, 4), 2, 1, 2, 8),
        ({"gpus_per_server": 3}, (4, 4), 8, 2, 1, 3),
        ({"ranks": 64, "nodes": 16}, (8, 8), 32, 4, 1, 2),
        ({"ranks": 4, "nodes": 2}, (1, 1), 4, 4, 1, 2),
        ({"nodes": 4, "colocated": True}, (4, 4), 16, 4, 1, 2),
    ],
)
def test_servers_fill_their_nodes(
    changes: dict[str, int | bool | None],
    nodes: tuple[int, int],
    servers: int,
    per_node: int,
    nodes_each: int,
    gpus_each: int,
) -> None:
    layout = split(**changes)
    assert (layout.train_nodes, layout.server_nodes) == nodes
    assert (layout.servers, layout.servers_per_node) == (servers, per_node)
    assert (layout.nodes_per_server, layout.gpus_per_server) == (nodes_each, gpus_each)
    assert layout.servers * layout.nodes_per_server == layout.server_nodes * layout.servers_per_node
    assert layout.train_nodes * layout.ranks_per_node == changes.get("ranks", 32)


def test_without_further_nodes_servers_are_elsewhere() -> None:
    layout = split(nodes=None)
    assert (layout.shape, layout.nodes, layout.servers) == ("colocated", 4, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nodes": 3}, "cluster.nodes is 3 and the trainer takes 4"),
        ({"nodes": 4}, "cluster.nodes is 4, all of which train"),
        ({"nodes": 8, "gpus_per_server": None}, "cluster.nodes is 8 and the trainer takes 4"),
        ({"nodes": 8, "colocated": True}, "cluster.nodes is 8 and the trainer takes 4"),
        ({"ranks": 11}, "the trainer has 11 ranks"),
        ({"gpus_per_server": 12}, "tp-size is 12"),
        ({"gpus_per_server": 16, "nodes": 7}, "3 nodes of 8 GPUs"),
        ({"gpus_per_node": 32, "gpus_per_server": 1}, "32 servers would be on each node"),
    ],
)
def test_nodes_that_cannot_be_shared_out(changes: dict[str, int | bool | None], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        split(**changes)


def test_a_path_that_slurm_would_misread_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.directory is '/shared/my runs/x'"):
        render(replace(make_job(SHAPES["split"]), run=Path("/shared/my runs/x")))


def test_templates_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no templates"):
        render(make_job(SHAPES["split"]), templates=tmp_path)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("export A=1", "'export A' does not begin as NAME=value does"),
        ("MEGACOV_IMAGE=docker://me:secret@registry/megacov", "MEGACOV_IMAGE holds what looks like a secret"),
        ("MEGACOV_QUEUE=a", "there is no setting MEGACOV_QUEUE"),
        ("MEGACOV_CONTAINER=docker", "set pyxis or apptainer"),
        ("MEGACOV_IMAGE=a.sif", "set both or neither"),
        ("MEGACOV_PARTITION=a b", "MEGACOV_PARTITION is 'a b'"),
    ],
)
def test_a_site_file_that_cannot_be_used(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "site.env").write_text(f"# a site\n{line}\n")
    with pytest.raises(ConfigError, match=sentence):
        read_site(tmp_path / "site.env")


def test_a_secret_of_the_site_stays_out_of_the_script_and_is_named(tmp_path: Path) -> None:
    secrets = {
        "GITHUB_PAT": "one1111",
        "HF_TOKEN": "two2222",
        "DB_PASSWORD": "three333",
        "PIP_INDEX_URL": "https://me:four4444@example.org/simple",
        "EXTRA": "hf_five5555555555555555",
    }
    plain = {
        "PATH": "/opt/bin:/bin",
        "KEYBOARD": "us",
        "MONKEY": "yes",
        "TOKENIZERS_PARALLELISM": "false",
        "MAX_TOKENS": "4096",
        "SSH_KEY_FILE": "/home/me/key",
        "GIT_URL": "ssh://git@example.org/x",
    }
    lines = [f"{name}={value}\n" for name, value in (secrets | plain).items()]
    (tmp_path / "site.env").write_text("".join(lines))
    site = read_site(tmp_path / "site.env")
    assert site.environment == plain
    assert [sentence.partition(": ")[2].split()[0] for sentence in site.left_out] == list(secrets)
    text = render(make_job(SHAPES["split"], site)) + "".join(site.left_out)
    assert not any(f"{word}{digit * 4}" in text for word, digit in zip(WORDS, "12345", strict=True))
    # Neither do the logs of the job hold what it inherits.
    dump = text[text.index("dump_environment() {") : text.index("check_gpus() {")]
    shown = subprocess.run(
        ["bash", "-c", f"{dump}\ndump_environment"],
        env=os.environ | secrets | plain | {"URL": "https://x.org/?api_key=six"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    assert {f"{name}=(hidden)" for name in (*secrets, "URL")} <= set(shown)
    assert "TERM_PROGRAM=(hidden)" not in shown and any(line.startswith("PATH=/opt") for line in shown)


WORDS = ("one", "two", "three", "four", "five")

# As sbatch must read them, whatever they hold.
FREE_OPTIONS = ('--comment=it\'s "mine" $(touch x) `id` # \\ @RUN@ ; hetjob', "--mail-type=END", "--licenses=a:1,b:2")


def test_options_of_sbatch_are_quoted() -> None:
    nodes = ("--constraint=[a|b]&c", "--gres=shard:1,gpu:h100:8", "--exclude=node[1-3],node7", "--reservation=r")
    job = replace(make_job(SHAPES["heterogeneous"]), qos="high", node_options=nodes, job_options=FREE_OPTIONS)
    script = render(job)
    check_shell(script)
    trainer, servers = options_of(script)
    assert {'"--constraint=[a|b]&c"', "--qos=high", "--licenses=a:1,b:2"} <= trainer
    assert '"--comment=it\'s \\"mine\\" $(touch x) `id` # \\\\ @RUN@ ; hetjob"' in trainer
    assert {'"--constraint=[a|b]&c"', "--gres=shard:1,gpu:h100:8", "--reservation=r"} <= servers
    # The job asks for its GPUs once, by --gres, and the options of the whole job are given once.
    assert not any(option.startswith("--gpus-per-node") for option in trainer | servers)
    assert not servers & {"--qos=high", "--mail-type=END"}
    fewer = render(replace(job, node_options=("--gres=gpufs:1",)))
    assert "--gpus-per-node=8" in options_of(fewer)[1]


def test_extra_options_cannot_repeat_those_of_the_script() -> None:
    site = read_site(TEMPLATES / "sites" / "apptainer.env")
    own = set()
    for layout in SHAPES.values():
        job = replace(make_job(layout, site), partition="a", node_options=("--constraint=a", "--gres=a", "--exclude=a"))
        for component in options_of(render(job)):
            own |= {option.partition("=")[0].removeprefix("--") for option in component}
    assert own - {"account"} <= {*SET_BY, *FIXED}  # of the account, `megacov launch` knows whether the site sets it


def test_options_become_words() -> None:
    options = {"tp-size": 2, "enable-x": True, "enable-y": False, "cuda-graph-bs": (1, 2)}
    assert as_arguments(options) == ("--tp-size", "2", "--enable-x", "--cuda-graph-bs", "1", "2")
