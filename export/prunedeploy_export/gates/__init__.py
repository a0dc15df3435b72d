"""What an exported file must pass before it is deployed."""
