"""Who is told of events: delivery that survives outages, by webhook and MQTT."""
