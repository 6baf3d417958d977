"""Manifests: CSV and JSONL become the same dataset, groups stay whole, bad rows are all said at once."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import paint, paint_folder

from edgeopt import ModelConfig, TrainConfig, api
from edgeopt.config import DataConfig
from edgeopt.data.dataset import Dataset
from edgeopt.data.ingest import ingest
from edgeopt.data.split import carve
from edgeopt.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of 12 in folders whose names are no classes."""
    return paint_folder(tmp_path / "shots", classes=2, each=12)


def rows_of(root: Path) -> list[dict[str, object]]:
    return [
        {"path": str(path.relative_to(root)), "label": {"class 0": "cat", "class 1": "dog"}[path.parent.name]}
        for path in sorted(root.glob("class */*.png"))
    ]


def write_csv(root: Path, rows: list[dict[str, object]], name: str = "labels.csv") -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(columns), *(",".join(str(row.get(key, "")) for key in columns) for row in rows)]
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return root / name


def write_jsonl(root: Path, rows: list[dict[str, object]]) -> Path:
    (root / "labels.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    return root / "labels.jsonl"


def read(path: Path, **values: object) -> Dataset:
    return ingest(DataConfig.model_validate({"path": str(path), **values}))


def test_csv_and_jsonl_are_the_same_dataset(root: Path) -> None:
    rows = rows_of(root)
    first, second = read(write_csv(root, rows)), read(write_jsonl(root, rows))
    assert first == second
    assert first.classes == ("cat", "dog")
    assert first.root == str(root)
    assert first.counts() == {"train": 18, "val": 2, "test": 4}
    assert all(item.label == int(item.path.startswith("class 1/")) for item in first.items)


def test_what_the_manifest_does_not_name_is_not_used(root: Path) -> None:
    assert len(read(write_csv(root, rows_of(root)[2:])).items) == 22


def test_a_stated_split_is_kept_and_a_missing_one_carved(root: Path) -> None:
    rows = [{**row, "split": "Testing" if index % 4 == 0 else "train"} for index, row in enumerate(rows_of(root))]
    dataset = read(write_csv(root, rows))
    assert {item.path for item in dataset.of("test")} == {row["path"] for row in rows if row["split"] == "Testing"}
    assert dataset.counts() == {"train": 16, "val": 2, "test": 6}


@pytest.mark.parametrize("seed", range(5))
def test_a_group_never_straddles_splits_even_across_classes(root: Path, seed: int) -> None:
    rows = [{**row, "group": f"patient {index % 6}"} for index, row in enumerate(rows_of(root))]
    splits = defaultdict(set)
    classes = defaultdict(set)
    dataset = read(write_csv(root, rows), seed=seed)
    group = {row["path"]: row["group"] for row in rows}
    for item in dataset.items:
        splits[group[item.path]].add(item.split)
        classes[item.split].add(item.label)
    assert all(len(found) == 1 for found in splits.values())
    assert all(found == {0, 1} for found in classes.values()), "every split has every class"
    assert len(dataset.of("train")) >= 12


def test_the_shares_hold_when_groups_are_small() -> None:
    groups = {name: {f"g{index}": 5 for index in range(40)} for name in "ab"}
    groups["a"].update({f"own{index}": 1 for index in range(50)})
    assigned = carve(groups, {"test": 0.2, "val": 0.1}, seed=3)
    for name, members in groups.items():
        total = sum(members.values())
        share = {
            split: sum(members[g] for g in members if assigned[name, g] == split) / total for split in ("test", "val")
        }
        assert share["test"] == pytest.approx(0.2, abs=0.03)
        assert share["val"] == pytest.approx(0.1, abs=0.03)
    assert all(assigned["a", f"g{index}"] == assigned["b", f"g{index}"] for index in range(40))


def test_groups_that_cannot_be_divided_say_which_class_lacks_what() -> None:
    groups = {"a": {"one": 5, "two": 5, "three": 5}, "b": {"one": 5, "x": 1, "y": 1}, "c": {"two": 1, "one": 1, "z": 1}}
    assigned = carve(groups, {"test": 0.2, "val": 0.1}, seed=0)
    for name in groups:
        assert {assigned[name, group] for group in groups[name]} == {"train", "val", "test"}
    with pytest.raises(DataError, match="leave no picture of class") as caught:
        carve(
            {
                "a": {"one": 5, "two": 5, "six": 1},
                "b": {"one": 5, "six": 1, "five": 5},
                "c": {"six": 3, "five": 3, "two": 1},
            },
            {"test": 0.2, "val": 0.1},
            seed=1,
        )
    assert caught.value.fix


def test_weights_travel_with_the_dataset_and_change_its_fingerprint(root: Path, tmp_path: Path) -> None:
    rows = rows_of(root)
    plain = read(write_csv(root, rows))
    rows[0]["weight"] = 2.5
    weighted = read(write_csv(root, rows))
    assert {item.path: item.weight for item in weighted.items if item.weight != 1} == {rows[0]["path"]: 2.5}
    assert weighted.fingerprint != plain.fingerprint
    weighted.write(tmp_path / "record")
    assert Dataset.read(tmp_path / "record") == weighted


def test_bad_rows_are_said_all_at_once_with_their_lines(root: Path) -> None:
    path = root / "labels.csv"
    path.write_text(
        "path,label,split,group,weight\n"
        "class 0/000.png,cat,train,,\n"
        "class 0/missing.png,cat,train,,\n"
        "../outside.png,cat,train,,\n"
        "class 0/001.png,,train,,\n"
        "class 0/002.png,cat,tests,,\n"
        "class 0/003.png,cat,train,,-1\n"
        "class 0/000.png,cat,train,,\n"
        "class 0/004.png,cat,train,a,\n"
        "class 0/005.png,cat,test,a,\n"
        "class 0/006.png,cat,,,\n"
        "class 0/007.png,cat,train,,1,extra\n"
        "class 0,cat,train,,\n"
        "/etc/passwd,cat,train,,nan\n"
    )
    with pytest.raises(ConfigError) as caught:
        read(path)
    said = caught.value.message
    for part in (
        "12 problems",
        "line 3: class 0/missing.png does not exist",
        "line 4: ../outside.png is not in the manifest's folder",
        "line 5: no label",
        "line 6: the split tests is none of train, val, test",
        "line 7: the weight -1",
        "line 8: class 0/000.png is named on line 2 already",
        'line 10: group "a" is in test, but in train on line 9',
        "line 11: no split, which other rows have",
        "line 12: 6 cells, but 5 columns",
        "line 13: class 0 cannot be used",
        "line 14: /etc/passwd is not in the manifest's folder",
        "line 14: the weight nan",
    ):
        assert part in said, said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "path,labl\nx.png,cat\n", r'no column label \(is "labl" it\?\)'),
        ("a.csv", "", "no column path"),
        ("a.csv", "path,label\n", "names no pictures"),
        ("a.csv", "path,label,label\n", "two columns called label"),
        ("a.csv", b"path,label\n\xff\xfe,cat\n", "not UTF-8"),
        ("a.csv", 'path,label\n"open,cat\n', "line 2: unexpected end of data"),
        ("a.jsonl", '{"path": "x.png", "label": true}\n[1]\n{"a\n', "line 3: not JSON"),
        ("b.csv", None, "does not exist"),
    ],
)
def test_what_is_no_manifest_is_refused_in_a_line(
    root: Path, name: str, content: str | bytes | None, said: str
) -> None:
    if content is not None:
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((DataError, ConfigError), match=said) as caught:
        read(root / name)
    assert caught.value.fix


def test_columns_that_are_not_used_are_noted(root: Path) -> None:
    rows = [{**row, "wieght": 1, "camera": "x"} for row in rows_of(root)]
    notes = read(write_csv(root, rows)).notes
    assert notes == ('column "camera" is not used', 'column "wieght" is not used (did you mean "weight"?)')


def test_a_link_out_of_the_folder_and_a_broken_picture_are_set_aside(root: Path, tmp_path: Path) -> None:
    paint(0, 600).save(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "bad.png").write_bytes(b"nothing")
    extra: list[dict[str, object]] = [{"path": "link.png", "label": "cat"}, {"path": "bad.png", "label": "cat"}]
    aside = dict(read(write_csv(root, [*rows_of(root), *extra])).set_aside)
    assert aside["link.png"] == "a link that leads out of the dataset"
    assert "cannot be read as a picture" in aside["bad.png"]


def test_finetune_takes_a_manifest_and_names_the_run_after_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = api.finetune(
        DataConfig(path=str(write_csv(root, rows_of(root))), image_size=32),
        ModelConfig(name="resnet18", pretrained=False),
        TrainConfig(epochs=1, batch_size=8, layer_decay=1.0, augment="none"),
    )
    assert trained.run.path.name == "labels"
    assert Dataset.read(trained.run.data).classes == ("cat", "dog")
