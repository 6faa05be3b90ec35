"""Groups of judged samples from a fleet, whole or carried over from the step before."""
