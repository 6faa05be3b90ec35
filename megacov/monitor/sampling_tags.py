"""Tags of over-sampling and of a curriculum."""

from __future__ import annotations

from megacov.monitor.tag import Tag

OVER_SAMPLING_TAGS = (
    Tag("rollout/aborted_groups", "Over-sampled groups given up when the batch was complete.", "groups", "none"),
    Tag("rollout/unused_groups", "Over-sampled groups judged in vain: they come after the batch.", "groups", "none"),
)

CURRICULUM_TAGS = (
    Tag("curriculum/skipped", "Prompts passed over because their accuracy is outside the band.", "prompts", "none"),
    Tag(
        "curriculum/accuracy",
        "Running accuracy of the step's prompts before it. Absent where none was sampled before.",
        "share",
        "groups",
    ),
    Tag("curriculum/below_band", "Prompts of all data that are too hard.", "share", "none"),
    Tag("curriculum/in_band", "Prompts of all data that are neither too hard nor too easy.", "share", "none"),
    Tag("curriculum/above_band", "Prompts of all data that are too easy.", "share", "none"),
    Tag(
        "curriculum/unknown",
        "Prompts of all data with fewer than `data.curriculum.min_samples` judged responses.",
        "share",
        "none",
    ),
)
