"""Make the digit scenes that the digits configs use: COCO-style instances and ADE-style semantic masks."""

from __future__ import annotations

import argparse

from repnext_mm.data import SceneSet, ensure_scenes


def main() -> None:
    default = SceneSet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('root', nargs='?', default='data/digit_scenes', help='folder to make')
    parser.add_argument('--train', type=int, default=default.train, help='training scenes')
    parser.add_argument('--val', type=int, default=default.val, help='validation scenes')
    parser.add_argument('--seed', type=int, default=default.seed, help='other seeds give other scenes')
    parser.add_argument('--size', type=int, default=default.size, help='side of a scene in pixels')
    arguments = vars(parser.parse_args())
    root = arguments.pop('root')
    try:
        made = ensure_scenes(root, SceneSet(**arguments))
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f'make_digit_scenes: {error}') from error
    print(f'{root}: {"made" if made else "was there already"}')


if __name__ == '__main__':
    main()
