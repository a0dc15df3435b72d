"""What works on this machine, and what to install: `doctor` asks all the others."""
