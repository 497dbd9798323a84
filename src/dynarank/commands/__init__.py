"""The commands. Nothing imports them but their entry points."""
