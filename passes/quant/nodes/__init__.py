"""Which nodes can become integers, and which do so in company."""
