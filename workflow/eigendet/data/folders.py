"""Find detection data and class folders below a folder, by names and by the JSON files there.

Nothing is guessed: what could be meant in two ways is a message that says what was seen and what to name.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from eigendet.data.notes import printable
from eigendet.errors import UserError, some

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "minival", "dev"),
    "test": ("test", "testing"),
}
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
COCO_KEYS = (b'"images"', b'"annotations"', b'"categories"', b'"bbox"')
MOST_BROKEN = 3  # files, in a message

Item = TypeVar("Item")


@dataclass
class Contents:
    """What is directly in a folder; hidden entries are left out."""

    images: int = 0
    files: list[Path] = field(default_factory=list)  # JSON
    folders: list[Path] = field(default_factory=list)


Tree = Mapping[Path, Contents]


class Pair(NamedTuple, Generic[Item]):
    """Something for training, and the same for validation."""

    train: Item
    val: Item


def walk(root: Path) -> dict[Path, Contents]:
    """Return what every folder below one holds, itself first; a folder that several links lead to counts once.

    Raises:
        UserError: `root` does not exist or is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; expected one with data.")
    tree: dict[Path, Contents] = {}
    visited = set()
    for name, folders, files in os.walk(root, followlinks=True):
        place = Path(name)
        if (identity := place.resolve()) in visited:
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        contents = tree[place] = Contents(folders=[place / folder for folder in folders])
        for file in sorted(files):
            suffix = file[file.rfind(".") :].lower()  # a Path for each of a million images would take long
            if suffix in SUFFIXES and not file.startswith("."):
                contents.images += 1
            elif suffix == ".json" and not file.startswith("."):
                contents.files.append(place / file)
    return tree


def split_of(path: Path, root: Path) -> tuple[str | None, str]:
    """Return the split that a path's name says, or else its nearest folder's, and the path without that word.

    >>> split_of(Path("data/annotations/instances_train2017.json"), Path("data"))
    ('train', 'annotations/instances_*2017.json')
    >>> split_of(Path("data/valid/_annotations.coco.json"), Path("data"))
    ('val', '*/_annotations.coco.json')
    """
    parts = list(path.relative_to(root).parts if path.is_relative_to(root) else path.parts)
    for position in reversed(range(len(parts))):
        words = [match for match in re.finditer("[a-z]+", parts[position].lower()) if match[0] in SPLIT_OF]
        if len(words) == 1:
            (word,) = words
            parts[position] = parts[position][: word.start()] + "*" + parts[position][word.end() :]
            return SPLIT_OF[word[0]], "/".join(parts)
    return None, "/".join(parts)


def pairs_by_name(paths: Iterable[Path], root: Path) -> list[Pair[Path]]:
    """Return those whose paths differ in nothing but the word for training and validation.

    >>> files = [Path("a_train.json"), Path("a_val.json"), Path("b_train.json"), Path("a_test.json")]
    >>> [(str(train), str(val)) for train, val in pairs_by_name(files, Path())]
    [('a_train.json', 'a_val.json')]
    """
    families: dict[str, dict[str | None, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        split, family = split_of(path, root)
        families[family][split].append(path)
    return [
        Pair(family["train"][0], family["val"][0])
        for family in families.values()
        if len(family["train"]) == len(family["val"]) == 1
    ]


def annotation_pair(tree: Tree, root: Path) -> Pair[Path]:
    """Return the COCO files for training and validation.

    Those of keypoints are left aside where others are there too, as in COCO itself.

    Raises:
        UserError: there are none, or it is not clear which.
    """
    files = [file for contents in tree.values() for file in contents.files]
    coco = [file for file in files if _holds(file, COCO_KEYS)]
    pairs = pairs_by_name(coco, root)
    if len(pairs) > 1:
        pairs = [pair for pair in pairs if not _holds(pair.train, (b'"keypoints"',))]
    if len(pairs) == 1:
        return pairs[0]
    rest = [file for file in files if file not in coco]
    others = f" ({_not_coco(rest)})" if rest else ""
    if not coco:
        raise UserError(
            f"{root}: no COCO file in it{others}; expected JSON with the lists 'images', 'annotations' (with 'bbox') "
            "and 'categories', one for training and one for validation. Another format needs a plugin: "
            "'eigendet plugins new dataset NAME'."
        )
    if len(coco) == 1:
        raise UserError(
            f"{coco[0]}: the only COCO file in {root}{others}; expected one for training and one, of other images, for "
            "validation: split it, or name both, training first: --annotations FILE --annotations FILE"
        )
    raise UserError(
        f"{root}: {len(coco)} COCO files, {some([str(file) for file in coco])}; which are for training and validation "
        "their names do not say, so name two, training first: --annotations FILE --annotations FILE"
    )


def image_folder(annotations: Path, names: Sequence[str], tree: Tree, root: Path) -> Path:
    """Return the folder that holds the images of a COCO file, of which `names` are some.

    It is the file's own folder, or else one below `root`; of several, the one of the same split.

    Raises:
        UserError: there is none, or it is not clear which.
    """

    def number(folder: Path) -> int:
        return sum((folder / name).is_file() for name in names)

    if number(annotations.parent) == len(names):
        return annotations.parent
    here = [folder for folder in tree if (folder / names[0]).is_file() or (folder / names[-1]).is_file()]
    whole = [folder for folder in here if number(folder) == len(names)]
    if len(whole) > 1:
        split, _ = split_of(annotations, root)
        whole = [folder for folder in whole if split_of(folder, root)[0] == split] or whole
    if len(whole) == 1:
        return whole[0]
    if whole:
        raise UserError(
            f"{annotations}: its images could be those in {some([str(folder) for folder in whole])}; name the folder "
            "for training, then that for validation: --images FOLDER --images FOLDER"
        )
    if here:
        require_images(annotations, names, max(here, key=number))
    raise UserError(
        f"{annotations}: its images, '{names[0]}' for example, are in no folder below {root}; name the folder for "
        "training, then that for validation: --images FOLDER --images FOLDER"
    )


def require_images(annotations: Path, names: Sequence[str], folder: Path) -> None:
    """Raise UserError unless these images of a COCO file are in a folder."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{annotations}: of the {len(names)} images that were looked at, {len(missing)} are not in {folder}; the "
            f"first is '{missing[0]}'."
        )


def class_pairs(tree: Tree, root: Path, taken: Iterable[Path]) -> list[Pair[Path]]:
    """Return folders of a folder of images for each class, for training and validation.

    Args:
        tree: everything below `root`.
        root: where it was looked for.
        taken: folders of images for detection, whose own folders are not classes.
    """
    taken = list(taken)

    def apart(folder: Path) -> bool:
        return not any(folder.is_relative_to(other) or other.is_relative_to(folder) for other in taken)

    holds_images = _images_below(tree)
    candidates = [
        folder
        for folder, contents in tree.items()
        if folder != root
        and apart(folder)
        and any(holds_images[inner] for inner in contents.folders if inner in holds_images)
        and split_of(Path(folder.name), Path())[0]
    ]
    return pairs_by_name(candidates, root)


def class_counts(folder: Path, tree: Tree) -> dict[str, int]:
    """Return the number of images of each class.

    Raises:
        UserError: a class has none, or there are fewer than two classes.
    """
    if folder not in tree:
        tree = walk(folder)
    below = _images_below(tree)
    counts = {inner.name: below.get(inner, 0) for inner in tree[folder].folders}
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise UserError(f"{folder}: class folders without images: {some(empty)}; expected images in each.")
    if len(counts) < 2:
        raise UserError(f"{folder}: holds {len(counts)} class folders; expected a folder of images for each class.")
    return counts


def class_images(root: Path) -> dict[str, list[Path]]:
    """Return the images of each class, sorted: those in its folder, and in those inside, links followed.

    Hidden files and folders are left out; a folder that several links of a class lead to counts once.

    Raises:
        UserError: there are no classes, one has no images, a link leads nowhere, or a folder cannot be read.
    """
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror}); expected one folder for each class.") from None
    for entry in entries:
        _require_target(entry)
    classes = {entry.name: sorted(images_in(entry)) for entry in entries if entry.is_dir()}
    if not classes:
        raise UserError(f"{root}: holds no folders; expected one folder of images for each class.")
    for name, images in classes.items():
        if not images:
            expected = ", ".join(sorted(SUFFIXES))
            raise UserError(f"{printable(root / name)}: class folder without images; expected files {expected}.")
    return classes


def images_in(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder, and in those inside."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); expected a folder of images.")

    visited = set()
    for name, inner, files in os.walk(folder, onerror=refuse, followlinks=True):
        if (identity := os.path.realpath(name)) in visited:
            inner.clear()
            continue
        visited.add(identity)
        inner[:] = sorted(one for one in inner if not one.startswith("."))
        for file in files:
            if not file.startswith("."):
                path = Path(name, file)
                _require_target(path)
                if path.suffix.lower() in SUFFIXES:
                    yield path


def _require_target(path: Path) -> None:
    """Raise UserError if a path is a link that leads nowhere."""
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{printable(path)}: a link to {printable(path.readlink())}, which is not there; remove it, or put that "
            "back."
        )


def files_in(folder: Path) -> Callable[[str], tuple[os.stat_result | None, bool]]:
    """Return a function that looks up files by their names in an image folder.

    It returns a file's state, None if there is no such file; and whether that is inside of the folder, whatever `..`,
    links and absolute names lead to. Folders are resolved once, so of most images it looks at the file alone.
    """
    root = os.path.realpath(folder)

    def is_inside(path: str) -> bool:
        return os.path.commonpath([root, os.path.realpath(path)]) == root

    folder_inside = functools.cache(is_inside)

    def look(name: str) -> tuple[os.stat_result | None, bool]:
        path = os.path.join(root, name)  # noqa: PTH118 - a Path for each of a million images would take long
        try:
            inside = folder_inside(os.path.dirname(path))  # noqa: PTH120
            state = os.lstat(path)
            if stat.S_ISLNK(state.st_mode):
                inside, state = inside and is_inside(path), os.stat(path)  # noqa: PTH116
        except (OSError, ValueError):  # not there, a name that is too long, or one that holds a zero byte
            return None, True
        return (state if stat.S_ISREG(state.st_mode) else None), inside

    return look


def _images_below(tree: Tree) -> dict[Path, int]:
    """Return the number of images in every folder, however deep."""
    counts: dict[Path, int] = {}
    for folder in reversed(list(tree)):  # what is in a folder comes after it
        contents = tree[folder]
        counts[folder] = contents.images + sum(counts.get(inner, 0) for inner in contents.folders)
    return counts


def _not_coco(files: Sequence[Path]) -> str:
    """Say which JSON files cannot be read, and where they break, and which hold something else."""
    broken: dict[Path, str] = {}
    for file in files:
        try:
            json.loads(file.read_bytes())
        except json.JSONDecodeError as error:
            broken[file] = f"line {error.lineno}, column {error.colno}: {error.msg}"
        except (OSError, UnicodeDecodeError, RecursionError) as error:
            broken[file] = str(error)
    parts = [f"{file}: cannot be read as JSON: {reason}" for file, reason in list(broken.items())[:MOST_BROKEN]]
    if rest := [str(file) for file in files if file not in broken]:
        parts.append(f"{some(rest)}: JSON, but not COCO")
    return "; ".join(parts)


def _holds(file: Path, keys: Sequence[bytes]) -> bool:
    """Return whether these bytes are in a file; much faster than to parse it."""
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(key) >= 0 for key in keys)
