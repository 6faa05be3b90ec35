"""The viewer of sampled responses: what is shown (`browser`, `viewer`), how it looks (`layout`, `screen`, `paint`), and
the terminal (`keys`, `terminal`, `loop`)."""
