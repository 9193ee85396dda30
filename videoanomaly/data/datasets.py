"""The data sets: what differs between them, as plain values."""

# Class names with Normal, in id order, as in the label files of the released code.
CLASS_NAMES = {
    "shanghaitech": (
        "car",
        "chasing",
        "circuit",
        "fall",
        "fighting",
        "hurdle",
        "jumping",
        "monocycle",
        "normal",
        "push",
        "robbery",
        "running",
        "skateboard",
        "step",
        "stoop",
        "throwing object",
        "vaudeville",
        "vehicle",
    ),
    "ucfcrime": (
        "Abuse",
        "Arrest",
        "Arson",
        "Assault",
        "Burglary",
        "Explosion",
        "Fighting",
        "Normal",
        "RoadAccidents",
        "Robbery",
        "Shooting",
        "Shoplifting",
        "Stealing",
        "Vandalism",
    ),
    "xdviolence": ("Abuse", "Car_accident", "Explosion", "Fighting", "Normal", "Riot", "Shooting"),
}
PRESETS = {  # what differs from the config's defaults, which are those of UCF-Crime (App. A and B)
    "shanghaitech": {"depth": 2, "temporal_input": "both", "lr": 5e-4, "epochs": 100},
    "ucfcrime": {"lr": 1e-5, "epochs": 50},
    "xdviolence": {"embed_dim": 128, "lr": 5e-6, "epochs": 50},
    "custom": {"lr": 5e-4, "epochs": 100},  # as ShanghaiTech, the smallest of the three
    "demo": {
        "lr": 1e-3,
        "epochs": 15,
        "batch_size": 32,
        "num_frames": 2,
        "embed_dim": 32,
        "evaluate": True,
        "root": "runs/demo-data",
    },
}
