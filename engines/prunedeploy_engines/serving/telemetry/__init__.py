"""What is told of a request: metrics, a log line, a trace."""
