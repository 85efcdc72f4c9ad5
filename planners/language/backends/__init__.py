"""Where language models run: on this machine, behind a server, in a transcript, or in a Python function."""
