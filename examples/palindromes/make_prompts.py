"""Write the palindrome prompts: "bacabc=" asks for a palindrome of these letters, such as "abccba" or "bcaacb".

    python -m examples.palindromes.make_prompts [FILE]

The rows are those of reasoning-gym's task palindrome_generation. The policy reads letters one by one and no English, so
the letters alone, and "=", stand in place of the question.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from megacov.files import write_atomically
from megacov.rewards.reasoning_gym.write import PromptFile, write_prompt_files

SIZE = 512
SEED = 0
SETTINGS = {"min_length": 6, "max_length": 8}


def main() -> None:
    """Write the file given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).with_name("prompts.jsonl")
    parser.add_argument("file", nargs="?", type=Path, default=default, help="where to write")
    path: Path = parser.parse_args().file
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "prompts.jsonl"
        write_prompt_files([PromptFile("palindrome_generation", SIZE, SEED, full, SETTINGS)])
        rows = [json.loads(line) for line in full.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row | {"prompt": "".join(row["metadata"]["letters"]) + "="}) for row in rows]
    write_atomically(path, "\n".join(lines) + "\n")
    print(f"wrote {len(lines)} prompts to {path}")


if __name__ == "__main__":
    main()
