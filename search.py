"""Moments of an archive that words describe, best first, out of CLIP's features of it.

    python search.py --features features "a person climbing a fence"
    python search.py --features features --videos videos --out found "smoke" "a white van"   # found/search.html
    python search.py --features features --clip weights.pt --centred --top 50 "a fight"

FEATURES is a folder that extract_features.py wrote with CLIP. A row is ranked by the cosine of its features and the
text's. Files are memory-mapped and read once for all texts; of moments close together the best counts.
"""

import videoanomaly  # noqa: F401  (first: it tells whether this Python is new enough)

# isort: split

import argparse
import os
from pathlib import Path

from videoanomaly.runtime.addresses import refuse_addresses
from videoanomaly.runtime.console import InputError, Parser, at_least, run_script


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("texts", nargs="+", metavar="TEXT", help="what to look for, in English as CLIP learned it")
    add("--features", type=Path, required=True, help="folder of .npy files and meta.json")
    add("--clip", default="ViT-B/16", help="CLIP weights that made them: a name or a file (default: ViT-B/16)")
    add("--top", type=at_least(1), default=20, help="moments for each text (default: 20)")
    add("--apart", type=float, default=10.0, help="seconds between two moments of a video (default: 10)")
    add(
        "--centred",
        action="store_true",
        help="take the mean of all rows from rows and texts, which brings out what is unlike the rest",
    )
    add("--videos", type=Path, help="folder of the videos, for pictures")
    add("--out", type=Path, help="folder for search.html, and search.csv for tables")
    add("--workers", type=at_least(1), default=min(4, os.cpu_count() or 1), help="files read at once")
    add("--device", help="of CLIP's text tower: cpu, cuda, cuda:1 (default: cuda if there is one)")
    return check_args(parser.parse_args(argv))


def check_args(args: argparse.Namespace) -> argparse.Namespace:
    refuse_addresses({name: value for name, value in vars(args).items() if name != "texts"})
    if not 0 <= args.apart < float("inf"):
        raise InputError(f"--apart {args.apart}: expected seconds, at least 0")
    if args.videos and not args.out:
        raise InputError("--videos is for the pictures of --out: expected both")
    if args.videos and not args.videos.is_dir():
        raise InputError(f"--videos {args.videos}: found no folder, expected that of the videos")
    if blank := [text for text in args.texts if not text.strip()]:
        raise InputError(f"{blank[0]!r}: found no word, expected some to look for")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    from videoanomaly.data.features import FeatureFolder
    from videoanomaly.retrieval.moments import file_names, mean_row, print_table, search, table
    from videoanomaly.retrieval.search_page import page
    from videoanomaly.retrieval.texts import text_features
    from videoanomaly.runtime.files import write_atomically
    from videoanomaly.runtime.processes import check_device

    folder = FeatureFolder(args.features)
    names = file_names(folder)
    texts = text_features(args.texts, args.clip, folder.encoder, check_device(args.device))
    centre = mean_row(folder, names) if args.centred else None
    how = {"top": args.top, "apart": args.apart, "centre": centre, "threads": args.workers}
    found = dict(zip(args.texts, search(folder, names, texts, **how)))
    print_table(found)
    if args.out:
        ranked = "cosine of features and text" + (", both less the mean of all rows" if args.centred else "")
        text = page(found, folder, args.videos, f"{len(names)} videos; ranked by the {ranked}; times in the video")
        write_atomically(args.out / "search.csv", lambda file: file.write(table(found).encode()))
        write_atomically(args.out / "search.html", lambda file: file.write(text.encode()))
        print(f"page: {args.out / 'search.html'}")
    return 0


if __name__ == "__main__":
    run_script(main)
