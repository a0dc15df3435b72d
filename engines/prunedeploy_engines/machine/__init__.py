"""What a measurement ran on: `environment` (hardware and software), `state` (clocks, temperatures), `energy`."""
