#!/bin/sh
# math-verify 0.9.0: whether i is the imaginary unit.
#
# Expected: i^2 is -1, and (2+3i)(2-3i) is 13.
# Seen:     verify refuses both: i is a variable like x. In an answer with an i of its own, variables are not real either.
# So:       megacov puts the imaginary unit in the place of every variable i after parsing
#           (megacov/rewards/verifiers/mathematics/expressions.py).
#
# Run with: sh findings/math_verify_i_is_a_variable.sh [python3.11]. Needs a network or a package mirror.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install 'math-verify[antlr4-13-2]==0.9.0' latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from math_verify import parse, verify

print(f"math-verify {version('math-verify')}, sympy {version('sympy')}")
assert version("math-verify") == "0.9.0"
for gold, response in (("-1", "i^2"), ("13", "(2+3i)(2-3i)"), ("5+12i", "(3+2i)^2"), ("-1", "e^{i \\pi}")):
    verdict = verify(parse(f"${gold}$"), parse(f"${response}$"))
    print(f"gold {gold}, response {response}: {verdict}")
    assert not verdict, "i is the imaginary unit now"
PYTHON
