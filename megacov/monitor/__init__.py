"""What a run tells about itself: the table of metrics, how each is computed, and the comparison of finished runs.

Nothing is re-exported, so that reading runs (`compare`) costs no import of torch.
"""
