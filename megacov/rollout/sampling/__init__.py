"""Groups of judged samples from a fleet, sampled in one batch or carried over from the previous one."""
