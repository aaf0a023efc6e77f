"""Command-line tools, each a thin main(). Nobody imports them; a name with _ is a helper of others."""
