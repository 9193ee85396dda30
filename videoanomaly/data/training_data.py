"""All that a training reads: lists and features, looked at before any work."""


def open_features(args, videos):
    """The feature folders of the Selector and, if it has its own, of the Temporal model; every file is looked at."""
    from videoanomaly.data.features import FeatureFolder, check_features

    features = FeatureFolder(args.features or args.root, frames_per_feature=args.frames_per_feature, crops=args.crops)
    temporal = args.temporal_features and FeatureFolder(
        args.temporal_features, frames_per_feature=args.temporal_frames_per_feature, crops=args.crops
    )
    check_features(features, videos, temporal)
    return features, temporal
