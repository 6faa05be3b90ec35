"""Tasks of the package reasoning-gym: which can be trusted, and files of their prompts."""
