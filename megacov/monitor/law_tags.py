"""Tags that a run derives from its own history: the entropy law, and alarms."""

from __future__ import annotations

from megacov.monitor.alarms import ALARMS
from megacov.monitor.tag import Tag

LAW_TAGS = (
    Tag("law/a", "Coefficient a.", "reward", "none"),
    Tag("law/b", "Coefficient b.", "reward", "none"),
    Tag("law/ceiling", "b - a: the reward at entropy 0, which the run does not exceed by this law.", "reward", "none"),
    Tag("law/ceiling_low", "Lower end of the 95 % interval of the ceiling.", "reward", "none"),
    Tag("law/ceiling_high", "Upper end of it.", "reward", "none"),
    Tag("law/rmse", "Root mean square of the rewards' distances from the curve.", "reward", "none"),
)

ALARM_TAGS = tuple(
    Tag(f"alarm/{kind}", (function.__doc__ or "").partition("\n\n")[0].replace("\n    ", " "), "-", "none", "text")
    for kind, function in ALARMS.items()
)

LAW_SECTIONS = {
    "law": """\
The law `R = -a exp(H) + b` (arXiv 2505.22617) between `reward/mean` and `entropy/token_mean`, fitted to all logged
steps so far, from step 20 on and with 20 logged steps or more. Absent where the law does not hold; the log has the
reason. It cannot hold where the run steers its entropy, as under Clip-Cov and KL-Cov. `megacov predict` tells more.""",
    "alarm": """\
Texts, each at the step at which the alarm was raised. [alarms.md](alarms.md) explains them, and `megacov status` shows
them too.""",
}
