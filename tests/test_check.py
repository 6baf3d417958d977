"""edgeopt check: planted faults are found, nothing is touched, the list is honoured, what cannot run says why."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from edgeopt import api
from edgeopt.config import DataConfig, load_recipe
from edgeopt.data import exclusion, near
from edgeopt.data.checks import labels
from edgeopt.data.checks.result import CheckResult
from edgeopt.data.ingest import ingest
from edgeopt.errors import ConfigError, DataError, ModelError


def scene(label: int, seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A sharp picture unlike all others, in a colour of its class; conftest's stripes are alike but for their phase."""
    rng = np.random.default_rng(1000 * label + seed)
    patches = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(patches)
    for inset in (4, 14, 24):
        draw.rectangle((inset, inset, size[0] - inset, size[1] - inset), outline="black", width=2)
    colour = Image.new("RGB", size, ((230, 40, 40), (40, 220, 60), (50, 70, 240))[label])
    pixels = np.asarray(Image.blend(patches, colour, 0.5), dtype=float) + rng.normal(0, 8, (size[1], size[0], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def scenes(root: Path, *, classes: int, each: int) -> Path:
    """``root/<class>/<index>.png``."""
    for label in range(classes):
        (root / f"class {label}").mkdir(parents=True)
        for index in range(each):
            scene(label, index).save(root / f"class {label}" / f"{index:03d}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of 30, to be spoilt by the test."""
    return scenes(tmp_path / "photos", classes=2, each=30)


def check(root: Path, **values: object) -> CheckResult:
    """Without the pretrained model, whose features take seconds."""
    out = root.parent / "out"
    return api.check(DataConfig(path=str(root)), out=out, **{"labels": False, **values})  # type: ignore[arg-type]


def found(result: CheckResult) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for issue in result.issues:
        kinds.setdefault(issue.kind, set()).add(issue.path)
    return kinds


def recoded(image: Image.Image, path: Path, scale: float = 0.8, quality: int = 60) -> Path:
    image.resize((round(image.width * scale), round(image.height * scale))).save(path, quality=quality)
    return path


# --- what is found ------------------------------------------------------------------------------------------------


def test_clean_pictures_have_no_issue(root: Path) -> None:
    result = check(root)
    assert result.issues == ()
    assert result.pictures == 60
    assert result.classes == {"class 0": 30, "class 1": 30}
    assert "Nothing suspicious was found" in result.html.read_text()


def test_damaged_empty_and_stray_files_are_listed_with_the_reason(root: Path) -> None:
    content = (root / "class 0" / "000.png").read_bytes()
    (root / "class 0" / "cut.png").write_bytes(content[: len(content) // 2])
    (root / "class 0" / "zero.jpg").touch()
    (root / "class 1" / "text.jpg").write_text("no picture")
    (root / "stray.png").write_bytes(content)
    reasons = {issue.path: issue.reason for issue in check(root).issues}
    assert set(reasons) == {"class 0/cut.png", "class 0/zero.jpg", "class 1/text.jpg", "stray.png"}
    assert "truncated" in reasons["class 0/cut.png"]
    assert "the file is empty" in reasons["class 0/zero.jpg"]
    assert reasons["stray.png"] == "in no class folder"


def test_copies_are_told_by_pixels_and_the_first_is_kept(root: Path) -> None:
    Image.open(root / "class 0" / "001.png").save(root / "class 0" / "z.bmp")
    shutil.copy(root / "class 0" / "002.png", root / "class 1" / "stray.png")
    result = check(root)
    assert found(result) == {
        "duplicate": {"class 0/z.bmp"},
        "conflict": {"class 0/002.png", "class 1/stray.png"},
    }
    assert [path for path, _ in result.left_out()] == ["class 0/z.bmp"]


def test_near_duplicates_are_found_and_unlike_pictures_are_not(root: Path) -> None:
    image = scene(0, 5)
    recoded(image, root / "class 0" / "near.jpg")
    recoded(scene(0, 7), root / "class 1" / "other.jpg")
    result = check(root)
    assert found(result) == {
        "near_duplicate": {"class 0/near.jpg"},
        "conflict": {"class 0/007.png", "class 1/other.jpg"},
    }
    (issue,) = [issue for issue in result.issues if issue.kind == "near_duplicate"]
    assert issue.other == "class 0/005.png", "the larger picture is kept"


def test_leaks_between_ready_made_splits_are_found(tmp_path: Path) -> None:
    root = tmp_path / "ready"
    scenes(root / "train", classes=2, each=12)
    for label in range(2):
        folder = root / "test" / f"class {label}"
        folder.mkdir(parents=True)
        for seed in range(200, 206):
            scene(label, seed).save(folder / f"{seed}.png")
    shutil.copy(root / "test" / "class 0" / "200.png", root / "train" / "class 0" / "exact.png")
    recoded(scene(0, 201), root / "train" / "class 0" / "near.jpg")
    result = check(root)
    assert found(result) == {"leak": {"train/class 0/exact.png", "train/class 0/near.jpg"}}
    assert [issue.other for issue in result.issues] == ["test/class 0/200.png", "test/class 0/201.png"]
    dataset = ingest(DataConfig(path=str(root), group_near=True))
    assert dict(dataset.set_aside) == {
        "train/class 0/exact.png": "the same picture is in test: test/class 0/200.png",
        "train/class 0/near.jpg": "nearly the same picture is in test: test/class 0/201.png",
    }


def test_dark_bright_blurry_empty_long_and_large_pictures_are_found(root: Path) -> None:
    folder, image = root / "class 0", scene(0, 900, (96, 80))
    Image.eval(image, lambda value: value // 20).save(folder / "dark.png")
    Image.eval(image, lambda value: 247 + value // 32).save(folder / "bright.png")
    few = np.random.default_rng(2).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(few).resize((96, 80), Image.Resampling.BICUBIC).save(folder / "blurry.png")
    Image.new("RGB", (96, 80), (120, 130, 140)).save(folder / "flat.png")
    image.resize((270, 40)).save(folder / "long.png")
    scene(0, 901, (900, 800)).save(folder / "large.jpg", quality=95)
    kinds = found(check(root))
    for kind, name in (
        ("dark", "dark.png"),
        ("bright", "bright.png"),
        ("blurry", "blurry.png"),
        ("low_information", "flat.png"),
        ("odd_aspect_ratio", "long.png"),
        ("odd_size", "large.jpg"),
    ):
        assert f"class 0/{name}" in kinds[kind], kinds
    assert not kinds["dark"] & {f"class 0/{index:03d}.png" for index in range(30)}


def test_the_size_in_the_file_counts_not_the_size_it_is_read_at(root: Path) -> None:
    Image.new("RGB", (4000, 4000), "red").save(root / "class 0" / "huge.jpg")
    reasons = [issue.reason for issue in check(root).issues if issue.kind == "odd_size"]
    assert reasons == ["4000x4000 pixels"]


def test_a_class_of_few_pictures_is_noted(root: Path) -> None:
    (root / "rare").mkdir()
    for index in range(3):
        scene(2, index).save(root / "rare" / f"{index}.png")
    assert check(root).notes == (
        'imbalance: "class 0" has 30 pictures, 10 times the smallest class; a tenth of that or less: "rare" (3)',
    )


def test_swapped_labels_rank_worst_and_are_proposed_to_leave_out(tmp_path: Path) -> None:
    root = scenes(tmp_path / "photos", classes=3, each=24)
    for index in range(2):
        shutil.move(root / "class 0" / f"{index:03d}.png", root / "class 1" / f"swapped-{index}.png")
    result = check(root, labels=True)
    swapped = {"class 1/swapped-0.png", "class 1/swapped-1.png"}
    assert result.not_run == ()
    assert {path for path, _ in result.label_quality[:2]} == swapped
    assert len(result.label_quality) == 72
    issues = {issue.path: issue for issue in result.issues if issue.kind == "label"}
    assert swapped <= set(issues)
    assert all(issues[path].suggested == "class 0" for path in swapped)


def test_folds_keep_alike_pictures_together_and_every_class_in_training() -> None:
    classes = [0] * 20 + [1] * 4 + [2] * 2
    groups = [f"g{index // 2}" if index < 20 else f"h{index}" for index in range(26)]
    fold = labels.folds(classes, groups)
    assert all(fold[index] == fold[index + 1] for index in range(0, 20, 2))
    for number in range(labels.FOLDS):
        assert {classes[index] for index in np.flatnonzero(fold != number)} == {0, 1, 2}


# --- near duplicates ----------------------------------------------------------------------------------------------


def test_every_near_pair_is_found_whatever_its_place() -> None:
    rng = np.random.default_rng(0)
    thumbnails = list(rng.integers(0, 256, (700, 16, 16, 3), dtype=np.uint8))
    for first, second in ((3, 4), (0, 699), (255, 256), (100, 600)):
        noise = rng.integers(-6, 7, (16, 16, 3))
        thumbnails[second] = np.clip(thumbnails[first].astype(int) + noise, 0, 255).astype(np.uint8)
    assert {pair[:2] for pair in near.near_pairs(thumbnails)} == {(3, 4), (0, 699), (255, 256), (100, 600)}


def test_a_chain_of_near_duplicates_is_not_one_group() -> None:
    assert near.complete_link([(0, 1, 0.1), (1, 2, 0.2), (2, 3, 0.3)]) == [[0, 1], [2, 3]]
    assert near.complete_link([(0, 1, 0.1), (1, 2, 0.2), (0, 2, 0.3), (2, 3, 0.4)]) == [[0, 1, 2]]
    assert near.complete_link([]) == []


@pytest.mark.parametrize("seed", range(4))
def test_group_near_keeps_near_duplicates_in_one_split(tmp_path: Path, seed: int) -> None:
    root = scenes(tmp_path / "photos", classes=2, each=60)
    for index in range(20):
        recoded(scene(0, index), root / "class 0" / f"near-{index:03d}.jpg")
    apart, together = (
        {item.path: item.split for item in ingest(DataConfig(path=str(root), seed=seed, group_near=group)).items}
        for group in (False, True)
    )
    pairs = [(f"class 0/{index:03d}.png", f"class 0/near-{index:03d}.jpg") for index in range(20)]
    assert all(together[one] == together[two] for one, two in pairs)
    assert any(apart[one] != apart[two] for one, two in pairs), "the test would prove nothing"


def test_a_group_of_a_considerable_part_of_a_class_is_refused(root: Path) -> None:
    for quality in (40, 50):
        recoded(scene(0, 5), root / "class 0" / f"near-{quality}.jpg", quality=quality)
    with pytest.raises(DataError, match='3 of the 32 different pictures of "class 0" are near duplicates') as caught:
        ingest(DataConfig(path=str(root), group_near=True))
    assert "edgeopt check" in str(caught.value.fix)


# --- the list of pictures to leave out ----------------------------------------------------------------------------


def test_the_list_is_honoured_and_nothing_is_touched(root: Path) -> None:
    names = {"class 0/# odd.png": 800, "class 0/a # b.png": 801, "class 0/line.png": 802}
    for name, seed in names.items():
        scene(0, seed).save(root / name)
        scene(0, seed).save((root / name).with_suffix(".bmp"))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    listed = root.parent / "leave-out.txt"
    result = check(root, exclude=listed)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    left_out = {path for path, _ in result.left_out()}
    assert left_out == set(names)
    plain, fewer = ingest(DataConfig(path=str(root))), ingest(DataConfig(path=str(root), exclude=str(listed)))
    assert {item.path for item in plain.items} - {item.path for item in fewer.items} == left_out
    assert plain.fingerprint != fewer.fingerprint
    reasons = dict(fewer.set_aside)
    assert reasons["class 0/line.png"].startswith("excluded by leave-out.txt: exact copies: the same picture as ")
    assert fewer.notes == ()


def test_a_list_written_by_hand(root: Path) -> None:
    listed = root.parent / "mine.txt"
    listed.write_text("# mine\n\nclass 0/000.png\n./class 0/001.png   # too dark\nclass 0/nothing.png\n")
    dataset = ingest(DataConfig(path=str(root), exclude=str(listed)))
    assert dict(dataset.set_aside) == {
        "class 0/000.png": "excluded by mine.txt",
        "class 0/001.png": "excluded by mine.txt: too dark",
    }
    assert dataset.notes == ("mine.txt names 1 pictures that are not in the data, first class 0/nothing.png",)


def test_names_survive_the_list(tmp_path: Path) -> None:
    rows = [("a # b.png", "one"), ('"q".png', "two"), ("#x.png", ""), (" y.png", "three\nlines"), ("tab\there.png", "")]
    exclusion.write(tmp_path / "list.txt", "data", rows)
    read = exclusion.read(str(tmp_path / "list.txt"))
    assert [path for path, _ in read.lines.values()] == [path for path, _ in rows]


def test_a_list_that_is_not_there_or_would_be_overwritten(root: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        ingest(DataConfig(path=str(root), exclude="nowhere.txt"))
    listed = root.parent / "mine.txt"
    listed.write_text("class 0/000.png\n")
    with pytest.raises(ConfigError, match="exists already"):
        check(root, exclude=listed)


def test_a_recipes_list_is_looked_for_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "edgeopt.toml").write_text('[data]\npath = "photos"\nexclude = "list.txt"\ngroup_near = true\n')
    data = load_recipe(tmp_path / "edgeopt.toml").data
    assert data.exclude == str(tmp_path / "list.txt")
    assert data.group_near


# --- what is written ----------------------------------------------------------------------------------------------


def test_the_page_is_whole_worst_first_and_asks_nothing_of_the_network(root: Path) -> None:
    Image.new("RGB", (96, 80), (120, 130, 140)).save(root / "class 0" / '<b>&".png')
    shutil.copy(root / "class 0" / "001.png", root / "class 0" / "copy.png")
    recoded(scene(0, 3), root / "class 0" / "a-far.jpg", quality=40)
    recoded(scene(0, 4), root / "class 0" / "b-near.jpg", scale=1.0, quality=95)
    result = check(root)
    page = result.html.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    sources = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(sources) >= 3
    import base64

    for source in sources:
        assert max(Image.open(io.BytesIO(base64.b64decode(source))).size) <= 128
    record = json.loads(result.json.read_text())
    assert record["schema"] == 1
    assert record == result.to_json()
    near = [(issue["path"], issue["score"]) for issue in record["issues"] if issue["kind"] == "near_duplicate"]
    assert [path for path, _ in near] == ["class 0/b-near.jpg", "class 0/a-far.jpg"]
    assert near[0][1] > near[1][1]
    assert page.index("b-near.jpg") < page.index("a-far.jpg")


def test_the_command_prints_a_table_and_one_json_object(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "class 0" / "001.png", root / "class 0" / "copy.png")
    base = [sys.executable, "-m", "edgeopt", "check", str(root), "--no-labels"]
    environment = {**os.environ, "NO_COLOR": "1"}
    text = subprocess.run(base, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert "Exact copies  1         class 0/copy.png: the same picture as class 0/001.png" in text.stdout
    assert (tmp_path / "runs" / "checks" / "photos" / "check.html").is_file()
    done = subprocess.run([*base, "--json"], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert json.loads(done.stdout)["counts"] == {"duplicate": 1}


@pytest.mark.parametrize("verb", [["finetune"], ["adopt", "--model", "resnet18", "--weights", "w.pth", "--data"]])
def test_the_verbs_that_read_pictures_take_the_list(root: Path, tmp_path: Path, verb: list[str]) -> None:
    (tmp_path / "w.pth").touch()
    command = [sys.executable, "-m", "edgeopt", *verb, str(root), "--exclude", "nowhere.txt", "--group-near"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "the list nowhere.txt does not exist" in done.stderr


# --- what cannot run ----------------------------------------------------------------------------------------------


def test_missing_packages_are_named_with_the_command_that_installs_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "edgeopt.data.checks.issues.find_spec",
        lambda name: None if name in ("cleanvision", "cleanlab") else there(name),
    )
    result = check(root, labels=True)
    said = [(item.check, item.reason, item.fix) for item in result.not_run]
    assert said == [
        ("pictures' quality", "cleanvision is not installed", 'pip install "edgeopt[check]"'),
        ("labels", "cleanlab is not installed", 'pip install "edgeopt[check]"'),
    ]
    assert "cleanlab is not installed" in result.html.read_text()


def test_without_weights_the_other_checks_go_on_and_say_what_would_help(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ModelError("no pretrained weights for resnet18: offline", fix="--weights FILE")

    monkeypatch.setattr("edgeopt.data.checks.labels.features", offline)
    (item,) = check(root, labels=True, model="resnet18").not_run
    assert (item.check, item.reason) == ("labels", "no pretrained weights for resnet18: offline")


def test_an_unknown_model_is_said_before_anything_is_read(root: Path) -> None:
    with pytest.raises(ModelError, match="resnet81"):
        check(root, labels=True, model="resnet81")


def test_a_set_without_a_readable_picture_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "x.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no picture under"):
        check(tmp_path / "photos")


# --- the figures that are promised --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_digits_benchmark_meets_its_figures(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import checks

    measured = checks.labels(checks.pictures_of("digits", None, tmp_path / "labels"), tmp_path)
    assert measured["recall_in_worst_tenth"] >= 0.9
    copies = checks.near_duplicates(checks.pictures_of("digits", None, tmp_path / "near"), tmp_path)
    assert copies["recall"] >= 0.95
    assert copies["false_pairs_share_of_pictures"] <= 0.01


def test_the_committed_measurements_meet_the_promised_figures() -> None:
    measured = json.loads((Path(__file__).resolve().parent.parent / "benchmarks" / "checks.json").read_text())
    assert measured["labels-digits"]["recall_in_worst_tenth"] >= 0.9
    assert measured["labels-emoji"]["times_chance"] >= 2.5
    for name in ("near-digits", "near-emoji"):
        assert measured[name]["recall"] >= 0.95
        assert measured[name]["false_pairs_share_of_pictures"] <= 0.01
    assert measured["speed"]["pictures"] == 5000
    assert measured["speed"]["seconds"] < 600


def test_the_readme_says_how_precise_check_is_and_of_what() -> None:
    root = Path(__file__).resolve().parent.parent
    measured = json.loads((root / "benchmarks" / "checks.json").read_text())
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    digits, emoji = measured["labels-digits"], measured["labels-emoji"]
    wrong = round(emoji["left_out"] * (1 - emoji["left_out_precision"]))
    near = measured["near-emoji"]
    for said in (
        f"of {digits['left_out']} pictures on digits {digits['left_out_precision']:.0%}",
        f"({digits['left_out_recall']:.0%} of all that were)",
        f"of {emoji['left_out']} on emoji {emoji['left_out_precision']:.0%} ({emoji['left_out_recall']:.0%})",
        f"the other {wrong} were not",
        f"{near['pairs_unplanted']} on {near['pictures']:,} emoji, of which {near['false_pairs_unplanted']} were false",
        f"{near['false_pairs_unplanted'] / near['pairs_unplanted']:.1%} of the pairs reported",
        f"{100 * near['false_pairs_share_of_pictures']:.2f} false pairs for 100 pictures",
    ):
        assert said.replace("%", " %") in readme
