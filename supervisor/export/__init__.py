"""What velad is to show over HTTP: metrics for Prometheus."""
