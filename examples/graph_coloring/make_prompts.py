"""Write the graph-coloring prompts: "01 03 23 =" asks for colors of eight vertices, of which neighbors have two.

    python -m examples.graph_coloring.make_prompts [FILE]

The rows are those of reasoning-gym's task graph_color. The policy reads edges and no English, so the edges alone, and
"=", stand in place of the question.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from examples.graph_coloring.make_policy import EDGE_PROBABILITY, NUM_COLORS, NUM_VERTICES, write_edges
from megacov.files import write_atomically
from megacov.rewards.reasoning_gym.rows import read_row
from megacov.rewards.reasoning_gym.write import PromptFile, write_prompt_files

SIZE = 512
SEED = 0
SETTINGS = {
    "min_num_vertices": NUM_VERTICES,
    "max_num_vertices": NUM_VERTICES,
    "num_colors": NUM_COLORS,
    "edge_probability": EDGE_PROBABILITY,
}


def main() -> None:
    """Write the file given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).with_name("prompts.jsonl")
    parser.add_argument("file", nargs="?", type=Path, default=default, help="where to write")
    path: Path = parser.parse_args().file
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "prompts.jsonl"
        write_prompt_files([PromptFile("graph_color", SIZE, SEED, full, SETTINGS)])
        rows = [json.loads(line) for line in full.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row | {"prompt": write_edges(read_row(row).metadata["puzzle"]["edges"])}) for row in rows]
    write_atomically(path, "\n".join(lines) + "\n")
    print(f"wrote {len(lines)} prompts to {path}")


if __name__ == "__main__":
    main()
