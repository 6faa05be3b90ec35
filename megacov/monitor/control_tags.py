"""Tags of a controller."""

from __future__ import annotations

from megacov.monitor.tag import Tag

CONTROL_TAGS = (
    Tag("control/value", "Value of `algorithm.controller.acts_on` that the step has used.", "as the setting", "none"),
    Tag("control/target", "Entropy that the step should have had.", "nats", "none"),
    Tag(
        "control/measured",
        "Entropy that the controller has seen: `entropy/token_mean_t1`. Absent in a step that had no finite one, after "
        "which the value stays.",
        "nats",
        "tokens",
    ),
    Tag(
        "control/integral",
        "Sum that the controller keeps, after the step: of `pi` in shares of the way between its bounds, of "
        "`adaptive_entropy` the coefficient itself, which `control/value` leaves out while the entropy is high enough, "
        "of `entropic` all distances from the target in nats; 0 for `repo_r`.",
        "-",
        "none",
    ),
)

CONTROL_SECTION = """\
Only with `algorithm.controller`: what it saw and set. The next step uses the value that follows from this entropy.
[controller.md](controller.md) describes the laws."""
