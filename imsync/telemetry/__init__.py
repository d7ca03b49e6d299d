"""What the bus tells, as Prometheus metrics and as OpenTelemetry spans. docs/telemetry.md has the tables."""
