"""What a person starts: the command line, simulation, progress, example plans."""
