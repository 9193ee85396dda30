"""What Home Assistant reads of MQTT to show cameras by themselves: a device each, with state, status, last class and
last picture.
"""

import json
import re


def node(base: str) -> str:
    """The level of discovery topics that is the service's own."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", base)


def discovery_filter(prefix: str, base: str) -> str:
    """Subscribes to all that `discovery` publishes for a service."""
    return f"{prefix}/+/{node(base)}/+/config"


def discovery(prefix: str, base: str, camera: str) -> dict[str, str]:
    """Retained payloads by topic, as Home Assistant's MQTT discovery wants them.

    Args:
        prefix: Home Assistant's, "homeassistant" unless it was changed there.
        base: First level of the service's topics.
        camera: Its name.
    """
    topics = f"{base}/{camera}"
    running = {"topic": f"{base}/availability"}
    seeing = {
        "topic": f"{topics}/status",
        "value_template": "{{ 'offline' if value_json.state == 'away' else 'online' }}",
    }
    shared = {
        "device": {"identifiers": [f"{node(base)}_{camera}"], "name": camera, "model": "watch.py"},
        "availability": [running],
        "origin": {"name": "watch.py"},
    }
    entities = {
        ("binary_sensor", "state"): {
            "name": "Anomaly",
            "device_class": "problem",
            "state_topic": f"{topics}/state",
            "availability": [running, seeing],
            "availability_mode": "all",
        },
        ("sensor", "status"): {
            "name": "Status",
            "icon": "mdi:cctv",
            "entity_category": "diagnostic",
            "state_topic": f"{topics}/status",
            "value_template": "{{ value_json.state }}",
            "json_attributes_topic": f"{topics}/status",
        },
        ("sensor", "class"): {
            "name": "Last class",
            "icon": "mdi:tag",
            "state_topic": f"{topics}/events",
            "value_template": "{{ value_json['class'] }}",
            "json_attributes_topic": f"{topics}/events",
        },
        ("image", "snapshot"): {
            "name": "Last event",
            "content_type": "image/jpeg",
            "image_topic": f"{topics}/snapshot",
        },
    }
    found = {}
    for (component, name), entity in entities.items():
        names = {"unique_id": f"{node(base)}_{camera}_{name}", "object_id": f"{node(base)}_{camera}_{name}"}
        topic = f"{prefix}/{component}/{node(base)}/{camera}_{name}/config"
        found[topic] = json.dumps(shared | names | entity, sort_keys=True)
    return found
