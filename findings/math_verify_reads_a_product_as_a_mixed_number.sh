#!/bin/sh
# math-verify 0.9.0: the value of 5(4).
#
# Expected: 20, and (7)(10) is 70.
# Seen:     9 and 17. An integer in front of a positive rational number without a sign between them is read as a mixed
#           number, as 2 \frac{1}{2} is, whatever the brackets.
# So:       megacov writes the sign of such a product before it parses
#           (megacov/rewards/verifiers/mathematics/expressions.py).
#
# Run with: sh findings/math_verify_reads_a_product_as_a_mixed_number.sh [python3.11]. Needs a network or a package mirror.
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
for right, wrong, response in (("20", "9", "5(4)"), ("70", "17", "(7)(10)")):
    verdicts = [verify(parse(f"${gold}$"), parse(f"${response}$")) for gold in (right, wrong)]
    print(f"{response} equals {right}: {verdicts[0]}; equals {wrong}: {verdicts[1]}")
    assert verdicts == [False, True], "it is a product now"
PYTHON
