#!/bin/sh
# math-verify 0.9.0: whether two small decimals are equal.
#
# Expected: 0.0000672 and 0.0000671 are different numbers, as 672 and 671 are.
# Seen:     verify calls them equal, and 0.0000001 and 0.0000002 too: where one side is a decimal, both are rounded to six
#           decimals, whatever their size. One gold answer of MATH-500 is ".0000672" (21/(2^2 5^7) as a
#           decimal), for which ".0000671" and even "0.000067" are right.
# So:       megacov reads decimals as exact fractions and compares those (megacov/rewards/verifiers/mathematics/).
#
# Run with: sh findings/math_verify_rounds_small_decimals.sh [python3.11]. Needs a network or a package mirror.
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
for gold, response in ((".0000672", ".0000671"), (".0000672", "0.000067"), ("0.0000001", "0.0000002")):
    verdict = verify(parse(f"${gold}$"), parse(f"${response}$"))
    print(f"gold {gold}, response {response}: {verdict}")
    assert verdict, "the two are different now"
assert not verify(parse("$672$"), parse("$671$"))
PYTHON
