"""Write the sum-pairs prompts: "137=" asks for two numbers that add up to 137, and has 138 correct answers.

    python examples/sum_pairs/make_prompts.py [FILE]

One line for each target from 10 to 199: {"prompt": "137=", "answer": "137"}.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SMALLEST_TARGET = 10
LARGEST_TARGET = 199


def main() -> None:
    """Write the file given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).with_name("prompts.jsonl")
    parser.add_argument("file", nargs="?", type=Path, default=default, help="where to write")
    path = parser.parse_args().file
    targets = range(SMALLEST_TARGET, LARGEST_TARGET + 1)
    lines = [json.dumps({"prompt": f"{target}=", "answer": str(target)}) for target in targets]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    print(f"wrote {len(lines)} prompts to {path}")


if __name__ == "__main__":
    main()
