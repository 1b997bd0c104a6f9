"""Where artifacts run: the agent program and the ways to reach a machine. Never imports torch."""
