//! Process chassis: configuration, telemetry, tasks, shutdown.
