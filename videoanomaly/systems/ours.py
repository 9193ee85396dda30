"""AnomalyCLIP as one of the systems that train.py knows."""


def make_moments(config, lists, features) -> dict | None:
    """What a checkpoint needs for new classes, `data.normal_moments`; None where there can be none, as contexts are not
    shared.
    """
    from videoanomaly.data.prototype import normal_moments

    prompts_fit_any_class = config.shared_ctx and config.directions != "direct" or config.directions == "engineered"
    return (
        normal_moments(features, lists.train) if prompts_fit_any_class and config.likelihood == "projection" else None
    )
