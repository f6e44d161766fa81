//! Damaged storage is refused with the layer and the file in the message, and leaves no name behind.

use crate::scene::{IMAGE, Scene};
use anyhow::{Context, Result, ensure};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use integration::fixture::noise;
use integration::tar::Member;
use integration::{Fixture, Kind, Release};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const VICTIM: &str = "damaged/victim";

/// Breaks the top layer with `damage`, given its tar-split and its `diff`, and expects a refusal that
/// names the layer and `words`.
fn refused(damage: impl FnOnce(&Path, &Path) -> Result<()>, words: &[&str]) -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, |dir| {
        let members = vec![
            Member::file(VICTIM, noise(20, 100_000)),
            Member::file("damaged/other", noise(21, 5000)),
        ];
        Fixture::with_layers(dir, vec![vec![Member::file("untouched", "u")], members])
    })?;
    let layer = scene.own.layers(IMAGE)?.pop().context("no layer")?;
    let graphroot = scene.own.graphroot();
    let tar_split = graphroot.join(format!("overlay-layers/{layer}.tar-split.gz"));
    damage(
        &tar_split,
        &graphroot.join("overlay").join(&layer).join("diff"),
    )?;

    let arguments = scene.import_arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = scene.store.finish(&arguments)?.refused_with(words)?;
    let diff_id = diff_id(&graphroot, &layer)?;
    ensure!(
        done.stderr.contains(&layer) || done.stderr.contains(&diff_id),
        "neither layer {layer} nor diff ID {diff_id} is named by {done}"
    );

    assert_eq!(
        names(&scene.store.repo().join("streams"))?,
        [] as [PathBuf; 0]
    );
    assert_eq!(
        names(&scene.store.repo().join("images"))?,
        [] as [PathBuf; 0]
    );
    scene.store.ok(&["fsck"])?;
    scene.store.ok(&["gc"])?;
    assert_eq!(scene.store.objects()?, [] as [PathBuf; 0]);
    Ok(())
}

fn diff_id(graphroot: &Path, layer: &str) -> Result<String> {
    let records: Vec<serde_json::Value> =
        serde_json::from_slice(&fs::read(graphroot.join("overlay-layers/layers.json"))?)?;
    let record = records
        .iter()
        .find(|r| r["id"] == *layer)
        .context("no record")?;
    let digest = record["diff-digest"].as_str().context("no diff-digest")?;
    Ok(digest.trim_start_matches("sha256:").to_owned())
}

/// Everything below `dir` but directories.
fn names(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if dir.exists() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.extend(names(&entry.path())?);
            } else {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Rewrites the lines of a tar-split.
fn edit(tar_split: &Path, change: impl FnOnce(&mut Vec<String>)) -> Result<()> {
    let mut text = String::new();
    GzDecoder::new(fs::File::open(tar_split)?).read_to_string(&mut text)?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    change(&mut lines);
    let mut gzip = GzEncoder::new(fs::File::create(tar_split)?, Compression::fast());
    gzip.write_all((lines.join("\n") + "\n").as_bytes())?;
    gzip.finish()?;
    Ok(())
}

#[test]
fn import_refuses_missing_tar_split() -> Result<()> {
    refused(
        |tar_split, _| Ok(fs::remove_file(tar_split)?),
        &["tar-split"],
    )
}

#[test]
fn import_refuses_truncated_tar_split() -> Result<()> {
    refused(
        |tar_split, _| {
            let length = tar_split.metadata()?.len();
            let file = fs::OpenOptions::new().write(true).open(tar_split)?;
            Ok(file.set_len(length / 2)?)
        },
        &["tar-split"],
    )
}

#[test]
fn import_refuses_tar_split_without_its_last_bytes() -> Result<()> {
    refused(
        |tar_split, _| {
            edit(tar_split, |lines| {
                // The end blocks of the tar; an empty segment may follow.
                while lines.pop().is_some_and(|line| !line.contains("AAAA")) {}
            })
        },
        &[],
    )
}

#[test]
fn import_refuses_tar_split_with_an_altered_header() -> Result<()> {
    refused(
        |tar_split, _| {
            edit(tar_split, |lines| {
                // The payload of the first segment is base64; `A` stands for six zero bits.
                let at = lines[0].find("AAAA").unwrap_or_default();
                lines[0].replace_range(at..at + 4, "AAAB");
            })
        },
        &[],
    )
}

#[test]
fn import_refuses_tar_split_with_altered_padding() -> Result<()> {
    refused(
        |tar_split, _| {
            edit(tar_split, |lines| {
                // Behind the content of a file: no reader of the tar would notice.
                let padding = lines.iter_mut().rev().find(|line| line.contains("AAAA"));
                let line = padding.expect("a tar ends with zeros");
                let at = line.find("AAAA").unwrap_or_default();
                line.replace_range(at..at + 4, "AAAB");
            })
        },
        &["diff"],
    )
}

#[test]
fn import_refuses_tar_split_that_names_a_path_outside() -> Result<()> {
    refused(
        |tar_split, _| {
            edit(tar_split, |lines| {
                for line in lines {
                    *line = line.replace(VICTIM, "../../../../../../etc/passwd");
                }
            })
        },
        &["../"],
    )
}

#[test]
fn import_refuses_tar_split_that_is_not_gzip() -> Result<()> {
    refused(
        |tar_split, _| Ok(fs::write(tar_split, noise(22, 1000))?),
        &["tar-split"],
    )
}

#[test]
fn import_refuses_changed_file() -> Result<()> {
    refused(
        |_, diff| {
            let mut content = fs::read(diff.join(VICTIM))?;
            content[50_000] ^= 1;
            Ok(fs::write(diff.join(VICTIM), content)?)
        },
        &[VICTIM],
    )
}

#[test]
fn import_refuses_truncated_file() -> Result<()> {
    refused(
        |_, diff| {
            let file = fs::OpenOptions::new().write(true).open(diff.join(VICTIM))?;
            Ok(file.set_len(99_999)?)
        },
        &[VICTIM],
    )
}

#[test]
fn import_refuses_missing_file() -> Result<()> {
    refused(|_, diff| Ok(fs::remove_file(diff.join(VICTIM))?), &[VICTIM])
}

#[test]
fn import_refuses_symlink_in_place_of_a_file() -> Result<()> {
    refused(
        |_, diff| {
            let moved = diff.join("moved");
            fs::rename(diff.join(VICTIM), &moved)?;
            Ok(std::os::unix::fs::symlink(moved, diff.join(VICTIM))?)
        },
        &[VICTIM],
    )
}

#[test]
fn import_refuses_fifo_in_place_of_a_file() -> Result<()> {
    refused(
        |_, diff| {
            fs::remove_file(diff.join(VICTIM))?;
            integration::ok(std::process::Command::new("mkfifo").arg(diff.join(VICTIM)))?;
            Ok(())
        },
        &[VICTIM],
    )
}
