"""One optimizer step: what each token counts, where the covariance method acts, the update, and its metrics."""
