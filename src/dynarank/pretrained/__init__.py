"""Where models come from, how they are loaded, and what is known of each architecture."""
