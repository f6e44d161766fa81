//! `composefs-info`.

use super::{Tools, directory};
use anyhow::{Context, Result, ensure};
use integration::finish;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

/// Questions whose answers must be those of C for every image.
const QUESTIONS: &[&[&str]] = &[
    &["ls"],
    &["dump"],
    &["objects"],
    &["missing-objects"],
    &["measure-file"],
    &["--filter=wide", "ls", "--filter", "files"],
    &["dump", "--filter=xattrs", "--filter=whiteouts"],
    &["--filter=files", "objects"],
    &["ls", "--filter=no-such-name"],
];

fn ask(question: &[&str], files: &[&Path]) -> Vec<OsString> {
    let question = question.iter().map(OsString::from);
    question.chain(files.iter().map(OsString::from)).collect()
}

#[test]
fn answers_are_those_of_c() -> Result<()> {
    let tools = Tools::new()?;
    let source = tools.path("source");
    directory::make(&source)?;
    let mut images = vec![tools.image(&[&source])?.context("an image")?];
    directory::add_whiteouts(&source)?;
    for option in ["--min-version=0", "--min-version=1"] {
        let args: [&OsStr; 2] = [option.as_ref(), source.as_os_str()];
        images.push(tools.image(&args)?.context("an image")?);
    }
    for image in &images {
        for question in QUESTIONS {
            let answer = tools.both("composefs-info", &ask(question, &[image]))?;
            ensure!(answer.status.success(), "{answer}");
        }
    }
    let all: Vec<&Path> = images.iter().map(AsRef::as_ref).collect();
    for question in [&["ls"][..], &["dump"], &["objects"], &["measure-file"]] {
        let answer = tools.both("composefs-info", &ask(question, &all))?;
        ensure!(answer.status.success(), "{answer}");
    }
    Ok(())
}

#[test]
fn objects_that_a_store_has_are_not_missing() -> Result<()> {
    let tools = Tools::new()?;
    let source = tools.path("source");
    directory::make(&source)?;
    let store = tools.path("store");
    let mut option = OsString::from("--digest-store=");
    option.push(&store);
    let image = tools
        .image(&[option.as_os_str(), source.as_os_str()])?
        .context("an image")?;
    let mut base = OsString::from("--basedir=");
    base.push(&store);
    let question = [&base, OsStr::new("missing-objects"), image.as_os_str()];
    ensure!(tools.both("composefs-info", &question)?.stdout.is_empty());

    let objects = tools.both("composefs-info", &ask(&["objects"], &[&image]))?;
    let objects = objects.text();
    let gone = objects.lines().nth(1).context("two objects")?;
    fs::remove_file(store.join(gone))?;
    ensure!(tools.both("composefs-info", &question)?.text() == gone);
    Ok(())
}

#[test]
fn wrong_questions_end_with_1() -> Result<()> {
    let tools = Tools::new()?;
    let source = tools.path("source");
    fs::create_dir(&source)?;
    let image = tools.image(&[&source])?.context("an image")?;
    let none = tools.path("none");
    for (question, files) in [
        (&[][..], &[][..]),
        (&["ls"], &[]),
        (&["measure-file"], &[]),
        (&["no-such-command"], &[&*image]),
        (&["--no-such-option", "ls"], &[&*image]),
        (&["--filter=a/b", "ls"], &[&*image]),
        (
            &["--basedir=/no/such/directory", "missing-objects"],
            &[&*image],
        ),
        (&["ls"], &[&*none]),
        (&["ls"], &[&*source]),
        (&["dump"], &["/dev/null".as_ref()]),
        (&["measure-file"], &[&*none]),
    ] {
        let done = finish(tools.ours("composefs-info").args(ask(question, files)))?;
        ensure!(done.status.code() == Some(1), "{done}");
        ensure!(done.stdout.is_empty() && !done.stderr.is_empty(), "{done}");
        let c = finish(tools.c("composefs-info").args(ask(question, files)))?;
        ensure!(c.status.code() == Some(1), "{c}");
    }
    Ok(())
}
